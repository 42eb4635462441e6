"""Engines joined in virtual time over links that only delay: no faults, but every byte is counted.

For tests of single mechanisms and for sized runs; tests/simulation has the faults.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

from federation.clock import Now
from federation.config import Config
from federation.ed25519 import PrivateKey
from federation.effects import Alert, Effect, Send, Store
from federation.engine import Engine
from federation.messages import Message
from federation.replica import Replica
from federation.wire import decode, encode
from tests.support.rosters import advert

START_MS = 1_764_000_000_000
TICK_S = 0.1
FRAME_OVERHEAD = 8  # a WebSocket frame's own header, masked and of medium length


class Fabric:
    """Registries by id, and the messages between them. `wire`: every message is really encoded."""

    def __init__(self, *, delay_s: float = 0.02, wire: bool = True, seed: int = 1) -> None:
        self.now_s = 0.0
        self.engines: dict[str, Engine] = {}
        self.sent: defaultdict[tuple[str, str], int] = defaultdict(int)  # bytes by direction
        self.kinds: Counter[str] = Counter()
        self.bytes_by_kind: Counter[str] = Counter()
        self.alerts: list[tuple[str, Alert]] = []
        self.drop: Callable[[str, str, Message], bool] = lambda src, dst, message: False
        self.alter: Callable[[str, str, Message], Message] = lambda src, dst, message: message
        self.on_store: Callable[[str, str], None] = lambda registry_id, key: None
        self._delay_s, self._wire, self._seed = delay_s, wire, seed
        self._under_way: list[tuple[float, int, str, str, Any]] = []
        self._links: set[tuple[str, str]] = set()
        self._count = 0
        self._ticked_s = 0.0

    def now(self, ahead_ms: int = 0) -> Now:
        """The moment, by a clock that may be ahead."""
        return Now(self.now_s, START_MS + int(self.now_s * 1000) + ahead_ms)

    def add(
        self, registry_id: str, replica: Replica | None = None, key: PrivateKey | None = None, **differences: Any
    ) -> Engine:
        """A registry. `key`: it seals what it writes, and its entry says so."""
        if key is not None:
            differences = {"advert": advert(registry_id, key), **differences}
        config = Config(registry_id, **{"advert": registry_id.encode(), **differences})
        held = replica if replica is not None else Replica(registry_id)
        rng = Random(f"{self._seed} {registry_id}")
        engine = self.engines[registry_id] = Engine(config, held, rng, self.now(), key)
        return engine

    def link(self, a: str, b: str) -> None:
        """A link comes up."""
        for src, dst in ((a, b), (b, a)):
            self._links.add((src, dst))
        for src, dst in ((a, b), (b, a)):
            self.perform(src, self.engines[src].connected(dst, self.now()))

    def unlink(self, a: str, b: str) -> None:
        """A link goes down, with what is under way on it."""
        self._links -= {(a, b), (b, a)}
        for src, dst in ((a, b), (b, a)):
            if src in self.engines:
                self.perform(src, self.engines[src].disconnected(dst, self.now()))

    def mesh(self) -> None:
        """A link between every two."""
        names = sorted(self.engines)
        for index, a in enumerate(names):
            for b in names[index + 1 :]:
                self.link(a, b)

    def perform(self, src: str, effects: Iterable[Effect]) -> None:
        """Carry out what a registry's engine asks for; nothing is kept."""
        for effect in effects:
            if isinstance(effect, Send):
                self._send(src, effect.peer, effect.message)
            elif isinstance(effect, Store):
                self.on_store(src, effect.key)
            elif isinstance(effect, Alert):
                self.alerts.append((src, effect))

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; with `until`, stop when it holds, and tell whether it did."""
        end_s = self.now_s + seconds
        for _ in self._steps(end_s):
            if until is not None and until():
                return True
        return until is None

    def equal(self) -> bool:
        """Whether all registries hold the same records and positions."""
        engines = list(self.engines.values())
        first = engines[0].replica
        return all(
            e.replica.vector == first.vector and e.replica.digest.groups() == first.digest.groups() for e in engines[1:]
        )

    def _steps(self, end_s: float) -> Iterator[None]:
        while self.now_s < end_s:
            next_s = min(end_s, self._ticked_s + TICK_S)
            while self._under_way and self._under_way[0][0] <= next_s:
                self.now_s, _, src, dst, packed = heapq.heappop(self._under_way)
                if (src, dst) in self._links and dst in self.engines:
                    message = decode(packed) if self._wire else packed
                    self.perform(dst, self.engines[dst].receive(src, message, self.now()))
            self.now_s = self._ticked_s = next_s
            for name, engine in list(self.engines.items()):
                self.perform(name, engine.tick(self.now()))
            yield

    def _send(self, src: str, dst: str, message: Message) -> None:
        if (src, dst) not in self._links or self.drop(src, dst, message):
            return
        message = self.alter(src, dst, message)
        kind = type(message).__name__
        self.kinds[kind] += 1
        packed: Any = message
        if self._wire:
            packed = encode(message)
            self.sent[src, dst] += len(packed) + FRAME_OVERHEAD
            self.bytes_by_kind[kind] += len(packed) + FRAME_OVERHEAD
        self._count += 1
        heapq.heappush(self._under_way, (self.now_s + self._delay_s, self._count, src, dst, packed))
