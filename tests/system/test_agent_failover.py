"""A list of registries: when one gives no answer, the next gets the same at once, with the same key and token."""

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent import connection, failover
from agent.client import RegistryClient
from agent.config import load
from agent.identity import Home
from agent.node import Agent
from tests.support.agents import agent
from tests.support.live import Process, session, until

NODE = {"node_id": "n", "api_key": "sk-node-key", "token": "first"}
BEAT = {"success": True, "node_id": "n", "status": "online", "token": "second"}


class FakeRegistry:
    """Answers as a registry does, until told to fail."""

    def __init__(self) -> None:
        self.failing: str | None = None
        self.asked: list[tuple[str, str | None, Any]] = []
        self._over = asyncio.Event()
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_post("/api/v1/nodes/{what}", self._answer)
        self._server = TestServer(app)

    async def _health(self, _request: web.Request) -> web.Response:
        if self.failing == "hangs":
            await self._over.wait()
        return web.json_response({"status": "healthy"})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        what = request.match_info["what"]
        self.asked.append((what, request.headers.get("Authorization"), (await request.json()).get("token")))
        if self.failing == "hangs":
            await self._over.wait()
        if self.failing in ("503", "429"):
            detail = {"detail": "The store is away."}
            return web.json_response(detail, status=int(self.failing), headers={"Retry-After": "60"})
        if self.failing in ("401", "500", "421"):
            return web.json_response({"detail": "Not here."}, status=int(self.failing))
        if self.failing == "login page":
            return web.Response(text="<form>Room:</form>", content_type="text/html")
        if self.failing == "endless":
            return await self._drip(request)
        return web.json_response(NODE if what == "register" else BEAT)

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not self._over.is_set():
                await response.write(b" ")
                await asyncio.sleep(0.02)
        return response

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        await self._server.start_server()
        try:
            yield str(self._server.make_url("")).rstrip("/")
        finally:
            await self.stop()

    async def stop(self) -> None:
        self._over.set()
        await self._server.close()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("gone", "connection"),
        ("hangs", "did not answer within 1 s"),
        ("503", "The store is away."),
        ("429", "The store is away."),
        ("401", "answered 401: Not here."),
        ("421", "answered 421: Not here."),
        ("500", "answered 500: Not here."),
        ("login page", "is not a registry"),
        ("endless", "did not answer within 1.5 s"),
    ],
)
async def test_the_next_gets_the_same_at_once(
    failure: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 1 if failure == "hangs" else 10)
    monkeypatch.setattr(connection, "WHOLE_S", 1.5 if failure == "endless" else 10)
    eu, us, said = FakeRegistry(), FakeRegistry(), list[str]()
    async with eu.running() as eu_url, us.running() as us_url:
        node = Agent(load({"node_registry_url": f"{eu_url},{us_url}"}, None), Home(tmp_path), say=said.append)
        node._capabilities = {"system": {}, "gpu": {}, "ollama": {}}  # it is not what is tried here
        try:
            assert (await node.register())[0].status == 200
            assert us.asked == []
            if failure == "gone":
                await eu.stop()
            eu.failing = failure
            assert (await node.heartbeat()).status == 200
            assert us.asked == [("heartbeat", "Bearer sk-node-key", "first")]
            (moved,) = [line for line in said if line.startswith(f"heartbeats go to {us_url} now: ")]
            assert words in moved
            eu.asked.clear()
            assert (await node.heartbeat()).status == 200  # it stays, and does not say so again
            assert us.asked[1:] == [("heartbeat", "Bearer sk-node-key", "second")]
            assert (eu.asked, said[-1]) == ([], moved)
        finally:
            await node.client.close()


async def test_it_goes_home_when_home_has_been_nearer_for_long_enough_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "LEAST_STAY_S", 0)
    eu, us, said = FakeRegistry(), FakeRegistry(), list[str]()
    async with eu.running() as eu_url, us.running() as us_url:
        node = Agent(load({"node_registry_url": f"{eu_url},{us_url}"}, None), Home(tmp_path), say=said.append)
        node._capabilities = {"system": {}, "gpu": {}, "ollama": {}}  # it is not what is tried here
        try:
            eu.failing = "500"
            assert (await node.register())[0].status == 200
            assert len(us.asked) == 1
            eu.failing = None
            registries = node.client.registries
            home, here = registries.all
            here.rtts_ms.extend([98.0] * failover.SAMPLES)
            for _ in range(failover.NEARER_TIMES):
                assert (await node.heartbeat()).status == 200
                here.rtts_ms.clear()  # of a loopback
                here.rtts_ms.append(98.0)
                registries.measured(home, [23.0], time.monotonic(), Random(1))
            assert [what for what, *_ in eu.asked] == ["register"]
            assert (await node.heartbeat()).status == 200
            assert [what for what, *_ in eu.asked] == ["register", "heartbeat"]
            assert said[-1] == f"heartbeats go to {eu_url} now: it is nearer than {us_url} (98 ms)"
        finally:
            await node.client.close()


async def test_a_kept_connection_that_was_closed_tells_nothing_of_the_registry() -> None:
    """Home routers and servers close what is idle: the same registry gets the request again, at once."""
    requests = list[int]()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n{}")
            requests.append(len(requests))
            writer.write(answer)
            await reader.readuntil(b"\r\n\r\n{}")  # the next on this connection
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    registries = RegistryClient([url, "http://127.0.0.1:1"])
    try:
        for _ in range(2):
            outcome, _ = await registries.call("POST", "/x", body={})
            assert outcome.status == 200
        assert (registries.url, registries.change, len(requests)) == (url, None, 2)
    finally:
        await registries.close()
        server.close()
        await server.wait_closed()


FAST = ("--heartbeat-interval-s", "0.2", "--degraded-after-s", "20", "--offline-after-s", "60")
SECRET: dict[str, str | None] = {"REGISTRY_FEDERATION_SECRET": "a secret of tests, of 32 characters and more"}


def end_at_once(registry: Process) -> None:
    """SIGKILL it and its store, as if its machine was gone."""
    stores = psutil.Process(registry.popen.pid).children()
    sockets = [c.laddr for store in stores for c in store.net_connections("unix") if str(c.laddr).endswith("/s")]
    registry.kill()
    for store in stores:
        store.kill()
    psutil.wait_procs(stores, 10)
    for path in set(sockets):  # its next start would have removed it, and there is none
        shutil.rmtree(Path(path).parent, ignore_errors=True)


async def home_of(url: str, node_id: str) -> str | None:
    async with session(url) as admin, admin.get(f"/api/v1/nodes/{node_id}") as answer:
        node = await answer.json() if answer.status == 200 else {}
    return node.get("home_registry") if node.get("status") == "online" else None


async def test_told_of_one_registry_it_lives_on_with_the_other_and_finds_it_again_after_a_restart(
    tmp_path: Path,
) -> None:
    """Frozen, then killed: a real federation, of which the agent's settings name one registry alone."""
    eu = Process(tmp_path / "eu", "--region", "eu", *FAST, env=SECRET)
    us: Process | None = None
    try:
        eu.wait_ready()
        us = Process(tmp_path / "us", "--region", "us", "--peer", eu.url, *FAST, env=SECRET)
        us.wait_ready()
        command = ("-m", "agent", "bootstrap", "--registry-url", eu.url)
        async with agent(tmp_path / "node", *command) as node:
            await node.says("registered as node-")
            kept = node.home / ".dagi" / "registries.json"

            async def learned() -> bool:
                return kept.exists() and us is not None and us.url in kept.read_text()

            await until(learned)  # with the heartbeat after which eu knows of us

            async def measured() -> bool:
                async with session(eu.url) as admin, admin.get(f"/api/v1/nodes/{node.node_id}") as answer:
                    told = (await answer.json())["metrics"].get("registry_rtt_ms", {})
                return told.keys() == {"eu", "us"} and all(0 < rtt_ms < 1000 for rtt_ms in told.values())

            await until(measured)
            eu.popen.send_signal(signal.SIGSTOP)
            await node.says(f"heartbeats go to us at {us.url} now: {eu.url} did not answer within 2 s")
            node_id = node.node_id

            async def moved() -> bool:
                return us is not None and await home_of(us.url, node_id) == "us"

            await until(moved)
            assert node.output.count("registered as") == 1
            eu.popen.send_signal(signal.SIGCONT)
            node.kill()
        end_at_once(eu)
        async with agent(tmp_path / "node", *command) as node:
            await node.says(f"registered as {node_id} with us at {us.url}")
            assert " ms); eu unreachable: connection refused (" in node.output
            assert await home_of(us.url, node_id) == "us"
            assert await node.stop() == 0
    finally:
        eu.popen.send_signal(signal.SIGCONT)
        for process in filter(None, (eu, us)):
            process.stop()
