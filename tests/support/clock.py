"""A clock that moves when a test says so."""


class ManualClock:
    """registry.service.Clock by hand: both clocks move together."""

    def __init__(self, wall_ms: int = 1_700_000_000_000) -> None:
        self._seconds = 1_000.0
        self._wall_ms = wall_ms

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._seconds += seconds
        self._wall_ms += round(seconds * 1000)

    def monotonic(self) -> float:
        """See registry.service.Clock."""
        return self._seconds

    def wall_ms(self) -> int:
        """See registry.service.Clock."""
        return self._wall_ms
