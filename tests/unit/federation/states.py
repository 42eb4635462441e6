"""What the laws draw from: few names and numbers, so that what is drawn meets, and the ends of each range."""

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from federation.clock import HLC_MAX
from federation.merge import absorb
from federation.record import MAX_INCARNATION, MAX_LIFE, Item, Record, Section, SectionKind

KEY = "n:a"
KEYS = st.sampled_from([KEY, "n:b", "k:c", "r:a"])
ORIGINS = st.sampled_from(["a", "b", "c"])
GENERATIONS = st.sampled_from([1, 2, HLC_MAX])
SEQS = st.integers(1, 4) | st.just(HLC_MAX)
STAMPS = st.integers(0, 3) | st.just(HLC_MAX)
PAYLOADS = st.sampled_from([b"", b"x", b"y"])
LIVES = st.integers(1, 4) | st.sampled_from([MAX_LIFE - 1, MAX_LIFE])
INCARNATIONS = st.sampled_from([0, 1, MAX_INCARNATION])
DOTS = st.tuples(ORIGINS, GENERATIONS, SEQS)

SECTIONS = st.builds(Section, STAMPS, ORIGINS, STAMPS, PAYLOADS, GENERATIONS, SEQS, st.just(()) | DOTS)
"""Nothing binds a dot to its content, nor a stamp to its writer: as a hostile peer would have it."""


def items(keys: st.SearchStrategy[str] = KEYS) -> st.SearchStrategy[Item]:
    """Any section of any record: also a tombstone's stray SPEC, or an INTENT without a registration."""
    return st.builds(Item, keys, LIVES, INCARNATIONS, st.sampled_from([int(kind) for kind in SectionKind]), SECTIONS)


def joined(*parts: Iterable[Item], key: str = KEY) -> Record:
    """The record that these items make, one after another."""
    record = Record(key)
    for part in parts:
        for item in part:
            absorb(record, item)
    return record


RECORDS = st.lists(items(st.just(KEY)), max_size=6).map(joined)


def join(*records: Record) -> Record:
    """The join of states of one key, in this order."""
    return joined(*(list(record.items()) for record in records))


def section(
    major: int = 1, origin: str = "a", minor: int = 0, payload: bytes = b"p", seq: int = 1, **rest: Any
) -> Section:
    """A section in which only what matters differs."""
    return Section(major, origin, minor, payload, rest.get("generation", 1), seq, rest.get("birth", ()))
