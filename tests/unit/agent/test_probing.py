"""Measuring how far nodes are: where to dial, what a question then says."""

import asyncio
import socket
from typing import Any

import pytest

from agent.nodes import Node
from agent.probing import PROBED, Prober, as_body, asks_for_distance, connect_ms, target_of


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        ({"ollama": "http://192.0.2.1:11434"}, ("192.0.2.1", 11434)),
        ({"a": "https://gpu.example.org/v1"}, ("gpu.example.org", 443)),
        ({"a": "ws://[2001:db8::1]:9"}, ("2001:db8::1", 9)),
        ({"bad": "http://x:99999", "good": "http://x:1"}, ("x", 1)),
        ({"a": "not a url", "b": "ftp://x", "c": "http://"}, None),
        ({}, None),
    ],
)
def test_where_a_node_is_dialled(endpoints: dict[str, str], target: tuple[str, int] | None) -> None:
    assert target_of(Node({"node_id": "n", "endpoints": endpoints})) == target


@pytest.mark.parametrize(
    ("query", "asks"),
    [
        ({"nearest": "auto"}, True),
        ({"nearest": "eu"}, False),
        ({"latency": "min"}, True),
        ({"sort": "latency"}, True),
        ({"sort": "load"}, False),
        ({"max_latency_ms": "50"}, True),
        ({"model": "qwen3:8b"}, False),
    ],
)
def test_whether_distance_matters(query: dict[str, str], asks: bool) -> None:
    assert asks_for_distance(query) is asks


def test_a_question_with_what_was_measured() -> None:
    query = {"model": "a,b", "limit": "5", "min_vram_gb": "23.5", "explain": "true", "max_load": "many"}
    typed = {"model": "a,b", "limit": 5, "min_vram_gb": 23.5, "explain": True, "max_load": "many"}
    assert as_body(query, {"eu": 3.5}, {}) == {**typed, "registry_rtt_ms": {"eu": 3.5}}
    assert as_body({}, {}, {"n": 1.0}) == {"node_rtt_ms": {"n": 1.0}}


async def test_the_first_ones_are_measured_once_and_who_does_not_answer_is_not_known() -> None:
    dialled = 0

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dialled
        dialled += 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()[1]  # bound, and not listening
        nodes = [_at(f"n{index}", port) for index in range(PROBED - 1)] + [_at("dead", nobody), _at("eleventh", port)]
        async with server:
            prober = Prober()
            assert await prober.probe(nodes)
            found = prober.rtts_ms()
            assert set(found) == {f"n{index}" for index in range(PROBED - 1)}
            assert all(0 < ms < 1_000 for ms in found.values())
            assert await prober.probe(nodes), "the dead one is tried again"
            assert not await prober.probe(nodes[: PROBED - 1])
            assert dialled == PROBED - 1
    assert await connect_ms("127.0.0.1", nobody) is None


def _at(node_id: str, port: int) -> Any:
    return Node({"node_id": node_id, "endpoints": {"any": f"http://127.0.0.1:{port}"}})
