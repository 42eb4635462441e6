"""Finding nodes: the question that is asked, and which of the answers is best."""

from typing import Any

import pytest

from agent.discovery import RegistryUnreachable, RequestRefused, best_for_model, demand, question
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


def node(name: str, *, loaded: bool | None = None, free: float | None = None, latency: float | None = None) -> Any:
    models = [] if loaded is None else [{"name": "Qwen3:8b", "loaded": loaded}]
    return {
        "node_id": name,
        "latency_ms": latency,
        "capabilities": {"gpus": [] if free is None else [{"vram_free_gb": free}]},
        "metrics": {"models": models},
    }


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
    ],
)
def test_loaded_before_room_before_near(nodes: list[Any], best: str | None) -> None:
    found = best_for_model(nodes, "qwen3:8B")
    assert (found and found["node_id"]) == best


def test_measured_now_stands_over_what_was_registered() -> None:
    stale = node("a", loaded=False, free=1)
    stale["capabilities"]["model_details"] = [{"name": "qwen3:8b", "loaded": True}]
    assert best_for_model([stale, node("b", loaded=True)], "qwen3:8b")["node_id"] == "b"


def test_a_missing_tag_means_latest() -> None:
    loaded = {"node_id": "b", "metrics": {"models": [{"name": "llama3:latest", "loaded": True}]}}
    assert best_for_model([node("a"), loaded], "llama3") is loaded


@pytest.mark.parametrize("odd", [{}, {"metrics": {"models": ["x", None]}}, {"metrics": {"gpus": [None, "L4"]}}])
def test_nodes_of_other_agents_are_survived(odd: dict[str, Any]) -> None:
    assert best_for_model([odd], "qwen3:8b") is odd


def test_no_answer_and_a_refusal_are_two_faults() -> None:
    demand(Outcome(200))
    with pytest.raises(RegistryUnreachable, match="refused"):
        demand(Outcome(None, "connection refused"))
    with pytest.raises(RequestRefused, match="bad key") as caught:
        demand(Outcome(401, "bad key"))
    assert caught.value.status == 401
