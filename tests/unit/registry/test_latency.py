"""Distances between nodes: what is believed of what they report, the estimate, and the order that comes of it."""

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.directory import Directory
from registry.discovery import Finder, Found
from registry.latency import MOST_REGISTRIES, Vectors, believed, estimates
from registry.lifecycle import Windows
from registry.model import DiscoverQuery, DiscoverQuestion, parse
from tests.support.records import ALIASES, HOME, NOW_MS, at_home, record


@pytest.mark.parametrize(
    ("reported", "vector", "left_out"),
    [
        ({"eu": 20, "us": 98.5}, {"eu": 20, "us": 98.5}, 0),
        ({"eu": 0}, {"eu": 0}, 0),
        ({"eu": -1, "us": 1e5, "asia": "9", "sa": None, "af": True}, {}, 5),
        ({"eu": math.nan, "us": math.inf}, {}, 2),
        ({"x" * 256: 1}, {}, 1),
        ({f"r{n}": n for n in range(5)}, {"r0": 0, "r1": 1, "r2": 2}, 2),
        ([1], {}, 1),
        ("eu", {}, 1),
        (None, {}, 0),
    ],
)
def test_what_is_believed_of_a_report(reported: Any, vector: dict[str, float], left_out: int) -> None:
    assert believed(reported, 3) == (vector, left_out)


RTT = st.floats(0, 1_000, width=32)
VECTOR = st.dictionaries(st.sampled_from("abcd"), RTT, max_size=4)


@given(VECTOR, VECTOR)
def test_an_estimate_is_the_formula_and_the_same_both_ways(x: dict[str, float], y: dict[str, float]) -> None:
    def estimate(here: dict[str, float], there: dict[str, float]) -> tuple[float, float]:
        columns = {name: np.array([value], np.float32) for name, value in here.items()}
        ranked, shown = estimates(columns, there, 1)
        return float(ranked[0]), float(shown[0])

    ranked, shown = estimate(x, y)
    common = sorted(x.keys() & y.keys())
    if not common:
        assert math.isnan(ranked)
        assert math.isnan(shown)
        return
    least = min(x[name] + y[name] for name in common)
    apart = sum(abs(x[name] - y[name]) for name in common) / len(common)
    assert shown == pytest.approx(least, rel=1e-5)
    assert ranked == pytest.approx(math.sqrt(apart * least), rel=1e-4, abs=1e-3)
    assert estimate(y, x) == pytest.approx((ranked, shown), rel=1e-4, abs=1e-3)


@given(st.lists(st.tuples(st.integers(0, 9), VECTOR), max_size=20))
def test_vectors_are_kept_as_a_dictionary_would(writes: list[tuple[int, dict[str, float]]]) -> None:
    vectors, kept = Vectors(4), dict[int, dict[str, float]]()
    vectors.grow(10)
    for row, vector in writes:
        assert vectors.set(row, vector) == 0
        kept[row] = vector
    assert all(vectors.of(row) == kept.get(row, {}) for row in range(10))


def test_registries_that_nodes_invent_have_an_end_and_their_places_come_back() -> None:
    vectors = Vectors(2)
    names = [f"r{n}" for n in range(MOST_REGISTRIES)]
    assert vectors.set(0, dict.fromkeys(names, 1.0)) == 0
    assert vectors.set(1, {"eu": 5.0}) == 1
    assert vectors.of(1) == {}
    vectors.set(0, {})
    assert vectors.set(1, {"eu": 5.0}) == 0
    assert vectors.of(1) == {"eu": 5.0}


VECTORS = {
    "me": {"eu": 10.0, "us": 100.0},
    "beside": {"eu": 12.0, "us": 98.0},
    "abroad": {"eu": 105.0, "us": 8.0},
    "unknown": {},
}


def world(**vectors: dict[str, float]) -> Directory:
    directory = Directory(Windows(30, 90, 300), 0.0, HOME)
    for name in ("eu", "us"):
        directory.hear(name, reachable=True, age_s=0.0, now_ms=NOW_MS, generation=1, known=())
    for version, (node_id, vector) in enumerate({**VECTORS, **vectors}.items(), 1):
        directory.put(record(node_id, region="eu"), version, 0.0)
        metrics = {"cpu_percent": 0, "registry_rtt_ms": vector}
        directory.beat(node_id, orjson.dumps(metrics), NOW_MS, 0.0, metrics)
    return directory


Row = tuple[str, float | None, str | None]


def answer(directory: Directory, caller: str | None = "me", **fields: Any) -> list[Row]:
    query = parse(DiscoverQuestion, fields)
    found = Finder(directory, ALIASES).discover(query, repr(query), "eu", 0.0, 3, caller)
    assert len(found.entries) == min(found.total, query.limit)
    return [(e.node_id, *latency) for e, latency in zip(found.entries, found.latencies, strict=True)]


def test_who_is_near_comes_first_with_its_distance_and_how_it_is_known() -> None:
    assert answer(world(), latency="min", limit=3) == [
        ("me", 0.0, "measured"), ("beside", 22.0, "estimated"), ("unknown", None, None),
    ]  # fmt: skip
    assert [row[0] for row in answer(world(), latency="min")][-1] == "abroad"
    assert answer(world(), None, nearest="abroad", latency="min")[0] == ("abroad", 0.0, "measured")
    assert {row[1:] for row in answer(world(), None)} == {(None, None)}, "nothing is known of this caller"


def test_what_was_measured_stands_over_every_estimate() -> None:
    asked = {"latency": "min", "node_rtt_ms": {"abroad": 3.0, "beside": 300.0, "nobody": 1.0}}
    rows = answer(world(), **asked)
    assert rows[1] == ("abroad", 3.0, "measured")
    assert rows[-1] == ("beside", 300.0, "measured")
    directory = world()
    metrics = {"registry_rtt_ms": VECTORS["me"], "node_rtt_ms": {"abroad": 3.0}}
    directory.beat("me", orjson.dumps(metrics), NOW_MS + 1, 0.0, metrics)
    assert answer(directory, latency="min")[1] == ("abroad", 3.0, "measured"), "also by a heartbeat"
    assert answer(directory, "beside", latency="min")[-1][0] == "abroad", "of one node, not of others"


def test_who_has_measured_nothing_is_answered_as_all_of_the_region_until_it_has() -> None:
    directory = world(quiet={})
    finder, query = Finder(directory, ALIASES), parse(DiscoverQuery, {})

    def found(caller: str | None) -> Found:
        return finder.discover(query, "q", "eu", 0.0, 3, caller)

    assert found("unknown") is found("quiet") is found("nobody") is found(None)
    assert found("me") is not found(None)
    metrics = {"registry_rtt_ms": {"eu": 9.0}}
    directory.beat("unknown", orjson.dumps(metrics), NOW_MS + 1, 0.0, metrics)
    metrics = {"node_rtt_ms": {"abroad": 9.0}}
    directory.beat("quiet", orjson.dumps(metrics), NOW_MS + 1, 0.0, metrics)
    assert len({id(found(caller)) for caller in ("unknown", "quiet", None)}) == 3
    metrics = {"registry_rtt_ms": {}, "node_rtt_ms": {}}
    for caller in ("unknown", "quiet"):
        directory.beat(caller, orjson.dumps(metrics), NOW_MS + 2, 0.0, metrics)
        assert found(caller) is found(None), "it takes back what it has measured"


def test_a_caller_that_is_no_node_says_what_it_measured() -> None:
    rows = answer(world(), None, latency="min", registry_rtt_ms={"us": 5, "eu": 110})
    assert rows[0] == ("abroad", 13.0, "estimated")


def test_who_is_too_far_is_left_out_and_who_is_not_known_is_not() -> None:
    rows = answer(world(), max_latency_ms=50)
    assert {row[0] for row in rows} == {"me", "beside", "unknown"}


def test_a_node_of_another_registry_is_at_least_as_far_as_that() -> None:
    directory = world()
    directory.put(at_home(record("there", region="us"), "us"), 99, 0.0)
    directory.hear("us", reachable=True, age_s=0.0, now_ms=NOW_MS, generation=1, known=((1, 1),))
    assert ("there", 110.0, "region") in answer(directory)


def test_a_lie_moves_the_liar_and_nobody_else() -> None:
    honest = answer(world(), latency="min")
    lying = answer(world(liar={"eu": 0.0, "us": 0.0}), latency="min")
    assert [row for row in lying if row[0] != "liar"] == honest
    strange = world()
    metrics = {"registry_rtt_ms": {"eu": -5, "us": 1e9, "x": "near"}}
    strange.beat("abroad", orjson.dumps(metrics), NOW_MS + 1, 0.0, metrics)
    assert strange.rtts_left_out == 3
    assert ("abroad", None, None) in answer(strange)
    invented = {f"invented-{number}": 1.0 for number in range(MOST_REGISTRIES)}
    strange.beat("abroad", orjson.dumps({"registry_rtt_ms": invented}), NOW_MS + 2, 0.0, {"registry_rtt_ms": invented})
    assert strange.vector_of("me") == VECTORS["me"], "nor does it take the place of what others measured"
    strange.put(record("abroad", region="eu"), 500, 0.0)
    assert strange.rtts_left_out == 3 + MOST_REGISTRIES, "counted when they come, not with each write"


def test_what_is_too_far_is_explained() -> None:
    directory = world()
    query = parse(DiscoverQuestion, {"max_latency_ms": 50, "explain": True, "node_id": "abroad"})
    told = Finder(directory, ALIASES).explain(query, "eu", "me")
    assert told["left_out"] == {"max_latency_ms": 1}
    assert told["node"] == {"node_id": "abroad", "known": True, "left_out_by": ["max_latency_ms"], "matches": False}
