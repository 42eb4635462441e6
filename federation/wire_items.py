"""Items on the wire: columns of what they are, and nothing that follows from where they stand.

A frame of items names each record once, each chain once, and no write that stands at its own place
in its chain, nor a birth that is the write itself.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from federation.clock import HLC_MAX, Chain
from federation.columns import Fault, Reader, WireError, Writer
from federation.record import MAX_INCARNATION, MAX_KEY_LENGTH, MAX_LIFE, SEAL_SIZE, Item, Section, SectionKind

MAX_ITEMS = 2**14  # eight times what a sender puts in a frame, so that few bytes cannot claim a great many
MAX_PAYLOAD_SIZE = 2**18  # a frame always has room for one

Place = tuple[str, int, int]
"""A dot, bare: (origin, generation, seq)."""

_Name = tuple[str, int, int]
"""What record an item is of: (key, life, incarnation)."""

# An item's shape: two bits of kind, then what need not be written, for it follows from the rest.
_KIND = 0b11
_BIRTH_SELF = 0b100  # this write is the registration that began the life
_BIRTH_OTHER = 0b1000
_MINOR = 0b10000  # there is one
_IN_PLACE = 0b100000  # its dot is the position that it stands at
_SEALED = 0b1000000
_SHAPES_ELSEWHERE = bytes(
    kind | birth | minor | seal
    for kind in range(4)
    for birth in (0, _BIRTH_SELF, _BIRTH_OTHER)
    for minor in (0, _MINOR)
    for seal in (0, _SEALED)
)
_SHAPES = _SHAPES_ELSEWHERE + bytes(shape | _IN_PLACE for shape in _SHAPES_ELSEWHERE)


def put_items(
    writer: Writer, items: Sequence[Item], places: Sequence[Place] | None = None, chains: Iterable[Chain] = ()
) -> None:
    """`places`: the position that each stands at. `chains`: those that the receiver knows already."""
    writer.number(len(items), MAX_ITEMS)
    if not items:
        return
    keys, lives, incarnations, kinds, sections = zip(*items, strict=True)
    if not 0 <= min(kinds) <= max(kinds) <= SectionKind.END:
        raise ValueError("an item of no kind of section")
    majors, origins, minors, payloads, generations, seqs, births, seals = zip(*sections, strict=True)
    if set(map(len, seals)) - {0, SEAL_SIZE}:
        raise ValueError(f"a seal that is not of {SEAL_SIZE} bytes")
    dots: list[Any] = list(zip(origins, generations, seqs, strict=True))
    shapes = bytes(
        kind
        | ((_BIRTH_SELF if birth == dot else _BIRTH_OTHER) if birth else 0)
        | (_MINOR if minor else 0)
        | (_IN_PLACE if dot == place else 0)
        | (_SEALED if seal else 0)
        for kind, birth, dot, minor, place, seal in zip(
            kinds, births, dots, minors, places or repeat(None), seals, strict=False
        )
    )
    writer.out += shapes
    _put_records(writer, list(zip(keys, lives, incarnations, strict=True)))
    written = [dot for dot, shape in zip(dots, shapes, strict=True) if not shape & _IN_PLACE]
    written += [birth for birth, shape in zip(births, shapes, strict=True) if shape & _BIRTH_OTHER]
    _put_dots(writer, written, chains)
    writer.deltas(majors, HLC_MAX)
    writer.deltas([minor for minor in minors if minor], HLC_MAX)
    writer.blobs(payloads, MAX_PAYLOAD_SIZE)
    writer.out += b"".join(seals)


def get_items(reader: Reader, places: Sequence[Place] | None = None, chains: Iterable[Chain] = ()) -> tuple[Item, ...]:
    """See put_items."""
    count = reader.count(MAX_ITEMS, least_size=1)
    if places is not None and count != len(places):
        raise WireError(Fault.COUNT, f"{count} items at {len(places)} positions")
    if not count:
        return ()
    shapes = reader.take(count)
    if shapes.translate(None, _SHAPES_ELSEWHERE if places is None else _SHAPES):
        raise WireError(Fault.SHAPE, "an item of a shape that is not known")
    records = _get_records(reader, count)
    elsewhere = sum(1 for shape in shapes if not shape & _IN_PLACE)
    later = sum(1 for shape in shapes if shape & _BIRTH_OTHER)
    written = iter(_get_dots(reader, elsewhere + later, chains))
    dots = [
        place if shape & _IN_PLACE else next(written)
        for shape, place in zip(shapes, places or repeat(()), strict=False)
    ]
    births = [
        (next(written) if shape & _BIRTH_OTHER else dot) if shape & (_BIRTH_SELF | _BIRTH_OTHER) else ()
        for shape, dot in zip(shapes, dots, strict=True)
    ]
    majors = reader.deltas(count, HLC_MAX)
    stamps = iter(reader.deltas(sum(1 for shape in shapes if shape & _MINOR), HLC_MAX))
    minors = [next(stamps) if shape & _MINOR else 0 for shape in shapes]
    payloads = reader.blobs(count, MAX_PAYLOAD_SIZE)
    seals = [reader.take(SEAL_SIZE) if shape & _SEALED else b"" for shape in shapes]
    origins, generations, seqs = zip(*dots, strict=True)
    sections = map(Section._make, zip(majors, origins, minors, payloads, generations, seqs, births, seals, strict=True))
    return tuple(
        [
            Item(key, life, incarnation, shape & _KIND, section)
            for (key, life, incarnation), shape, section in zip(records, shapes, sections, strict=True)
        ]
    )


def _put_records(writer: Writer, records: Sequence[_Name]) -> None:
    """What each item belongs to. A record's sections often travel together: named once."""
    index: dict[_Name, int] = {}
    references = [index.setdefault(record, len(index)) for record in records]
    keys, lives, incarnations = zip(*index, strict=True)
    if not min(lives):
        raise ValueError("a life of 0 never began")
    writer.number(len(index), MAX_ITEMS)
    writer.deltas(references)
    writer.texts(keys, MAX_KEY_LENGTH)
    writer.column(lives, MAX_LIFE)
    writer.deltas(incarnations, MAX_INCARNATION)


def _get_records(reader: Reader, count: int) -> list[_Name]:
    named = reader.count(count)
    references = reader.deltas(count)
    if max(references) >= named:
        raise WireError(Fault.COUNT, "an item of a record that the frame does not name")
    keys = reader.texts(named, MAX_KEY_LENGTH)
    lives = reader.column(named, MAX_LIFE)
    if not min(lives):
        raise WireError(Fault.NUMBER, "a life of 0 never began")
    records = list(zip(keys, lives, reader.deltas(named, MAX_INCARNATION), strict=True))
    return [records[reference] for reference in references]


def _put_dots(writer: Writer, dots: Sequence[Place], chains: Iterable[Chain]) -> None:
    index = {chain: number for number, chain in enumerate(dict.fromkeys(chains))}
    known = len(index)
    references = [index.setdefault((origin, generation), len(index)) for origin, generation, _ in dots]
    new = list(index)[known:]
    writer.number(len(new), MAX_ITEMS)
    for chain in new:
        writer.chain(chain)
    writer.column(references)
    writer.deltas([seq for _, _, seq in dots])


def _get_dots(reader: Reader, count: int, chains: Iterable[Chain]) -> list[Place]:
    table = list(dict.fromkeys(chains))
    table += [reader.chain() for _ in range(reader.count(count, least_size=3))]
    references = reader.column(count)
    if count and max(references) >= len(table):
        raise WireError(Fault.COUNT, "a write of a chain that the frame does not name")
    return [(*table[reference], seq) for reference, seq in zip(references, reader.deltas(count), strict=True)]
