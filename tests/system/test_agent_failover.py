"""A list of registries: when one gives no answer, the next gets the same at once, with the same key and token."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent import connection
from agent.config import load
from agent.identity import Home
from agent.node import Agent

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

    async def _answer(self, request: web.Request) -> web.Response:
        what = request.match_info["what"]
        self.asked.append((what, request.headers.get("Authorization"), (await request.json()).get("token")))
        if self.failing == "hangs":
            await self._over.wait()
        if self.failing == "503":
            return web.json_response({"detail": "The store is away."}, status=503, headers={"Retry-After": "60"})
        return web.json_response(NODE if what == "register" else BEAT)

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
    [("gone", "connection"), ("hangs", "did not answer within 0.2 s"), ("503", "The store is away.")],
)
async def test_the_next_gets_the_same_at_once(
    failure: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.2 if failure == "hangs" else 10)
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
