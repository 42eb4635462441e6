"""Links between registries, and what happens to messages on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from federation.messages import Message
from federation.wire import decode, encode
from tests.support.rosters import advert

if TYPE_CHECKING:
    from tests.simulation.world import World

Pair = tuple[str, str]


@dataclass
class End:
    """One registry's side of a link. `session` 0: it knows of none."""

    session: int = 0
    last_s: float = 0.0  # when the newest message from here will arrive: the order of a stream
    waiting: list[Message] = field(default_factory=list)  # behind a blockade, in order


class Network:
    """Pairs of the topology keep one link each; a session is one connection of it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._scenario = world.scenario
        self.loss, self.duplication = world.scenario.loss, world.scenario.duplication
        self.pairs: list[Pair] = []
        self._ends: dict[Pair, End] = {}
        self._blocked: dict[Pair, int] = {}
        self._sessions = 0
        self._known_links: frozenset[Pair] = frozenset()
        self._together_since: dict[Pair, float] = {}
        self.latest_s = 0.0  # the longest that a message has been under way
        self.messages = 0
        self.bytes = 0

    # topology

    def link(self, a: str, b: str) -> None:
        """These two keep a link from now on."""
        pair = (min(a, b), max(a, b))
        if a == b or pair in self.pairs:
            return
        self.pairs.append(pair)
        self._ends[pair], self._ends[pair[::-1]] = End(), End()
        self._world.after(self._world.rng.uniform(0.0, 1.0), self._maintain, pair)

    def bypass(self, registry: str) -> None:
        """It leaves: its neighbours keep links among themselves, so that nobody is cut off."""
        neighbours = [b if a == registry else a for a, b in self.pairs if registry in (a, b)]
        for a, b in pairwise(neighbours):
            self.link(a, b)

    def connected(self, src: str, dst: str) -> bool:
        """Whether both ends know of the same session."""
        end = self._ends.get((src, dst))
        return end is not None and end.session != 0 and end.session == self._ends[dst, src].session

    def blocked(self, src: str, dst: str) -> bool:
        """Whether nothing gets through in this direction."""
        return self._blocked.get((src, dst), 0) > 0

    def _maintain(self, pair: Pair) -> None:
        a, b = pair
        if not self.connected(a, b) and self._can_dial(a, b):
            refused = [(one, other) for one, other in (pair, pair[::-1]) if self.is_another(one, other)]
            for one, other in refused:  # an operator there sees it
                self._world.registries[one].forget(other)
            if not refused:
                self._open(a, b)
        self._world.after(self._world.rng.uniform(0.5, 1.5), self._maintain, pair)

    def _can_dial(self, a: str, b: str) -> bool:
        up = all(self._world.registries[r].running for r in (a, b))
        return up and not self.blocked(a, b) and not self.blocked(b, a)

    def is_another(self, one: str, other: str) -> bool:
        """Whether the first has an identity pinned for the second that this has lost."""
        entry = self._world.registries[one].live.replica.roster.get(f"r:{other}")
        if entry is None or entry.spec is None:
            return False
        return entry.spec.payload != advert(other, self._world.registries[other].key)

    def _open(self, a: str, b: str) -> None:
        self._sessions += 1
        for src, dst in ((a, b), (b, a)):
            self._end(src, dst)
        for src, dst in ((a, b), (b, a)):
            self._ends[src, dst] = End(self._sessions)
        self._world.note("link", a, b, self._sessions)
        for src, dst in ((a, b), (b, a)):
            self._world.registries[src].connected(dst)

    def _end(self, src: str, dst: str) -> None:
        """One end notices that its link is gone."""
        if self._ends[src, dst].session:
            self._ends[src, dst] = End()
            self._world.note("unlink", src, dst)
            self._world.registries[src].disconnected(dst)

    def _end_session(self, src: str, dst: str, session: int) -> None:
        if self._ends[src, dst].session == session:
            self._end(src, dst)

    # faults

    def cut(self, a: str, b: str) -> None:
        """The link breaks; each end notices in its own time."""
        for src, dst in ((a, b), (b, a)):
            session = self._ends[src, dst].session
            if session:
                self._world.after(self._world.rng.choice((0.0, 0.1, 3.0)), self._end_session, src, dst, session)

    def close(self, src: str, dst: str) -> None:
        """`src` wants no more of this link."""
        if (src, dst) in self._ends:
            self._end(src, dst)
            self.cut(src, dst)

    def died(self, registry: str) -> None:
        """The process of that registry is gone: its own ends just vanish."""
        for src, dst in self._ends:
            if src == registry:
                self._ends[src, dst] = End()
            elif dst == registry and self._ends[src, dst].session:
                session = self._ends[src, dst].session
                self._world.after(self._world.rng.choice((0.0, 0.2, 4.0)), self._end_session, src, dst, session)

    def block(self, src: str, dst: str) -> None:
        """Nothing gets through in this direction; after a while the ends may notice."""
        self._blocked[src, dst] = self._blocked.get((src, dst), 0) + 1
        for end in ((src, dst), (dst, src)):
            if end in self._ends and self._world.rng.random() < 0.6:
                self._world.after(self._world.rng.uniform(1.0, 8.0), self._give_up, *end, self._ends[end].session)

    def _give_up(self, src: str, dst: str, session: int) -> None:
        if self.blocked(src, dst) or self.blocked(dst, src):
            self._end_session(src, dst, session)

    def unblock(self, src: str, dst: str) -> None:
        """The direction works again, once for each `block`."""
        left = self._blocked.get((src, dst), 0) - 1
        self._blocked[src, dst] = max(0, left)
        if left > 0 or (src, dst) not in self._ends:
            return
        end = self._ends[src, dst]
        waiting, end.waiting = end.waiting, []
        for message in waiting:
            self._depart(src, dst, end, message)

    def heal(self) -> None:
        """No more loss and no blockade."""
        self.loss = self.duplication = 0.0
        for direction, count in sorted(self._blocked.items()):
            for _ in range(count):
                self.unblock(*direction)

    # messages

    def send(self, src: str, dst: str, message: Message) -> None:
        """Put a message on the link. Without one it is gone."""
        end = self._ends.get((src, dst))
        if end is None or not end.session:
            return
        rng = self._world.rng
        self.messages += 1
        if self._scenario.wire:
            frame = encode(message)
            self.bytes += len(frame)
            message = decode(frame)
        if self.blocked(src, dst):
            if self._scenario.ordered:
                end.waiting.append(message)
            return
        for _ in range(2 if self.duplication and rng.random() < self.duplication else 1):
            if not self.loss or rng.random() >= self.loss:
                self._depart(src, dst, end, message)

    def _depart(self, src: str, dst: str, end: End, message: Message) -> None:
        world, scenario = self._world, self._scenario
        arrival = world.now + scenario.latency_s + world.rng.random() * scenario.jitter_s
        if scenario.ordered:
            arrival = end.last_s = max(arrival, end.last_s)
        world.at(arrival, self._arrive, src, dst, end.session, message, world.now)

    def _arrive(self, src: str, dst: str, session: int, message: Message, sent_s: float) -> None:
        world = self._world
        if self._ends[dst, src].session != session:
            if not self._scenario.late_s or world.now - sent_s > self._scenario.late_s:
                return
            if world.rng.random() < 0.3:  # once more under way, as long as it may be
                delay = world.rng.uniform(0.0, self._scenario.late_s - (world.now - sent_s))
                world.after(delay, self._arrive, src, dst, session, message, sent_s)
                return
        self.latest_s = max(self.latest_s, world.now - sent_s)
        world.note("message", src, dst, type(message).__name__)
        world.registries[dst].receive(src, message)

    # who can talk

    def observe(self) -> None:
        """Note who has been able to talk to whom, and since when without a break."""
        world = self._world
        up = [r.id for r in world.registries.values() if r.running]
        links = frozenset(p for p in self.pairs if self.connected(*p) and self._can_dial(*p))
        component = _components(up, links)
        broken = {component[end] for pair in self._known_links - links for end in pair if end in component}
        self._known_links = links
        for a in up:
            for b in up:
                if component[a] != component[b] or component[a] in broken:
                    self._together_since.pop((a, b), None)
                else:
                    self._together_since.setdefault((a, b), world.now)
        for a, b in list(self._together_since):
            if a not in component or b not in component:
                del self._together_since[a, b]

    def together_s(self, a: str, b: str) -> float:
        """For how long there has been an unbroken way between the two."""
        since = self._together_since.get((a, b))
        return 0.0 if since is None else self._world.now - since


def _components(names: list[str], links: frozenset[Pair]) -> dict[str, str]:
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for a, b in sorted(links):
        parent[root(a)] = root(b)
    return {name: root(name) for name in names}


Topology = Callable[[list[str]], list[Pair]]


def _mesh(ids: list[str]) -> list[Pair]:
    return [(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]]


def _ring(ids: list[str]) -> list[Pair]:
    return [(a, ids[(i + 1) % len(ids)]) for i, a in enumerate(ids)]


TOPOLOGIES: dict[str, Topology] = {
    "mesh": _mesh,
    "ring": _ring,
    "line": lambda ids: list(pairwise(ids)),
    "star": lambda ids: [(ids[0], other) for other in ids[1:]],
    "sparse": lambda ids: _ring(ids) + list(zip(ids, ids[3:], strict=False)),
}
