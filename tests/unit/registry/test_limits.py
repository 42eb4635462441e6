"""The registry's limits: honest use stays under them, and floods do not."""

import contextlib

import pytest

from registry.errors import ApiError
from registry.http import limits as numbers
from registry.http.limits import Limits, network_of
from registry.http.patience import Patience


class Told:
    """A clock that stands where it is put, and what was counted."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.counted: list[str] = []
        self.limits = Limits(lambda: self.now_s, self.counted.append)


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        (":rubbish", ":rubbish"),
    ],
)
def test_what_an_address_counts_as(address: str, counted_as: str) -> None:
    assert network_of(address) == counted_as


def test_a_thousand_nodes_behind_one_address_may_start_at_once_and_go_on() -> None:
    """Each connects with TLS, looks around three times and registers, with no key yet; then, every 30 s, connects
    again, looks around and beats with its key."""
    told = Told()
    for _ in range(1_000):
        assert told.limits.may_connect("192.0.2.1", secured=True)
        for _ in range(4):
            told.limits.of_address("192.0.2.1")
    for beat in range(3_000):
        told.now_s += 0.03
        assert told.limits.may_connect("192.0.2.1", secured=True)
        for _ in range(3):
            told.limits.of_address("192.0.2.1")
        told.limits.of_key(f"node-{beat % 1_000}")
    assert told.counted == []


def test_a_program_may_ask_a_thousand_times_a_second() -> None:
    told = Told()
    for _ in range(20_000):
        told.now_s += 0.001
        assert told.limits.may_connect("192.0.2.1", secured=False)
        told.limits.of_key(b"one")
    assert told.counted == []


def test_bad_keys_are_soon_too_many_and_slow_their_address_down() -> None:
    told = Told()
    for _ in range(int(numbers.FAILURES_BURST)):
        told.limits.failed("192.0.2.1")
    with pytest.raises(ApiError) as refused:
        told.limits.failed("192.0.2.1")
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "too_many_bad_keys", 1)
    assert told.counted == ["bad_keys"]
    told.limits.failed("192.0.2.2")
    told.limits.of_address("192.0.2.1")  # without a key it may still ask
    told.limits.of_key(b"a good one")
    let_in = 0
    for _ in range(10_000):  # for ten seconds: what had been saved up, and 20 a second
        told.now_s += 0.001
        with contextlib.suppress(ApiError):
            told.limits.failed("192.0.2.1")
        let_in += told.limits.may_connect("192.0.2.1", secured=False)
    assert let_in == pytest.approx((numbers.CONNECTS_BURST + 10 * numbers.CONNECTS_PER_S) / numbers.SUSPECT_COST, abs=2)
    assert told.limits.may_connect("192.0.2.2", secured=False)


def test_an_address_and_a_key_have_their_rates() -> None:
    told = Told()
    for take, name, rate, seconds in (
        (lambda: told.limits.of_address("2001:db8::1"), "address_rate", numbers.ADDRESS_PER_S, numbers.ADDRESS_BURST_S),
        (lambda: told.limits.of_key(b"one"), "key_rate", numbers.KEY_PER_S, numbers.KEY_BURST_S),
    ):
        for _ in range(int(rate * seconds)):
            take()
        with pytest.raises(ApiError) as refused:
            take()
        assert (refused.value.code, refused.value.headers()["Retry-After"]) == ("too_many_requests", "1")
        assert told.counted[-1] == name
    with pytest.raises(ApiError):
        told.limits.of_address("2001:db8::2")  # of the same /64


def test_a_rate_of_zero_is_no_limit() -> None:
    limits = Limits(lambda: 1.0, lambda _: None, key_per_s=0.0, address_per_s=0.0)
    for _ in range(100_000):
        limits.of_address("192.0.2.1")
        limits.of_key(b"one")
    assert limits.may_connect("192.0.2.1", secured=False)


class Line:
    """A connection that is cut."""

    def __init__(self) -> None:
        self.was_cut = 0

    def cut(self) -> None:
        self.was_cut += 1


def test_patience_ends_and_is_not_won_back_by_dripping() -> None:
    counted: list[str] = []
    patience, dripping, done, stuck = Patience(counted.append), Line(), Line(), Line()
    patience.await_head(dripping)
    patience.await_head(done)
    patience.await_reader(stuck)
    for _ in range(numbers.HEAD_SWEEPS - 1):
        patience.sweep()
        patience.await_head(dripping)
    patience.forget(done)
    assert (dripping.was_cut, counted) == (0, [])
    patience.sweep()
    assert (dripping.was_cut, done.was_cut, counted) == (1, 0, ["head_time"])
    for _ in range(numbers.ANSWER_SWEEPS):
        patience.sweep()
    assert (dripping.was_cut, stuck.was_cut, counted) == (1, 1, ["head_time", "answer_time"])
    assert not patience.heads
    assert not patience.answers
