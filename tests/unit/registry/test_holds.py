"""Holds: how many slots of each node are held, whatever comes in whichever order; and what they do to the ranking."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.record import Record, Section
from registry.directory import Directory
from registry.discovery import Finder
from registry.holds import (
    BUCKETS,
    LONGEST_TTL_S,
    MOST_A_BUCKET,
    MOST_SLOTS,
    Bucket,
    Hold,
    Holds,
    bucket_of,
    packed,
    read,
)
from registry.lifecycle import Windows
from registry.model import DiscoverQuery, parse
from registry.ranking import base_cost, held_share
from tests.support.records import ALIASES, HOME, NOW_MS, record


def stored(bucket: str, payload: bytes, origin: str = HOME, life: int = 1) -> Record:
    made = Record(f"v:{bucket}")
    made.life = life
    made.spec = Section(1, origin, 0, payload, 1, 1)
    return made


def hold(hold_id: str, node_id: str = "a", slots: int = 1, left_s: float = 10, by: str = "me") -> Hold:
    return Hold(hold_id, node_id, slots, NOW_MS + int(left_s * 1000), by)


HOLD = st.builds(
    hold,
    st.sampled_from("123456"), st.sampled_from("ab"), st.integers(0, 3), st.integers(-2, 9), st.sampled_from("xy"),
)  # fmt: skip
WRITES = st.lists(
    st.tuples(
        st.sampled_from([f"{HOME}/00", f"{HOME}/01", "there/00"]),
        st.lists(HOLD, max_size=4, unique_by=lambda each: each.hold_id),
    ),
    max_size=12,
)


@given(WRITES, st.lists(st.integers(0, 12), min_size=12, max_size=12))
def test_what_is_held_is_the_sum_of_what_stands_and_is_not_released(
    writes: list[tuple[str, list[Hold]]], times: list[int]
) -> None:
    """Against all buckets as they are, looked through each time. Nobody's clock is wrong, and none writes the same
    id twice as something else: then the lesser time counts."""
    heard, buckets = dict[str, int](), dict[str, list[Hold]]()
    holds = Holds(lambda node_id, slots: heard.__setitem__(node_id, slots))
    for (bucket, written), now_s in zip(writes, sorted(times), strict=False):
        known = {each.hold_id: each for each in buckets.get(bucket, [])}
        written = [known.get(each.hold_id, each) for each in written]
        buckets[bucket] = written
        holds.take(bucket, tuple(written), now_s, NOW_MS + now_s * 1000)
        holds.expire(now_s)
        standing = [each for many in buckets.values() for each in many if each.until_ms > NOW_MS + now_s * 1000]
        for node_id in "ab":
            here = [each for each in standing if each.node_id == node_id]
            released = {each.hold_id for each in here if not each.slots}
            slots = sum(each.slots for each in here if each.hold_id not in released)
            assert holds.slots(node_id) == heard.get(node_id, 0) == slots
            assert {each.hold.hold_id for each in holds.of(node_id)} == {e.hold_id for e in here} - released
        taken = Counter(
            (bucket.partition("/")[0], each.by)
            for bucket, many in buckets.items() for each in many if each.until_ms > NOW_MS + now_s * 1000
        )  # fmt: skip
        assert all(holds.taken(us, by) == taken[us, by] for us in (HOME, "there") for by in "xy")
        assert holds.taken(HOME) == sum(count for (us, _), count in taken.items() if us == HOME)
    holds.expire(1e9)
    assert not any(heard.values())
    assert holds.held() == (0, 0)


def test_a_clock_that_is_wrong_holds_no_node() -> None:
    holds = Holds(lambda node_id, slots: None)
    lying = (hold("1", slots=5, left_s=1e9),)
    holds.take("there/00", lying, 0.0, NOW_MS)
    for now_s in (100.0, 200.0, 290.0):  # it is written again, and again with a later end
        later = (*(each._replace(until_ms=each.until_ms + int(now_s)) for each in lying),)
        holds.take("there/00", later, now_s, NOW_MS)
    assert holds.slots("a") == 5
    holds.expire(LONGEST_TTL_S + 5)
    assert holds.slots("a") == 0
    holds.take("there/00", lying, LONGEST_TTL_S + 6, NOW_MS)
    assert holds.slots("a") == 0, "it is the same one, and it is over"
    assert not lying[0].stands(NOW_MS), "nor does its taker keep it, once its clock is right"


def test_another_registry_releases_it_with_a_mark_that_outlives_it() -> None:
    holds = Holds(lambda node_id, slots: None)
    taken = hold("1", left_s=10)
    holds.take(f"{HOME}/00", (taken, hold("2", left_s=5)), 0.0, NOW_MS)
    holds.take("there/00", (taken.released(),), 1.0, NOW_MS + 1000)
    assert [each.hold.hold_id for each in holds.of("a")] == ["2"]
    for now_s in (9.999, 10.0, 12.0):
        holds.expire(now_s)
        assert holds.slots("a") == 0 if now_s > 5 else 1


@given(st.lists(HOLD, max_size=8, unique_by=lambda each: each.hold_id))
def test_a_bucket_says_what_was_written(holds: list[Hold]) -> None:
    found = read(stored(f"{HOME}/a0", packed(holds)))
    assert found is not None
    assert sorted(found) == sorted(holds)


FULL: Bucket = tuple(Hold(f"{n:016x}", "n" * 255, MOST_SLOTS, 2**53, "b" * 16) for n in range(MOST_A_BUCKET))


def test_the_fullest_bucket_fits_a_record() -> None:
    apart = tuple(each._replace(node_id=f"{n:0255}") for n, each in enumerate(FULL))
    payload = packed(apart)
    assert len(payload) < 2**18
    assert read(stored(f"{HOME}/ff", payload)) == apart
    assert len({bucket_of(HOME, f"n{n}") for n in range(10_000)}) == BUCKETS


@pytest.mark.parametrize(
    "record",
    [
        stored(f"{HOME}/00", b"{}", origin="there"),
        stored(f"{HOME}/00", b"{}", life=2),
        stored(f"{HOME}/0", b"{}"),
        stored(f"{HOME}/000", b"{}"),
        stored(f"{HOME}/0G", b"{}"),
        stored(HOME, b"{}"),
        *(
            stored(f"{HOME}/00", payload)
            for payload in (
                b"", b"[]", b"7", b'{"a":7}', b'{"a":[7]}', b'{"a":[["1",1,1]]}', b'{"a":[["1","1",1,"x"]]}',
                b'{"a":[["1",1,1.5,"x"]]}', b'{"a":[["1",-1,1,"x"]]}', b'{"a":[["1",1025,1,"x"]]}',
                b'{"a":[[1,1,1,"x"]]}', b'{"a":[["1",true,1,"x"]]}', b'{"' + b"a" * 256 + b'":[["1",1,1,"x"]]}',
                b'{"a":[["' + b"1" * 65 + b'",1,1,"x"]]}', packed([*FULL, hold("one too many")]),
            )
        ),
    ],
)  # fmt: skip
def test_what_a_peer_makes_up_holds_nothing(record: Record) -> None:
    assert read(record) is None


def test_what_was_released_early_leaves_nothing_behind() -> None:
    holds = Holds(lambda node_id, slots: None)
    for number in range(20_000):
        holds.take(f"{HOME}/00", (hold(f"{number}", left_s=300),), 0.0, NOW_MS)
    assert len(holds._ends) < 5_000
    holds.take(f"{HOME}/00", (), 0.0, NOW_MS)
    assert (holds.held(), holds.taken(HOME), dict(holds._taken_for), holds._nodes) == ((0, 0), 0, {}, {})


@given(st.none() | st.floats(0, 1), st.integers(0, 5_000), st.integers(0, 5_000), st.none() | st.integers(1, 100))
def test_the_more_is_held_of_a_node_the_later_it_comes(
    load: float | None, some: int, more: int, capacity: int | None
) -> None:
    few, many = sorted((some, more))
    costs = [base_cost(load, 8.0, held_share(slots, capacity)) for slots in (0, few, many)]
    assert costs == sorted(costs)
    assert base_cost(load, 8.0) == costs[0]
    if few < many <= 4:  # every slot counts, below a full node of any size
        assert costs[1] < costs[2]


WINDOWS = Windows(30, 90, 300)


def fleet(**loads: float) -> Directory:
    directory = Directory(WINDOWS, 0.0, HOME)
    for version, (node_id, load) in enumerate(loads.items(), 1):
        directory.put(record(node_id, capabilities={"slots": 4}), version, 0.0)
        directory.beat(node_id, b'{"cpu_percent":%d}' % load, NOW_MS, 0.0)
    return directory


def best(directory: Directory, finder: Finder, **asked: Any) -> str:
    query = parse(DiscoverQuery, {"limit": 1, **asked})
    return finder.discover(query, repr(query), "eu", 0.0).entries[0].node_id


@pytest.mark.parametrize("asked", [{}, {"latency": "min"}, {"sort": "load"}])
def test_callers_that_hold_what_they_found_spread(asked: dict[str, Any]) -> None:
    """One node is idle and the others are not: without holds everybody takes that one. (An order by latency alone
    has no place for load, until distances are equal: here they are.)"""
    loads = {"idle": 0.0, "b": 40.0, "c": 40.0, "d": 40.0}
    directory = fleet(**loads)
    finder = Finder(directory, ALIASES)
    alone = [best(directory, finder, **asked) for _ in range(12)]
    assert set(alone) == {"idle"}
    holds = Holds(directory.reserve)
    got: Counter[str] = Counter()
    for number in range(12):
        node_id = best(directory, finder, **asked)
        got[node_id] += 1
        bucket = bucket_of(HOME, node_id)
        before = tuple(each.hold for each in holds.of(node_id) if each.bucket == bucket)
        holds.take(bucket, (*before, hold(str(number), node_id)), 0.0, NOW_MS)
    assert max(got.values()) <= 5
    assert set(got) == set(loads)
    assert sum(got.values()) == 12 == holds.held()[1]
    holds.expire(10.0)
    assert best(directory, Finder(directory, ALIASES), **asked) == "idle", "the next moment it is as before"


def test_a_node_that_arrives_after_its_holds_and_leaves_before_they_end() -> None:
    directory = fleet(b=0.0)
    directory.reserve("a", 2)
    entry = directory.put(record("a", capabilities={"slots": 4}), 5, 0.0)
    assert entry is not None
    assert b'"reserved_slots":2' in entry.fragment()
    assert directory.columns.held[entry.row] == pytest.approx(0.5)
    assert directory.columns.base[entry.row] == pytest.approx(base_cost(None, None, 0.5))
    directory.beat("a", b'{"cpu_percent":50}', NOW_MS, 0.0)
    assert directory.columns.base[entry.row] == pytest.approx(base_cost(0.5, None, 0.5))
    directory.delete("a", 6)
    again = directory.put(record("c"), 7, 0.0)
    assert again is not None
    assert again.row == entry.row
    assert directory.columns.held[again.row] == 0
    directory.reserve("a", 0)
    back = directory.put(record("a"), 8, 0.0)
    assert back is not None
    assert b"reserved_slots" not in back.fragment()


@pytest.mark.parametrize(
    ("capabilities", "metrics", "slots"),
    [
        ({}, b"{}", None),
        ({"slots": 8}, b'{"slots":2}', 8),
        ({"parallelism": 3.0}, b"{}", 3),
        ({"slots": "8"}, b'{"slots":2}', 2),
        ({"slots": True}, b'{"engines":{"llamacpp":{"slots":4},"vllm":{"state":"up"},"x":{"slots":1},"y":7}}', 5),
        ({"slots": 0}, b'{"engines":[1]}', None),
        ({"slots": 1e9}, b'{"engines":{"x":{"slots":-1}}}', None),
    ],
)
def test_how_many_slots_a_node_says_that_it_has(
    capabilities: dict[str, Any], metrics: bytes, slots: int | None
) -> None:
    directory = Directory(WINDOWS, 0.0, HOME)
    entry = directory.put(record("a", capabilities=capabilities), 1, 0.0)
    assert entry is not None
    directory.beat("a", metrics, NOW_MS, 0.0)
    assert entry.slots == slots
