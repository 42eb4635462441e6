"""Which registry is asked: tables of what happened, and a thousand agents after an outage."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.failover import (
    LEAST_STAY_S,
    MAX_ATTEMPTS,
    MAX_LEARNED,
    MISDIRECTED_S,
    NEARER_TIMES,
    TOKENS,
    Bucket,
    Registries,
    Registry,
    goes_on,
)
from agent.session import LONGEST_RETRY_AFTER_S, Outcome, Session, Step
from agent.wire import Advert

EU, US, ASIA = "http://eu.example.org", "http://us.example.org", "http://asia.example.org"
REFUSED = Outcome(None, "connection refused")
BUSY = Outcome(503, "busy", retry_after_s=30)


def registries(*urls: str) -> Registries:
    return Registries(urls or (EU, US, ASIA))


def by_url(found: Registries, url: str) -> Registry:
    return next(each for each in found.all if each.url == url)


def attempts(found: Registries, now_s: float, *, spare: bool = False) -> list[str]:
    tried: list[Registry] = []
    while (each := found.next_attempt(tried, now_s, spare=spare)) is not None:
        tried.append(each)
    return [each.url for each in tried]


def measured(found: Registries, now_s: float = 0.0, **rtts_ms: float) -> None:
    for name, rtt_ms in rtts_ms.items():
        found.measured(by_url(found, f"http://{name}.example.org"), [rtt_ms], now_s, Random(1))


@pytest.mark.parametrize(
    ("rtts_ms", "order"),
    [
        ({}, [EU, US, ASIA]),
        ({"eu": 90, "us": 20, "asia": 200}, [US, EU, ASIA]),
        ({"eu": 29, "us": 20}, [EU, US, ASIA]),  # as near as the nearest: the list decides
        ({"eu": 31, "us": 20}, [US, EU, ASIA]),
        ({"eu": 249, "us": 200}, [EU, US, ASIA]),
        ({"us": 300}, [US, EU, ASIA]),  # of the others nothing is known
    ],
)
def test_the_nearest_is_asked_first(rtts_ms: dict[str, float], order: list[str]) -> None:
    found = registries()
    measured(found, **rtts_ms)
    assert attempts(found, 0) == order


def test_one_that_answered_comes_before_one_of_which_nothing_is_known() -> None:
    found = registries()
    found.responded(by_url(found, ASIA))
    assert attempts(found, 0) == [ASIA, EU, US]


def test_what_is_in_use_stays_in_use_until_it_fails() -> None:
    found = registries()
    found.succeeded(by_url(found, US), 0)
    measured(found, eu=1, us=500)
    assert attempts(found, 0)[0] == US
    found.failed(by_url(found, US), REFUSED, 1, Random(1))
    assert attempts(found, 1)[0] == EU
    found.succeeded(by_url(found, EU), 1)
    found.responded(by_url(found, US))  # it is back, and no longer what is in use
    assert attempts(found, 2)[0] == EU


@pytest.mark.parametrize("status", [None, 204, 302, 401, 403, 408, 421, 425, 429, 500, 502, 503, 504, 599])
def test_these_go_on_to_the_next(status: int | None) -> None:
    assert goes_on(Outcome(status))


@pytest.mark.parametrize("status", [200, 400, 404, 409, 413, 415, 422])
def test_these_are_answers(status: int) -> None:
    assert not goes_on(Outcome(status))


@pytest.mark.parametrize(
    ("outcome", "rests_s"),
    [
        (BUSY, 30),
        (Outcome(429, "slowly", retry_after_s=7), 7),
        (Outcome(503, "for ever", retry_after_s=1e9), LONGEST_RETRY_AFTER_S),
        (Outcome(421, "wrong place"), MISDIRECTED_S),
        (Outcome(421, "wrong place", retry_after_s=5), 5),
    ],
)
def test_one_that_asks_for_patience_is_left_alone_for_so_long(outcome: Outcome, rests_s: float) -> None:
    found = registries(EU)
    found.failed(found.current, outcome, 100, Random(1))
    assert attempts(found, 100 + rests_s - 0.1) == []
    assert found.due(100 + rests_s - 0.1) == []
    assert found.wait_s(100) == pytest.approx(rests_s)
    assert attempts(found, 100 + rests_s) == [EU]
    assert found.wait_s(100 + rests_s) is None


def test_one_that_rests_does_not_make_the_others_wait() -> None:
    found = registries()
    found.failed(found.current, BUSY, 0, Random(1))
    assert attempts(found, 0) == [US, ASIA]
    assert found.wait_s(0) is None


def test_failed_ones_come_last_cost_tokens_and_are_spared_by_who_can_do_without() -> None:
    found = registries(EU, US)
    found.failed(by_url(found, EU), REFUSED, 0, Random(1))
    assert attempts(found, 0, spare=True) == [US]
    assert [attempts(found, 0) for _ in range(int(TOKENS))] == [[US, EU]] * int(TOKENS)
    assert attempts(found, 0) == [US]  # what works is never short of tokens
    assert attempts(found, 1) == [US, EU]


def test_no_request_asks_more_than_a_few() -> None:
    found = registries(*(f"http://r{n}.example.org" for n in range(20)))
    assert len(attempts(found, 0)) == MAX_ATTEMPTS


def test_one_that_refuses_the_key_is_asked_after_the_others_until_it_takes_it() -> None:
    found = registries()
    found.failed(by_url(found, EU), Outcome(401, "unknown key"), 0, Random(1))
    assert attempts(found, 0) == [US, ASIA, EU]
    found.succeeded(by_url(found, EU), 1)
    assert attempts(found, 1)[0] == EU


def test_failed_ones_are_looked_at_again_ever_later_and_a_good_look_makes_them_fine() -> None:
    found, rng = registries(EU), Random(1)
    now_s = 0.0
    for failures in range(1, 12):
        found.failed(found.current, REFUSED, now_s, rng)
        assert found.due(now_s) == []
        wait_s = found.next_due_s() - now_s
        assert 0.1 <= wait_s <= min(2.0 ** (failures - 1), 60)
        now_s = found.next_due_s()
        assert found.due(now_s) == [found.current]
    found.measured(found.current, [], now_s, rng)
    assert found.current.failures == 0
    assert 240 <= found.next_due_s() - now_s <= 360


# rounds of measurements (eu, us) while us is in use -> home after how many
ROUNDS: list[tuple[list[tuple[float, float]], int | None]] = [
    ([(20, 98)] * 5, NEARER_TIMES),
    ([(85, 98)] * 9, None),  # not by a fifth
    ([(1, 10)] * 9, None),  # by a fifth, and a matter of 9 ms
    ([(120, 98), (20, 98), (20, 98), (20, 98)], 4),
    ([(98, 20)] * 9, None),
]


@pytest.mark.parametrize(("rounds", "after"), ROUNDS)
def test_home_is_gone_to_after_it_was_clearly_nearer_for_a_while(
    rounds: list[tuple[float, float]], after: int | None
) -> None:
    found = registries(EU, US)
    found.succeeded(by_url(found, US), 0)
    moved = None
    for number, (eu_ms, us_ms) in enumerate(rounds, 1):
        measured(found, LEAST_STAY_S * number, us=us_ms, eu=eu_ms)
        left = found.go_home(LEAST_STAY_S * number)
        if left is not None and moved is None:
            moved = number
            assert (left.url, found.current.url) == (US, EU)
    assert moved == after


def test_nobody_goes_home_soon_after_coming_nor_to_one_that_failed_lately() -> None:
    found = registries(EU, US)
    found.failed(by_url(found, EU), REFUSED, 0, Random(1))
    found.succeeded(by_url(found, US), 0)
    for _ in range(NEARER_TIMES):
        measured(found, 1, us=98, eu=20)
    assert found.go_home(LEAST_STAY_S - 1) is None
    found.failed(by_url(found, EU), REFUSED, LEAST_STAY_S, Random(1))
    for _ in range(NEARER_TIMES):
        measured(found, LEAST_STAY_S + 1, us=98, eu=20)
    assert found.go_home(LEAST_STAY_S + 2) is None
    assert found.go_home(2 * LEAST_STAY_S) is by_url(found, US)


def test_the_round_trip_is_the_least_of_the_last_five() -> None:
    found = registries(EU)
    for rtt_ms in (5, 50, 60, 70, 80):
        found.sampled(found.current, rtt_ms)
    assert found.current.rtt_ms == 5
    found.sampled(found.current, 90)
    assert found.current.rtt_ms == 50
    found.sampled(found.current, -3)  # a server that claims more time than passed
    assert 0 < (found.current.rtt_ms or 0) < 1


# configured -> told by -> url -> is it learned?
LEARNED = [
    (["http://eu.example.org"], "http://us.example.org", True),
    (["http://eu.example.org"], "https://us.example.org", True),
    (["https://eu.example.org"], "http://us.example.org", False),
    (["http://eu.example.org", "https://us.example.org"], "http://asia.example.org", False),
    (["http://eu.example.org"], "http://127.0.0.1:9205", False),
    (["http://eu.example.org"], "http://localhost:9205", False),
    (["http://eu.example.org"], "http://[::1]:9205", False),
    (["http://127.0.0.1:1"], "http://127.0.0.1:2", True),
    (["http://eu.example.org"], "http://eu.example.org", False),
]


@pytest.mark.parametrize(("configured", "url", "learned"), LEARNED)
def test_what_may_be_learned(configured: list[str], url: str, learned: bool) -> None:
    found = Registries(configured)
    assert found.learn([Advert(url, "us", "us")], found.current) is learned
    assert [each.url for each in found.all] == configured + [url] * learned
    assert [each.url for each in Registries(configured, [Advert(url)]).all] == configured + [url] * learned


def test_what_was_learned_comes_after_what_was_configured_and_has_an_end() -> None:
    found = registries(EU)
    many = [Advert(f"http://r{n}.example.org", "x", f"r{n}") for n in range(50)]
    assert found.learn(many, found.current)
    assert len(found.all) == 1 + MAX_LEARNED
    assert found.all[0].url == EU
    assert not found.learn(many, found.current)  # nothing new
    assert found.adverts() == many[:MAX_LEARNED]


def test_one_in_use_is_not_forgotten_and_one_that_failed_and_is_told_no_more_is() -> None:
    found = registries(EU)
    found.learn([Advert(US), Advert(ASIA)], found.current)
    found.succeeded(by_url(found, US), 0)
    found.failed(by_url(found, ASIA), REFUSED, 0, Random(1))
    found.learn([Advert(f"http://r{n}.example.org") for n in range(50)], found.current)
    assert by_url(found, US) is found.current
    assert ASIA not in [each.url for each in found.all]


def test_the_same_registry_under_another_url_is_not_kept_beside_it() -> None:
    found = registries(EU)
    found.learn([Advert("http://192.0.2.1:9205", "eu", "eu"), Advert(US, "us", "us")], found.current)
    found.identified(found.all[0], "eu", "eu")
    assert [each.url for each in found.all] == [EU, US]
    found.learn([Advert("http://192.0.2.1:9205", "eu", "eu")], found.current)
    assert [each.url for each in found.all] == [EU, US]


def test_round_trips_are_told_by_id_else_by_region_and_others_in_words() -> None:
    found = Registries([EU, US, ASIA])
    found.identified(by_url(found, EU), "eu-1", "eu")
    found.identified(by_url(found, US), None, "us")
    measured(found, eu=23.456, us=98, asia=150)
    assert found.rtts_ms() == {"eu-1": 23.46, "us": 98}
    found.failed(by_url(found, ASIA), Outcome(None, f"{ASIA}: connection refused"), 0, Random(1))
    assert found.others() == f"{US} is 98 ms, {ASIA} unreachable: connection refused"


def test_tokens_come_back_with_time_and_never_exceed_the_bucket() -> None:
    bucket = Bucket(2, 0.5)
    assert [bucket.take(t) for t in (100, 100, 100, 101, 102, 102)] == [True, True, False, False, True, False]
    assert [bucket.take(1000) for _ in range(3)] == [True, True, False]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([200, 401, 404, 421, 429, 500, 503, None]), st.floats(0, 400)),
        max_size=60,
    ),
    st.integers(),
)
def test_whatever_happens_none_is_asked_twice_or_while_it_rests_and_none_is_lost(
    history: list[tuple[int, int | None, float]], seed: int
) -> None:
    found, rng, now_s = registries(), Random(seed), 0.0
    for index, status, passed_s in history:
        now_s += passed_s
        outcome = Outcome(status, "why", passed_s if status in (429, 503) else None)
        if goes_on(outcome):
            found.failed(found.all[index], outcome, now_s, rng)
        else:
            found.succeeded(found.all[index], now_s)
        urls = attempts(found, now_s)
        assert len(set(urls)) == len(urls)
        assert not any(by_url(found, url).rests(now_s) for url in urls)
        fine = {each.url for each in found.all if not each.failures and not each.rests(now_s)}
        assert fine <= set(urls)
    assert [each.url for each in found.all] == [EU, US, ASIA]
    later_s = now_s + 2 * LONGEST_RETRY_AFTER_S
    assert set(attempts(found, later_s)) == {EU, US, ASIA}


class Herd:
    """Agents that live by Session and Registries in simulated time."""

    def __init__(self, agents: int, outage_s: tuple[float, float]) -> None:
        self.outage_s = outage_s
        self.asked: Counter[int] = Counter()
        self.accepted: list[float] = []
        for seed in range(agents):
            self._live(Random(seed), outage_s[1] + 180)

    def _live(self, rng: Random, until_s: float) -> None:
        found, session, now_s = registries(), Session(30), rng.uniform(0, 30)
        step: Step = "register"
        back = False
        while now_s < until_s:
            outcome, tried = REFUSED, list[Registry]()
            while (each := found.next_attempt(tried, now_s)) is not None:
                tried.append(each)
                self.asked[int(now_s)] += 1
                outcome = REFUSED if self.outage_s[0] <= now_s < self.outage_s[1] else Outcome(200)
                if not goes_on(outcome):
                    found.succeeded(each, now_s)
                    break
                found.failed(each, outcome, now_s, rng)
            if outcome.status == 200 and now_s >= self.outage_s[1] and not back:
                back = True
                self.accepted.append(now_s - self.outage_s[1])
            plan = session.after(step, outcome, rng)
            step, now_s = plan.step, now_s + max(plan.wait_s, 1e-3)


def test_a_thousand_agents_do_not_come_back_together() -> None:
    herd = Herd(1000, (100, 400))
    assert len(herd.accepted) == 1000  # all are back
    assert max(herd.accepted) <= 60
    first_second = sum(1 for waited_s in herd.accepted if waited_s < 1)
    assert first_second < 60  # evenly over a minute it is 17 to 33
    assert max(herd.asked[second] for second in range(160, 400)) < 200  # three registries each
    assert max(herd.asked[second] for second in range(400, 580)) < 120
