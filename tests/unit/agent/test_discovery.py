"""Finding nodes: the question that is asked, and which of the answers is best."""

import json
from typing import Any

import pytest

from agent.discovery import RegistryUnreachable, RequestRefused, demand
from agent.nodes import KnownNodes, Node, Nodes, best_for_model, nodes_of, question
from agent.session import Outcome


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ((None, None, "online", {}), {"status": "online"}),
        (("worker", "gpu", "any", {}), {"role": "worker", "capability": "gpu", "status": "any"}),
        (
            (None, None, "online", {"min_vram_gb": 24, "label": ["a", "b"], "model": None}),
            {"status": "online", "min_vram_gb": "24", "label": "a,b"},
        ),
        ((None, None, "online", {"explain": True}), {"status": "online", "explain": "true"}),
    ],
)
def test_the_question(asked: tuple[Any, ...], query: dict[str, str]) -> None:
    assert question(*asked) == query


def node(
    name: str,
    *,
    loaded: bool | None = None,
    free: float | None = None,
    latency: float | None = None,
    load: float | None = None,
) -> Node:
    models = [] if loaded is None else [{"name": "Qwen3:8b", "loaded": loaded}]
    return Node(
        node_id=name,
        latency_ms=latency,
        capabilities={"gpus": [] if free is None else [{"vram_free_gb": free}]},
        metrics={"models": models, "gpu_percent": load},
    )


@pytest.mark.parametrize(
    ("nodes", "best"),
    [
        ([], None),
        ([node("a"), node("b")], "a"),
        ([node("a", loaded=False, free=80), node("b", loaded=True, free=1)], "b"),
        ([node("a", loaded=True, free=8), node("b", loaded=True, free=24)], "b"),
        ([node("a", free=8, latency=90), node("b", free=8, latency=5)], "b"),
        ([node("a", free=8), node("b", free=8, latency=500)], "b"),
        ([node("a", loaded=None), node("b", loaded=True)], "b"),
        ([node("a", free=8.1, load=90, latency=1), node("b", free=8.0, load=10, latency=50)], "b"),
        ([node("a", load=12, latency=80), node("b", load=9, latency=5)], "b"),  # as loaded as each other
        ([node("a", latency=1), node("b", load=50, latency=90)], "b"),  # unknown load is no reason to prefer a node
    ],
)
def test_loaded_before_room_before_load_before_near(nodes: list[Node], best: str | None) -> None:
    found = best_for_model(nodes, "qwen3:8B")
    assert (found and found["node_id"]) == best


def test_measured_now_stands_over_what_was_registered() -> None:
    stale = node("a", loaded=False, free=1)
    stale["capabilities"]["model_details"] = [{"name": "qwen3:8b", "loaded": True}]
    best = best_for_model([stale, node("b", loaded=True)], "qwen3:8b")
    assert best is not None
    assert best.node_id == "b"


def test_a_missing_tag_means_latest() -> None:
    loaded = Node(node_id="b", metrics={"models": [{"name": "llama3:latest", "loaded": True}]})
    assert best_for_model([node("a"), loaded], "llama3") is loaded


@pytest.mark.parametrize("odd", [{}, {"metrics": {"models": ["x", None]}}, {"metrics": {"gpus": [None, "L4"]}}])
def test_nodes_of_other_agents_are_survived(odd: dict[str, Any]) -> None:
    found = Node(odd)
    assert best_for_model([found], "qwen3:8b") is found


def test_no_answer_and_a_refusal_are_two_faults() -> None:
    demand(Outcome(200))
    for status in (None, 302, 421, 429, 500, 503):
        with pytest.raises(RegistryUnreachable, match="refused"):
            demand(Outcome(status, "connection refused"))
    with pytest.raises(RequestRefused, match="bad key") as caught:
        demand(Outcome(401, "bad key"))
    assert caught.value.status == 401


def test_a_node_is_the_documented_dict_and_typed() -> None:
    (found,) = nodes_of(
        {
            "nodes": [{"node_id": "a", "node_name": "box", "status": "online", "region": "eu", "latency_ms": 3,
                       "capabilities": {"models": ["qwen3:8b"]}, "endpoints": {"ollama": "http://192.0.2.1:11434"}}],
            "total": 7, "as_of": "2026-11-24T12:00:00Z",
        }
    ) or Nodes()  # fmt: skip
    assert found["capabilities"]["models"] == found.models == ["qwen3:8b"]
    assert (found["node_name"], found.node_name, found.node_id, found.status, found.region) == (
        "box", "box", "a", "online", "eu",
    )  # fmt: skip
    assert (found.latency_ms, found.endpoints["ollama"]) == (3.0, "http://192.0.2.1:11434")
    assert (found.as_of, found.stale, found.load, found.free_vram_gb) == ("2026-11-24T12:00:00Z", False, None, None)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("answer", [None, [], {}, {"nodes": 7}, {"nodes": [7]}, {"nodes": [{}]}])
def test_what_is_no_list_of_nodes(answer: Any) -> None:
    assert nodes_of(answer) is None


def test_a_watcher_is_told_what_is_new_and_no_more() -> None:
    known = KnownNodes()
    a, b = Node(node_id="a", status="online"), Node(node_id="b", status="online")
    assert [(c.kind, c.node) for c in known.replace([a, b])] == [("upsert", a), ("upsert", b)]
    assert known.replace([a, b]) == []
    assert known.upsert(Node(a, metrics={"cpu_percent": 90}, last_heartbeat="later")) == []
    changed = Node(a, status="degraded")
    assert [(c.kind, c.node["status"]) for c in known.replace([changed])] == [
        ("remove", "online"),
        ("upsert", "degraded"),
    ]
    assert known.remove("b") == []
    assert [(c.kind, c.node) for c in known.remove("a")] == [("remove", changed)]
