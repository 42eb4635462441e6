"""Catching up by position: "everything after this vector", as chunks, and then a claim.

The receiver asks, and asks one registry at a time, so nothing is sent twice. It joins every item as
it comes, and believes the claim only if no chunk was missing. What is replaced while a drain is
under way travels as its replacement.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from federation.clock import Chain, Now, Vector, covers, reaches
from federation.core import Core, Link
from federation.intake import Intake
from federation.messages import Drain, Pull
from federation.record import Item, Record, SectionKind, weight

_BACKOFF_S = 1.0


@dataclass(slots=True)
class _Outgoing:
    """A drain that we give. `claim` is our position when it began, `upto` the ends of the logs: what
    came early, beyond our own position, may be what replaced something before it."""

    pull_id: int
    claim: Vector
    after: Vector
    upto: Vector
    chains: list[Chain]
    index: int = 0
    position: int = 0
    replaced: dict[int, Record] = field(default_factory=dict)
    carried: list[Item] = field(default_factory=list)  # what the last chunk had no room for


@dataclass(slots=True)
class _Incoming:
    """A drain that we asked for."""

    peer: str
    pull_id: int
    progress_s: float
    next_index: int = 0
    whole: bool = True  # nothing of it was held


class Drains:
    """See the module. `receiving` tells whether one is under way to us."""

    def __init__(self, core: Core, intake: Intake) -> None:
        self._core = core
        self._intake = intake
        self._outgoing: dict[str, _Outgoing] = {}
        self._incoming: _Incoming | None = None
        self._not_before_s = 0.0
        self._next_id = core.rng.getrandbits(31)
        self.on_lack: Callable[[Link, set[str]], None] = lambda link, origins: None
        self._fruitless: str | None = None  # who did not answer the last time, or left us lacking
        self._given: set[str] = set()  # who gave us all it has, over this link, and something of it is held
        core.replica.on_replaced = self._replaced

    @property
    def receiving(self) -> bool:
        """Whether a drain is under way to us."""
        return self._incoming is not None

    # asking

    def greeted(self, link: Link, now: Now) -> None:
        """On a new link there is nothing to wait for: what it has and we lack is asked for at once."""
        link.lack_since_s = float("-inf")
        link.lack = self._intake.lacking(link)
        self._not_before_s = min(self._not_before_s, now.mono_s)
        self.tick(now)

    def forget(self, peer: str) -> None:
        """The link is down."""
        self._outgoing.pop(peer, None)
        self._given.discard(peer)
        if self._incoming is not None and self._incoming.peer == peer:
            self._incoming = None

    def tick(self, now: Now) -> None:
        """Ask for what we have been lacking for a while."""
        config = self._core.config
        if self._incoming is not None:
            if now.mono_s - self._incoming.progress_s < config.pull_timeout_s:
                return
            self._abandon(now)
        if not self._intake.holding(now):
            self._given.clear()
        lacks: dict[str, int] = {}
        for link in self._core.greeted():
            if link.peer in self._given:
                continue  # no claim of it would be believed: walks are for that, which send only what differs
            lack = self._long_lacking(link, now)
            if self._core.am_stale(link) or self._core.is_stale(link):
                continue
            lacks[link.peer] = lack
            self._intake.caught_up = self._intake.caught_up or not self._intake.lacking(link)
        self._ask({peer: lack for peer, lack in lacks.items() if lack}, now)

    def _ask(self, lacks: dict[str, int], now: Now) -> None:
        """Pull from who has most. Who was of no use the last time comes last: it may claim anything."""
        if lacks and now.mono_s >= self._not_before_s:
            best = max(lacks, key=lambda peer: (peer != self._fruitless, lacks[peer]))
            self._pull(self._core.links[best], now)

    def _long_lacking(self, link: Link, now: Now) -> int:
        """How many writes it has had for longer than the grace and we still have not."""
        lacking = self._intake.lacking(link)
        vector = self._core.replica.vector
        if not any(seq > vector.get(chain, 0) for chain, seq in link.lack.items() if chain in lacking):
            link.lack, link.lack_since_s = lacking, now.mono_s
        if now.mono_s - link.lack_since_s < self._core.config.pull_grace_s:
            return 0
        return sum(seq - vector.get(chain, 0) for chain, seq in lacking.items())

    def _pull(self, link: Link, now: Now) -> None:
        self.on_lack(link, {chain[0] for chain in self._intake.lacking(link)})
        self._next_id += 1
        self._incoming = _Incoming(link.peer, self._next_id, now.mono_s)
        self._core.send(link, Pull(self._next_id, dict(self._core.replica.vector)))

    def _abandon(self, now: Now) -> None:
        self._fruitless = self._incoming.peer if self._incoming is not None else None
        self._incoming = None
        self._not_before_s = now.mono_s + _BACKOFF_S * (0.5 + self._core.rng.random())

    def received(self, link: Link, drain: Drain, now: Now) -> None:
        """Take in a chunk."""
        if self._core.is_stale(link):
            return
        whole = self._intake.items(drain.items, now, peer=link.peer)
        incoming = self._incoming
        if incoming is None or incoming.peer != link.peer or incoming.pull_id != drain.pull_id:
            return
        if drain.index != incoming.next_index:
            self._abandon(now)
            return
        incoming.next_index += 1
        incoming.progress_s = now.mono_s
        incoming.whole = incoming.whole and whole
        if drain.claim is not None:
            self._incoming = None
            if not incoming.whole:
                self._given.add(link.peer)
            if incoming.whole and not self._core.am_stale(link):
                self._intake.claim(drain.claim)
            self._fruitless = link.peer if self._intake.lacking(link) else None

    # giving

    def asked(self, link: Link, pull: Pull) -> None:
        """Begin a drain; an earlier one to the same registry is no longer wanted."""
        replica = self._core.replica
        upto = {chain: log.last for chain, log in replica.logs.items() if log.last > pull.vector.get(chain, 0)}
        drain = _Outgoing(pull.pull_id, dict(replica.vector), dict(pull.vector), upto, sorted(upto))
        drain.carried += (i for record in replica.roster.values() for i in _entries(record, pull.vector))
        self._outgoing[link.peer] = drain

    def flush(self, now: Now) -> None:
        """Send chunks where there is room; half of a link's room stays free for fresh writes."""
        room = self._core.config.window_frames // 2
        for peer in list(self._outgoing):
            link = self._core.links[peer]
            while peer in self._outgoing and self._core.credit(link) > room:
                self._send_chunk(link, self._outgoing[peer], now)

    def _send_chunk(self, link: Link, drain: _Outgoing, now: Now) -> None:
        items = self._chunk(drain)
        claim = None
        if not (drain.chains or drain.replaced or drain.carried):
            # Who is below our floor has missed a deletion that is in no drain any more.
            claim = drain.claim if reaches(drain.after, self._core.replica.floor) else {}
            del self._outgoing[link.peer]
        frame = self._core.frame(link, now)
        self._core.send(link, Drain(frame, drain.pull_id, drain.index, tuple(items), claim))
        drain.index += 1

    def _chunk(self, drain: _Outgoing) -> list[Item]:
        config = self._core.config
        items: list[Item] = []
        room = config.frame_bytes
        for item in self._remaining(drain):
            room -= weight(item)
            if items and (room < 0 or len(items) >= config.frame_items):
                drain.carried.append(item)
                break
            items.append(item)
        return items

    def _remaining(self, drain: _Outgoing) -> Iterator[Item]:
        """What stands in the logs after the receiver's vector; then what replaced any of it since."""
        replica = self._core.replica
        while drain.carried or drain.chains or drain.replaced:
            while drain.carried:
                yield drain.carried.pop()
            if drain.chains:
                chain = drain.chains[0]
                log = replica.log(chain)
                start = max(drain.position, drain.after.get(chain, 0))
                for seq, record, kind in log.after(start, drain.upto[chain]):
                    drain.position = seq
                    item = record.resolve(kind) if log.is_live(seq, record, kind) else None
                    if item is not None:
                        yield item
                drain.chains.pop(0)
                drain.position = 0
            elif drain.replaced:
                _, record = drain.replaced.popitem()
                drain.carried.extend(record.items())

    def _replaced(self, record: Record) -> None:
        for drain in self._outgoing.values():
            drain.replaced[id(record)] = record


def _entries(entry: Record, known: Vector) -> Iterator[Item]:
    """What the roster says of a registry, for who may not know it yet: first, as all that it has sealed is checked
    against that."""
    if entry.spec is not None and not covers(known, entry.spec.dot):
        yield Item(entry.key, entry.life, entry.incarnation, SectionKind.SPEC, entry.spec)
