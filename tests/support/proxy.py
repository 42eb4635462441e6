"""Proxies before a store or between registries, that delay, hold back, lose or cut what passes.

A `Way` is one direction and what is wrong with it; every connection that goes there shares it, so a fault is
the network's and not one connection's. `Forwarder` passes connections on, two ways each. `Network` stands before
several registries and has two ways for each pair; `Proxy` stands before a store, in a thread of its own.

What TCP lets applications see of a bad network is all there is here. A lost packet shows as a stall of one
retransmission timeout and of nothing else; a path that lost everything shows as silence, and what was sent
meanwhile arrives when it is back (`hold`, `release`). A middle box that forgot a connection is `lose`: its
connections stay dead. Nothing is limited in bandwidth: any number of pieces are under way at once, in order.
"""

import asyncio
import contextlib
import os
import random
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import psutil

PACKET_BYTES = 1_460  # of Ethernet's 1,500
RETRANSMIT_S = 0.2  # Linux's least timeout; a round trip comes on top
UNDER_WAY_BYTES = 64 * 2**20  # a connection and direction: who sends more into a hole has to wait
_CLOSE, _RESET, _EOF = b"close", b"reset", b"eof"  # told apart from data by identity
_LINGER_NOTHING = struct.pack("ii", 1, 0)


class Way:
    """One direction. `loss` is the share of packets, `jitter_s` at most what is added to the delay. `refuses`: a
    connection that would be made in this direction is cut at once. `marker`: the next piece that holds it is
    passed, and nothing of that connection in the other direction any more."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.loss = 0.0
        self.refuses = False
        self.marker: bytes | None = None
        self.loses = False
        self.held = False
        self._rng = rng or random.Random(1)
        self._pipes: set[_Pipe] = set()

    def hold(self) -> None:
        """Pass nothing, as a path that is down; connections stay as they are."""
        self.held = True

    def release(self) -> None:
        """Pass what was held back, and go on."""
        self.held = False
        for pipe in list(self._pipes):
            pipe.run()

    def lose(self) -> None:
        """What is sent from now on never arrives, ends of connections neither. The sender does not notice."""
        self.loses = True

    def mend(self) -> None:
        """As at the beginning, but for the delay. Connections of which something was lost stay dead."""
        self.loss, self.refuses, self.marker, self.loses = 0.0, False, None, False
        self.release()

    def reset(self) -> None:
        """Cut every connection that goes this way, at both ends and without a word (RST)."""
        for pipe in list(self._pipes):
            pipe.cut()

    @property
    def connections(self) -> int:
        """How many go this way."""
        return len(self._pipes)

    def takes_s(self, size: int) -> float:
        """How long a piece of that size is under way."""
        seconds = self.delay_s + self.jitter_s * self._rng.random()
        if self.loss and self._rng.random() > (1 - self.loss) ** (1 + size // PACKET_BYTES):
            seconds += RETRANSMIT_S + 2 * self.delay_s
        return seconds

    def join(self, pipe: "_Pipe") -> None:
        """A connection goes this way from now on."""
        self._pipes.add(pipe)

    def leave(self, pipe: "_Pipe") -> None:
        """And no more."""
        self._pipes.discard(pipe)


class _Pipe:
    """What one end of a connection sends, on its way to the other end: in order, each piece at its moment."""

    def __init__(self, way: Way, source: "_End", target: "_End") -> None:
        self._way, self._source, self._target = way, source, target
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.dead = False
        way.join(self)

    def put(self, data: bytes) -> None:
        """A piece, or the end."""
        way = self._way
        if way.marker is not None and way.marker in data:
            way.marker = None
            self._target.deafen()
        self.dead = self.dead or way.loses
        if self.dead:
            return
        if not (self._queue or way.held or way.delay_s or way.jitter_s or way.loss):
            self._target.deliver(data)
            return
        self._last_s = max(self._last_s, self._loop.time() + way.takes_s(len(data)))
        self._queue.append((self._last_s, data))
        self._queued_bytes += len(data)
        if self._queued_bytes > UNDER_WAY_BYTES:
            self._source.wait_for("queue")
        self._arm()

    def run(self) -> None:
        """Deliver what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self._loop.time()
        while self._queue and not self._way.held and self._queue[0][0] <= now_s:
            _, data = self._queue.popleft()
            self._queued_bytes -= len(data)
            if not self.dead:
                self._target.deliver(data)
        if self._queued_bytes <= UNDER_WAY_BYTES // 2:
            self._source.go_on("queue")
        self._arm()

    def cut(self) -> None:
        """Both ends are reset, now."""
        self._source.reset()
        self._target.reset()

    def end(self) -> None:
        """Nothing goes here any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queue.clear()
        self._way.leave(self)

    def _arm(self) -> None:
        if self._queue and self._timer is None and not self._way.held:
            self._timer = self._loop.call_at(self._queue[0][0], self.run)


class _End(asyncio.Protocol):
    """One of a connection's two sockets."""

    def __init__(self, on_made: "Callable[[_End], None] | None" = None) -> None:
        self._on_made = on_made
        self.transport: asyncio.Transport | None = None
        self.pipe: _Pipe | None = None  # takes what we receive
        self.back: _Pipe | None = None  # brings what we send
        self.other: _End | None = None
        self._waits_for: set[str] = set()
        self._heard_eof = False
        self._early: list[bytes] = []  # uvloop reads once even if it is told at once not to

    def join(self, other: "_End", way: Way) -> None:
        """What is received here goes to the other end."""
        self.other = other
        self.pipe = other.back = _Pipe(way, self, other)
        for data in self._early:
            self.pipe.put(data)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read nothing until it is known where to."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own, which is none by class
        if self._on_made is not None:
            self.transport.pause_reading()
            self._waits_for.add("other end")
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Send it on its way."""
        self._put(data)

    def eof_received(self) -> bool:
        """The other direction may go on; TLS knows no such thing."""
        self._heard_eof = True
        self._put(_EOF)
        return self.transport is not None and self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end hears of it, by the same way."""
        self.transport = None
        self._put(_RESET if exc is not None else _CLOSE)
        if self.back is not None:
            self.back.end()

    def pause_writing(self) -> None:
        """The reader here is slow: so is the sender there."""
        if self.other is not None:
            self.other.wait_for("reader")

    def resume_writing(self) -> None:
        """Go on."""
        if self.other is not None:
            self.other.go_on("reader")

    def _put(self, data: bytes) -> None:
        if self.pipe is not None:
            self.pipe.put(data)
        else:
            self._early.append(data)

    # for pipes

    def deliver(self, data: bytes) -> None:
        """A piece, or the end, has arrived."""
        if self.transport is None or self.transport.is_closing():
            return
        if data is _RESET:
            self.reset()
        elif data is _CLOSE or (data is _EOF and not self.transport.can_write_eof()):
            self.transport.close()
        elif data is not _EOF:
            self.transport.write(data)
        elif self._heard_eof:
            self.transport.close()
            if self.other is not None and self.other.transport is not None:
                self.other.transport.close()
        else:
            self.transport.write_eof()

    def deafen(self) -> None:
        """Nothing from here reaches the other end any more."""
        if self.pipe is not None:
            self.pipe.dead = True

    def reset(self) -> None:
        """End it without a word."""
        if self.transport is not None:
            found = self.transport.get_extra_info("socket")
            if found is not None and found.family != socket.AF_UNIX:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(found.fileno())) as same:
                    same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOTHING)
            self.transport.abort()

    def wait_for(self, what: str) -> None:
        """Read no more until `go_on` with the same word."""
        if not self._waits_for and self.transport is not None:
            self.transport.pause_reading()
        self._waits_for.add(what)

    def go_on(self, what: str) -> None:
        """See `wait_for`."""
        if what in self._waits_for:
            self._waits_for.discard(what)
            if not self._waits_for and self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()


Ways = Callable[[int], Awaitable[tuple[Way, Way]]]


class Forwarder:
    """Listens on a loopback port, and passes connections on to a port or to a unix socket. `ways` is given a
    connection's source port, and says by which ways it goes there and back."""

    def __init__(self, target: int | Path, ways: Ways, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._ways = ways
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[_End] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen; `port` is known afterwards."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self._accept), "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut everything and stop."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in self._ends:
            end.reset()
        await asyncio.sleep(0)  # for transports to let go of their sockets

    def _accept(self, front: _End) -> None:
        task = asyncio.get_running_loop().create_task(self._join(front))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, front: _End) -> None:
        assert front.transport is not None
        there, back = await self._ways(front.transport.get_extra_info("peername")[1])
        if there.refuses:
            front.reset()
            return
        behind = _End()
        loop = asyncio.get_running_loop()
        try:
            if isinstance(self.target, int):
                await loop.create_connection(lambda: behind, "127.0.0.1", self.target)
            else:
                await loop.create_unix_connection(lambda: behind, str(self.target))
        except OSError:  # nobody is there: who dialled hears so
            front.reset()
            return
        self._ends = {end for end in self._ends if end.transport is not None} | {front, behind}
        behind.join(front, back)
        front.join(behind, there)
        front.go_on("other end")


class Network:
    """What lies between registries: a proxy before each, which is the URL that its peers are given and that it
    advertises; and two ways between any two, whichever of them dialled.

    One proxy a registry, not one a pair: a registry advertises one URL, and whoever learns of it from the
    roster dials that one. Who has dialled is found by the source port, among the processes of the registries;
    anybody else's connections pass without faults.
    """

    def __init__(self, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._forwarders: dict[str, Forwarder] = {}
        self._pids: dict[str, int] = {}
        self._ways: dict[tuple[str, str], Way] = {}

    async def add(self, name: str, port: int) -> str:
        """A registry that listens, or will, on that port; the URL that others reach it by."""
        forwarder = self._forwarders[name] = Forwarder(port, lambda source: self._between(source, name))
        await forwarder.start()
        return f"http://127.0.0.1:{forwarder.port}"

    def runs_as(self, name: str, pid: int) -> None:
        """The process that this registry is now."""
        self._pids[name] = pid

    def way(self, source: str, target: str) -> Way:
        """The way from one to the other."""
        if (source, target) not in self._ways:
            self._ways[source, target] = Way(self._rng)
        return self._ways[source, target]

    def ways(self) -> list[Way]:
        """All of them, both directions of each pair."""
        names = list(self._forwarders)
        return [self.way(a, b) for a in names for b in names if a != b]

    def between(self, some: Iterable[str], others: Iterable[str]) -> list[Way]:
        """The ways that cross from one side to the other, in both directions."""
        others = list(others)
        return [self.way(*pair) for a in some for b in others for pair in ((a, b), (b, a))]

    @property
    def strangers(self) -> int:
        """Connections of processes that are none of the registries': no fault reaches them."""
        return sum(self.way("", name).connections for name in self._forwarders)

    async def close(self) -> None:
        """Cut everything and stop."""
        for forwarder in self._forwarders.values():
            await forwarder.close()

    async def _between(self, source_port: int, target: str) -> tuple[Way, Way]:
        name = await asyncio.to_thread(owner_of, source_port, dict(self._pids))
        return self.way(name, target), self.way(target, name)


def owner_of(port: int, pids: Mapping[str, int]) -> str:
    """Which of these processes (or its workers) has a TCP connection from that local port; `` if none."""
    for name, pid in pids.items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children()):
                with contextlib.suppress(psutil.Error):
                    if any(connection.laddr.port == port for connection in each.net_connections("tcp")):
                        return name
    return ""


class Proxy:
    """Listens on a loopback port, passes everything to a unix socket. It runs in a thread of its own, so
    the faults it makes are the network's, not the test's event loop's."""

    def __init__(self, target: Path, tls: ssl.SSLContext | None = None) -> None:
        self._there, self._back = Way(), Way()
        self._forwarder = Forwarder(target, self._ways, tls)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._forwarder.port

    def start(self) -> None:
        """Listen; `port` is known afterwards."""
        self._thread.start()
        self._run(self._forwarder.start())

    def close(self) -> None:
        """Cut everything and stop."""
        self._run(self._forwarder.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def delay(self, seconds: float) -> None:
        """Hold each piece for that long, in each direction."""
        self._there.delay_s = self._back.delay_s = seconds

    def stall(self) -> None:
        """Keep connections open and pass nothing: what a broken path looks like."""
        self._call(self._there.hold, self._back.hold)

    def resume(self) -> None:
        """Pass what was held back, and go on."""
        self._call(self._there.release, self._back.release)

    def cut(self) -> None:
        """Close every connection, and each new one at once."""
        self._there.refuses = True
        self._call(self._there.reset)

    def mend(self) -> None:
        """Take connections again."""
        self._call(self._there.mend, self._back.mend)

    def swallow_answers(self) -> None:
        """Pass requests, lose the answers: the caller cannot know what was done."""
        self._back.lose()

    def lose_answer_to(self, marker: bytes) -> None:
        """The next request that holds `marker` is passed, and its connection answers nothing any more."""
        self._there.marker = marker

    async def _ways(self, _source_port: int) -> tuple[Way, Way]:
        return self._there, self._back

    def _call(self, *actions: Callable[[], None]) -> None:
        async def act() -> None:
            for action in actions:
                action()

        self._run(act())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@contextlib.contextmanager
def proxied(target: Path, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A proxy that is gone afterwards."""
    proxy = Proxy(target, tls)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
