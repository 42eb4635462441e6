"""A proxy before a store, that delays, holds back, or cuts what passes; with TLS when asked."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any


class Proxy:
    """Listens on a loopback port, passes everything to a unix socket. It runs in a thread of its own, so
    the faults it makes are the network's, not the test's event loop's."""

    def __init__(self, target: Path, tls: ssl.SSLContext | None = None) -> None:
        self._target = str(target)
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._links: set[asyncio.Task[None]] = set()
        self._delay_s = 0.0
        self._cut = False
        self._swallow = False
        self._marker: bytes | None = None
        self.port = 0

    def start(self) -> None:
        """Listen; `port` is known afterwards."""
        self._thread.start()
        self.port = self._run(self._listen())

    def close(self) -> None:
        """Cut everything and stop."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def delay(self, seconds: float) -> None:
        """Hold each piece for that long, in each direction."""
        self._delay_s = seconds

    def stall(self) -> None:
        """Keep connections open and pass nothing: what a broken path looks like."""
        self._run(self._set_open(False))

    def resume(self) -> None:
        """Pass what was held back, and go on."""
        self._run(self._set_open(True))

    def cut(self) -> None:
        """Close every connection, and each new one at once."""
        self._cut = True
        self._run(self._drop())

    def mend(self) -> None:
        """Take connections again."""
        self._cut = self._swallow = False

    def swallow_answers(self) -> None:
        """Pass requests, lose the answers: the caller cannot know what was done."""
        self._swallow = True

    def lose_answer_to(self, marker: bytes) -> None:
        """The next request that holds `marker` is passed, and its connection answers nothing any more."""
        self._marker = marker

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self._writers.add(writer)
        try:
            if not self._cut:
                await self._link(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(self._target)
        self._writers.add(forth)
        deaf = asyncio.Event()
        halves = [
            asyncio.create_task(self._requests(reader, forth, deaf)),
            asyncio.create_task(self._answers(back, writer, deaf)),
        ]
        try:
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for half in halves:
                half.cancel()
            self._writers.discard(forth)
            forth.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event) -> None:
        while data := await self._piece(reader):
            if self._marker is not None and self._marker in data:
                self._marker = None
                deaf.set()
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event) -> None:
        while data := await self._piece(reader):
            if not (self._swallow or deaf.is_set()):
                writer.write(data)
                await writer.drain()

    async def _piece(self, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(65_536)
        if data:
            await asyncio.sleep(self._delay_s)
            await self._open.wait()
        return data

    async def _set_open(self, value: bool) -> None:
        if value:
            self._open.set()
        else:
            self._open.clear()

    async def _drop(self) -> None:
        for writer in list(self._writers):
            writer.close()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)


@contextlib.contextmanager
def proxied(target: Path, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A proxy that is gone afterwards."""
    proxy = Proxy(target, tls)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
