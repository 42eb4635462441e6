"""Liveness: what callers see, where silence leads, and when to look again."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.feed import Feed
from registry.lifecycle import (
    Deadlines,
    Liveness,
    Transition,
    Windows,
    liveness_at_start,
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


@pytest.mark.parametrize(
    ("age_s", "downtime_s", "was_offline", "after"),
    [
        (5, 0, False, "online"),
        (89, 0, False, "online"),
        (90, 0, False, "degraded"),
        (200, 150, False, "online"),  # heard until 50 s before the stop
        (200, 100, False, "degraded"),
        (None, 0, True, "offline"),
        (None, 1e6, False, "online"),  # nothing is known: nobody expires for our absence
        (1e6, 1e6, False, "online"),
        (1e6, 1e5, False, "degraded"),  # nobody had called it offline yet
    ],
)
def test_liveness_when_a_registry_starts(
    age_s: float | None, downtime_s: float, was_offline: bool, after: Liveness
) -> None:
    assert liveness_at_start(age_s, downtime_s, was_offline, WINDOWS) == after


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(["online", "degraded", "offline"]))
def test_silence_never_makes_a_node_livelier(silence_s: float, held_s: float, current: Liveness) -> None:
    order = ["online", "degraded", "offline"]
    assert order.index(next_liveness(silence_s, held_s, current, WINDOWS)) >= order.index(current)


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
