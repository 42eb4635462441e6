"""From a worker that does not write to the one that does: whole requests, and links, over a socket file that
only this registry's own processes can open."""

import asyncio
import contextlib
from collections.abc import Callable

import aiohttp
from aiohttp import web

from federation.wire import MAX_FRAME_SIZE
from registry.ports import StoreUnavailable

TIMEOUT_S = 10.0
_PASSED_ON = ("Authorization", "Content-Type", "Accept")
_PASSED_BACK = ("Content-Type", "Retry-After", "WWW-Authenticate", "Allow")


class Forwarder:
    """`address` tells the writer's socket file; None while nobody writes."""

    def __init__(self, address: Callable[[], str | None], observed: Callable[[web.Request], str]) -> None:
        self._address = address
        self._observed = observed
        self._session: aiohttp.ClientSession | None = None
        self._connected_to: str | None = None

    async def request(self, request: web.Request) -> web.Response:
        """The writer's answer to a request. Raises StoreUnavailable where there is no writer (yet)."""
        content = await request.read()
        session = await self._to_writer()
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["X-Forwarded-For"] = self._observed(request)
        try:
            async with session.request(request.method, request.rel_url, data=content, headers=headers) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise StoreUnavailable("down", "the worker that writes for this region does not answer") from None
        kept = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
        return web.Response(body=body, status=answer.status, headers=kept)

    async def link(self, request: web.Request) -> web.StreamResponse:
        """A peer's link, carried to the writer frame by frame."""
        session = await self._to_writer()
        try:
            inner = await session.ws_connect(request.rel_url, max_msg_size=MAX_FRAME_SIZE, autoping=False, compress=0)
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise StoreUnavailable("down", "the worker that holds the links does not answer") from None
        outer = web.WebSocketResponse(max_msg_size=MAX_FRAME_SIZE, autoping=False, compress=False)
        await outer.prepare(request)
        there = asyncio.create_task(_pump(outer, inner))
        back = asyncio.create_task(_pump(inner, outer))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await inner.close()
                    await outer.close()
        return outer

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()

    async def _to_writer(self) -> aiohttp.ClientSession:
        address = self._address()
        if not address:
            raise StoreUnavailable("down", "no worker writes for this region at the moment")
        session = self._session
        if session is None or self._connected_to != address:
            before = session
            session = self._session = aiohttp.ClientSession(
                "http://writer",
                connector=aiohttp.UnixConnector(path=address, limit=256),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            )
            self._connected_to = address
            if before is not None:
                await before.close()  # last: another request may be here meanwhile
        return session


Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _pump(source: Socket, target: Socket) -> None:
    async for message in source:
        match message.type:
            case aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)
            case aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            case aiohttp.WSMsgType.PING:
                await target.ping(message.data)
            case aiohttp.WSMsgType.PONG:
                await target.pong(message.data)
            case _:
                return
