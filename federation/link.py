"""One link: a WebSocket that both sides proved themselves on, whoever dialled it."""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from federation.handshake import Peer, Refused
from federation.messages import Message
from federation.tls import abort, unsent_bytes
from federation.wire import decode

_FRAME_OVERHEAD = 64  # what an entry of the queue costs beside its bytes
_TURN_S = 0.005  # one link's frames are handled so long before others get their turn
_PING = re.compile(r"(ping|pong) ([0-9]{1,10})")

CLOSE_CODES = {
    "stopping": aiohttp.WSCloseCode.GOING_AWAY,
    "fault": aiohttp.WSCloseCode.INTERNAL_ERROR,
    "malformed": 4400,
    "wrong_secret": 4401,
    "wrong_version": 4402,
    "wrong_signature": 4403,
    "identity_changed": 4404,
    "same_id": 4405,
    "myself": 4406,
    "timeout": 4408,
    "duplicate": 4409,
    "replaced": 4410,
    "bad_frame": 4411,
    "closed": 4412,
    "silent": 4413,
    "slow": 4414,
    "shunned": 4415,
    "paused": 4416,
    "full": 4417,
    "wrong_certificate": 4418,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Each with its reason. Tests state only their differences."""

    handshake_s: float = 5.0  # with TLS five round trips: a second each, the worst there is
    half_open: int = 64  # no handshake takes long; each may hold one frame
    half_open_per_address: int = 16  # so that one address does not take them all
    ping_s: float = 2.0
    suspect_s: float = 2.5  # two watermarks and a ping are missing
    silent_s: float = 5.0  # and five: the link is dead, whatever TCP thinks
    stuck_s: float = 10.0  # not a byte was taken in so long
    queue_bytes: int = 16 * 2**20  # twice what the engine lets be under way
    goodbye_s: float = 0.4  # two of them are within the second that `stop` may take
    tick_s: float = 0.1
    stall_s: float = 1.0  # our own process stood still for so long: what looks silent may only be unread
    shunned_s: float = 5.0  # who broke the protocol may not come back for so long
    alert_again_s: float = 60.0


class Gone(Exception):
    """There will be no link, and nobody broke the protocol: the other side went, or this is not the time for it.
    `code`: what it said, or is told."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Breach(Exception):
    """The peer broke the protocol of an established link. `cause`: one of few words."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class DialledSocket(aiohttp.ClientWebSocketResponse):
    """Keeps its transport: aiohttp gives it away for a server's WebSocket only."""

    def __init__(self, reader: Any, writer: Any, protocol: Any, response: aiohttp.ClientResponse, *a: Any, **k: Any):
        super().__init__(reader, writer, protocol, response, *a, **k)
        assert response.connection is not None
        self.transport = response.connection.transport


@dataclass(frozen=True, slots=True)
class Socket:
    """A WebSocket, whoever dialled it."""

    ws: web.WebSocketResponse | aiohttp.ClientWebSocketResponse
    transport: asyncio.WriteTransport

    async def next_text(self) -> str:
        """The next text of the handshake."""
        message = await self.ws.receive()
        if message.type is WSMsgType.TEXT:
            text: str = message.data
            return text
        if message.type is WSMsgType.BINARY:
            raise Refused("malformed", "it sent a frame before it proved itself")
        if message.type is WSMsgType.ERROR and isinstance(message.data, aiohttp.WebSocketError):
            raise Refused("malformed", f"it does not keep the WebSocket protocol: {message.data}")
        raise Gone(_said_code(message))

    async def hang_up(self, code: str, within_s: float) -> None:
        """Say why, wait for the other side to have heard it, and leave no socket in any case."""
        try:
            with contextlib.suppress(TimeoutError, OSError, RuntimeError, aiohttp.ClientError):
                async with asyncio.timeout(within_s):
                    await self.ws.close(code=CLOSE_CODES.get(code, aiohttp.WSCloseCode.OK), message=code.encode())
        finally:
            abort(self.transport)  # close() would wait for a peer to read that never does


class Link:
    """One link, from its handshake on."""

    def __init__(self, socket: Socket, peer: Peer, url: str | None, limits: Limits, now_s: float) -> None:
        """`url`: where we dialled it; None if it dialled us."""
        self.socket, self.peer, self.url = socket, peer, url
        self.dialled = url is not None
        self.up_s = self.heard_s = self.progress_s = now_s
        self.frames_in = self.frames_out = self.bytes_in = self.bytes_out = 0
        self.ending: str | None = None  # why; nothing is taken from it, or given to it, any more
        self.told = False  # the member knows of it
        self.tasks: list[asyncio.Task[Any]] = []
        self._limits = limits
        self._queue: deque[bytes | str] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._progress: tuple[int, int] = (0, 0)
        self._pings: deque[tuple[int, float]] = deque(maxlen=5)
        self._rtts_s: deque[float] = deque(maxlen=5)
        self._next_ping_s = now_s
        self._ping = 0

    @property
    def queued_bytes(self) -> int:
        """What is to be sent and was not given to the kernel yet."""
        return self._queued_bytes + unsent_bytes(self.socket.transport)

    @property
    def rtt_ms(self) -> float | None:
        """The least of the last round trips."""
        return round(min(self._rtts_s) * 1_000, 3) if self._rtts_s else None

    def is_silent(self, now_s: float, for_s: float) -> bool:
        """Whether nothing at all has come for so long."""
        return now_s - self.heard_s >= for_s

    def put(self, data: bytes | str, *, first: bool = False) -> bool:
        """Queue it; False if there is no more room."""
        if self._queued_bytes + len(data) + _FRAME_OVERHEAD > self._limits.queue_bytes:
            return False
        self._queued_bytes += len(data) + _FRAME_OVERHEAD
        (self._queue.appendleft if first else self._queue.append)(data)
        self._wake.set()
        return True

    async def write(self) -> str:
        """Send what is queued, for as long as the link lives. The transport takes what it can at once; waiting
        for it begins only when it holds more than its limit."""
        ws = self.socket.ws
        try:
            while True:
                while self._queue:
                    data = self._queue.popleft()
                    self._queued_bytes -= len(data) + _FRAME_OVERHEAD
                    self.frames_out += 1
                    self.bytes_out += len(data)
                    await (ws.send_str(data) if isinstance(data, str) else ws.send_bytes(data))
                self._wake.clear()
                await self._wake.wait()
        except (OSError, aiohttp.ClientError):
            return "lost"

    async def read(
        self, received: Callable[[Message], None], ready: Callable[[], Awaitable[None]], monotonic: Callable[[], float]
    ) -> str:
        """Take what comes, until it ends; why it did. Raises WireError and Breach."""
        turn_s = monotonic()
        while True:
            message = await self.socket.ws.receive()
            now_s = self.heard_s = monotonic()
            if message.type is WSMsgType.BINARY:
                self.frames_in += 1
                self.bytes_in += len(message.data)
                await ready()
                received(decode(message.data))
            elif message.type is WSMsgType.TEXT:
                self._ping_or_pong(message.data, now_s)
            elif message.type is WSMsgType.ERROR and isinstance(message.data, aiohttp.WebSocketError):
                raise Breach("websocket", f"it does not keep the WebSocket protocol: {message.data}")
            else:
                return _said_code(message)
            if monotonic() - turn_s > _TURN_S:  # receiving does not wait as long as something is there
                await asyncio.sleep(0)
                turn_s = monotonic()

    def tick(self, now_s: float) -> str | None:
        """Ping, and see whether the link should end; why."""
        mark = (self.frames_out, unsent_bytes(self.socket.transport))
        if mark != self._progress or not self.queued_bytes:
            self._progress, self.progress_s = mark, now_s
        if now_s - self.progress_s >= self._limits.stuck_s:
            return "slow"
        if self.is_silent(now_s, self._limits.silent_s):
            return "silent"
        if now_s >= self._next_ping_s:
            self._next_ping_s = now_s + self._limits.ping_s
            self._ping += 1
            self._pings.append((self._ping, now_s))
            self.put(f"ping {self._ping}", first=True)
        return None

    def excuse(self, now_s: float) -> None:
        """We stood still ourselves: count from now."""
        self.heard_s = self.progress_s = now_s
        self._pings.clear()

    def _ping_or_pong(self, text: str, now_s: float) -> None:
        match = _PING.fullmatch(text)
        if match is None:
            raise Breach("text", "it sent a text that is neither ping nor pong")
        kind, number = match.groups()
        if kind == "ping":
            self.put(f"pong {number}", first=True)
            return
        for sent in self._pings:
            if sent[0] == int(number):
                self._rtts_s.append(now_s - sent[1])
                self._pings.remove(sent)
                return


def _said_code(message: aiohttp.WSMessage) -> str:
    """Why the connection ended: what the other side said, if that is one of ours, as anybody may say anything."""
    if message.type is WSMsgType.CLOSE and message.extra in CLOSE_CODES:
        code: str = message.extra
        return code
    return "lost"
