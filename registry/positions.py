"""Places in registries' chains of writes, which callers carry as versions, and who waits until one is shown here."""

import asyncio
from dataclasses import dataclass

from federation.clock import Chain, Vector


@dataclass(frozen=True, slots=True)
class Position:
    """A place in one of a registry's chains: everything up to a write. What callers carry as a version."""

    chain: Chain
    seq: int

    def __str__(self) -> str:
        origin, generation = self.chain
        return f"{origin}:{generation}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read what `str` wrote. ValueError."""
        origin, generation, seq = text.rsplit(":", 2)
        if not (origin and 0 < int(generation) < 2**63 and 0 <= int(seq) < 2**63):
            raise ValueError("no position")
        return cls((origin, int(generation)), int(seq))


class Visible:
    """Up to where everything of each chain is shown here (`vector`), and who waits for more (`waiting`)."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        self.waiting: list[tuple[Position, asyncio.Future[None]]] = []

    async def reached(self, position: Position) -> None:
        """Return when everything up to that position is shown here."""
        if self._has(position):
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (position, done)
        self.waiting.append(waiter)
        try:
            await done
        finally:
            if waiter in self.waiting:  # nobody waits for it any more
                self.waiting.remove(waiter)

    def advance(self, vector: Vector) -> None:
        """Everything up to there is shown now."""
        self.vector = vector
        left = []
        for position, done in self.waiting:
            if done.done():
                continue
            if self._has(position):
                done.set_result(None)
            else:
                left.append((position, done))
        self.waiting = left

    def end(self, why: Exception) -> None:
        """Nothing more will be shown: tell who waits."""
        for _, done in self.waiting:
            if not done.done():
                done.set_exception(why)

    def _has(self, position: Position) -> bool:
        return self.vector.get(position.chain, 0) >= position.seq
