"""Find and rank against a naive reference that reads the nodes as they are shown."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import discovery
from registry.directory import Directory
from registry.discovery import ORDER_FRESH_S, Finder, preferred_region, rank_key
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
        ({"prefer_region": "us"}, ["small", "big", "bare"]),
        ({"prefer_region": "America"}, ["small", "big", "bare"]),
        ({"nearest": "us-east"}, ["small", "big", "bare"]),
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


@given(st.lists(st.tuples(REPORT, METRICS), max_size=6), QUERY, st.randoms(use_true_random=False))
def test_the_answer_is_the_references(
    nodes: list[tuple[dict[str, Any], dict[str, Any]]], fields: dict[str, Any], random: Any
) -> None:
    query = ask(**fields)
    numbered = list(enumerate(nodes))
    answers = []
    for _ in range(2):  # in whatever order they registered
        directory = Directory(WINDOWS, 0.0, HOME)
        for index, (report, metrics) in numbered:
            directory.put(record(f"n{index}", **report), index + 1, 0.0)
            directory.beat(f"n{index}", orjson.dumps(metrics), NOW_MS, 0.0)
        shown = {e.node_id: orjson.loads(e.fragment() + b"}") for e in directory.entries()}
        held = {node_id for node_id, node in shown.items() if reference_holds(node, query)}
        answer = Finder(directory, ALIASES).discover(query, "q", "eu", 0.0)
        assert answer.total == len(held)
        assert len(answer.entries) == min(len(held), query.limit)
        assert {e.node_id for e in answer.entries} <= held
        keys = {e.node_id: rank_key(query, "eu")(e) for e in directory.entries()}
        assert len(set(keys.values())) == len(keys)  # a total order
        assert [e.node_id for e in answer.entries] == sorted(held, key=keys.__getitem__)[: query.limit]
        answers.append([e.node_id for e in answer.entries])
        random.shuffle(numbered)
    assert answers[0] == answers[1]


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


def test_the_kept_order_is_one_questions_and_one_regions() -> None:
    finder = Finder(fleet(), ALIASES)
    assert finder.discover(ask(), "q", "eu", 0.0).entries[0].node_id == "big"
    assert finder.discover(ask(), "q", "us", 0.0).entries[0].node_id == "small"
    assert finder.discover(ask(capability="inference"), "other", "eu", 0.0).entries[0].node_id == "bare"


def test_no_filter_is_no_work() -> None:
    assert discovery.tests_of(ask(status="any"), "online", ALIASES) == []
