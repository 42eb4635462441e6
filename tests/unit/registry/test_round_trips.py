"""Round trips that cross the federation behind a heartbeat's numbers: few bytes, seldom, and whatever a peer sends."""

import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import measurements
from registry.http.round_trip import kernel_rtt_ms
from registry.names import LONGEST_RTT_MS
from registry.round_trips import AGAIN_BEATS, LEAST_MS, MOST_REGISTRIES, News, ms_of, packed, split, step_of, unpacked

MAX_SIZE = 64  # what the federation takes of a beat
NAMES = [f"r{number}" for number in range(12)]
VECTOR = st.dictionaries(st.sampled_from(NAMES), st.floats(0, LONGEST_RTT_MS), max_size=12)
NUMBERS = st.integers(0, measurements.MAX_GPUS).map(
    lambda count: measurements.pack({"cpu_percent": 50, "gpus": [{"vram_free_gb": 1}] * count})
)


@given(st.floats(0, LONGEST_RTT_MS))
def test_a_round_trip_arrives_within_a_step(rtt_ms: float) -> None:
    got = ms_of(step_of(rtt_ms))
    assert 0 <= step_of(rtt_ms) <= 255
    assert abs(got - rtt_ms) <= max(0.03 * rtt_ms, LEAST_MS)
    assert step_of(got) == step_of(rtt_ms), "a relay passes on what it got"


@given(VECTOR, NUMBERS)
def test_what_fits_arrives_the_nearest_first(vector: dict[str, float], numbers: bytes) -> None:
    suffix = packed(vector, MAX_SIZE - len(numbers))
    assert len(numbers + suffix) <= MAX_SIZE
    assert split(numbers + suffix) == (numbers, suffix)
    found = unpacked(suffix, NAMES)
    room = min(MOST_REGISTRIES, (MAX_SIZE - len(numbers) - 1) // 3)
    assert len(found) == min(len(vector), room)
    assert all(step_of(ms) == step_of(vector[name]) for name, ms in found.items())
    left = [ms for name, ms in vector.items() if name not in found]
    assert not found or not left or max(vector[name] for name in found) <= min(left)


@given(VECTOR.filter(bool), NUMBERS)
def test_who_does_not_know_of_them_leaves_such_a_beat_out(vector: dict[str, float], numbers: bytes) -> None:
    suffix = packed(vector, MAX_SIZE - len(numbers))
    assert measurements.unpack(numbers + suffix) == {}
    assert measurements.unpack(numbers) != {}


@given(st.binary(max_size=MAX_SIZE))
def test_whatever_a_peer_sends_is_numbers_and_round_trips_that_a_network_has(data: bytes) -> None:
    numbers, suffix = split(data)
    assert numbers + suffix == data
    assert all(0 <= ms <= LONGEST_RTT_MS * 1.001 for ms in unpacked(suffix, NAMES).values())


def test_two_registries_of_one_checksum_do_not_count() -> None:
    by_checksum: dict[bytes, list[str]] = {}
    for number in range(1, 5_000):
        name = f"x{number * number * 7_919:x}"
        by_checksum.setdefault(packed({name: 5.0}, 64)[:2], []).append(name)
    one, other = next(names for names in by_checksum.values() if len(names) == 2)
    sent = packed({one: 5.0, "r0": 7.0}, 64)
    assert unpacked(sent, [one, *NAMES]).keys() == {one, "r0"}
    assert unpacked(sent, [one, other, *NAMES]).keys() == {"r0"}


def told(news: News, vector: dict[str, float], numbers: bytes = b"123456") -> dict[str, float] | None:
    beat = news.beat("n", numbers, vector, MAX_SIZE)
    suffix = split(beat)[1]
    return unpacked(suffix, NAMES) if suffix else None


def test_they_go_when_they_changed_enough_and_now_and_then() -> None:
    news = News()
    assert told(news, {"r0": 20.0}) == {"r0": pytest.approx(20.0, rel=0.03)}
    for rtt_ms in (20.0, 21.0, 19.0, 23.0):
        assert told(news, {"r0": rtt_ms}) is None, "it trembles"
    assert told(news, {"r0": 26.0}) is not None
    assert told(news, {"r0": 26.0, "r1": 3.0}) is not None, "another registry"
    assert told(news, {"r1": 3.0}) is not None, "one fewer"
    assert told(news, {"r1": 4.8}) is None, "half as much again, and nothing"
    assert [told(news, {"r1": 3.0}) is not None for _ in range(AGAIN_BEATS)].count(True) == 1
    assert told(news, {}) is None
    assert told(news, {"r1": 3.0}) is None
    news.again()
    assert told(news, {"r1": 3.0}) is not None, "there is a new link"


def test_a_node_without_numbers_tells_its_round_trips_alone() -> None:
    assert told(News(), {"r0": 20.0}, b"") is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
def test_the_kernel_tells_how_far_the_other_end_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            rtt_ms = kernel_rtt_ms(accepted)
            assert rtt_ms is not None
            assert 0 < rtt_ms < 1_000
            assert kernel_rtt_ms(client) is not None
        assert kernel_rtt_ms(accepted) is None, "it is closed"
    one, other = socket.socketpair()
    with one, other:
        assert kernel_rtt_ms(one) is None
    assert kernel_rtt_ms(None) is None
