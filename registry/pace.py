"""When the next round of commits begins. Pure: times are seconds of one monotonic clock.

Whatever waits is taken together, and costs less the more it is: a round finds cold caches, and pushes to each peer.
Where rounds take long, as the machine is short of CPU or the store is slow, they are further apart, and larger.
"""

LEAST_GAP_S = 0.015  # from one round's beginning to the next one's
MOST_GAP_S = 0.035  # whatever a round took: two of them lie between a write and its being seen elsewhere
SHARE = 0.4  # of the time that rounds take up, between those two
AT_ONCE_S = 4 * LEAST_GAP_S  # so much may be taken in advance, four rounds or two: who writes now and then never waits


class Pace:
    """The generic cell rate algorithm (ITU-T I.371), with a gap that follows what rounds take."""

    def __init__(self) -> None:
        self._gap_s = LEAST_GAP_S
        self._paid_s = 0.0  # until then the rounds up to now use up their gaps

    def begin(self, now_s: float) -> float:
        """Another round is to begin; how long it should wait."""
        wait_s = max(0.0, self._paid_s - AT_ONCE_S - now_s)
        self._paid_s = max(self._paid_s, now_s) + self._gap_s
        return wait_s

    def took(self, seconds: float, writes: int) -> None:
        """What the last one took. Who writes alone has no company to wait for, however slow the store."""
        self._gap_s = min(max(LEAST_GAP_S, seconds / SHARE), MOST_GAP_S) if writes > 1 else LEAST_GAP_S
