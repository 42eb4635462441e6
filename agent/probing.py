"""How far nodes are from here, measured: the time that a TCP connection to one of their endpoints takes.

Only on request: whoever probes dials what nodes say of themselves.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from agent.nodes import Node

PROBED = 10  # the first of an answer: among them the best one is nearly always
WITHIN_S = 1.0  # who takes longer is no near one
GOOD_FOR_S = 300.0  # routes change slowly
KEPT = 64  # what a registry takes with a question
_SWITCHES = frozenset({"explain", "signed", "proof"})
_TYPED = frozenset(
    {"limit", "min_vram_gb", "min_free_vram_gb", "min_ram_gb", "min_cpu_cores", "max_latency_ms", "max_load"}
)
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def target_of(node: Node) -> tuple[str, int] | None:
    """Where to dial a node: its first endpoint that is a URL with a host."""
    for url in node.endpoints.values():
        with contextlib.suppress(ValueError):
            split = urlsplit(str(url))
            port = split.port or _PORTS.get(split.scheme)
            if split.hostname and port:
                return split.hostname, port
    return None


def asks_for_distance(query: Mapping[str, str]) -> bool:
    """Whether how far nodes are matters to a question."""
    by_latency = query.get("latency") == "min" or query.get("sort") == "latency" or "max_latency_ms" in query
    return by_latency or query.get("nearest") == "auto"


def as_body(query: Mapping[str, str], registries: Mapping[str, float], nodes: Mapping[str, float]) -> dict[str, Any]:
    """A question with what was measured, in milliseconds: in the form that POST takes."""
    body: dict[str, Any] = {}
    for name, value in query.items():
        number = None
        if name in _TYPED:
            with contextlib.suppress(ValueError):
                number = int(value) if value.isdecimal() else float(value)
        if name in _SWITCHES:
            body[name] = value in ("1", "true")
        else:
            body[name] = value if number is None else number
    if registries:
        body["registry_rtt_ms"] = dict(registries)
    if nodes:
        body["node_rtt_ms"] = dict(nodes)
    return body


class Prober:
    """What was measured lately, by node id."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def rtts_ms(self) -> dict[str, float]:
        """Milliseconds by node id."""
        since_s = time.monotonic() - GOOD_FOR_S
        return {node_id: ms for node_id, (ms, at_s) in self._found.items() if at_s >= since_s}

    async def probe(self, nodes: Iterable[Node]) -> bool:
        """Measure the first ones that were not measured lately, all at once; whether any was."""
        known = self.rtts_ms()
        first = [node for node, _ in zip(nodes, range(PROBED), strict=False)]
        todo = [
            (node.node_id, at) for node in first if node.node_id not in known and (at := target_of(node)) is not None
        ]
        for (node_id, _), ms in zip(todo, await asyncio.gather(*(connect_ms(*at) for _, at in todo)), strict=True):
            if ms is not None:
                self._found[node_id] = (ms, time.monotonic())
                self._found.move_to_end(node_id)
        while len(self._found) > KEPT:
            self._found.popitem(last=False)
        return bool(todo)


async def connect_ms(host: str, port: int) -> float | None:
    """How long a connection takes, in milliseconds; None where there is none in time."""
    began_s = time.perf_counter()
    try:
        async with asyncio.timeout(WITHIN_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError, ValueError):
        return None
    took_ms = (time.perf_counter() - began_s) * 1000
    writer.transport.abort()  # nothing was said, nothing is to be waited for
    return round(took_ms, 2)
