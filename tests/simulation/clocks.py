"""A registry's clocks: one that only moves forward, and one that tells the time, more or less."""

from federation.clock import Now

EPOCH_MS = 1_750_000_000_000


class Clocks:
    """Wall time stands `offset_ms` off, runs `drift` too fast, and may have jumped by `jump_ms`.
    The monotonic clock starts anywhere: no two processes can compare theirs."""

    def __init__(self, offset_ms: int, drift: float) -> None:
        self.offset_ms = offset_ms
        self.drift = drift
        self.jump_ms = 0
        self.leap_ms = 0  # everybody's time moves on at once: see World.leap
        self.mono_base_s = 0.0

    def read(self, t: float) -> Now:
        """Both clocks at the virtual moment `t`."""
        wall = t * 1000 * (1 + self.drift) + self.offset_ms + self.jump_ms + self.leap_ms
        return Now(self.mono_base_s + t, EPOCH_MS + int(wall))

    def set_right(self) -> None:
        """As after NTP did its work."""
        self.offset_ms, self.drift, self.jump_ms = 0, 0.0, 0
