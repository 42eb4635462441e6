"""What the core is given from outside."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Rng(Protocol):
    """Dice, seeded by whoever builds the engine: `random.Random` is one."""

    def random(self) -> float:
        """A number from 0 up to 1."""

    def getrandbits(self, k: int, /) -> int:
        """A number of `k` random bits."""

    def choice(self, seq: Sequence[T]) -> T:
        """One of these."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """So many different ones of these."""
