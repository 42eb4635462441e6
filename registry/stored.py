"""A federation record and a replica's meta as the bytes that the store keeps.

    record = JSON [life, incarnation, spec, intent, judgement, end] and, after a line feed, the payloads

A section is [major, origin, minor, generation, seq, birth, size of its payload], or 0 where there is none.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from federation.record import Record, Section, section_of
from federation.replica import Meta

State = tuple[Any, ...]
_SECTIONS = len(section_of)


def pack_record(record: Record) -> bytes:
    """What `unpack_record` reads."""
    head: list[Any] = [record.life, record.incarnation]
    payloads = []
    for get in section_of:
        section = get(record)
        if section is None:
            head.append(0)
            continue
        major, origin, minor, payload, generation, seq, birth = section
        head.append([major, origin, minor, generation, seq, list(birth), len(payload)])
        payloads.append(payload)
    return b"\n".join((orjson.dumps(head), b"".join(payloads)))


def unpack_record(key: str, data: bytes) -> State:
    """The record's `state`. ValueError: these bytes are no record."""
    head, _, rest = data.partition(b"\n")
    try:
        life, incarnation, *heads = orjson.loads(head)
        sections = tuple(_sections(heads, rest))
        if type(life) is not int or type(incarnation) is not int or len(sections) != _SECTIONS:
            raise ValueError("it has other parts")
        return key, life, incarnation, *sections
    except (TypeError, ValueError) as fault:
        raise ValueError(f"what the store holds under {key} is no record of this version: {fault}") from None


def _sections(heads: list[Any], rest: bytes) -> Iterator[Section | None]:
    at = 0
    for head in heads:
        if head == 0:
            yield None
            continue
        major, origin, minor, generation, seq, birth, size = head
        if not 0 <= size <= len(rest) - at:
            raise ValueError("it is cut short")
        yield Section(major, origin, minor, rest[at : at + size], generation, seq, tuple(birth))
        at += size
    if at != len(rest):
        raise ValueError("it is too long")


def record_of(state: State) -> Record:
    """The record that has this state."""
    key, life, incarnation, *sections = state
    record = Record(key)
    record.life, record.incarnation = life, incarnation
    record.spec, record.intent, record.judgement, record.end = sections
    return record


def pack_meta(meta: Meta) -> bytes:
    """What `unpack_meta` reads."""
    return orjson.dumps(
        [
            meta.generation,
            [[*chain, seq] for chain, seq in meta.vector.items()],
            [[*chain, seq] for chain, seq in meta.floor.items()],
            meta.life_floor,
        ]
    )


def unpack_meta(data: bytes) -> Meta:
    """The meta. ValueError: these bytes are none."""
    generation, vector, floor, life_floor = orjson.loads(data)
    return Meta(
        generation,
        {(origin, start): seq for origin, start, seq in vector},
        {(origin, start): seq for origin, start, seq in floor},
        life_floor,
    )
