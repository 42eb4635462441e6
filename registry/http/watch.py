"""Watching: GET /api/v1/nodes/watch as server-sent events, and the long poll of a listing.

What changed is collected for a moment, told to each audience once, and handed to every watcher of it as one piece of
bytes. Nobody waits for a watcher: what one has not taken is counted, and who leaves too much behind is cut off; it may
come back with the id of the last event that it saw.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import orjson
from aiohttp import web

from registry.changes import SNAPSHOT_NODES, Audience, Changes, resync, snapshot
from registry.directory import Directory, Entry
from registry.discovery import filters_of
from registry.errors import ApiError
from registry.http.caller import Callers
from registry.http.wire import answer, query_of
from registry.model import ListQuery, NodeFilter, WatchQuery

COLLECT_S = 0.05  # a change waits so long for company: a write to a watcher costs as much as a dozen events in it
MOST_WATCHERS = 2_000  # of one worker: each holds a connection, and up to MOST_WAITING
MOST_WAITING = 2**20  # bytes; some 500 changes that a watcher has not taken
ALIVE_EVERY_S = 15.0  # a comment, so that proxies do not take the silence for death
STUCK_S = 20.0  # who takes nothing for so long is gone
POLL_S = 25.0  # less than most clients and proxies wait
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Watcher:
    """One connection: what it has not been sent yet."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self.waiting: deque[bytes] = deque()
        self.size = 0
        self.slow = False
        self.wake = asyncio.Event()

    def put(self, events: bytes) -> None:
        if self.size + len(events) > MOST_WAITING:
            self.cut()
        else:
            self.waiting.append(events)
            self.size += len(events)
        self.wake.set()

    def cut(self) -> None:
        """It does not read: end the connection, whatever waits in it."""
        self.slow = True
        if self._transport is not None:
            self._transport.abort()

    def take(self) -> bytes:
        events = b"".join(self.waiting)
        self.waiting.clear()
        self.size = 0
        self.wake.clear()
        return events


async def _send(response: web.StreamResponse, watcher: _Watcher, events: bytes) -> None:
    if not events:
        return
    try:
        async with asyncio.timeout(STUCK_S):
            await response.write(events)
    except TimeoutError:
        watcher.cut()


class _Group:
    """An audience, and who is in it."""

    def __init__(self, audience: Audience) -> None:
        self.audience = audience
        self.watchers: set[_Watcher] = set()


class Watching:
    """See the module. `stop` ends every watch."""

    def __init__(
        self, directory: Directory, changes: Changes, callers: Callers, aliases: Mapping[str, str],
        count: Callable[[str], None] = lambda what: None,
    ) -> None:  # fmt: skip
        """`count` hears of `opened`, `closed`, `slow` and `refused`."""
        self._directory = directory
        self._changes = changes
        self._callers = callers
        self._aliases = aliases
        self._count = count
        self._groups: dict[str, _Group] = {}
        self._changed = asyncio.Event()
        self._polling = 0
        self._open = 0
        self._teller: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    # handlers

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """GET /watch."""
        self._callers.require_read(request)
        query = query_of(request, WatchQuery)
        if self._open >= MOST_WATCHERS or self._stopped.is_set():
            self._count("refused")
            raise ApiError(
                "too_many_watchers", "This registry has as many watchers as it takes; try again, or another."
            )
        response = web.StreamResponse(headers=_HEADERS)
        watcher = _Watcher(request.transport)
        self._open += 1
        self._count("opened")
        question = repr(query)
        try:
            await response.prepare(request)
            group = self._groups.get(question)
            if group is None:
                group = self._groups[question] = _Group(self._audience(query))
            group.watchers.add(watcher)
            self._start()
            with contextlib.suppress(ConnectionError):
                await self._serve(response, watcher, group, request.headers.get("Last-Event-ID"))
        finally:
            if watcher.slow:
                self._count("slow")
            self._open -= 1
            self._count("closed")
            self._leave(question, watcher)
        return response

    async def poll(self, query: ListQuery) -> web.Response:
        """What changed after `since`; waits for it, not for long. The caller may read."""
        audience = self._audience(query)
        place = self._changes.place(query.since or "")
        if place is None:
            return self._polled(audience, [], [], resync=True)
        deadline_s = asyncio.get_running_loop().time() + POLL_S
        self._polling += 1
        try:
            self._start()
            while True:
                standing, gone = audience.split(self._changes.after(place))
                left_s = deadline_s - asyncio.get_running_loop().time()
                if standing or gone or left_s <= 0 or self._stopped.is_set():
                    return self._polled(audience, standing, gone)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._changed.wait()
        finally:
            self._polling -= 1

    @property
    def cursor(self) -> str:
        """The newest place: what a listing of now may be followed from."""
        return self._changes.cursor(self._changes.number)

    async def stop(self) -> None:
        """End every watch, and wait for no one."""
        self._stopped.set()
        self._changed.set()
        for group in self._groups.values():
            for watcher in group.watchers:
                watcher.wake.set()
        if self._teller is not None:
            self._teller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._teller

    # parts

    def _audience(self, query: NodeFilter) -> Audience:
        return Audience(self._directory, filters_of(query, "any", self._aliases))

    def _polled(
        self, audience: Audience, standing: list[Entry], gone: list[str], *, resync: bool = False
    ) -> web.Response:
        nodes = b",".join([entry.fragment() + b"}" for entry in standing])
        more = {"removed": gone, "total": audience.total(), "resync": resync, "since": self.cursor}
        return answer(b'{"nodes":[%b],%b' % (nodes, orjson.dumps(more)[1:]))

    async def _serve(self, response: web.StreamResponse, watcher: _Watcher, group: _Group, last: str | None) -> None:
        for events in self._beginning(group.audience, last):
            await _send(response, watcher, events)
        while not (watcher.slow or self._stopped.is_set()):
            try:
                async with asyncio.timeout(ALIVE_EVERY_S):
                    await watcher.wake.wait()
            except TimeoutError:
                watcher.put(b": alive\n\n")
            await _send(response, watcher, watcher.take())

    def _beginning(self, audience: Audience, last: str | None) -> Iterator[bytes]:
        """What a watcher has missed since the last event it saw; else a snapshot. Changes meanwhile follow."""
        changes = self._changes
        place, number = changes.place(last) if last else None, changes.number
        if place is not None:
            yield audience.missed(changes.after(place), changes) or b": here\n\n"
            return
        if last:
            yield resync(changes.cursor(number))
        entries = audience.snapshot()
        for start in range(0, max(1, len(entries)), SNAPSHOT_NODES):
            more = start + SNAPSHOT_NODES < len(entries)
            yield snapshot(entries[start : start + SNAPSHOT_NODES], None if more else changes.cursor(number))

    def _leave(self, question: str, watcher: _Watcher) -> None:
        group = self._groups.get(question)
        if group is not None:
            group.watchers.discard(watcher)
            if not group.watchers:
                del self._groups[question]

    def _start(self) -> None:
        if self._teller is None or self._teller.done():
            self._changes.batch()  # whoever comes now has been shown all of that
            self._teller = asyncio.create_task(self._tell(), name="watchers")

    async def _tell(self) -> None:
        """Tell what is new, for as long as anybody listens."""
        while self._open or self._polling:
            batch = self._changes.batch()
            if batch.numbers:
                encoded: dict[str, bytes] = {}
                for group in list(self._groups.values()):
                    events = group.audience.told(batch, self._changes, encoded)
                    if events:
                        for watcher in group.watchers:
                            watcher.put(events)
                self._changed.set()
                self._changed.clear()
            await asyncio.sleep(COLLECT_S)
