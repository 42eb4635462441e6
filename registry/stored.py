"""A federation record and a replica's meta as the bytes that the store keeps.

    record = JSON [life, incarnation, spec, intent, judgement, end] and, after a line feed, the payloads

A section is [major, origin, minor, generation, seq, birth, size of its payload], then its seal in base64 if it has one;
0 where there is none.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from sys import intern
from typing import Any

import orjson

from federation.record import Record, Section, section_of
from federation.replica import Meta


def pack_record(record: Record) -> bytes:
    """What `unpack_record` reads."""
    head: list[Any] = [record.life, record.incarnation]
    payloads = []
    for get in section_of:
        section = get(record)
        if section is None:
            head.append(0)
            continue
        major, origin, minor, payload, generation, seq, birth, seal = section
        told = [major, origin, minor, generation, seq, list(birth), len(payload)]
        head.append([*told, b64encode(seal).decode()] if seal else told)
        payloads.append(payload)
    return b"\n".join((orjson.dumps(head), b"".join(payloads)))


def unpack_record(key: str, data: bytes) -> Record:
    """The record. ValueError: these bytes are none."""
    head, _, rest = data.partition(b"\n")
    record = Record(key)
    try:
        record.life, record.incarnation, *heads = orjson.loads(head)
        record.spec, record.intent, record.judgement, record.end = _sections(heads, rest)
        if type(record.life) is not int or type(record.incarnation) is not int:
            raise ValueError("it has other parts")
        return record
    except (TypeError, ValueError) as fault:
        raise ValueError(f"what the store holds under {key} is no record of this version: {fault}") from None


def _sections(heads: list[Any], rest: bytes) -> Iterator[Section | None]:
    at = 0
    for head in heads:
        if head == 0:
            yield None
            continue
        major, origin, minor, generation, seq, birth, size, *seal = head
        if not 0 <= size <= len(rest) - at:
            raise ValueError("it is cut short")
        payload, found = rest[at : at + size], b64decode(seal[0]) if seal else b""
        # Few registries name each other in many records: one text for all of them.
        yield Section(major, intern(origin), minor, payload, generation, seq, tuple(birth), found)
        at += size
    if at != len(rest):
        raise ValueError("it is too long")


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
