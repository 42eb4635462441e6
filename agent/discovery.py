"""Find nodes from Python: the documented methods, as coroutines and as plain calls."""

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from agent.client import RegistryClient
from agent.identity import Home
from agent.session import Outcome
from agent.wire import not_a_registry

Node = dict[str, Any]
T = TypeVar("T")
CALL_S = 30.0


class RegistryUnreachable(ConnectionError):
    """No registry of the list answered: the network's or the registries' fault; try again later."""


class RequestRefused(Exception):
    """A registry answered, and refused: the caller's fault. `status` is the HTTP status."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.status = outcome.status


def demand(outcome: Outcome) -> None:
    """Raise what an outcome other than 200 means: RegistryUnreachable or RequestRefused."""
    if outcome.status is None:
        raise RegistryUnreachable(outcome.detail)
    if outcome.status != 200:
        raise RequestRefused(outcome)


def question(role: str | None, capability: str | None, status: str, filters: dict[str, Any]) -> dict[str, str]:
    """The query of a discovery; None leaves a filter out, a list means all of them."""
    asked = {"role": role, "capability": capability, "status": status, **filters}
    return {
        name: ",".join(map(_written, value)) if isinstance(value, list | tuple) else _written(value)
        for name, value in asked.items()
        if value is not None
    }


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def best_for_model(nodes: Sequence[Node], model_name: str) -> Node | None:
    """The best of nodes that have the model: loaded before installed, then most VRAM free, then
    nearest; the registry's order decides the rest."""

    def key(node: Node) -> tuple[bool, float, float]:
        capabilities, metrics = node.get("capabilities") or {}, node.get("metrics") or {}
        live = [m for m in metrics.get("models") or [] if isinstance(m, dict)]
        known = live or [m for m in capabilities.get("model_details") or [] if isinstance(m, dict)]
        wanted = model_name.casefold()
        names = (wanted, f"{wanted}:latest")
        loaded = any(m.get("loaded") and str(m.get("name", "")).casefold() in names for m in known)
        gpus = metrics.get("gpus") or capabilities.get("gpus") or []
        free = sum(g.get("vram_free_gb") or 0 for g in gpus if isinstance(g, dict))
        latency = node.get("latency_ms")
        return not loaded, -free, float("inf") if latency is None else latency

    return min(nodes, key=key, default=None)


class AsyncNodeDiscovery:
    """Coroutines. `registry_url` is one URL, several separated by commas, or a list of them."""

    def __init__(self, registry_url: str | Sequence[str], api_key: str | None = None) -> None:
        urls = registry_url.split(",") if isinstance(registry_url, str) else registry_url
        self._client = RegistryClient([url.strip().rstrip("/") for url in urls])
        self._key = api_key or os.environ.get("NODE_API_KEY")
        kept = None if self._key else Home().credentials()
        self._kept_key = kept.api_key if kept else None

    async def find_nodes(
        self, role: str | None = None, capability: str | None = None, status: str = "online", **filters: Any
    ) -> list[Node]:
        """Nodes that hold every filter, best first. Raises RegistryUnreachable or RequestRefused."""
        return await self._discover(question(role, capability, status, filters))

    async def find_best_node_for_model(self, model_name: str) -> Node | None:
        """The best node that has the model, or None."""
        return best_for_model(await self._discover({"model": model_name}), model_name)

    async def get_nearest_node(self, location: str = "auto") -> Node:
        """The nearest node. Raises LookupError when no node is online."""
        nodes = await self._discover({"nearest": location, "limit": "1"})
        if not nodes:
            raise LookupError("no node is online in this network")
        return nodes[0]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def __aenter__(self) -> "AsyncNodeDiscovery":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _discover(self, query: dict[str, str]) -> list[Node]:
        outcome, data = await self._ask(query, self._key or self._kept_key)
        if outcome.status == 401 and self._kept_key:
            # This machine's own node is with another registry; this one may answer without a key.
            self._kept_key = None
            outcome, data = await self._ask(query, None)
        demand(outcome)
        nodes = data.get("nodes")
        if not isinstance(nodes, list):
            raise RegistryUnreachable(not_a_registry(self._client.url).detail)
        return nodes

    async def _ask(self, query: dict[str, str], key: str | None) -> tuple[Outcome, Any]:
        return await self._client.call("GET", "/api/v1/nodes/discover", key=key, params=query)


class NodeDiscovery:
    """Plain calls, from any thread, also beside a running event loop: they run on a loop of their own."""

    def __init__(self, registry_url: str | Sequence[str], api_key: str | None = None) -> None:
        self._async = AsyncNodeDiscovery(registry_url, api_key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="node-discovery", daemon=True)
        self._thread.start()
        # Also for programs that never close: they must not end with complaints of open connections.
        self._end = weakref.finalize(self, _end, self._async, self._loop, self._thread)

    def find_nodes(
        self, role: str | None = None, capability: str | None = None, status: str = "online", **filters: Any
    ) -> list[Node]:
        """See AsyncNodeDiscovery."""
        return self._run(self._async.find_nodes(role, capability, status, **filters))

    def find_best_node_for_model(self, model_name: str) -> Node | None:
        """See AsyncNodeDiscovery."""
        return self._run(self._async.find_best_node_for_model(model_name))

    def get_nearest_node(self, location: str = "auto") -> Node:
        """See AsyncNodeDiscovery."""
        return self._run(self._async.get_nearest_node(location))

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._end()

    def __enter__(self) -> "NodeDiscovery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(CALL_S)


def _end(discovery: AsyncNodeDiscovery, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if threading.current_thread() is thread:  # collected by the loop's own thread, which cannot wait for itself
        loop.call_soon(loop.stop)
        return
    asyncio.run_coroutine_threadsafe(discovery.close(), loop).result(CALL_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
