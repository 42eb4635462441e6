"""Find and rank against a naive reference that reads the nodes as they are shown."""

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import ranking
from registry.directory import Directory
from registry.discovery import (
    COSTS_FRESH_S,
    GENUINE,
    ORDER_FRESH_S,
    Finder,
    filters_of,
    in_order_of_ids,
    matching,
    preferred_region,
)
from registry.lifecycle import Windows
from registry.model import DiscoverQuery, parse
from registry.names import canonical_region, parse_model
from registry.node import Intent
from tests.support.records import ALIASES, HOME, NOW_MS, at_home, record

WINDOWS = Windows(30, 90, 300)
FLEET: dict[str, dict[str, Any]] = {
    "big": {
        "role": "worker",
        "node_type": "server",
        "region": "eu",
        "labels": ["GPU", "home"],
        "capabilities": {
            "gpus": [{"name": "L4", "vram_gb": 24, "vram_free_gb": 20}, {"name": "L4", "vram_gb": 24}],
            "models": ["qwen3:8b", "mistral"],
            "ram_gb": 64,
            "cpu_cores": 16,
        },
    },
    "small": {
        "role": "router",
        "region": "us",
        "labels": ["home"],
        "capabilities": {"gpu": "GTX", "ollama": {"available": True, "models": ["Qwen3:70b"]}, "ram_gb": 8},
    },
    "bare": {"node_type": "laptop", "region": "ap", "capabilities": {"features": ["inference"]}},
}
BEATS = {"big": b'{"cpu_percent":80}', "small": b'{"cpu_percent":10,"gpus":[{"vram_free_gb":2}]}'}


def ask(**fields: Any) -> DiscoverQuery:
    return parse(DiscoverQuery, fields)


def fleet() -> Directory:
    directory = Directory(WINDOWS, 0.0, HOME)
    for version, (node_id, report) in enumerate(FLEET.items(), 1):
        directory.put(record(node_id, **report), version, 0.0)
        directory.beat(node_id, BEATS.get(node_id, b"{}"), NOW_MS, 0.0)
    return directory


def found(directory: Directory, query: DiscoverQuery, region: str = "eu") -> list[str]:
    return [e.node_id for e in Finder(directory, ALIASES).discover(query, repr(query), region, 0.0).entries]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, {"big", "small", "bare"}),
        ({"capability": "gpu"}, {"big", "small"}),
        ({"capability": "GPU"}, {"big", "small"}),
        ({"capability": "gpu,ollama"}, {"small"}),
        ({"capability": ["inference"]}, {"bare"}),
        ({"capability": "nothing"}, set()),
        ({"label": "gpu"}, {"big"}),
        ({"label": ["home", "GPU"]}, {"big"}),
        ({"role": "worker"}, {"big", "bare"}),  # the role of nodes that say none
        ({"role": "worker,router"}, {"big", "small", "bare"}),
        ({"role": "Worker"}, set()),
        ({"type": ["server", "laptop"]}, {"big", "bare"}),
        ({"region": "europe"}, {"big"}),
        ({"region": "eu-west-3"}, {"big"}),
        ({"region": "eu,america"}, {"big", "small"}),
        ({"model": "qwen3:8b"}, {"big"}),
        ({"model": "QWEN3:8B"}, {"big"}),
        ({"model": "qwen3"}, set()),  # never another size
        ({"model": "qwen3", "match": "family"}, {"big", "small"}),
        ({"model": "mistral:latest"}, {"big"}),
        ({"model": "qwen3:8b,mistral"}, {"big"}),
        ({"model": "qwen3:8b,llama"}, set()),
        ({"min_vram_gb": 48}, {"big"}),
        ({"min_vram_gb": 48.5}, set()),
        ({"min_vram_gb": 0}, {"big"}),  # unknown is not zero
        ({"min_free_vram_gb": 2}, {"big", "small"}),
        ({"min_free_vram_gb": 2.5}, {"big"}),
        ({"min_ram_gb": 8}, {"big", "small"}),
        ({"min_cpu_cores": 16}, {"big"}),
        ({"max_load": 0.8}, {"big", "small"}),
        ({"max_load": 0.5}, {"small"}),
        ({"status": "online"}, {"big", "small", "bare"}),
        ({"status": "offline"}, set()),
        ({"status": "offline,any"}, {"big", "small", "bare"}),
        ({"max_latency_ms": 1}, {"big", "small", "bare"}),  # nothing is measured yet
        ({"region": "eu", "capability": "gpu", "min_ram_gb": 100}, set()),
    ],
)
def test_filters(query: dict[str, Any], ids: set[str]) -> None:
    assert set(found(fleet(), ask(**query))) == ids


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ({}, ["big", "small", "bare"]),  # the caller's region, then the less loaded
        ({"prefer_region": "us"}, ["small", "bare", "big"]),  # then the less loaded
        ({"prefer_region": "America"}, ["small", "bare", "big"]),
        ({"nearest": "us-east"}, ["small", "bare", "big"]),
        ({"nearest": "bare"}, ["bare", "small", "big"]),
        ({"nearest": "auto"}, ["big", "small", "bare"]),
        ({"latency": "min"}, ["big", "small", "bare"]),
        ({"sort": "latency"}, ["big", "small", "bare"]),
        ({"sort": "load"}, ["small", "big", "bare"]),
        ({"sort": "free_vram"}, ["big", "small", "bare"]),
        ({"sort": "vram"}, ["big", "small", "bare"]),
        ({"sort": "ram", "prefer_region": "ap"}, ["big", "small", "bare"]),
        ({"sort": "node_id"}, ["bare", "big", "small"]),
    ],
)
def test_order(query: dict[str, Any], order: list[str]) -> None:
    assert found(fleet(), ask(**query)) == order
    assert found(fleet(), ask(**query, limit=2)) == order[:2]


def test_what_is_not_healthy_comes_last_when_asked_for() -> None:
    directory = fleet()
    directory.put(record("big", **FLEET["big"], status="degraded"), 10, 0.0)
    assert found(directory, ask()) == ["small", "bare"]
    assert found(directory, ask(status="any")) == ["small", "bare", "big"]


def test_intent_takes_a_node_out_of_discovery_without_being_asked() -> None:
    directory = fleet()
    stored = record("big", **FLEET["big"])
    for version, status in enumerate(("maintenance", "draining"), 10):
        directory.put(replace(stored, intent=Intent(status)), version, 0.0)
        assert "big" not in found(directory, ask())
        assert found(directory, ask(status=status)) == ["big"]


@pytest.mark.parametrize("sort", ["latency", "load", "free_vram", "vram", "ram", "node_id", None])
def test_nodes_of_a_registry_that_is_not_heard_of_come_last_whatever_they_have(sort: str | None) -> None:
    """And stay in the answer: they may well be alive."""
    directory = fleet()
    for node_id in ("big", "small"):
        directory.put(at_home(record(node_id, **FLEET[node_id]), "there"), 10, 0.0)
    asked = ask(sort=sort)
    assert found(directory, asked)[0] == "bare"
    assert len(found(directory, asked)) == 3
    assert found(directory, ask(sort=sort, limit=1)) == ["bare"]
    directory.hear("there", reachable=True, age_s=0.0, now_ms=NOW_MS, generation=1, known=((1, 1),))
    assert found(directory, asked) == found(fleet(), asked)
    directory.hear("there", reachable=False, age_s=11.0, now_ms=NOW_MS, generation=1, known=((1, 1),))
    assert found(directory, asked)[0] == "bare"


def test_an_order_is_not_kept_past_a_registry_that_is_lost() -> None:
    directory = fleet()
    finder = Finder(directory, ALIASES)
    directory.put(at_home(record("big", **FLEET["big"]), "there"), 10, 0.0)
    directory.hear("there", reachable=True, age_s=0.0, now_ms=NOW_MS, generation=1, known=())
    assert finder.discover(ask(), "q", "eu", 0.0).entries[0].node_id == "big"
    directory.hear("there", reachable=False, age_s=11.0, now_ms=NOW_MS, generation=1, known=())
    assert finder.discover(ask(), "q", "eu", 0.0).entries[-1].node_id == "big"


@pytest.mark.parametrize(
    ("query", "region"),
    [
        ({}, "eu"),
        ({"prefer_region": "us-east"}, "us"),
        ({"prefer_region": "ap", "nearest": "small"}, "ap"),
        ({"nearest": "small"}, "us"),
        ({"nearest": "Europe"}, "eu"),
        ({"nearest": "auto"}, "eu"),
    ],
)
def test_the_region_that_comes_first(query: dict[str, Any], region: str) -> None:
    assert preferred_region(ask(**query), fleet(), "eu", ALIASES) == region


NAMES = ["gpu", "ollama", "x"]
AMOUNT = st.none() | st.sampled_from([0, 1, 2.5, 8])
REPORT = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["r1", "r2"]),
        "node_type": st.sampled_from(["t1", "t2"]),
        "region": st.sampled_from(["eu", "us", "eu-1", "Europe"]),
        "labels": st.lists(st.sampled_from(["A", "b"]), max_size=2),
        "status": st.sampled_from(["online", "leaving", "degraded"]),
        "capabilities": st.fixed_dictionaries(
            {"features": st.lists(st.sampled_from(NAMES), max_size=2)},
            optional={
                "ram_gb": AMOUNT,
                "cpu_cores": AMOUNT,
                "models": st.lists(st.sampled_from(["m", "m:1", "M:2", "lib/m"]), max_size=2),
                "gpus": st.lists(st.fixed_dictionaries({"vram_gb": AMOUNT, "vram_free_gb": AMOUNT}), max_size=2),
            },
        ),
    },
)
METRICS = st.fixed_dictionaries({}, optional={"cpu_percent": st.integers(0, 100), "gpu_percent": st.integers(0, 100)})
QUERY = st.fixed_dictionaries(
    {},
    optional={
        "status": st.lists(st.sampled_from(["online", "draining", "degraded", "any"]), max_size=2),
        "role": st.lists(st.sampled_from(["r1", "r2", "worker"]), max_size=2),
        "type": st.lists(st.sampled_from(["t1", "t2"]), max_size=2),
        "region": st.lists(st.sampled_from(["eu", "EU-9", "us"]), max_size=2),
        "label": st.lists(st.sampled_from(["a", "B"]), max_size=2),
        "capability": st.lists(st.sampled_from([*NAMES, "models"]), max_size=2),
        "model": st.lists(st.sampled_from(["m", "m:1", "m:2", "lib/m:latest"]), max_size=2),
        "match": st.sampled_from(["exact", "family"]),
        "min_vram_gb": AMOUNT,
        "min_free_vram_gb": AMOUNT,
        "min_ram_gb": AMOUNT,
        "min_cpu_cores": AMOUNT,
        "max_load": st.none() | st.sampled_from([0.0, 0.5, 1.0]),
        "sort": st.none() | st.sampled_from(["latency", "load", "free_vram", "vram", "ram", "node_id"]),
        "limit": st.integers(1, 4),
    },
)


def total(node: dict[str, Any], name: str) -> float | None:
    sizes = [gpu[name] for gpu in node["capabilities"]["gpus"] if gpu[name] is not None]
    return sum(sizes) if sizes else None


def load_of(node: dict[str, Any]) -> float | None:
    known = [node["metrics"][name] for name in ("cpu_percent", "gpu_percent") if name in node["metrics"]]
    return max(known) / 100 if known else None


def reference_holds(node: dict[str, Any], q: DiscoverQuery) -> bool:
    """The filters of api.md, said once more over what callers see."""
    flat = node["capabilities"]
    statuses = q.status or ["online"]
    have = {parse_model(name) for name in flat["models"]}
    wanted = {parse_model(name) for name in q.model}
    models = wanted <= have if q.match == "exact" else {w.family for w in wanted} <= {h.family for h in have}
    capabilities = {*flat["features"], *(["models"] if flat["models"] else []), *(["gpu"] if flat["gpus"] else [])}
    least = [
        (total(node, "vram_gb"), q.min_vram_gb),
        (total(node, "vram_free_gb"), q.min_free_vram_gb),
        (flat["ram_gb"], q.min_ram_gb),
        (flat["cpu_cores"], q.min_cpu_cores),
    ]
    load = load_of(node)
    return (
        ("any" in statuses or node["status"] in statuses)
        and (not q.role or node["role"] in q.role)
        and (not q.type or node["node_type"] in q.type)
        and (not q.region or node["region"] in [canonical_region(r, ALIASES) for r in q.region])
        and {x.casefold() for x in q.label} <= {x.casefold() for x in node["labels"]}
        and set(q.capability) <= capabilities
        and models
        and all(bound is None or (value is not None and value >= bound) for value, bound in least)
        and (q.max_load is None or (load is not None and load <= q.max_load))
    )


def reference_key(node: dict[str, Any], q: DiscoverQuery) -> tuple[Any, ...]:
    """The formula of ranking.py, said once more over what callers see; equal ones are drawn by lot."""
    load, free = load_of(node), total(node, "vram_free_gb")
    near = node["region"] == "eu"
    cost = 15.0 if near else 120.0
    cost += 100 * (0.5 if load is None else load) ** 2 + 20 * (1 - min(free or 0, 48) / 48)
    worse = node["status"] != "online"
    step = int(cost // 10)
    chosen = {
        "latency": 15 if near else 120,
        "load": 1.0 if load is None else load,
        "free_vram": -(free or 0),
        "vram": -(total(node, "vram_gb") or 0),
        "ram": -(node["capabilities"]["ram_gb"] or 0),
    }
    if q.sort == "node_id":
        return (node["node_id"],)
    return (worse, step) if q.sort is None else (worse, chosen[q.sort], step)


@given(st.lists(st.tuples(REPORT, METRICS), max_size=6), QUERY, st.randoms(use_true_random=False))
def test_the_answer_is_the_references(
    nodes: list[tuple[dict[str, Any], dict[str, Any]]], fields: dict[str, Any], random: Any
) -> None:
    query = ask(**fields)
    numbered = list(enumerate(nodes))
    for _ in range(2):  # in whatever order they registered
        directory = Directory(WINDOWS, 0.0, HOME)
        for index, (report, metrics) in numbered:
            directory.put(record(f"n{index}", **report), index + 1, 0.0)
            directory.beat(f"n{index}", orjson.dumps(metrics), NOW_MS, 0.0)
        shown = {e.node_id: orjson.loads(e.fragment() + b"}") for e in directory.entries()}
        held = {node_id for node_id, node in shown.items() if reference_holds(node, query)}
        answer = Finder(directory, ALIASES).discover(query, "q", "eu", 0.0)
        assert answer.total == len(held)
        given_ids = [e.node_id for e in answer.entries]
        assert len(set(given_ids)) == len(given_ids) == min(len(held), query.limit)
        assert set(given_ids) <= held
        keys = {node_id: reference_key(shown[node_id], query) for node_id in held}
        assert [keys[node_id] for node_id in given_ids] == sorted(keys.values())[: query.limit]
        explained = Finder(directory, ALIASES).explain(query, "eu")
        assert sum(explained["left_out"].values()) == len(shown) - len(held)
        for node_id in shown:
            told = Finder(directory, ALIASES).explain(query.model_copy(update={"node_id": node_id}), "eu")["node"]
            assert told["matches"] is (node_id in held)
        random.shuffle(numbered)


WRITE = st.tuples(st.integers(0, 7), st.none() | REPORT)  # None: it is deleted


@given(st.lists(st.tuples(st.lists(WRITE, max_size=4), QUERY), max_size=6))
@settings(max_examples=40)
def test_what_was_kept_of_a_question_is_no_older_than_the_directory(
    steps: list[tuple[list[tuple[int, dict[str, Any] | None]], dict[str, Any]]],
) -> None:
    directory, version = Directory(WINDOWS, 0.0, HOME), 0
    finder = Finder(directory, ALIASES)
    for writes, fields in [*steps, *steps]:
        for number, report in writes:
            version += 1
            if report is None:
                directory.delete(f"n{number}", version)
            else:
                directory.put(record(f"n{number}", **report), version, 0.0)
        query = ask(**fields)
        shown = {e.node_id: orjson.loads(e.fragment() + b"}") for e in directory.entries()}
        held = [node_id for node_id, node in shown.items() if reference_holds(node, query)]
        answer = finder.discover(query, repr(query), "eu", 0.0)
        assert answer.total == len(held)
        keys = sorted(reference_key(shown[node_id], query) for node_id in held)
        assert [reference_key(shown[e.node_id], query) for e in answer.entries] == keys[: query.limit]


@given(st.lists(REPORT, min_size=1, max_size=6), QUERY, st.integers(0, 3), st.integers(0, 3))
def test_a_listing_is_in_the_order_of_ids(
    reports: list[dict[str, Any]], fields: dict[str, Any], skip: int, last: int
) -> None:
    query = ask(**fields)
    directory = Directory(WINDOWS, 0.0, HOME)
    for index, report in enumerate(reports):
        directory.put(record(f"n{index}", **report), index + 1, 0.0)
    shown = {e.node_id: orjson.loads(e.fragment() + b"}") for e in directory.entries()}
    held = sorted(node_id for node_id, node in shown.items() if reference_holds(node, query))
    found = matching(directory.columns, filters_of(query, "online", ALIASES))
    for after in ("", f"n{last}"):
        expected = [node_id for node_id in held if node_id > after][skip : skip + 2]
        assert [e.node_id for e in in_order_of_ids(directory, found, 2, after, skip)] == expected


def many(count: int) -> Directory:
    directory = Directory(WINDOWS, 0.0, HOME)
    for index in range(count):
        labels = [f"only-{index}"] if index % 100 == 0 else ["many"]
        directory.put(record(f"n{index:05d}", labels=labels, region="eu" if index % 3 else "us"), index + 1, 0.0)
    return directory


def test_many_nodes_are_listed_as_few_are() -> None:
    """Of many the ids are looked through in order; of few they are sorted."""
    directory = many(3_000)
    query = ask(label="many", status="any")
    found = matching(directory.columns, filters_of(query, "online", ALIASES))
    expected = [f"n{index:05d}" for index in range(3_000) if index % 100]
    assert found.total == len(expected)
    assert [e.node_id for e in in_order_of_ids(directory, found, 5)] == expected[:5]
    later = [e.node_id for e in in_order_of_ids(directory, found, 5, "n00199", 2)]
    assert later == [f"n{index:05d}" for index in range(203, 208)], "without n00200"
    by_number = matching(directory.columns, filters_of(ask(label="many", max_load=1), "online", ALIASES))
    assert by_number.total == 0, "nothing was measured"


def test_equals_are_drawn_by_lot_and_a_seed_gives_one_answer() -> None:
    """A thousand callers do not all take the same node."""
    directory = many(3_000)
    finder = Finder(directory, ALIASES)

    def answer(seed: int) -> list[str]:
        return [e.node_id for e in finder.discover(ask(limit=20), "q", "eu", float(seed), seed).entries]

    answers = [answer(seed) for seed in range(50)]
    assert all(int(node_id[1:]) % 3 for ids in answers for node_id in ids), "near ones come first, whatever the lot"
    assert len({ids[0] for ids in answers}) > 40
    assert answers[7] == [
        e.node_id for e in Finder(directory, ALIASES).discover(ask(limit=20), "q", "eu", 0.0, 7).entries
    ]


def test_the_load_has_to_change_really_to_change_the_order() -> None:
    directory = Directory(WINDOWS, 0.0, HOME)
    for index in range(2):
        directory.put(record(f"n{index}", region="eu"), index + 1, 0.0)

    def first(loads: tuple[float, float], at_ms: int) -> str:
        for index, load in enumerate(loads):
            directory.beat(f"n{index}", orjson.dumps({"cpu_percent": load}), NOW_MS + at_ms, 0.0)
        return Finder(directory, ALIASES).discover(ask(), "q", "eu", 0.0).entries[0].node_id

    assert first((50, 62), 1) == "n0"
    assert first((59, 58), 2) == "n0", "it trembles"
    assert first((75, 58), 3) == "n1"


def test_a_node_that_has_missed_its_heartbeat_comes_after_its_equals() -> None:
    directory = Directory(WINDOWS, 0.0, HOME)
    for index in range(40):
        directory.put(record(f"n{index}", region="eu"), index + 1, 0.0)
        directory.beat(f"n{index}", b"{}", NOW_MS, 0.0)
    for index in range(20):
        directory.beat(f"n{index}", b"{}", NOW_MS + 60_000, 60.0)
    answer = Finder(directory, ALIASES).discover(ask(limit=20), "q", "eu", 75.0)
    assert {e.node_id for e in answer.entries} == {f"n{index}" for index in range(20)}


def test_a_thousand_that_have_fallen_silent_do_not_hide_those_that_are_alive() -> None:
    directory = Directory(WINDOWS, 0.0, HOME)
    for index in range(600):
        directory.put(record(f"n{index}", region="eu"), index + 1, 0.0)
        idle = b'{"cpu_percent":0}' if index < 300 else b'{"cpu_percent":35}'  # 12 ms worse
        directory.beat(f"n{index}", idle, NOW_MS, 0.0 if index < 300 else 84.0)
    answer = Finder(directory, ALIASES).discover(ask(limit=20), "q", "eu", 85.0)
    assert all(int(e.node_id[1:]) >= 300 for e in answer.entries)


def test_few_of_many_are_listed_by_their_ids() -> None:
    directory = Directory(WINDOWS, 0.0, HOME)
    for number in range(100):
        directory.put(record(f"n{number:02}", labels=["few"] if number % 40 == 7 else []), number + 1, 0.0)
    assert found(directory, ask(label="few", sort="node_id")) == ["n07", "n47", "n87"]
    assert found(directory, ask(label="few", sort="node_id", limit=1)) == ["n07"]


def test_a_bound_is_what_a_column_holds_of_it() -> None:
    directory = Directory(WINDOWS, 0.0, HOME)
    directory.put(record("n", capabilities={"gpus": [{"vram_gb": 24.3}]}), 1, 0.0)
    directory.beat("n", b'{"cpu_percent":10}', NOW_MS, 0.0)
    query = ask(min_vram_gb=24.3, max_load=0.1, explain=True, node_id="n")
    finder = Finder(directory, ALIASES)
    assert finder.discover(query, "q", "eu", 0.0).total == 1
    assert finder.explain(query, "eu") == {
        "left_out": {}, "node": {"node_id": "n", "known": True, "left_out_by": [], "matches": True},
    }  # fmt: skip


def test_many_equals_are_not_all_sorted_and_each_has_its_turn() -> None:
    costs = np.zeros(50_000, np.float32)
    first = [ranking.best(costs, costs, 20, seed, ranking.EQUAL_MS, lambda rows: np.zeros(len(rows), np.float32))[0]
             for seed in range(50)]  # fmt: skip
    assert len(set(first)) > 40


def test_what_a_node_invents_of_its_load_is_no_more_than_idle_or_busy() -> None:
    directory = Directory(WINDOWS, 0.0, HOME)
    directory.put(at_home(record("lost", region="eu"), "there"), 1, 0.0)
    directory.put(record("here", region="eu"), 2, 0.0)
    for node_id, load in (("lost", b'{"cpu_percent":-1e9}'), ("here", b'{"cpu_percent":1e9}')):
        directory.beat(node_id, load, NOW_MS, 0.0)
    assert found(directory, ask(sort="load")) == ["here", "lost"]


COSTS = st.floats(0, 1e5, width=32)


@given(st.lists(COSTS | st.just(float("inf")), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 99))
def test_the_best_are_the_least(costs: list[float], limit: int, seed: int) -> None:
    given_costs = np.array(costs, np.float32)
    for width in (0.0, ranking.EQUAL_MS):
        found = ranking.best(given_costs, given_costs, limit, seed, width, lambda rows: np.zeros(len(rows), np.float32))
        steps = [cost // width if width else cost for cost in costs if cost != float("inf")]
        assert [costs[i] // width if width else costs[i] for i in found.tolist()] == sorted(steps)[:limit]


@given(st.integers(0, 2**32 - 1))
def test_the_best_of_many_are_the_least(seed: int) -> None:
    """A sample says where they end, and is wrong now and then."""
    rng = np.random.default_rng(seed)
    costs = rng.choice([rng.uniform(0, 9e4, 5_000), rng.choice([3.0, 77.0], 5_000)]).astype(np.float32)
    costs[rng.random(5_000) < rng.random()] = np.inf
    found = ranking.best(costs, costs, 20, seed, 0.0, lambda rows: np.zeros(len(rows), np.float32))
    least = np.sort(costs)[:20]
    assert costs[found].tolist() == least[np.isfinite(least)].tolist()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.999, 1.0]), st.booleans())
@settings(max_examples=60)
def test_the_best_of_many_that_may_be_late_are_the_least(seed: int, late_share: float, known: bool) -> None:
    """Whatever a sample says, however many are equal, and whichever of them silence puts behind others."""
    rng = np.random.default_rng(seed)
    few = np.where(rng.random(20_000) < 0.002, 15.0, ranking.NOT_ONLINE + rng.uniform(0, 300, 20_000))
    costs = rng.choice(
        [rng.uniform(0, 300, 20_000), np.full(20_000, 15.0), rng.choice([15.0, 26.0, 77.0], 20_000), few]
    )
    keys, late = costs.astype(np.float32), (rng.uniform(0, 45, 20_000) * (rng.random(20_000) < late_share))
    holds = rng.random(20_000) < rng.choice([0.002, 0.5, 1.0])
    found = ranking.best(
        keys, keys, 20, seed, ranking.EQUAL_MS, lambda rows: late[rows].astype(np.float32), holds,
        ranking.cheapest_of(keys) if known else None,
    )  # fmt: skip
    steps = np.floor((keys + late.astype(np.float32)) / ranking.EQUAL_MS)
    assert holds[found].all()
    assert len(set(found.tolist())) == len(found)
    assert steps[found].tolist() == np.sort(steps[holds])[:20].tolist()


@pytest.mark.parametrize("costs", [[7.0], [15.0] * 30_000, [*range(30_000)], [15.0, *[26.0] * 30_000]], ids=len)
def test_the_cheapest_are_all_below_a_bound_and_not_many(costs: list[float]) -> None:
    given_costs = np.array(costs, np.float32)
    end, places = ranking.cheapest_of(given_costs)
    assert places.tolist() == np.flatnonzero(given_costs < end).tolist()
    assert len(places) <= 8_192
    assert end % ranking.EQUAL_MS == 0


LOADS, SIZES = st.floats(0, 1), st.floats(0, 1e4)


@given(LOADS, LOADS, SIZES, SIZES)
def test_a_cost_grows_with_load_and_falls_with_free_memory(a: float, b: float, small: float, large: float) -> None:
    low, high = sorted((a, b))
    little, much = sorted((small, large))
    assert ranking.base_cost(low, much) <= ranking.base_cost(high, much) <= ranking.base_cost(high, little)
    assert ranking.base_cost(high, little) <= ranking.base_cost(1.0, None) < ranking.ANOTHER_REGION


def test_an_order_is_kept_for_a_second_and_not_past_a_change() -> None:
    directory = fleet()
    finder = Finder(directory, ALIASES)
    query = ask(sort="load")
    first = finder.discover(query, "q", "eu", 0.0)
    directory.beat("big", b'{"cpu_percent":1}', NOW_MS + 1, 0.0)
    assert finder.discover(query, "q", "eu", ORDER_FRESH_S - 0.01) is first
    assert [e.node_id for e in finder.discover(query, "q", "eu", ORDER_FRESH_S).entries] == ["big", "small", "bare"]
    directory.delete("small", 99)
    assert [e.node_id for e in finder.discover(query, "q", "eu", ORDER_FRESH_S).entries] == ["big", "bare"]


def test_the_costs_are_kept_for_a_moment_for_all_questions_and_not_beyond_a_write() -> None:
    directory = fleet()
    finder = Finder(directory, ALIASES)

    def ids(limit: int, now: float) -> list[str]:
        return [e.node_id for e in finder.discover(ask(limit=limit), f"limit={limit}", "eu", now).entries]

    assert ids(3, 0.0) == ["big", "small", "bare"]
    directory.beat("bare", b'{"cpu_percent":0,"gpus":[{"vram_free_gb":80}]}', NOW_MS + 1, 0.0)
    assert ids(4, COSTS_FRESH_S - 0.01) == ids(5, COSTS_FRESH_S - 0.01) == ["big", "small", "bare"]
    assert ids(6, COSTS_FRESH_S) == ["big", "bare", "small"]
    directory.beat("bare", b'{"cpu_percent":100}', NOW_MS + 2, 0.0)
    directory.put(record("new", region="eu"), 9, 0.0)
    assert ids(7, COSTS_FRESH_S) == ["new", "big", "small", "bare"]


def test_the_kept_order_is_one_questions_and_one_regions() -> None:
    finder = Finder(fleet(), ALIASES)
    assert finder.discover(ask(), "q", "eu", 0.0).entries[0].node_id == "big"
    assert finder.discover(ask(), "q", "us", 0.0).entries[0].node_id == "small"
    assert finder.discover(ask(capability="inference"), "other", "eu", 0.0).entries[0].node_id == "bare"


def test_no_filter_is_no_work_but_what_is_forged_is_left_out() -> None:
    assert filters_of(ask(status="any"), "online", ALIASES) == [GENUINE]
