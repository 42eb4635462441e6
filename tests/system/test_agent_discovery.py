"""The client library against a registry that is told what to answer: caches, outages, streams."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent import watch
from agent.discovery import AsyncNodeDiscovery, NodeChange, NodeDiscovery, RegistryUnreachable, RequestRefused
from tests.support.live import ADMIN_KEY, running, session, until


def node(name: str, **more: Any) -> dict[str, Any]:
    return {"node_id": name, "status": "online", "capabilities": {}, **more}


class StandIn:
    """Discovery, listing, and where `streams` a watch that sends what is put into `events`."""

    def __init__(self, *, streams: bool = False) -> None:
        self.nodes = [node("a")]
        self.status = 200
        self.asked = 0
        self.cursors: list[str | None] = []
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue()
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/api/v1/nodes/discover", self._nodes)
        app.router.add_get("/api/v1/nodes", self._nodes)
        if streams:
            app.router.add_get("/api/v1/nodes/watch", self._watch)
        else:
            app.router.add_get("/api/v1/nodes/{node_id}", self._nobody)
        self._server = TestServer(app)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "healthy"}, status=self.status)

    async def _nobody(self, _request: web.Request) -> web.Response:
        return web.json_response({"detail": "There is no node watch."}, status=404)

    async def _nodes(self, _request: web.Request) -> web.Response:
        self.asked += 1
        body = {"nodes": self.nodes, "total": len(self.nodes), "as_of": f"answer {self.asked}"}
        return web.json_response(body if self.status == 200 else {"detail": "Told to."}, status=self.status)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.cursors.append(request.headers.get("Last-Event-ID"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while (event := await self.events.get()) is not None:
            await response.write(event)
        return response

    def send(self, kind: str, data: Any, cursor: str) -> None:
        self.events.put_nowait(f"event: {kind}\nid: {cursor}\ndata: {json.dumps(data)}\n\n".encode())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        await self._server.start_server()
        try:
            yield str(self._server.make_url("")).rstrip("/")
        finally:
            self.events.put_nowait(None)
            await self._server.close()

    async def stop(self) -> None:
        await self._server.close()


async def test_an_answer_serves_again_for_a_moment_and_is_nobody_elses() -> None:
    registry = StandIn()
    async with registry.running() as url, AsyncNodeDiscovery(url, fresh_s=3600) as discovery:
        first = await discovery.find_nodes()
        first[0]["capabilities"]["spoiled"] = True
        first.clear()
        again = await discovery.find_nodes()
        assert (registry.asked, again, again.stale) == (1, [node("a")], False)
        assert await discovery.find_nodes(role="other") == again
        assert registry.asked == 2  # another question


@pytest.mark.parametrize("status", [500, 503, 429, 0])
async def test_while_no_registry_answers_the_last_answer_is_given_and_marked(status: int) -> None:
    registry = StandIn()
    async with registry.running() as url, AsyncNodeDiscovery(url, fresh_s=0) as discovery:
        fresh = await discovery.find_nodes()
        best = await discovery.find_best_node_for_model("qwen3:8b")
        if status:
            registry.status = status
        else:
            await registry.stop()
        for _ in range(50):  # many calls: none fails, none waits
            stale = await discovery.find_nodes()
            assert (stale, stale.stale, stale.as_of) == (fresh, True, fresh.as_of)
            assert (stale[0].stale, stale[0].as_of) == (True, fresh.as_of)
        assert url in stale.why
        again = await discovery.find_best_node_for_model("qwen3:8b")
        assert (again, again and again.stale) == (best, True)
        assert registry.asked < 10  # it is left in peace
        with pytest.raises(RegistryUnreachable, match=url):
            await discovery.find_nodes(role="never asked before")
        if status:
            registry.status = 200

            async def back() -> bool:
                return not (await discovery.find_nodes()).stale

            await until(back)


async def test_too_old_is_not_given() -> None:
    registry = StandIn()
    async with registry.running() as url, AsyncNodeDiscovery(url, fresh_s=0, stale_s=0) as discovery:
        await discovery.find_nodes()
        registry.status = 500
        with pytest.raises(RegistryUnreachable, match="Told to"):
            await discovery.find_nodes()


async def test_the_callers_fault_is_never_hidden_by_an_older_answer() -> None:
    registry = StandIn()
    async with registry.running() as url, AsyncNodeDiscovery(url, fresh_s=0) as discovery:
        await discovery.find_nodes()
        registry.status = 422
        with pytest.raises(RequestRefused, match="Told to"):
            await discovery.find_nodes()


def test_a_list_without_a_registry_is_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="at least one registry"):
        AsyncNodeDiscovery(" , ")


async def next_change(changes: AsyncIterator[NodeChange]) -> tuple[str, str]:
    async with asyncio.timeout(20):
        change = await anext(changes)
    return change.kind, change.node.node_id


async def test_a_watch_follows_the_stream_comes_back_where_it_was_and_tells_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "AGAIN_S", 0.01)
    registry = StandIn(streams=True)
    async with registry.running() as url, AsyncNodeDiscovery(url) as discovery:
        changes = discovery.watch(role="worker")
        registry.events.put_nowait(b'event: snapshot\ndata: {"nodes":[{"node_id":"a"}],"more":true}\n\n')
        registry.send("snapshot", {"nodes": [node("b")], "more": False}, "e-1")
        assert [await next_change(changes) for _ in range(2)] == [("upsert", "a"), ("upsert", "b")]
        registry.events.put_nowait(b": alive\n\n")
        registry.send("upsert", node("b", metrics={"cpu_percent": 7}), "e-2")  # only numbers
        registry.send("upsert", node("b", status="degraded"), "e-3")
        registry.send("remove", {"node_id": "a"}, "e-4")
        assert [await next_change(changes) for _ in range(2)] == [("upsert", "b"), ("remove", "a")]
        registry.events.put_nowait(None)  # the stream ends
        registry.send("resync", {"reason": "of another process"}, "f-0")
        registry.send("snapshot", {"nodes": [node("b", status="degraded"), node("c")], "more": False}, "f-1")
        assert await next_change(changes) == ("upsert", "c")
        assert registry.cursors == [None, "e-4"]
        await changes.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_watch_goes_on_at_another_registry_and_tells_what_changed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "AGAIN_S", 0.01)
    eu, us = StandIn(streams=True), StandIn(streams=True)
    async with eu.running() as eu_url, us.running() as us_url:
        async with AsyncNodeDiscovery([eu_url, us_url]) as discovery:
            changes = discovery.watch()
            eu.send("snapshot", {"nodes": [node("a"), node("b")], "more": False}, "e-1")
            assert [await next_change(changes) for _ in range(2)] == [("upsert", "a"), ("upsert", "b")]
            us.send("snapshot", {"nodes": [node("b"), node("c")], "more": False}, "u-1")
            eu.events.put_nowait(None)
            await eu.stop()
            assert [await next_change(changes) for _ in range(2)] == [("remove", "a"), ("upsert", "c")]
            assert us.cursors == [None]
            await changes.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_stream_of_nonsense_is_left_for_another_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "AGAIN_S", 0.01)
    eu, us = StandIn(streams=True), StandIn(streams=True)
    async with eu.running() as eu_url, us.running() as us_url:
        async with AsyncNodeDiscovery([eu_url, us_url]) as discovery:
            changes = discovery.watch()
            eu.events.put_nowait(b"event: upsert\ndata: <html>\n\n")
            us.send("snapshot", {"nodes": [node("a")], "more": False}, "u-1")
            assert await next_change(changes) == ("upsert", "a")
            await changes.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_where_there_is_no_stream_a_watch_asks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    registry = StandIn()
    async with registry.running() as url, AsyncNodeDiscovery(url) as discovery:
        for filters in ({}, {"model": "qwen3:8b"}):
            registry.status, registry.nodes = 200, [node("a")]
            changes = discovery.watch(**filters)
            assert await next_change(changes) == ("upsert", "a")
            registry.nodes = [node("b")]
            assert [await next_change(changes) for _ in range(2)] == [("remove", "a"), ("upsert", "b")]
            registry.status = 422
            with pytest.raises(RequestRefused, match="Told to"):
                await next_change(changes)


def test_plain_calls_watch_too() -> None:
    loop = asyncio.new_event_loop()
    registry = StandIn()

    async def watched() -> list[str]:
        async with registry.running() as url:

            def plainly() -> list[str]:
                with NodeDiscovery(url) as discovery:
                    for change in discovery.watch():
                        return [change.kind, change.node.node_id]
                return []

            return await asyncio.to_thread(plainly)

    try:
        assert loop.run_until_complete(watched()) == ["upsert", "a"]
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.mark.parametrize("probe", [False, True])
async def test_the_nearest_is_measured_when_that_is_asked_for(tmp_path: Path, probe: bool) -> None:
    dialled = 0

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dialled
        dialled += 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with running(tmp_path / "data") as registry:
        async with server, session(registry.url) as admin:
            for name, endpoints in (("silent", {}), ("here", {"any": f"http://127.0.0.1:{port}"})):
                report = {"node_id": name, "endpoints": endpoints}
                async with admin.post("/api/v1/nodes/register", json=report) as answer:
                    assert answer.status == 200
            async with AsyncNodeDiscovery(registry.url, ADMIN_KEY, probe=probe) as discovery:
                nearest = await discovery.get_nearest_node()
    if probe:
        assert (nearest.node_id, nearest["latency_source"]) == ("here", "measured")
        assert 0 < (nearest.latency_ms or 0) < 1_000
    assert dialled == int(probe), "nobody is dialled unless that is asked for"
