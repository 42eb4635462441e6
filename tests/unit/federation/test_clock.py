"""The hybrid logical clock, and vectors."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.clock import (
    HLC_MAX,
    Dot,
    HybridClock,
    Vector,
    covers,
    hlc_of,
    pack_vector,
    raise_to,
    reaches,
    unpack_vector,
    wall_ms_of,
)

NOON = 1_764_000_000_000
TOLERANCE_MS = 10_000
WALLS = st.sampled_from([NOON - 3_600_000, NOON - 1, NOON, NOON + 1, NOON + TOLERANCE_MS, NOON + 3_600_000, -5])
VECTORS = st.dictionaries(st.tuples(st.sampled_from("ab"), st.integers(1, 2)), st.integers(1, 3))


@given(st.lists(st.tuples(WALLS, st.lists(st.integers(0, hlc_of(NOON + 10**8)), max_size=3)), max_size=8))
def test_a_stamp_is_above_all_that_it_has_to_be_above(minted: list[tuple[int, list[int]]]) -> None:
    clock = HybridClock(TOLERANCE_MS)
    last, last_wall_ms = 0, 0
    for wall_ms, above in minted:
        stamp = clock.mint(wall_ms, *above)
        assert stamp >= hlc_of(wall_ms)
        assert all(stamp > other for other in above)
        if wall_ms_of(last) <= wall_ms + TOLERANCE_MS:
            assert stamp > last, f"minted at {wall_ms} after {last_wall_ms}"
        last, last_wall_ms = stamp, wall_ms


def test_stamps_of_one_millisecond_grow() -> None:
    clock = HybridClock(TOLERANCE_MS)
    stamps = [clock.mint(NOON) for _ in range(100)]
    assert stamps == [hlc_of(NOON) + count for count in range(100)]


def test_a_clock_that_goes_back_a_little_mints_on() -> None:
    clock = HybridClock(TOLERANCE_MS)
    ahead = clock.mint(NOON + TOLERANCE_MS)
    assert clock.mint(NOON) == ahead + 1


def test_a_jump_is_not_carried_on() -> None:
    clock = HybridClock(TOLERANCE_MS)
    clock.mint(NOON + 3_600_000)
    assert clock.mint(NOON) == hlc_of(NOON)
    assert clock.mint(NOON) == hlc_of(NOON) + 1


def test_a_stamp_from_the_future_is_minted_above_and_not_carried_on_either() -> None:
    clock = HybridClock(TOLERANCE_MS)
    theirs = hlc_of(NOON + 3_600_000)
    assert clock.mint(NOON, theirs) == theirs + 1
    assert clock.mint(NOON) == hlc_of(NOON)


@pytest.mark.parametrize("above", [HLC_MAX - 1, HLC_MAX])
def test_there_is_no_stamp_beyond_the_last(above: int) -> None:
    assert HybridClock(TOLERANCE_MS).mint(NOON, above) == HLC_MAX


def test_before_the_epoch_there_are_no_stamps() -> None:
    assert hlc_of(-1) == 0
    assert HybridClock(TOLERANCE_MS).mint(-(10**15)) == 1


@given(st.integers(0, 2**46))
def test_a_stamp_tells_its_moment(wall_ms: int) -> None:
    assert wall_ms_of(hlc_of(wall_ms)) == wall_ms_of(hlc_of(wall_ms) + 65_535) == wall_ms


# Vectors: a lattice as well


def joined(*vectors: Vector) -> Vector:
    result: Vector = {}
    for vector in vectors:
        raise_to(result, vector)
    return result


@given(VECTORS, VECTORS, VECTORS)
def test_vectors_are_a_lattice(a: Vector, b: Vector, c: Vector) -> None:
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    assert joined(a, a) == joined(a) == a
    assert reaches(joined(a, b), a)
    assert reaches(a, b) == (joined(a, b) == a)


@given(VECTORS, st.sampled_from("ab"), st.integers(1, 2), st.integers(1, 3))
def test_a_vector_covers_what_it_reaches(vector: Vector, origin: str, generation: int, seq: int) -> None:
    dot = Dot(origin, generation, seq)
    assert covers(vector, dot) == reaches(vector, {dot.chain: seq})


def test_raising_by_pairs_takes_the_greatest_of_a_chain() -> None:
    vector: Vector = {("a", 1): 2}
    raise_to(vector, [(("a", 1), 1), (("a", 1), 5), (("a", 1), 3), (("b", 1), 1)])
    assert vector == {("a", 1): 5, ("b", 1): 1}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed + b"\n",
        lambda packed: packed.replace(b"2", b"-2"),
        lambda packed: packed.replace(b"2", str(HLC_MAX + 1).encode()),
        lambda packed: packed.replace(b"2", b"9" * 5_000),
        lambda packed: packed.replace(b" 2", b""),
        lambda packed: packed + b" 3",
        lambda packed: b"\xff" + packed,
        lambda packed: b"\n".join(reversed(packed.split(b"\n"))),
    ],
)
def test_a_spoilt_packed_vector_is_none(spoil: Callable[[bytes], bytes]) -> None:
    packed = pack_vector({("a", 1): 1, ("b", 1): 2})
    assert unpack_vector(packed) == {("a", 1): 1, ("b", 1): 2}
    assert unpack_vector(spoil(packed)) == {}
