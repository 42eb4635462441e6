"""From a worker that does not write to the one that does: whole requests, and links, over a socket file that
only this registry's own processes can open."""

import asyncio
import contextlib
from collections.abc import Callable

import aiohttp
from aiohttp import web

from federation.wire import MAX_FRAME_SIZE
from registry.http.presented import passed_on
from registry.http.wire import read_body
from registry.ports import StoreUnavailable

TIMEOUT_S = 10.0
FORGET_TIMEOUT_S = 60.0  # what a registry had signed that is forgotten is signed anew: it may be much
_FORGET = "/api/v1/federation/members/"
PATIENCE_S = 3.0  # a writer that died is replaced within this
_TRY_AGAIN_S = 0.05
_MAX_MESSAGE = MAX_FRAME_SIZE + 1  # aiohttp refuses what reaches it
_PASSED_ON = ("Authorization", "Content-Type", "Content-Encoding", "Accept")
_PASSED_BACK = ("Content-Type", "Retry-After", "WWW-Authenticate", "Allow")


class Interrupted(Exception):
    """The writer went away in the midst of a request: it may have been done, or not."""


class Forwarder:
    """`address` tells the writer's socket file; none while nobody writes. `is_writer`: whether it is us now."""

    def __init__(
        self,
        address: Callable[[], str | None],
        is_writer: Callable[[], bool],
        observed: Callable[[web.Request], str],
    ) -> None:
        self._address = address
        self._is_writer = is_writer
        self._observed = observed
        self._session: aiohttp.ClientSession | None = None
        self._connected_to: str | None = None

    async def request(self, request: web.Request) -> web.Response | None:
        """The writer's answer to a request; None: we have become the writer ourselves. While nobody writes it waits,
        but not for long. Raises StoreUnavailable."""
        content = await read_body(request)
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["X-Forwarded-For"] = self._observed(request)
        headers.update(passed_on(request))
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        while not self._is_writer():
            try:
                return await self._ask(request, content, headers)
            except aiohttp.ClientConnectorError:  # nothing of it was sent
                why = "the worker that writes for this region does not answer"
            except StoreUnavailable as error:
                why = str(error)
            if loop.time() >= until_s:
                raise StoreUnavailable("down", why)
            await asyncio.sleep(_TRY_AGAIN_S)
        return None

    async def _ask(self, request: web.Request, content: bytes, headers: dict[str, str]) -> web.Response:
        session = await self._to_writer()
        limit = aiohttp.ClientTimeout(FORGET_TIMEOUT_S if request.path.startswith(_FORGET) else TIMEOUT_S)
        try:
            async with session.request(
                request.method, request.rel_url, data=content, headers=headers, timeout=limit
            ) as answer:
                body = await answer.read()
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError):
            # It may have been done: only the caller can know whether to do it again.
            raise Interrupted from None
        kept = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
        return web.Response(body=body, status=answer.status, headers=kept)

    async def link(self, request: web.Request) -> web.StreamResponse:
        """A peer's link, carried to the writer frame by frame."""
        session = await self._to_writer()
        try:
            inner = await session.ws_connect(
                request.rel_url,
                headers={"X-Forwarded-For": self._observed(request), **passed_on(request)},
                max_msg_size=MAX_FRAME_SIZE + 1,
                autoping=False,
                compress=0,
            )
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise StoreUnavailable("down", "the worker that holds the links does not answer") from None
        outer = web.WebSocketResponse(max_msg_size=_MAX_MESSAGE, autoping=False, compress=False)
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
    """Pass on what comes, to the last word: why it ends."""
    while True:
        message = await source.receive()
        match message.type:
            case aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)
            case aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            case aiohttp.WSMsgType.PING:
                await target.ping(message.data)
            case aiohttp.WSMsgType.PONG:
                await target.pong(message.data)
            case aiohttp.WSMsgType.CLOSE:
                await target.close(code=message.data or aiohttp.WSCloseCode.OK, message=(message.extra or "").encode())
                return
            case _:
                return
