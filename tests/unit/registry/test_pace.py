"""Rounds of commits: at once for who writes now and then, apart under load, further apart where they take long."""

import pytest

from registry.pace import AT_ONCE_S, LEAST_GAP_S, MOST_GAP_S, SHARE, Pace


def begun(took_s: float, count: int, *, writes: int = 9) -> list[float]:
    """When rounds begin that follow each other as fast as they may."""
    pace, now_s, moments = Pace(), 100.0, []
    for _ in range(count):
        now_s += pace.begin(now_s)
        moments.append(now_s)
        now_s += took_s
        pace.took(took_s, writes)
    return moments


def test_who_writes_now_and_then_never_waits() -> None:
    pace = Pace()
    assert [pace.begin(100 + at * MOST_GAP_S) for at in range(50)] == [0.0] * 50


def test_a_few_rounds_may_follow_each_other_at_once() -> None:
    assert len([moment for moment in begun(0.0, 20) if moment == 100.0]) == AT_ONCE_S / LEAST_GAP_S + 1


@pytest.mark.parametrize(
    ("took_s", "gap_s"),
    [(0.001, LEAST_GAP_S), (0.006, LEAST_GAP_S), (0.01, 0.01 / SHARE), (0.02, MOST_GAP_S), (0.2, 0.2)],
)
def test_under_load_rounds_are_as_far_apart_as_they_take(took_s: float, gap_s: float) -> None:
    moments = begun(took_s, 60)
    assert moments[-1] - moments[-11] == pytest.approx(10 * gap_s)


def test_who_writes_alone_waits_for_no_company() -> None:
    moments = begun(0.008, 60, writes=1)
    assert moments[-1] - moments[-11] == pytest.approx(10 * LEAST_GAP_S)


def test_one_slow_round_is_made_up_for_at_once() -> None:
    pace = Pace()
    pace.took(5.0, 9)  # the store was away
    pace.begin(100.0)
    pace.took(0.001, 9)
    waits = [pace.begin(101.0 + at * LEAST_GAP_S) for at in range(50)]
    assert waits == [0.0] * 50


def test_a_pause_does_not_allow_more_at_once() -> None:
    pace = Pace()
    pace.begin(100.0)
    assert [pace.begin(900.0) for _ in range(6)].count(0.0) == AT_ONCE_S / LEAST_GAP_S + 1
