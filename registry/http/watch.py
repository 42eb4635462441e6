"""Watching: GET /api/v1/nodes/watch as server-sent events, and the long poll of a listing.

What changed is collected for a moment, told to each audience once, and handed to every watcher of it as one piece of
bytes. Nobody waits for a watcher: what one has not taken is counted, and who leaves too much behind is cut off; it may
come back with the id of the last event that it saw.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import orjson
from aiohttp import HttpVersion11, web

from federation.tls import abort, unsent_bytes
from registry.changes import Audience, Batch, Changes, resync, snapshots
from registry.directory import Directory, Entry
from registry.discovery import filters_of
from registry.errors import ApiError
from registry.http.caller import Callers
from registry.http.paths import NODES, only
from registry.http.wire import answer, query_of
from registry.keys import Principal
from registry.logs import event
from registry.model import ListQuery, NodeFilter, WatchQuery
from registry.names import canonical_region
from registry.scopes import Scope

COLLECT_S = 0.05  # a change waits so long for company: a write to a watcher costs as much as a dozen events in it
MOST_QUESTIONS = 128  # different ones: of each the nodes shown are known, 4 MB where that are 100,000
TOLD_AT_ONCE = 8  # of them, before others have their turn
REMOVED_S = 1.0  # a long poll waits so long for others where only nodes that do not match have changed
MOST_WATCHERS = 2_000  # of one worker: each holds a connection, and up to MOST_WAITING
MOST_WAITING = 2**20  # bytes; some 500 changes that a watcher has not taken
ALIVE_EVERY_S = 15.0  # a comment, so that proxies do not take the silence for death
STUCK_S = 20.0  # who takes nothing of its snapshot for so long is gone
POLL_S = 25.0  # less than most clients and proxies wait
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Events:
    """A piece of events as it goes over the wire: in a chunk, or for HTTP/1.0 as it is. Made once for all watchers."""

    def __init__(self, events: bytes) -> None:
        self.plain = events
        self.chunk = b"%x\r\n%b\r\n" % (len(events), events)


class _Watcher:
    """One connection. Until it has had its snapshot, what comes meanwhile waits here; from then on it is written at
    once: aiohttp's stream would cost each watcher a task's turn for each piece."""

    def __init__(self, request: web.Request, who: Principal) -> None:
        assert request.transport is not None
        self.who = who
        self._transport = request.transport
        self._chunked = request.version >= HttpVersion11
        self._waiting: list[_Events] | None = []
        self._waiting_size = 0
        self._left_before = 0
        self.slow = False
        self.over = asyncio.Event()  # there is nothing more to do for it

    def put(self, events: _Events) -> None:
        """Send it, or keep it for as long as the snapshot is under way."""
        left = self._waiting_size if self._waiting is not None else unsent_bytes(self._transport)
        if self.is_gone():
            self.over.set()
        elif left > MOST_WAITING:  # of its snapshot as much may be left as there is: who takes it takes it
            self.cut()
        elif self._waiting is not None:
            self._waiting.append(events)
            self._waiting_size += len(events.plain)
        else:
            self._write(events)

    def begin(self) -> None:
        """The snapshot has been written."""
        waiting, self._waiting, self._waiting_size = self._waiting or [], None, 0
        for events in waiting:
            self._write(events)

    def _write(self, events: _Events) -> None:
        if not self.is_gone():
            self._transport.write(events.chunk if self._chunked else events.plain)

    def is_gone(self) -> bool:
        """Whether its connection has ended."""
        return self._transport.is_closing()

    def is_stuck(self) -> bool:
        """Whether it has taken nothing since this was asked the last time, although there was something."""
        left, before = unsent_bytes(self._transport), self._left_before
        self._left_before = left
        return 0 < before <= left

    def cut(self) -> None:
        """It does not read: end the connection, whatever waits in it."""
        self.slow = True
        abort(self._transport)
        self.over.set()


class _Group:
    """An audience, and who is in it."""

    def __init__(self, audience: Audience) -> None:
        self.audience = audience
        self.watchers: set[_Watcher] = set()


_ALIVE = _Events(b": alive\n\n")


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
        self._watchers: set[_Watcher] = set()
        self._polling = 0
        self._teller: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        callers.on_key_change(self._look_at_key)

    # handlers

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.get(f"{NODES}/watch", self.watch, allow_head=False),
            web.route("*", f"{NODES}/watch", only("GET")),  # else another method would look for a node of that name
        ]

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """GET /watch."""
        who = self._callers.require_read(request)
        query = self._callers.narrowed(who, query_of(request, WatchQuery), self._aliases)
        question = repr(query)
        if self._is_full() or (question not in self._groups and len(self._groups) >= MOST_QUESTIONS):
            self._refuse()
        response = web.StreamResponse(headers=_HEADERS)
        if request.version >= HttpVersion11:
            response.enable_chunked_encoding()
        watcher = _Watcher(request, who)
        self._watchers.add(watcher)
        self._count("opened")
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
            self._watchers.discard(watcher)
            self._count("closed")
            self._leave(question, watcher)
        return response

    async def poll(self, query: ListQuery) -> web.Response:
        """What changed after `since`; waits for it, not for long. The caller may read. At most `limit` changes: the
        answer's `since` goes on from there."""
        audience = self._audience(query)
        place = self._changes.place(query.since or "")
        if place is None:
            return self._polled(audience, [], [], self.cursor, resync=True)
        if self._is_full():
            self._refuse()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._polling += 1
        try:
            self._start()
            while True:
                batch = self._changes.after(place).first(query.limit)
                standing, gone = audience.split(batch)
                waited_s = loop.time() - began_s
                # Of nodes that do not match nobody knows whether they did: such news can wait for others.
                told = bool(standing) or (bool(gone) and waited_s >= REMOVED_S)
                if told or waited_s >= POLL_S or self._stopped.is_set():
                    cursor = self._changes.cursor(max(batch.numbers.values(), default=self._changes.number))
                    return self._polled(audience, standing, gone, cursor)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(POLL_S - waited_s, REMOVED_S if gone else POLL_S)):
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
        for watcher in self._watchers:
            watcher.over.set()
        if self._teller is not None:
            self._teller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._teller

    # parts

    def _look_at_key(self, key_id: str) -> None:
        """A key may have been revoked: whoever watches with it is told nothing more."""
        for watcher in self._watchers:
            if watcher.who.key_id == key_id and not self._callers.is_good_still(watcher.who):
                watcher.over.set()

    def _audience(self, query: NodeFilter) -> Audience:
        regions = frozenset(canonical_region(name, self._aliases) for name in query.region)
        within = Scope(regions=regions, roles=frozenset(query.role))
        return Audience(self._directory, filters_of(query, "any", self._aliases), within)

    def _is_full(self) -> bool:
        """Whether there are as many as there may be, those left out that have gone unnoticed."""
        if len(self._watchers) + self._polling >= MOST_WATCHERS:
            for watcher in [each for each in self._watchers if each.is_gone()]:
                self._watchers.discard(watcher)
                watcher.over.set()
        return len(self._watchers) + self._polling >= MOST_WATCHERS or self._stopped.is_set()

    def _refuse(self) -> NoReturn:
        self._count("refused")
        raise ApiError("too_many_watchers", "This registry has as many watchers as it takes; try again, or another.")

    def _polled(
        self, audience: Audience, standing: list[Entry], gone: list[str], cursor: str, *, resync: bool = False
    ) -> web.Response:
        nodes = b",".join([entry.fragment() + b"}" for entry in standing])
        more = {"removed": gone, "total": audience.total(), "resync": resync, "since": cursor}
        return answer(b'{"nodes":[%b],%b' % (nodes, orjson.dumps(more)[1:]))

    async def _serve(self, response: web.StreamResponse, watcher: _Watcher, group: _Group, last: str | None) -> None:
        try:
            async with asyncio.timeout(None) as limit:
                for events in self._beginning(group.audience, last):
                    limit.reschedule(asyncio.get_running_loop().time() + STUCK_S)
                    await response.write(events)
                    await asyncio.sleep(0)  # writing waits for nobody whose buffer has room
        except TimeoutError:
            watcher.cut()
            return
        watcher.begin()
        while not watcher.over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ALIVE_EVERY_S):
                    await watcher.over.wait()
                    return
            if not self._callers.is_good_still(watcher.who):
                return
            if watcher.is_stuck():
                watcher.cut()
            else:
                watcher.put(_ALIVE)

    def _beginning(self, audience: Audience, last: str | None) -> Iterator[bytes]:
        """What a watcher has missed since the last event it saw; else a snapshot. Changes meanwhile follow."""
        changes = self._changes
        place, number = changes.place(last) if last else None, changes.number
        if place is not None:
            yield b": here\n\n"
            yield from audience.missed(changes.after(place), changes)
            return
        if last:
            yield resync(changes.cursor(number))
        yield from snapshots(audience.snapshot(number), changes.cursor(number))

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
        """Tell what is new, for as long as anybody listens. Who could not be told something is cut off: it comes
        back, and gets it then."""
        while self._watchers or self._polling:
            batch = self._changes.batch()
            if batch.numbers:
                encoded: dict[str, bytes] = {}
                for index, group in enumerate(list(self._groups.values())):
                    try:
                        self._tell_group(group, batch, encoded)
                    except Exception:
                        event("watchers_not_told", logging.ERROR, exc_info=True)
                        for watcher in group.watchers:
                            watcher.cut()
                    if index % TOLD_AT_ONCE == TOLD_AT_ONCE - 1:
                        await asyncio.sleep(0)
                self._changed.set()
                self._changed.clear()
            await asyncio.sleep(COLLECT_S)

    def _tell_group(self, group: _Group, batch: Batch, encoded: dict[str, bytes]) -> None:
        events = group.audience.told(batch, self._changes, encoded)
        if events:
            piece = _Events(events)
            for watcher in group.watchers:
                watcher.put(piece)
