"""Who vouches for whom. An owner judges its nodes; everybody else judges only the owner.

A watermark says: everything I own and did not mention is as I last said, as of then. It counts here
once we hold all that the owner had said by then (so that nothing it lost is vouched for), and it
vouches for a judgement that the owner itself knew. Each mark carries an age, never a time of day:
every hop adds how long it stayed there.

Measurements travel beside that, lossy, and say nothing about liveness.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from federation.clock import MAX_CHAINS, Now
from federation.core import Core, Link
from federation.messages import Beat, Beats, Unchanged, Watermark, Watermarks
from federation.record import REGISTRY_PREFIX, Record, Section

BEATS_A_FRAME = 4_000
MAX_OWNERS = 1_024  # ten times the registries planned for
_CLOCK_DRIFT = 0.001  # far more than that of real monotonic clocks
_NEWS_S = 0.5  # less than an interval: ways of different length make the same mark differ a little
_WHOLE_EVERY_S = 8.0  # within the reach: one that was lost whole is not known by its name
_NEWER_S = 0.3  # one quantum of an age on the wire, and a bit


@dataclass(frozen=True, slots=True)
class Mark:
    """A watermark as held: ages made local moments. `direct`: it came over the owner's own link."""

    generation: int
    known: tuple[tuple[int, int], ...]
    as_of_s: float
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a node: its owner's last word, whether the owner can be heard of, and how old
    its word is, in seconds (infinity: there is no watermark to tell)."""

    owner: str
    judgement: bytes
    reachable: bool
    as_of_s: float


@dataclass(frozen=True, slots=True)
class OwnerWord:
    """What is known of an owner: up to when we hold everything that it said (`age_s` ago), and for which of its
    judgements that stands."""

    owner: str
    generation: int
    known: tuple[tuple[int, int], ...]
    age_s: float
    reachable: bool


class Liveness:
    """See the module. `on_measured` hears of records of which other registries' numbers came in."""

    def __init__(self, core: Core, now: Now) -> None:
        self._core = core
        self.on_measured: Callable[[Record], None] = lambda record: None
        self._latest: dict[str, Mark] = {}
        self._counting: dict[str, Mark] = {}  # the newest mark of each owner whose words we all hold
        # Neighbours that told at one moment would tell each other the same.
        self._next_marks_s = now.mono_s + core.config.watermark_interval_s * core.rng.random()
        self._next_beats_s = float("-inf")

    # watermarks

    def heard(self, link: Link, message: Watermarks, now: Now) -> None:
        """Take in marks."""
        generation = max((mark.generation for mark in message.marks if mark.owner == link.peer), default=0)
        if generation < link.generation:
            return  # of a start that is over: its clock tells nothing
        link.generation = generation
        late_s = _late_s(link, message.mono_ms / 1000, now)
        link.wall_ms, link.wall_at_s = message.wall_ms, now.mono_s - late_s
        for mark in message.marks:
            if self._take(link, mark, late_s, now):
                link.marks_told[mark.owner] = mark.name, mark
        named = dict(link.marks_told.values())
        if len(named) == len(link.marks_told):  # else two have one name, once in a million
            for name, age_ms in message.unchanged:
                if name in named:
                    self._take(link, replace(named[name], age_ms=age_ms), late_s, now)

    def _take(self, link: Link, mark: Watermark, late_s: float, now: Now) -> bool:
        """Take in one mark; False for what says nothing, or is of an owner too many."""
        as_of_s = now.mono_s - late_s - mark.age_ms / 1000
        if mark.owner == self._core.me or now.mono_s - as_of_s > self._core.config.eviction_s:
            return False  # so old a mark says nothing to anybody
        held = self._latest.get(mark.owner)
        if held is None and not self._has_room(mark.owner):
            return False
        direct = mark.owner == link.peer
        if not direct and len(mark.known) > self._room_for(mark.owner):
            return False
        if held is None or self._replaces(held, as_of_s, now, direct=direct):
            held = self._latest[mark.owner] = Mark(mark.generation, mark.known, as_of_s, direct)
        if held.generation == mark.generation:  # else it knows less, or believes somebody's invention
            sent_s = link.marks_sent.get(mark.owner, float("-inf"))
            link.marks_sent[mark.owner] = max(as_of_s, sent_s)
            if as_of_s <= sent_s + _NEWS_S and self._core.me > link.peer:
                link.marks_left.add(mark.owner)  # both told it at once: one of two is enough
        return True

    def _replaces(self, held: Mark, as_of_s: float, now: Now, *, direct: bool) -> bool:
        """The newer mark counts, whatever start it is of: an invented one would shut out the owner for
        good. Whoever hears the owner itself needs nobody's word for it."""
        own = held.direct and now.mono_s - held.as_of_s <= self._core.config.direct_silence_s
        return as_of_s > held.as_of_s and (direct or not own)

    def _has_room(self, owner: str) -> bool:
        """Owners that are not in the roster (yet) are kept up to a number: a peer can invent any."""
        return len(self._latest) < MAX_OWNERS or REGISTRY_PREFIX + owner in self._core.replica.roster

    def _room_for(self, owner: str) -> int:
        """How many starts a mark that was passed on may know. All chains that there are have room; what a relay
        invents has an end."""
        return MAX_CHAINS - sum(len(mark.known) for other, mark in self._latest.items() if other != owner)

    def settle(self) -> None:
        """Let marks count whose words have all arrived."""
        vector = self._core.replica.vector
        for owner, mark in self._latest.items():
            if self._counting.get(owner) is not mark and all(
                vector.get((owner, generation), 0) >= seq for generation, seq in mark.known
            ):
                self._counting[owner] = mark

    def tick(self, now: Now) -> None:
        """Tell everybody about ourselves, and about owners that they do not hear."""
        self.settle()
        if now.mono_s < self._next_marks_s:
            return
        self._next_marks_s = now.mono_s + self._core.config.watermark_interval_s
        own = self._own_mark()
        for link in self._core.greeted():
            self._send_marks(link, own, now)

    def greeted(self, link: Link, now: Now) -> None:
        """A new link: until the next round its nodes there would seem to be nobody's."""
        self._send_marks(link, self._own_mark(), now)

    def _send_marks(self, link: Link, own: Watermark, now: Now) -> None:
        whole, unchanged = [own], []
        for owner, held in self._latest.items():
            news_s = held.as_of_s - link.marks_sent.get(owner, float("-inf"))
            patience_s = self._core.config.watermark_interval_s if owner in link.marks_left else 0.0
            if self._core.needs_relay(link, owner) and news_s > patience_s + _NEWS_S:
                link.marks_sent[owner] = held.as_of_s
                link.marks_left.discard(owner)
                mark = Watermark(owner, held.generation, held.known, int((now.mono_s - held.as_of_s) * 1000))
                name, (told, at_s) = mark.name, link.marks_whole.get(owner, (-1, 0.0))
                if name == told and now.mono_s - at_s < _WHOLE_EVERY_S:
                    unchanged.append(Unchanged(name, mark.age_ms))
                else:
                    whole.append(mark)
                    link.marks_whole[owner] = name, now.mono_s
        self._core.send(link, Watermarks(now.wall_ms, int(now.mono_s * 1000), tuple(whole), tuple(unchanged)))

    def _own_mark(self) -> Watermark:
        replica = self._core.replica
        known = sorted((generation, seq) for (_, generation), seq in replica.own_words().items())
        return Watermark(self._core.me, replica.generation, tuple(known), 0)

    def reachable(self, owner: str, now: Now) -> bool:
        """Whether the owner's watermark advances, directly or through anybody."""
        if owner == self._core.me:
            return True
        mark = self._latest.get(owner)
        return mark is not None and now.mono_s - mark.as_of_s <= self._core.config.reach_s

    def owners(self) -> Iterable[str]:
        """Every registry that was heard of."""
        return self._latest

    def last_heard_s(self, owner: str) -> float | None:
        """When the owner was last known to be there."""
        mark = self._latest.get(owner)
        return mark.as_of_s if mark is not None else None

    def standing(self, record: Record, now: Now) -> Standing | None:
        """What is known of a node; None for what has no owner."""
        judgement = record.judgement
        if judgement is None or not record.exists:
            return None
        owner = judgement.origin
        if owner == self._core.me:
            return Standing(owner, judgement.payload, True, 0.0)
        mark = self._counting.get(owner)
        if mark is None or not _covers(mark, judgement):
            return Standing(owner, judgement.payload, False, float("inf"))
        age_s = now.mono_s - mark.as_of_s
        return Standing(owner, judgement.payload, age_s <= self._core.config.reach_s, age_s)

    def words(self, now: Now) -> Iterator[OwnerWord]:
        """How every other owner stands whose words have all arrived up to some moment."""
        for owner, mark in self._counting.items():
            age_s = now.mono_s - mark.as_of_s
            yield OwnerWord(owner, mark.generation, mark.known, age_s, age_s <= self._core.config.reach_s)

    # measurements

    def measured(self, record: Record, metrics: bytes, now: Now) -> None:
        """A node of ours reported; others hear of it when it says something new."""
        record.metrics_at_s = now.mono_s
        if metrics != record.metrics:
            record.metrics = metrics
            for link in self._core.links.values():
                link.beats_due[record.key] = None

    def beats(self, link: Link, message: Beats, now: Now) -> None:
        """Take in others' measurements, and pass them on where they are not heard."""
        log = self._core.replica.logs.get(message.chain)
        if log is None:
            return
        origin = message.chain[0]
        relays = [
            other for other in self._core.greeted() if other is not link and self._core.needs_relay(other, origin)
        ]
        for seq, age_ms, metrics in message.beats:
            entry = log.at(seq)
            if entry is None or not log.is_live(seq, *entry) or age_ms > self._core.config.eviction_s * 1000:
                continue
            record, at_s = entry[0], now.mono_s - age_ms / 1000
            if at_s > record.metrics_at_s + _NEWER_S:
                record.metrics, record.metrics_at_s = metrics, at_s
                self.on_measured(record)
                for other in relays:
                    other.beats_due[record.key] = None

    def flush_beats(self, now: Now) -> None:
        """Send what is due, where state leaves room; what does not fit waits, and is replaced by newer."""
        if now.mono_s < self._next_beats_s:
            return
        self._next_beats_s = now.mono_s + self._core.config.beat_interval_s
        for link in self._core.greeted():
            if link.beats_due and self._may_send_beats(link):
                due, link.beats_due = link.beats_due, {}
                self._send_beats(link, due, now)

    def _may_send_beats(self, link: Link) -> bool:
        """Whether state leaves room. Where pushes wait to be asked for, some nearly always do: look at the window."""
        config, credit = self._core.config, self._core.credit(link)
        if link.behind and not config.push_when_asked:
            return False
        return credit > (config.window_frames // 2 if link.behind else 0)

    def _send_beats(self, link: Link, due: dict[str, None], now: Now) -> None:
        by_chain: dict[tuple[str, int], list[Beat]] = {}
        for key in due:
            record = self._core.replica.get(key)
            judgement = record.judgement if record is not None and record.exists else None
            # One that was collected and registered again has measured nothing yet.
            if record is not None and judgement is not None and record.metrics_at_s > float("-inf"):
                age_ms = int(max(0.0, now.mono_s - record.metrics_at_s) * 1000)
                beat = Beat(judgement.seq, age_ms, record.metrics)
                by_chain.setdefault((judgement.origin, judgement.generation), []).append(beat)
        for chain, beats in by_chain.items():
            beats.sort()
            for start in range(0, len(beats), BEATS_A_FRAME):
                self._core.send(link, Beats(chain, tuple(beats[start : start + BEATS_A_FRAME])))


def _late_s(link: Link, sent_s: float, now: Now) -> float:
    """How much longer a message was under way than the quickest one of late: in the buffers of a
    blocked network, or of our own process while it stood still. Its words are as old as that."""
    lead_s = sent_s - now.mono_s
    if link.lead_s is not None:
        # The quickest is forgotten slowly: no two clocks run alike.
        link.lead_s -= _CLOCK_DRIFT * (now.mono_s - link.lead_at_s)
    link.lead_s = lead_s if link.lead_s is None else max(link.lead_s, lead_s)
    link.lead_at_s = now.mono_s
    return link.lead_s - lead_s


def _covers(mark: Mark, judgement: Section) -> bool:
    """Whether the owner knew of that judgement. A newer one of the same start, or of a newer start,
    it made after the mark."""
    if judgement.generation >= mark.generation:
        return True
    return any(g == judgement.generation and judgement.seq <= seq for g, seq in mark.known)
