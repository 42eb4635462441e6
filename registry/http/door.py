"""The port. We accept connections ourselves, so that one that is refused costs an accept and a close, and nothing
of what a connection that is let in costs; and so that those in their TLS handshake are counted too."""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network

from aiohttp import web

from registry.crowd import ANY, Crowd
from registry.http.limits import (
    BACKLOG,
    HANDSHAKE_S,
    MOST_CONNECTIONS,
    MOST_OF_ADDRESS,
    SPARE_FILES,
    Limits,
    network_of,
)
from registry.http.server import Connection, Runner
from registry.logs import event

ACCEPTED_AT_ONCE = 32  # 1 ms; then those that are in have their turn
REFUSED_AT_ONCE = 8  # of them: more are a flood, and then others wait a little at the door, so that who is in does not
FLOOD_REST_S = 0.01  # so that at most 3,200 a second are refused, in a tenth of our time
REST_S = 1.0  # when the system has no more files or memory for us
_RESET = struct.pack("ii", 1, 0)  # close at once: a refused connection leaves nothing behind in the kernel


class Door(web.BaseSite):
    """Lets connections in through a listening socket, or not."""

    def __init__(
        self,
        runner: Runner,
        listener: socket.socket,
        limits: Limits,
        trusted_proxies: Sequence[str],
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        """Connections from trusted proxies count only in all: they are many callers'."""
        super().__init__(runner, ssl_context=ssl_context)
        self._listener = listener
        self._limits = limits
        self._proxies = [ip_network(item, strict=False) for item in trusted_proxies]
        self._crowd: Crowd[_Visit] = Crowd(min(MOST_CONNECTIONS, files() - SPARE_FILES), MOST_OF_ADDRESS)
        self._make = runner.connection
        self._entering: set[asyncio.Task[None]] = set()
        self._open = False

    @property
    def name(self) -> str:
        """Where it listens."""
        scheme = "https" if self._ssl_context else "http"
        host, port = self._listener.getsockname()[:2]
        return f"{scheme}://{host}:{port}"

    async def start(self) -> None:
        """Accept from now on."""
        await super().start()
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._open = True
        self._resume()

    async def stop(self) -> None:
        """Accept no more; who is in stays."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        await super().stop()

    def _resume(self) -> None:
        if self._open:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        refused = 0
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                event("cannot_accept", logging.ERROR, error=error.strerror, again_in_s=REST_S)
                self._rest(REST_S)
                return
            refused += not self._meet(accepted, peer[0])
        if refused > REFUSED_AT_ONCE:
            self._rest(FLOOD_REST_S)

    def _rest(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(seconds, self._resume)

    def _meet(self, accepted: socket.socket, address: str) -> bool:
        """Let it in, or say no by closing it."""
        network = ANY if self._is_proxy(address) else network_of(address)
        if network != ANY and not self._limits.may_connect(network, secured=self._ssl_context is not None):
            self._refuse(accepted, "connection_rate")
            return False
        visit = _Visit(lambda left: self._crowd.leave(network, left))
        refusal, victim = self._crowd.enter(network, visit)
        if refusal:
            self._refuse(accepted, refusal)
            return False
        if victim is not None:
            self._limits.count("connections")
            victim.end()
        accepted.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._let_in(accepted, visit))
        visit.entering = task
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)
        return True

    def _refuse(self, accepted: socket.socket, limit: str) -> None:
        self._limits.count(limit)
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        accepted.close()

    async def _let_in(self, accepted: socket.socket, visit: "_Visit") -> None:
        loop = asyncio.get_running_loop()
        secured = self._ssl_context is not None
        try:
            await loop.connect_accepted_socket(
                lambda: self._make(visit),
                accepted,
                ssl=self._ssl_context,
                ssl_handshake_timeout=HANDSHAKE_S if secured else None,
            )
        except OSError:  # of TLS too; ssl.SSLError is one
            if secured:
                self._limits.count("handshake")
            accepted.close()
            visit.over()
        except asyncio.CancelledError:
            accepted.close()
            visit.over()
            raise

    def _is_proxy(self, address: str) -> bool:
        return bool(self._proxies) and any(ip_address(address) in network for network in self._proxies)


class _Visit:
    """One connection from being accepted until it is closed."""

    def __init__(self, leave: "Callable[[_Visit], None]") -> None:
        self._leave = leave
        self.entering: asyncio.Task[None] | None = None
        self.connection: Connection | None = None

    def over(self) -> None:
        """It is closed."""
        self._leave(self)

    def end(self) -> None:
        """Close it: another takes its place."""
        if self.connection is not None:
            self.connection.cut()
        elif self.entering is not None:
            self.entering.cancel()


def files() -> int:
    """How many files this process may have open: as many as the system lets us have, if we need them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        return soft
    return max(wanted, soft) if soft != resource.RLIM_INFINITY else wanted
