"""Liveness: what callers see, where silence leads, and when to look again."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.feed import Feed
from registry.lifecycle import (
    Deadlines,
    ExpiryGuard,
    Liveness,
    Transition,
    Windows,
    next_liveness,
    shown_status,
)

WINDOWS = Windows(30, 90, 300)
# liveness, the agent's word, the operator's intent -> what callers see
STATUS: list[tuple[Liveness, str | None, str | None, str]] = [
    ("online", None, None, "online"),
    ("online", "online", None, "online"),
    ("online", "busy", None, "online"),
    ("online", "leaving", None, "draining"),
    ("online", "draining", None, "draining"),
    ("online", "maintenance", None, "maintenance"),
    ("online", "degraded", None, "degraded"),
    ("online", None, "maintenance", "maintenance"),
    ("online", "leaving", "maintenance", "maintenance"),
    ("online", "degraded", "draining", "draining"),
    ("degraded", None, None, "degraded"),
    ("degraded", "online", None, "degraded"),
    ("degraded", "leaving", None, "draining"),
    ("degraded", None, "maintenance", "maintenance"),
    ("offline", None, None, "offline"),
    ("offline", "leaving", None, "offline"),
    ("offline", None, "maintenance", "offline"),
    ("offline", "online", "draining", "offline"),
]


@pytest.mark.parametrize(("liveness", "reported", "intent", "status"), STATUS)
def test_the_status_that_callers_see(liveness: Liveness, reported: str | None, intent: str | None, status: str) -> None:
    assert shown_status(liveness, reported, intent) == status


@pytest.mark.parametrize(
    ("silence_s", "held_s", "current", "after"),
    [
        (0, 1000, "online", "online"),
        (89.9, 1000, "online", "online"),
        (90, 1000, "online", "degraded"),
        (299.9, 1000, "degraded", "degraded"),
        (300, 1000, "online", "offline"),
        (300, 1000, "degraded", "offline"),
        (1000, 10, "online", "online"),  # we were away: nobody is blamed
        (1000, 90, "online", "degraded"),
        (1000, 10, "degraded", "degraded"),
        (0, 1000, "offline", "offline"),  # only a heartbeat brings it back
    ],
)
def test_where_silence_leads(silence_s: float, held_s: float, current: Liveness, after: Liveness) -> None:
    assert next_liveness(silence_s, held_s, current, WINDOWS) == after


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(["online", "degraded", "offline"]))
def test_silence_never_makes_a_node_livelier(silence_s: float, held_s: float, current: Liveness) -> None:
    order = ["online", "degraded", "offline"]
    assert order.index(next_liveness(silence_s, held_s, current, WINDOWS)) >= order.index(current)


HOLD_S = 300.0
# (seconds, silent, alive, whether it holds), one moment after another
GUARD: dict[str, list[tuple[float, int, int, bool]]] = {
    "few fall silent": [(0, 30, 100, False), (1, 30, 100, False)],
    "more than their share": [(0, 31, 100, True)],
    "everybody": [(0, 100, 100, True)],
    "a small region, all of it": [(0, 19, 19, False), (500, 1, 1, False)],
    "the least region that is held": [(0, 20, 20, True)],
    "they are heard again": [(0, 50, 100, True), (10, 30, 100, False), (20, 0, 100, False)],
    "most are, and then the others' time is up": [(0, 50, 100, True), (10, 25, 100, False)],
    "it ends by itself": [(0, 50, 100, True), (299, 50, 100, True), (300, 50, 100, False), (301, 50, 100, False)],
    "one silence is held once": [(0, 50, 100, True), (300, 50, 100, False), (900, 60, 100, False)],
    "the next silence is held again": [(0, 50, 100, True), (300, 50, 100, False), (310, 0, 100, False),
                                       (320, 50, 100, True)],
    "those that were called offline are no more": [(0, 50, 100, True), (300, 50, 100, False), (301, 45, 95, False),
                                                   (302, 10, 60, False)],
    "it goes on from where it began": [(0, 40, 100, True), (200, 80, 100, True), (300, 90, 100, False)],
    "one that was cut short is no hold": [(0, 50, 100, True), (10, 10, 100, False), (20, 50, 100, True),
                                          (319, 50, 100, True), (320, 50, 100, False)],
}  # fmt: skip


@pytest.mark.parametrize("case", GUARD)
def test_when_many_fall_silent_at_once_nobody_is_called_offline_for_a_while(case: str) -> None:
    guard = ExpiryGuard(HOLD_S)
    assert [guard.holds(silent, alive, at) for at, silent, alive, _ in GUARD[case]] == [
        held for _, _, _, held in GUARD[case]
    ]


def test_a_hold_tells_how_long_it_lasts_at_most() -> None:
    guard = ExpiryGuard(HOLD_S)
    assert guard.left_s(0) is None
    guard.holds(100, 100, 7.0)
    assert (guard.left_s(7.0), guard.left_s(107.0), guard.left_s(1_000.0)) == (300.0, 200.0, 0.0)
    guard.holds(0, 100, 8.0)
    assert guard.left_s(8.0) is None


@given(st.lists(st.tuples(st.floats(0.1, 400), st.integers(0, 60)), max_size=40))
def test_no_hold_lasts_longer_than_it_may(moments: list[tuple[float, int]]) -> None:
    """However many are silent, and whenever one looks."""
    guard, now, since = ExpiryGuard(HOLD_S), 0.0, None
    for step, silent in moments:
        now += step
        if not guard.holds(silent, 60, now):
            since = None
        elif since is None:
            since = now
        assert since is None or now - since < HOLD_S


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from("abc")), max_size=30), st.integers(0, 20))
def test_deadlines_come_due_in_order_and_once(added: list[tuple[int, str]], now: int) -> None:
    deadlines = Deadlines()
    for at, node_id in added:
        deadlines.add(node_id, at)
    taken = list(itertools.chain.from_iterable(iter(lambda: deadlines.due(now, 3), [])))
    assert taken == sorted(entry for entry in added if entry[0] <= now)
    assert len(deadlines) == len(added) - len(taken)
    assert deadlines.due(now, 3) == []


def test_the_feed_tells_every_subscriber_in_order() -> None:
    feed, heard = Feed(), list[tuple[str, Transition]]()
    change = Transition("n", "online", "degraded", "silent", 1)
    feed.publish(change)
    feed.subscribe(lambda t: heard.append(("one", t)))
    feed.subscribe(lambda t: heard.append(("two", t)))
    feed.publish(None)
    feed.publish(change)
    assert heard == [("one", change), ("two", change)]
