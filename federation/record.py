"""The versioned record and its sections. What they carry is opaque here: bytes.

A record is (life, incarnation, sections). `life` is a causal length: odd while the thing exists,
even once it is deleted. `incarnation` orders concurrent first registrations of one key. Sections of
two lives or incarnations never mix.
"""

from collections.abc import Iterator
from enum import IntEnum
from operator import attrgetter
from typing import Any, NamedTuple

from federation.clock import Dot

MAX_LIFE = 2**31 - 2  # even: whatever exists can be deleted
MAX_LIFE_FLOOR = MAX_LIFE // 2  # whatever a peer claims, there is a life above it to register with
MAX_INCARNATION = 2**63 - 1
MAX_KEY_LENGTH = 300
SEAL_SIZE = 64  # an Ed25519 signature
KEY_PREFIX = "k:"  # API keys: their ids are never used again, so they have one life
LIST_PREFIX = "a:"  # entries of the allowlist
REGISTRY_PREFIX = "r:"  # the federation's own records: one a registry, the durable roster


class SectionKind(IntEnum):
    """The independently written parts of a record."""

    SPEC = 0  # what the thing is, as it registered
    INTENT = 1  # what operators want of it; any registry writes it
    JUDGEMENT = 2  # who owns it, and the owner's word on it
    END = 3  # that it was deleted, or (beside a living SPEC) that a key was revoked


class Section(NamedTuple):
    """One write. Fields stand in the order that decides which of two wins: the greater tuple.

    `major` is an HLC (of a judgement: the epoch, minted anew when a node changes owner), `minor` the
    HLC of a judgement within its epoch, else 0. `generation` and `seq` complete the dot. `birth` is
    the dot of the registration that began this life; () on a SPEC: this very write. `seal`: see seals.py.
    """

    major: int
    origin: str
    minor: int
    payload: bytes
    generation: int
    seq: int
    birth: tuple[()] | tuple[str, int, int] = ()
    seal: bytes = b""

    @property
    def dot(self) -> Dot:
        """The write's name."""
        return Dot(self.origin, self.generation, self.seq)


class Item(NamedTuple):
    """One section on its way between registries, with what it belongs to."""

    key: str
    life: int
    incarnation: int
    kind: int
    section: Section


def weight(item: Item) -> int:
    """About how many bytes an item takes in a frame that does not shrink."""
    return len(item.section.payload) + len(item.key) + 64


SECTION_NAMES = ("spec", "intent", "judgement", "end")
section_of = tuple(attrgetter(name) for name in SECTION_NAMES)
"""`section_of[kind](record)`: the section or None."""


def birth_of(section: Section, *, is_spec: bool) -> Dot | None:
    """The registration that began the life that a SPEC or END belongs to, as far as it tells."""
    if section.birth:
        return Dot(*section.birth)
    return section.dot if is_spec else None


class Record:
    """One key's state. Mutable, and shared by the table and the logs: never replaced while it is held."""

    __slots__ = (
        "end", "fingerprint", "incarnation", "intent", "judgement", "key", "life", "metrics", "metrics_at_s", "spec",
    )  # fmt: skip

    def __init__(self, key: str) -> None:
        self.key = key
        self.life = 0
        self.incarnation = 0
        self.fingerprint = 0  # what it adds to its digest bucket
        self.spec: Section | None = None
        self.intent: Section | None = None
        self.judgement: Section | None = None
        self.end: Section | None = None
        self.metrics = b""  # the newest beat; not part of the replicated state
        self.metrics_at_s = float("-inf")

    @property
    def deleted(self) -> bool:
        """Whether this is a tombstone."""
        return self.life % 2 == 0

    @property
    def exists(self) -> bool:
        """Whether there is something to show: a living record whose registration has arrived."""
        return self.life % 2 == 1 and self.spec is not None

    def items(self) -> Iterator[Item]:
        """Its sections, as they travel."""
        for kind in SectionKind:
            section = section_of[kind](self)
            if section is not None:
                yield Item(self.key, self.life, self.incarnation, kind, section)

    def resolve(self, kind: int) -> Item | None:
        """What now stands where a section of that kind once was written: that section, or, where a
        later life has none of the kind, any of that life. None: it was collected."""
        section = section_of[kind](self) or self.end or self.spec or self.judgement or self.intent
        if section is None:
            return None
        for actual in (kind, SectionKind.END, SectionKind.SPEC, SectionKind.JUDGEMENT, SectionKind.INTENT):
            if section_of[actual](self) is section:
                return Item(self.key, self.life, self.incarnation, int(actual), section)
        return None

    @property
    def birth(self) -> Dot | None:
        """The registration that began this life, as far as it is known here."""
        section = self.spec or self.end
        return birth_of(section, is_spec=section is self.spec) if section is not None else None

    def clear(self) -> None:
        """Leave nothing: it was collected. Logs that still point here find nothing to send."""
        self.life = self.incarnation = 0
        self.spec = self.intent = self.judgement = self.end = None

    def state(self) -> tuple[Any, ...]:
        """Everything that replicas must agree on."""
        return self.key, self.life, self.incarnation, self.spec, self.intent, self.judgement, self.end
