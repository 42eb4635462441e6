"""What registries say to each other: one type a message. wire.py is their only encoding.

Every message is safe to lose, to repeat and to reorder: items are joined, which is idempotent, and
positions advance only over intervals that are complete.
"""

from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

from federation.clock import Chain, Vector
from federation.record import Item

PROTOCOL_VERSION = 2


class Entry(NamedTuple):
    """What now stands at one position of a chain. The item's own dot may lie in another chain, where
    somebody replaced what was written here."""

    seq: int
    item: Item


@dataclass(frozen=True, slots=True)
class Hello:
    """First on every link, from both sides. `life_floor`: see tombstones.py."""

    registry_id: str
    generation: int
    vector: Vector
    floor: Vector
    life_floor: int
    direct: tuple[str, ...]
    wall_ms: int
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Announce:
    """What changed of the sender's position since its last Hello or Announce on this link.
    `direct`: the registries that it has links with, so that others need not be relayed to it."""

    vector: Vector
    floor: Vector
    life_floor: int
    direct: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Everything in one chain after `after` and up to `upto`, or what replaced it. `hops`: how many
    registries passed it on."""

    chain: Chain
    after: int
    upto: int
    entries: tuple[Entry, ...]
    hops: int = 0


@dataclass(frozen=True, slots=True)
class Push:
    """Fresh writes. `frame`: its number, for Ack: on each link it grows."""

    frame: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """Data frames up to this one have arrived: there is room for more."""

    frame: int


@dataclass(frozen=True, slots=True)
class Prune:
    """Do not push what these origins write: it comes sooner by another way. What is lacking will be
    seen from the announcements. (Leitao et al., "Epidemic Broadcast Trees", 2007.)"""

    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graft:
    """Push what these origins write again: the other way is gone."""

    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pull:
    """Send what I lack: everything after `vector`, as chunks of one drain."""

    pull_id: int
    vector: Vector


@dataclass(frozen=True, slots=True)
class Drain:
    """One chunk of the answer to a Pull. With the last comes the claim: the sender's vector as it
    was when the drain began. It holds only if every chunk arrived."""

    frame: int
    pull_id: int
    index: int
    items: tuple[Item, ...]
    claim: Vector | None = None


@dataclass(frozen=True, slots=True)
class Watermark:
    """An owner's word: everything I own and did not mention is as I last said, `age_ms` ago.
    `known`: the owner's own chains, and how far the owner itself knows each."""

    owner: str
    generation: int
    known: tuple[tuple[int, int], ...]
    age_ms: int

    @property
    def name(self) -> int:
        """32 bits of all but the age, by which an Unchanged calls it."""
        return crc32(f"{self.owner} {self.generation} {self.known}".encode())


class Unchanged(NamedTuple):
    """A watermark that says what it said when it was last sent whole over this link, by its name."""

    name: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class Watermarks:
    """The sender's own watermark, and those that the receiver seems not to get from elsewhere: whole when
    they changed, and now and then, else as `unchanged`.
    `mono_ms` tells by its differences how long the message was under way longer than others."""

    wall_ms: int
    mono_ms: int
    marks: tuple[Watermark, ...]
    unchanged: tuple[Unchanged, ...] = ()


class Beat(NamedTuple):
    """A node's newest measurements, named by the dot of its judgement: receivers know it by that."""

    seq: int
    age_ms: int
    metrics: bytes


@dataclass(frozen=True, slots=True)
class Beats:
    """Measurements of nodes whose judgements lie in one chain; lossy, and never a word on liveness."""

    chain: Chain
    beats: tuple[Beat, ...]


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """Asks for sums: of all groups (both empty), of the buckets of some groups, or for the records in
    some buckets."""

    walk_id: int
    groups: tuple[int, ...] = ()
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DigestSums:
    """Sums of a level: number -> sum. At the top with the position they were taken at."""

    walk_id: int
    sums: dict[int, int]
    top: bool
    vector: Vector = field(default_factory=dict)
    floor: Vector = field(default_factory=dict)
    life_floor: int = 0


@dataclass(frozen=True, slots=True)
class DigestRecords:
    """Records of one bucket: key -> fingerprint, in numbered parts. `last`: there is no more of it."""

    walk_id: int
    bucket: int
    index: int
    records: dict[str, int]
    last: bool


@dataclass(frozen=True, slots=True)
class Want:
    """Send these records whole, in parts numbered from `index` on."""

    walk_id: int
    index: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repair:
    """Records that a walk found to differ. `last`: of the Want that it answers."""

    frame: int
    walk_id: int
    index: int
    items: tuple[Item, ...]
    last: bool


Message = (
    Hello | Announce | Push | Ack | Prune | Graft | Pull | Drain | Watermarks | Beats
    | DigestRequest | DigestSums | DigestRecords | Want | Repair
)  # fmt: skip
