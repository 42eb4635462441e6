"""Engines for tests: recorded answers, served as bytes on a real port of loopback."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tests.support.machines import FIXTURES


class Engine:
    """What it answers, by path with query; a test may change it while it runs. A number is a status, None silence."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.url = ""
        self.asked: list[tuple[str, str]] = []
        self._release = asyncio.Event()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer, and remember what was asked."""
        self.asked.append((request.method, request.path_qs))
        if request.path_qs not in self.answers:
            return web.Response(status=404, text="404 page not found")
        answer = self.answers[request.path_qs]
        if answer is None:
            await self._release.wait()
            raise web.HTTPServiceUnavailable
        if isinstance(answer, int):
            return web.Response(status=answer, headers={"Location": "/elsewhere"}, body=b'{"version":"1"}')
        text = answer if isinstance(answer, bytes | str) else json.dumps(answer)
        body = text.encode() if isinstance(text, str) else text
        return web.Response(body=io.BytesIO(body), content_type="application/json")  # of any size, and no warning

    def let_go(self) -> None:
        """End the requests that are kept waiting."""
        self._release.set()


def answers(name: str) -> dict[str, Any]:
    """The recorded answers of that engine."""
    told: dict[str, Any] = json.loads((FIXTURES / "engines" / f"{name}.json").read_text())
    return told


@contextlib.asynccontextmanager
async def engine(told: dict[str, Any], port: int = 0) -> AsyncIterator[Engine]:
    """An engine on a port of loopback."""
    shown = Engine(dict(told))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", shown.handle)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        shown.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield shown
    finally:
        shown.let_go()
        await runner.cleanup()
