"""What the parts of the engine share: the replica, the links' state, the clock, pending effects."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from federation.clock import HLC_MAX, Chain, HybridClock, Now, Vector, reaches, wall_ms_of
from federation.config import Config
from federation.ed25519 import PrivateKey
from federation.effects import Alert, Effect, Send, Store, StoreMeta
from federation.messages import Message, Watermark
from federation.ports import Rng
from federation.record import Record
from federation.replica import Replica


@dataclass(slots=True)
class Link:
    """What we know of the registry at the other end of one link. `greeted`: its Hello has come."""

    peer: str
    greeted: bool = False
    generation: int = 0
    vector: Vector = field(default_factory=dict)
    floor: Vector = field(default_factory=dict)
    life_floor: int = 0
    direct: frozenset[str] = frozenset()
    heard_s: float = 0.0
    hello_sent_s: float = float("-inf")
    wall_ms: int = 0  # its clock, as it said at `wall_at_s`
    wall_at_s: float | None = None
    lead_s: float | None = None  # its monotonic clock against ours, as the quickest message showed it
    lead_at_s: float = 0.0

    # frames: what is under way to it, and what came from it and is not acknowledged yet
    last_frame: int = 0
    in_flight: deque[tuple[int, float]] = field(default_factory=deque)
    ack_due: int = 0
    frames_unacked: int = 0

    # streams: per chain, up to where it was sent; chains that have gone on since
    cursor: dict[Chain, int] = field(default_factory=dict)
    behind: dict[Chain, None] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)  # origins that it gets sooner from others
    pruned_by_us: set[str] = field(default_factory=set)

    # what it announced and we lack, since when
    lack: Vector = field(default_factory=dict)
    lack_since_s: float = 0.0

    marks_told: dict[str, tuple[int, Watermark]] = field(default_factory=dict)  # by it, as last told whole, and named

    # what we announced to it
    announced: Vector = field(default_factory=dict)
    announced_rest: tuple[object, ...] = ()
    announced_whole: Vector = field(default_factory=dict)
    announced_whole_s: float = float("-inf")
    marks_sent: dict[str, float] = field(default_factory=dict)
    marks_left: set[str] = field(default_factory=set)  # owners whose marks it is left to tell us, not we it
    marks_whole: dict[str, tuple[int, float]] = field(default_factory=dict)  # the name of each sent whole, and when
    beats_due: dict[str, None] = field(default_factory=dict)


class Core:
    """Shared state, no protocol."""

    def __init__(self, config: Config, replica: Replica, rng: Rng, key: PrivateKey | None = None) -> None:
        """`key`: what our writes are sealed with."""
        self.config = config
        self.replica = replica
        self.rng = rng
        self.key = key
        self.me = config.registry_id
        self.clock = HybridClock(config.clock_tolerance_ms)
        self.links: dict[str, Link] = {}
        self.out: list[Effect] = []
        self._frames = 0  # that were numbered

    # effects

    def send(self, link: Link, message: Message) -> None:
        """Ask for a message to be sent."""
        self.out.append(Send(link.peer, message))

    def stored(self, records: Iterable[Record]) -> None:
        """Ask for records to be kept."""
        self.out.extend(Store(record.key) for record in records)

    def stored_key(self, key: str) -> None:
        """Ask for a record to be kept, or forgotten."""
        self.out.append(Store(key))

    def stored_meta(self) -> None:
        """Ask for the meta to be kept."""
        self.out.append(StoreMeta())

    def alert(self, code: str, detail: str, peer: str | None = None) -> None:
        """Tell somebody."""
        self.out.append(Alert(code, detail, peer))

    # links

    def greeted(self) -> Iterator[Link]:
        """Links over which a Hello has come."""
        return (link for link in self.links.values() if link.greeted)

    def direct(self, now: Now) -> tuple[str, ...]:
        """Registries that we hear over links of our own."""
        silence_s = self.config.direct_silence_s
        return tuple(sorted(link.peer for link in self.greeted() if now.mono_s - link.heard_s < silence_s))

    def follows(self, link: Link, origin: str) -> bool:
        """Whether fresh writes of that origin are pushed over the link."""
        return origin == self.me or (self.needs_relay(link, origin) and origin not in link.pruned)

    def needs_relay(self, link: Link, origin: str) -> bool:
        """Whether the registry at the other end hears of that origin through us."""
        return origin != link.peer and origin not in link.direct

    def is_stale(self, link: Link) -> bool:
        """Whether it has missed a deletion that we collected: nothing that it says can be joined."""
        return not reaches(link.vector, self.replica.floor)

    def am_stale(self, link: Link) -> bool:
        """Whether we have missed a deletion that it collected: its positions mean nothing to us."""
        return not reaches(self.replica.vector, link.floor)

    # data frames

    def credit(self, link: Link) -> int:
        """How many data frames may be sent now."""
        return self.config.window_frames - len(link.in_flight)

    def frame(self, link: Link, now: Now) -> int:
        """Number the next data frame, and count it as under way."""
        self._frames += 1
        return self.sent(link, self._frames, now)

    def sent(self, link: Link, frame: int, now: Now) -> int:
        """Count a frame of that number as under way. On each link the numbers grow: an acknowledgement is of all up to
        its own."""
        link.last_frame = frame
        link.in_flight.append((frame, now.mono_s))
        return frame

    # time

    def wall_ms(self, now: Now) -> int:
        """The time to mint from: the own clock's, unless it stands far from all others' median.
        Among two, nobody can tell who is right: the own one."""
        offset_ms = self.clock_offset_ms(now)
        wall_ms = now.wall_ms + (offset_ms if abs(offset_ms) > self.config.clock_suspect_ms else 0)
        return min(wall_ms, wall_ms_of(HLC_MAX) - self.config.clock_horizon_ms)  # if most of them lie: room above

    def clock_offset_ms(self, now: Now) -> int:
        """How far the median of all clocks, ours included, is ahead of ours."""
        offsets = [0]
        offsets += [
            int(link.wall_ms + (now.mono_s - link.wall_at_s) * 1000 - now.wall_ms)
            for link in self.links.values()
            if link.wall_at_s is not None
        ]
        if len(offsets) < 3:
            return 0
        offsets.sort()  # each write asks: statistics' medians take four times as long
        low, high = offsets[(len(offsets) - 1) // 2], offsets[len(offsets) // 2]
        return low if abs(low) < abs(high) else high
