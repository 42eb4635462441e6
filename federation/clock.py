"""Time and causality: the hybrid logical clock, chains and their positions, vector clocks.

Sources: Kulkarni et al., "Logical Physical Clocks" (2014) for the hybrid logical clock (HLC);
Almeida et al., "Scalable and Accurate Causality Tracking" (2014) for dots.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

HLC_COUNTER_BITS = 16
HLC_MAX = 2**63 - 1
MAX_CHAINS = 2**16  # of a vector: a hundred registries, each started hundreds of times
MAX_GENERATION = 2**62  # that is believed of us: whatever a peer claims, there are generations above it

Chain = tuple[str, int]
"""One ordered log: (origin, generation). An origin takes a new generation at every start."""

Vector = dict[Chain, int]
"""Of each chain, the position up to which everything is held, or something greater in its place."""


class Now(NamedTuple):
    """The moment, as both clocks tell it. Ages and deadlines use `mono_s`, which only moves
    forward; stamps use `wall_ms`, which may be wrong, and may jump."""

    mono_s: float
    wall_ms: int


class Dot(NamedTuple):
    """One position in one chain: the name of one write."""

    origin: str
    generation: int
    seq: int

    @property
    def chain(self) -> Chain:
        """The chain that it lies in."""
        return self.origin, self.generation


def hlc_of(wall_ms: int) -> int:
    """The least HLC of a wall-clock moment."""
    return max(0, wall_ms) << HLC_COUNTER_BITS


def wall_ms_of(hlc: int) -> int:
    """The wall-clock milliseconds that an HLC stands for."""
    return hlc >> HLC_COUNTER_BITS


class HybridClock:
    """Mints stamps that grow along causality and stay near the wall clock.

    `tolerance_ms`: what is further ahead than this came from a clock that was wrong, ours or
    another's. It is not carried on: after a jump the next stamps are right again.
    """

    def __init__(self, tolerance_ms: int) -> None:
        self._tolerance_ms = tolerance_ms
        self._last = 0

    def mint(self, wall_ms: int, *above: int) -> int:
        """A stamp greater than every one in `above`, and than the last one unless that was of a jump."""
        least = hlc_of(wall_ms)
        last = self._last if wall_ms_of(self._last) <= wall_ms + self._tolerance_ms else 0
        stamp = min(max(least, last + 1, *(a + 1 for a in above)), HLC_MAX)
        self._last = max(last, stamp)
        return stamp


def reaches(vector: Mapping[Chain, int], other: Mapping[Chain, int]) -> bool:
    """Whether `vector` is at or past `other` in every chain."""
    return all(vector.get(chain, 0) >= seq for chain, seq in other.items())


def covers(vector: Mapping[Chain, int], dot: Dot) -> bool:
    """Whether the write that `dot` names is at or before `vector`."""
    return vector.get(dot.chain, 0) >= dot.seq


def raise_to(vector: Vector, other: Mapping[Chain, int] | Iterable[tuple[Chain, int]]) -> None:
    """Make `vector` the pointwise maximum of both."""
    for chain, seq in other.items() if isinstance(other, Mapping) else other:
        if seq > vector.get(chain, 0):
            vector[chain] = seq


def pack_vector(vector: Mapping[Chain, int]) -> bytes:
    """A vector as the payload of a record. Canonical."""
    return "\n".join(f"{origin} {generation} {seq}" for (origin, generation), seq in sorted(vector.items())).encode()


def unpack_vector(packed: bytes) -> Vector:
    """What `pack_vector` wrote; an empty vector for anything else, as it came from a peer."""
    vector: Vector = {}
    try:
        for line in packed.decode().splitlines():
            origin, *numbers = line.split(" ")
            generation, seq = (int(number) for number in numbers)
            if not (0 <= generation <= HLC_MAX and 0 <= seq <= HLC_MAX):
                return {}
            vector[origin, generation] = seq
    except ValueError:
        return {}
    return vector if pack_vector(vector) == packed else {}
