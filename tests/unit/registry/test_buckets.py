"""Token buckets: what they let through, and that keys do not get into each other's way."""

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.buckets import Buckets

NOW_S = 1_000.0


@pytest.mark.parametrize(
    ("rate_per_s", "burst", "at_s", "waits_s"),
    [
        (1.0, 1.0, [0, 0, 0.5, 1.0], [0, 1.0, 0.5, 0]),
        (1.0, 3.0, [0, 0, 0, 0, 1.0, 1.0], [0, 0, 0, 1.0, 0, 1.0]),
        (10.0, 2.0, [0, 0, 0, 0.1, 0.15, 0.2], [0, 0, 0.1, 0, 0.05, 0]),
        (2.0, 2.0, [0, 0, 100, 100, 100], [0, 0, 0, 0, 0.5]),  # what nobody takes is not saved up beyond the burst
        (0.0, 0.0, [0, 0, 0, 0], [0, 0, 0, 0]),  # no limit
    ],
)
def test_what_a_key_may_take(rate_per_s: float, burst: float, at_s: list[float], waits_s: list[float]) -> None:
    buckets = Buckets(rate_per_s, burst)
    assert [buckets.take("key", NOW_S + at) for at in at_s] == pytest.approx(waits_s, abs=1e-6)


def test_some_requests_cost_more() -> None:
    buckets = Buckets(1.0, 10.0)
    assert buckets.take("key", NOW_S, 6.0) == 0.0
    assert buckets.take("key", NOW_S, 6.0) == pytest.approx(2.0)
    assert not buckets.is_low("key", NOW_S)
    assert buckets.take("key", NOW_S, 4.0) == 0.0
    assert buckets.is_low("key", NOW_S)
    assert buckets.is_low("key", NOW_S + 1.0)  # one has come
    assert not buckets.is_low("key", NOW_S + 1.25)


def test_what_is_refused_costs_nothing() -> None:
    buckets = Buckets(1.0, 1.0)
    buckets.take("key", NOW_S)
    for _ in range(1_000):
        assert buckets.take("key", NOW_S) == pytest.approx(1.0)
    assert buckets.take("key", NOW_S + 1.0) == 0.0


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=200), st.floats(1, 50), st.integers(1, 20))
def test_no_more_than_the_rate_and_the_burst(gaps_s: list[float], rate_per_s: float, burst: int) -> None:
    buckets, now_s, let_through = Buckets(rate_per_s, burst, rows_bits=4), NOW_S, 0
    for gap_s in gaps_s:
        now_s += gap_s
        wait_s = buckets.take("key", now_s)
        let_through += not wait_s
        assert wait_s >= 0.0
        if wait_s:
            assert wait_s <= 1.0 / rate_per_s + 1e-6  # and then there is one
    assert let_through <= burst + (now_s - NOW_S) * rate_per_s + 1e-3
    assert let_through >= 1


def test_it_goes_on_after_years() -> None:
    buckets, now_s = Buckets(1.0, 2.0), 3e8
    assert [buckets.take("key", now_s + at) > 0 for at in (0, 0, 0, 1.0, 1.0)] == [False, False, True, False, True]


def test_a_flood_of_keys_takes_no_memory_and_hardly_anybodys_tokens() -> None:
    """100 keys that are over their limit, and 20,000 that ask once."""
    buckets, rng = Buckets(1.0, 5.0), random.Random(3)
    size = sum(map(sys.getsizeof, (buckets._first, buckets._second)))
    for number in range(100):
        for _ in range(6):
            buckets.take(f"flood-{number}", NOW_S)
    assert all(buckets.take(f"flood-{number}", NOW_S) for number in range(100))
    refused = sum(buckets.take(rng.randbytes(20), NOW_S) > 0 for _ in range(20_000))
    assert refused <= 3  # one in 400,000 where nobody shares a place with two others
    assert sum(map(sys.getsizeof, (buckets._first, buckets._second))) == size
