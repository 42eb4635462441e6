"""Find nodes from Python: the documented methods, as coroutines and as plain calls."""

import asyncio
import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from agent.client import RegistryClient
from agent.failover import goes_on
from agent.identity import Home
from agent.nodes import Node, NodeChange, Nodes, best_for_model, nodes_of, question
from agent.probing import PROBED, Prober, as_body, asks_for_distance
from agent.proofs import Proofs
from agent.session import Outcome
from agent.watch import Watcher, list_pages
from agent.wire import kept_adverts, not_a_registry

__all__ = [
    "AsyncNodeDiscovery", "Node", "NodeChange", "NodeDiscovery", "Nodes", "RegistryUnreachable", "RequestRefused",
    "Reservation",
]  # fmt: skip

T = TypeVar("T")
CALL_S = 90.0  # a request asks six registries at most, 10 s each where all of them drip; plain calls wait no longer
FRESH_S = 1.0  # registries see heartbeats twice a minute: an answer this old is as good as a new one
KEPT_ANSWERS = 256
DISCOVER = "/api/v1/nodes/discover"
_LISTED = frozenset({"status", "role", "type", "region", "label", "capability"})


class RegistryUnreachable(ConnectionError):
    """No registry of the list gave an answer: the network's or the registries' fault; try again later."""


class RequestRefused(Exception):
    """A registry answered, and refused: the caller's fault. `status` is the HTTP status, `code` what it calls that."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.status, self.code = outcome.status, outcome.code


def unavailable(outcome: Outcome) -> bool:
    """Whether an outcome is the network's or the registries' fault."""
    return goes_on(outcome) and outcome.status not in (401, 403)


def demand(outcome: Outcome) -> None:
    """Raise what an outcome other than 200 means: RegistryUnreachable or RequestRefused."""
    if unavailable(outcome):
        raise RegistryUnreachable(outcome.detail)
    if outcome.status != 200:
        raise RequestRefused(outcome)


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer. Kept as bytes, so that what callers do with theirs changes nobody else's."""

    answer: bytes
    at_s: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """Slots of a node that are held for us, for `ttl_s` seconds at most."""

    node_id: str
    reservation_id: str
    slots: int
    ttl_s: float


class AsyncNodeDiscovery:
    """Coroutines. `registry_url` is one URL, several separated by commas, or a list of them.

    The nearest registry that is well is asked; where it gives no answer, the next is at once. An answer serves again
    for `fresh_s` seconds. While no registry answers, the last answer to the same question is given, marked `stale`,
    for up to `stale_s` seconds. `ca_cert`, `cert` and `cert_key` name files for TLS.

    `probe`: the first ten nodes of an answer about nearness are dialled at their endpoints, to measure how far they
    are; what was measured goes with the next question, and orders its answer. It dials what nodes say of themselves.

    `verify`: only nodes that prove by their own signature what the registry shows of them are given; why others are
    left out is in `rejected`. A node's key is the first that was seen of it, or the one that you give: `verify` may be
    {node_id: signing_key}. Status, load, distance and labels are nobody's but registries' and operators' to say.
    """

    def __init__(
        self,
        registry_url: str | Sequence[str],
        api_key: str | None = None,
        *,
        fresh_s: float = FRESH_S,
        stale_s: float = math.inf,
        probe: bool = False,
        verify: bool | Mapping[str, str] = False,
        ca_cert: Path | None = None,
        cert: Path | None = None,
        cert_key: Path | None = None,
    ) -> None:
        given = registry_url.split(",") if isinstance(registry_url, str) else registry_url
        urls = [url.strip().rstrip("/") for url in given if url.strip()]
        if not urls:
            raise ValueError("registry_url: name at least one registry, such as http://registry.example.org:9205")
        home = Home()
        known = kept_adverts(home.registries(), urls)
        self._client = RegistryClient(urls, ca_cert=ca_cert, cert=cert, key=cert_key, known=known)
        self._key = api_key or os.environ.get("NODE_API_KEY")
        kept = None if self._key else home.credentials()
        self._kept_key = kept.api_key if kept else None
        self._fresh_s, self._stale_s = fresh_s, stale_s
        self._answers: OrderedDict[tuple[tuple[str, str], ...], _Kept] = OrderedDict()
        self._reserved_at_s = -math.inf
        self._looked_around = False
        self._prober = Prober() if probe else None
        keys = verify if isinstance(verify, Mapping) else {}
        self._proofs = Proofs(keys) if verify is not False else None
        self._probing: asyncio.Task[bool] | None = None

    @property
    def rejected(self) -> dict[str, str]:
        """With `verify`, why nodes were left out, by their ids."""
        return dict(self._proofs.rejected) if self._proofs is not None else {}

    async def find_nodes(
        self, role: str | None = None, capability: str | None = None, status: str = "online", **filters: Any
    ) -> Nodes:
        """Nodes that hold every filter, best first. Raises RegistryUnreachable or RequestRefused."""
        return await self._discover(question(role, capability, status, filters))

    async def find_best_node_for_model(self, model_name: str) -> Node | None:
        """The best node that has the model, or None: loaded before installed, then room, then near."""
        return best_for_model(await self._discover({"model": model_name}), model_name)

    async def get_nearest_node(self, location: str = "auto") -> Node:
        """The nearest node. Raises LookupError when no node is online."""
        query = {"nearest": location, "latency": "min", "limit": str(PROBED if self._prober or self._proofs else 1)}
        nodes = await self._discover(query)
        if self._probing is not None and await self._probing:
            nodes = await self._discover(query, fresh=True)
        if not nodes:
            raise LookupError("no node is online in this network")
        return nodes[0]

    async def list_nodes(self, **filters: Any) -> Nodes:
        """All nodes that hold every filter, whatever their status. Raises as `find_nodes` does."""
        await self._prepare()
        outcome, nodes = await list_pages(self._ask, question(None, None, None, filters))
        demand(outcome)
        return nodes

    def watch(
        self, role: str | None = None, capability: str | None = None, status: str = "online", **filters: Any
    ) -> AsyncIterator[NodeChange]:
        """Everything that holds every filter, then each change, for ever. Outages are waited for, and what changed
        meanwhile is told afterwards; numbers of heartbeats are no change. Raises RequestRefused."""
        query = question(role, capability, status, filters)

        async def listed() -> Nodes | None:
            if set(query) <= _LISTED:
                outcome, nodes = await list_pages(self._ask, query)
            else:  # of questions that a listing does not take, the best 1,000
                outcome, data = await self._ask(DISCOVER, {**query, "limit": "1000"})
                nodes = nodes_of(data) or Nodes()
            self._blame(outcome)
            return None if outcome.status != 200 else nodes

        # What a stream tells of comes without proofs.
        watcher = Watcher(self._client, query, lambda: self._key or self._kept_key, listed, self._blame)
        return watcher.changes(streams=self._proofs is None)

    @asynccontextmanager
    async def reserve(self, node: Node | str, slots: int = 1, ttl_s: float = 10.0) -> AsyncIterator[Reservation]:
        """Hold slots of a node for as long as the block runs, for `ttl_s` seconds at most: others are led elsewhere
        meanwhile. Raises RegistryUnreachable, or RequestRefused: 409 where others hold it, so take another node."""
        node_id = node if isinstance(node, str) else node.node_id
        path = f"/api/v1/nodes/{quote(node_id, safe='')}/reservations"
        await self._prepare()
        outcome, taken = await self._call("POST", path, body={"slots": slots, "ttl_s": ttl_s})
        demand(outcome)
        held_id = taken.get("reservation_id") if isinstance(taken, dict) else None
        if not isinstance(held_id, str):
            demand(not_a_registry(self._client.url))
        self._reserved_at_s = time.monotonic()  # answers of before would lead us there again
        try:
            yield Reservation(node_id, str(held_id), slots, ttl_s)
        finally:  # without an answer it ends by itself
            await self._call("DELETE", f"{path}/{held_id}", spare=True)

    async def close(self) -> None:
        """Close the connections."""
        if self._probing is not None:
            self._probing.cancel()
        await self._client.close()

    async def __aenter__(self) -> "AsyncNodeDiscovery":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _discover(self, query: Mapping[str, str], *, fresh: bool = False) -> Nodes:
        question_key = tuple(sorted(query.items()))
        kept = self._answers.get(question_key)
        age_s = time.monotonic() - kept.at_s if kept else math.inf
        if kept and age_s < self._fresh_s and kept.at_s > self._reserved_at_s and not fresh:
            return nodes_of(orjson.loads(kept.answer)) or Nodes()
        await self._prepare()
        spare = kept is not None and age_s < self._stale_s
        outcome, data = await self._ask(DISCOVER, dict(query), spare=spare)
        nodes = nodes_of(data) if outcome.status == 200 else None
        if outcome.status == 200 and nodes is None:
            outcome = not_a_registry(self._client.url)
        if kept and spare and unavailable(outcome):
            return nodes_of(orjson.loads(kept.answer), stale=True, why=outcome.detail) or Nodes()
        demand(outcome)
        self._keep(question_key, data)
        idle = self._probing is None or self._probing.done()
        if self._prober is not None and idle and nodes and asks_for_distance(query):
            self._probing = asyncio.create_task(self._prober.probe(nodes), name="probe")
        return nodes or Nodes()

    def _keep(self, question_key: tuple[tuple[str, str], ...], data: Any) -> None:
        self._answers[question_key] = _Kept(orjson.dumps(data), time.monotonic())
        self._answers.move_to_end(question_key)
        if len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)

    async def _prepare(self) -> None:
        """Before the first request, see which registry is near; later, whether those that failed are back."""
        if len(self._client.registries.all) == 1 and not self._client.registries.current.failures:
            return
        if self._looked_around:
            self._client.look()
        else:
            self._looked_around = True
            await self._client.look_around()

    async def _ask(self, path: str, query: dict[str, str], *, spare: bool = False) -> tuple[Outcome, Any]:
        if self._proofs is not None:
            query = {**query, "signed": "1", "proof": "1"}
        method, asked = "GET", dict[str, Any](params=query)
        if path == DISCOVER and asks_for_distance(query):  # what was measured makes a question too long for a URL
            measured = self._prober.rtts_ms() if self._prober is not None else {}
            method, asked = "POST", {"body": as_body(query, self._client.registries.rtts_ms(), measured)}
        outcome, data = await self._call(method, path, spare=spare, **asked)
        return outcome, data if self._proofs is None or outcome.status != 200 else self._proofs.genuine(data)

    async def _call(self, method: str, path: str, *, spare: bool = False, **asked: Any) -> tuple[Outcome, Any]:
        key = self._key or self._kept_key
        outcome, data = await self._client.call(method, path, key=key, spare=spare, **asked)
        if outcome.status == 401 and self._kept_key:
            # This machine's own node is with another registry; this one may answer without a key.
            self._kept_key = None
            outcome, data = await self._client.call(method, path, spare=spare, **asked)
        return outcome, data

    def _blame(self, outcome: Outcome) -> None:
        if outcome.status == 401 and self._kept_key:
            self._kept_key = None  # see _ask
        elif outcome.status != 200 and not unavailable(outcome):
            raise RequestRefused(outcome)


class NodeDiscovery:
    """Plain calls, from any thread, also beside a running event loop: they run on a loop of their own.

    Everything else is as with AsyncNodeDiscovery, whose options these are.
    """

    def __init__(self, registry_url: str | Sequence[str], api_key: str | None = None, **options: Any) -> None:
        self._async = AsyncNodeDiscovery(registry_url, api_key, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="node-discovery", daemon=True)
        self._thread.start()
        # Also for programs that never close: they must not end with complaints of open connections.
        self._end = weakref.finalize(self, _end, self._async, self._loop, self._thread)

    @property
    def rejected(self) -> dict[str, str]:
        """See AsyncNodeDiscovery."""
        return self._async.rejected

    def find_nodes(
        self, role: str | None = None, capability: str | None = None, status: str = "online", **filters: Any
    ) -> Nodes:
        """See AsyncNodeDiscovery."""
        return self._run(self._async.find_nodes(role, capability, status, **filters))

    def find_best_node_for_model(self, model_name: str) -> Node | None:
        """See AsyncNodeDiscovery."""
        return self._run(self._async.find_best_node_for_model(model_name))

    def get_nearest_node(self, location: str = "auto") -> Node:
        """See AsyncNodeDiscovery."""
        return self._run(self._async.get_nearest_node(location))

    def list_nodes(self, **filters: Any) -> Nodes:
        """See AsyncNodeDiscovery."""
        return self._run(self._async.list_nodes(**filters))

    def watch(
        self, role: str | None = None, capability: str | None = None, status: str = "online", **filters: Any
    ) -> Iterator[NodeChange]:
        """See AsyncNodeDiscovery. Waits for each change, however long that takes."""
        changes = self._async.watch(role, capability, status, **filters)

        async def following() -> NodeChange:
            return await anext(changes)

        while True:
            yield self._run(following(), None)

    @contextmanager
    def reserve(self, node: Node | str, slots: int = 1, ttl_s: float = 10.0) -> Iterator[Reservation]:
        """See AsyncNodeDiscovery."""
        holding = self._async.reserve(node, slots, ttl_s)
        held = self._run(holding.__aenter__())
        try:
            yield held
        finally:
            self._run(holding.__aexit__(None, None, None))

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._end()

    def __enter__(self) -> "NodeDiscovery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Coroutine[Any, Any, T], limit_s: float | None = CALL_S) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(limit_s)


def _end(discovery: AsyncNodeDiscovery, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if threading.current_thread() is thread:  # collected by the loop's own thread, which cannot wait for itself
        loop.call_soon(loop.stop)
        return
    asyncio.run_coroutine_threadsafe(_closed(discovery), loop).result(CALL_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _closed(discovery: AsyncNodeDiscovery) -> None:
    """Close, with whatever a watch that nobody reads any more has left open."""
    await discovery.close()
    await asyncio.get_running_loop().shutdown_asyncgens()
