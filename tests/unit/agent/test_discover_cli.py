"""What people see of nodes: lines that fit, and nothing that drives their terminal."""

import pytest

from agent.discover_cli import _advice, table  # the command asks a running registry
from agent.discovery import RequestRefused
from agent.nodes import Nodes
from agent.session import Outcome

GPU = {
    "node_id": "node-a", "node_name": "a machine with a very long name", "status": "online", "region": "eu",
    "latency_ms": 23.4,
    "capabilities": {"gpu": "NVIDIA H100 80GB HBM3", "models": ["llama3.3:70b", "qwen3:8b", "nomic-embed-text:latest"]},
    "metrics": {
        "gpu_percent": 12, "gpus": [{"vram_free_gb": 61.5}],
        "models": [{"name": "qwen3:8b", "loaded": True}],
    },
}  # fmt: skip
PLAIN = {"node_id": "node-b", "status": "\x1b[2Jonline"}


def test_a_table_says_what_is_known() -> None:
    assert table(Nodes([GPU, PLAIN]), 80).splitlines() == [
        "NODE                  STATUS     GPU              FREE   AWAY  MODELS",
        "a machine with a ve…  online     H100 80GB HBM3  62 GB  23 ms  qwen3:8b +2",
        "node-b                [2Jonline  -                   -      -  -",
    ]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    lines = table(Nodes([GPU, PLAIN, GPU]), columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line.isprintable() for line in lines)


def test_what_nobody_knows_has_no_column_and_what_is_not_shown_is_counted() -> None:
    found = Nodes([PLAIN], total=7, more={"explain": {"left_out": {"role": 2, "min_vram_gb": 1}}})
    header, _, *more = table(found, 80).splitlines()
    assert header.split() == ["NODE", "STATUS", "MODELS"]
    assert more == ["1 of 7 nodes", "left out: 2 by role, 1 by min_vram_gb"]


def test_nothing_found_says_so() -> None:
    assert table(Nodes(more={"explain": {"left_out": {"role": 2}}}), 80).splitlines() == [
        "no such node is there",
        "left out: 2 by role",
    ]


def test_who_is_off_the_list_is_not_told_that_a_key_would_help() -> None:
    assert "NODE_API_KEY" in _advice(RequestRefused(Outcome(403, "no", code="forbidden")))
    assert not _advice(RequestRefused(Outcome(403, "no", code="not_allowlisted")))
