"""Token buckets by key, in memory that does not grow, whoever comes."""

from array import array
from collections.abc import Hashable

ROWS_BITS = 16  # two rows of 65,536 places: 1 MB
_ROUNDING_S = 1e-6  # of a clock that has run for years


class Buckets:
    """One bucket a key: it holds `burst` tokens and gains `rate_per_s` of them a second.

    A bucket is one number, the time at which it is full again (GCRA, as in ATM's policing of cells). A key has one
    place in each of two rows, and what counts is the emptier debt of both (a count-min sketch), so that two keys share
    a bucket only where both their places are others', too: with 1,000 keys that are over their limit one in 4,000
    others, with 100 one in 400,000. Hashes are seeded by the process: nobody can choose whom to share with.
    """

    def __init__(self, rate_per_s: float, burst: float, rows_bits: int = ROWS_BITS) -> None:
        """`rate_per_s` and `burst` are above 0; of 0 both, everything is let through."""
        self._gap_s = 1.0 / rate_per_s if rate_per_s else 0.0
        self._depth_s = burst * self._gap_s
        self._bits = rows_bits
        self._mask = (1 << rows_bits) - 1
        self._first = array("d", bytes(8 << rows_bits))
        self._second = array("d", bytes(8 << rows_bits))

    def take(self, key: Hashable, now_s: float, tokens: float = 1.0) -> float:
        """Take so many tokens: 0.0. Where there are not as many, nothing is taken: the seconds until there are, if
        nobody takes any meanwhile. `now_s` is monotonic and above 0."""
        hashed = hash(key)
        first, second = self._first, self._second
        at, also = hashed & self._mask, hashed >> self._bits & self._mask
        one, other = first[at], second[also]
        full_s = one if one < other else other
        full_s = (full_s if full_s > now_s else now_s) + tokens * self._gap_s
        wait_s = full_s - now_s - self._depth_s
        if wait_s > _ROUNDING_S:
            return wait_s
        if one < full_s:
            first[at] = full_s
        if other < full_s:
            second[also] = full_s
        return 0.0

    def is_low(self, key: Hashable, now_s: float) -> bool:
        """Whether an eighth of the tokens or less is left: also between one that has come and its being taken."""
        hashed = hash(key)
        full_s = min(self._first[hashed & self._mask], self._second[hashed >> self._bits & self._mask])
        return full_s - now_s > self._depth_s * 7 / 8 + _ROUNDING_S
