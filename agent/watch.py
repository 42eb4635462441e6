"""Watching nodes: by the registry's stream where it has one, else by asking again and again and comparing."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from agent.client import RegistryClient
from agent.failover import Registry
from agent.nodes import KnownNodes, Node, NodeChange, Nodes, nodes_of
from agent.session import Outcome, full_jitter_s
from agent.sse import Event, EventParser
from agent.wire import decode

WATCH = "/api/v1/nodes/watch"
ALIVE_S = 45.0  # a registry says every 15 s that it is there
POLL_S = 5.0
POLLS = 60  # then the registry is asked again whether it has a stream by now
AGAIN_S = 1.0  # watchers whose stream ended together do not come back together
Json = Any


class Watcher:
    """One watch. `list_all` lists what matches, `key` is the API key; see `AsyncNodeDiscovery.watch`."""

    def __init__(
        self,
        client: RegistryClient,
        query: Mapping[str, str],
        key: Callable[[], str | None],
        list_all: Callable[[], Awaitable[Nodes | None]],
        refused: Callable[[Outcome], None],
    ) -> None:
        """`list_all` gives None while no registry answers; `refused` raises where the caller is at fault."""
        self._client, self._query, self._key = client, query, key
        self._list_all, self._refused = list_all, refused
        self._known = KnownNodes()
        self._cursor: tuple[Registry, str] | None = None
        self._rng = random.Random()  # noqa: S311 - spreads load, guards nothing
        self._failures = 0

    async def changes(self, *, streams: bool = True) -> AsyncIterator[NodeChange]:
        """Everything that matches, then what changes, for ever. Registries that fail cost a pause, no more."""
        while not streams:
            async for change in self._poll():
                yield change
        while True:
            outcome, registry, stream = await self._client.stream(WATCH, self._query, self._key(), self._cursor)
            if stream is not None and registry is not None:
                self._failures = 0
                async for change in self._follow(registry, stream):
                    yield change
                await asyncio.sleep(self._rng.uniform(0, AGAIN_S))
            elif outcome.status in (200, 404, 405):  # a registry without streams
                async for change in self._poll():
                    yield change
            else:
                self._refused(outcome)
                await self._pause(outcome)

    async def _follow(self, registry: Registry, stream: aiohttp.ClientResponse) -> AsyncIterator[NodeChange]:
        parser, piece = EventParser(), list[Node]()
        try:
            while True:
                async with asyncio.timeout(ALIVE_S):
                    chunk = await stream.content.readany()
                if not chunk:
                    return
                for event in parser.feed(chunk):
                    for change in self._take(event, piece):
                        yield change
                    if event.cursor is not None:
                        self._cursor = registry, event.cursor
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            self._client.note_failure(registry, Outcome(None, f"{registry.url}: the stream of changes broke ({error})"))
        finally:
            stream.close()

    def _take(self, event: Event, piece: list[Node]) -> list[NodeChange]:
        """What an event brings. `piece` collects a snapshot that comes in several."""
        data = decode(event.data)
        if not isinstance(data, dict):
            raise ValueError("an event is not JSON")
        if event.kind == "snapshot":
            piece += nodes_of(data) or []
            return [] if data.get("more") is True else self._known.replace(_taken(piece))
        if event.kind == "resync":
            self._cursor = None
            piece.clear()
        if event.kind == "upsert" and isinstance(data.get("node_id"), str):
            return self._known.upsert(Node(data))
        return self._known.remove(str(data.get("node_id"))) if event.kind == "remove" else []

    async def _poll(self) -> AsyncIterator[NodeChange]:
        for _ in range(POLLS):
            nodes = await self._list_all()
            if nodes is None:
                await self._pause(Outcome(None))
                return
            self._failures = 0
            for change in self._known.replace(nodes):
                yield change
            await asyncio.sleep(POLL_S * self._rng.uniform(0.8, 1.2))

    async def _pause(self, outcome: Outcome) -> None:
        self._failures += 1
        wait_s = full_jitter_s(self._failures, self._rng)
        await asyncio.sleep(max(wait_s, min(outcome.retry_after_s or 0.0, 60.0)))


async def list_pages(
    ask: Callable[[str, dict[str, str]], Awaitable[tuple[Outcome, Json]]], query: Mapping[str, str]
) -> tuple[Outcome, Nodes]:
    """All nodes of a listing, page by page."""
    found = Nodes()
    page = {**query, "limit": "1000"}
    while True:
        outcome, data = await ask("/api/v1/nodes", page)
        if outcome.status != 200:
            return outcome, found
        nodes = nodes_of(data)
        if nodes is None:
            return Outcome(None, "what was answered to a listing is not a registry's answer"), found
        found += nodes
        found.total, found.as_of = nodes.total, nodes.as_of
        cursor = data.get("next_cursor")
        if not isinstance(cursor, str) or not nodes:
            return outcome, found
        page["cursor"] = cursor


def _taken(piece: list[Node]) -> list[Node]:
    whole = list(piece)
    piece.clear()
    return whole
