"""The two clocks that shells read and hand to the cores."""

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for ages, wall-clock milliseconds for what people read."""

    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)

    def wall_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000
