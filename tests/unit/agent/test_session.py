"""What an agent does next: a table of outcomes, and bounds that hold for every seed."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.session import (
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    LONGEST_RETRY_AFTER_S,
    Outcome,
    Session,
    Step,
    full_jitter_s,
)

OK = Outcome(200)
SILENCE = Outcome(None, "connection refused")
UNKNOWN = Outcome(404, "no such node")
REPLACED = Outcome(409, "another agent")
BAD_KEY = Outcome(401, "bad key")
BUSY = Outcome(503, "store down", retry_after_s=7)
BROKEN = Outcome(500, "broken")

PENDING = Outcome(403, "the code", retry_after_s=9, code="pending")
UNLISTED = Outcome(403, "not listed", code="not_allowlisted")

# (history, step and outcome) -> next step, shortest and longest wait, words that are said
TABLE: list[tuple[list[tuple[Step, Outcome]], Step, float, float, str | None]] = [
    ([("register", OK)], "beat", 0, 30, None),
    ([("register", OK), ("beat", OK)], "beat", 28.5, 31.5, None),
    ([("register", OK), ("beat", REPLACED)], "register", 0, 1, "another agent has registered"),
    ([("register", REPLACED)], "register", 48, 72, "registration failed"),
    ([("register", SILENCE)], "register", 0.1, 1, "registration failed: connection refused"),
    ([("register", BROKEN)], "register", 0.1, 1, "registration failed: broken"),
    ([("register", BAD_KEY)], "register", 48, 72, "registration failed: bad key"),
    ([("register", Outcome(403, "not listed"))], "register", 48, 72, "not listed"),
    ([("register", Outcome(409, "taken"))], "register", 48, 72, "taken"),
    ([("register", Outcome(422, "labels"))], "register", 48, 72, "labels"),
    ([("register", BUSY)], "register", 7, 8, "store down"),
    ([("register", UNKNOWN)], "register", 0.1, 1, "registration failed"),
    ([("register", OK), ("beat", SILENCE)], "beat", 0.1, 1, "heartbeat failed: connection refused"),
    ([("register", OK), ("beat", BAD_KEY)], "beat", 48, 72, "heartbeat failed: bad key"),
    ([("register", OK), ("beat", UNKNOWN)], "register", 0, 1, "registering again"),
    ([("register", OK), ("beat", UNKNOWN), ("register", SILENCE)], "register", 0.1, 2, "registration failed"),
    ([("register", OK), ("beat", UNKNOWN), ("register", OK)], "beat", 0, 30, None),
    ([("register", OK), ("beat", SILENCE), ("beat", OK)], "beat", 28.5, 31.5, "accepted again"),
    ([("register", SILENCE), ("register", OK)], "beat", 0, 30, None),
    ([("register", Outcome(503, "down", retry_after_s=10.0**9))], "register", 300, 301, "down"),
    ([("register", PENDING)], "register", 9, 10, "waiting for approval: the code Asking again every 9 s"),
    ([("register", PENDING)] * 50, "register", 9, 10, None),  # said once, asked steadily
    ([("register", Outcome(403, "the code", code="pending"))], "register", 30, 31, "waiting for approval"),
    ([("register", PENDING), ("register", SILENCE), ("register", PENDING)], "register", 9, 10, None),
    ([("register", PENDING), ("register", OK), ("beat", UNLISTED), ("register", PENDING)], "register", 9, 10, "code"),
    ([("register", PENDING), ("register", OK)], "beat", 0, 30, None),
    ([("register", OK), ("beat", UNLISTED)], "register", 48, 72, "heartbeat failed: not listed"),
    ([("register", OK), ("beat", Outcome(403, "no", code="forbidden"))], "beat", 48, 72, "heartbeat failed: no"),
]


@pytest.mark.parametrize(("history", "step", "least_s", "most_s", "said"), TABLE)
@pytest.mark.parametrize("seed", range(5))
def test_what_comes_next(
    history: list[tuple[Step, Outcome]], step: Step, least_s: float, most_s: float, said: str | None, seed: int
) -> None:
    session, rng = Session(30), Random(seed)
    for done, outcome in history:
        plan = session.after(done, outcome, rng)
    assert plan.step == step
    assert least_s <= plan.wait_s <= most_s
    assert plan.say is None if said is None else said in (plan.say or "")


outcomes = st.builds(
    Outcome,
    st.sampled_from([200, 400, 401, 403, 404, 409, 422, 500, 503, None]),
    st.just("why"),
    st.none() | st.floats(0, 1e12),
)


@given(st.lists(outcomes, max_size=80), st.integers(), st.floats(0.1, 3600))
def test_it_never_gives_up_never_storms_and_never_sleeps_for_ever(
    history: list[Outcome], seed: int, interval_s: float
) -> None:
    session, rng, step = Session(interval_s), Random(seed), "register"
    for outcome in history:
        plan = session.after(step, outcome, rng)
        longest_s = max(1.05 * interval_s, LONGEST_RETRY_AFTER_S + FIRST_BACKOFF_S, 1.2 * LONGEST_BACKOFF_S)
        assert 0 <= plan.wait_s <= longest_s
        assert plan.say or outcome.status == 200
        if outcome.status not in (200, 404, 409):
            assert plan.wait_s >= 0.1 or outcome.retry_after_s is not None
        step = plan.step


@given(st.integers(1, 5000), st.integers())
def test_jitter_stays_below_a_bound_that_doubles_to_a_minute(attempt: int, seed: int) -> None:
    bound_s = min(FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 10), LONGEST_BACKOFF_S)
    assert 0.1 <= full_jitter_s(attempt, Random(seed)) <= bound_s


def test_machines_that_failed_together_do_not_come_back_together() -> None:
    waits = sorted(full_jitter_s(7, Random(seed)) for seed in range(200))
    assert waits[20] < LONGEST_BACKOFF_S / 4
    assert waits[180] > LONGEST_BACKOFF_S * 3 / 4
