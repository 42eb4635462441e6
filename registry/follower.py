"""Keeps the directory in step with the store: at start, and with the region's other workers through the
change stream. Watches the store's health for everybody."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType

from federation.record import Record as Versioned
from registry.clock import Clock
from registry.directory import Directory
from registry.lifecycle import Windows
from registry.logs import event
from registry.node import NODE_PREFIX, Record
from registry.ports import Change, Loaded, Store, StoreUnavailable
from registry.stored import unpack_record

PROBE_S = 1.0
RETRY_S = 0.25


class Follower:
    """Runs beside the handlers."""

    def __init__(
        self,
        store: Store,
        directory: Directory,
        windows: Windows,
        clock: Clock,
        settings: Mapping[str, bytes] = MappingProxyType({}),
        *,
        alone: bool = False,
    ) -> None:
        """`settings` are the region's, to be put back into a store that lost them. `alone`: there are no other
        workers, of whom a writer would have to hear."""
        self._alone = alone
        self._store = store
        self._directory = directory
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded = False
        self._settings = settings
        self._store_id: bytes | None = None
        self._probe_every_s = min(PROBE_S, windows.degraded_after_s / 10)
        self.store_fault: str | None = None
        self.heard_until_s = clock.monotonic()  # until then heartbeats could be kept
        self.on_replaced: Callable[[], Awaitable[None]] | None = None  # set while this worker is the writer
        self.on_beat: Callable[[Change], None] = lambda change: None

    @property
    def reasons(self) -> list[str]:
        """Why the registry is not ready; empty when it is."""
        reasons = [] if self._loaded else ["loading nodes from the store"]
        return reasons + ([f"store: {self.store_fault}"] if self.store_fault else [])

    async def start(self) -> None:
        """Load every node, then follow. Raises StoreUnavailable when the store cannot be read."""
        self.follow(await self._load())

    def follow(self, position: str) -> None:
        """Follow from a position of the change stream on; the directory has everything up to it."""
        self._loaded = True
        self._tasks = [
            asyncio.create_task(self._follow(position), name="follow"),
            asyncio.create_task(self._probe(), name="probe"),
        ]

    async def failed(self) -> None:
        """Return only when one of the tasks has died, which is a fault of ours: raise it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Stop following. redis-py swallows a cancellation that arrives while it connects: ask again."""
        pending = set(self._tasks)
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)

    async def records(self) -> AsyncIterator[list[Versioned]]:
        """Every record of the store, bit by bit, put into the directory on the way; at the end the directory has
        nothing else. Nobody is blamed for our own absence."""
        gone = {entry.node_id: entry.version for entry in self._directory.entries()}
        dropped = self._directory.tables.versions()
        async for chunk in self._store.load():
            records = [unpack_record(loaded.key, loaded.data) for loaded in chunk]
            now, now_ms = self._clock.monotonic(), self._clock.wall_ms()
            for loaded, record in zip(chunk, records, strict=True):
                dropped.pop(loaded.key, None)
                self._take(loaded, record, now, now_ms, gone)
            yield records
            await asyncio.sleep(0)
        for node_id, version in gone.items():
            # What was registered while we were reading is newer than this, and stays.
            self._directory.delete(node_id, version)
        for key, version in dropped.items():
            self._directory.tables.drop(key, version)
        self._directory.restart_counting(self._clock.monotonic())

    async def load_again(self) -> None:
        """Make the directory what the store says, for whoever may have missed something."""
        async for _ in self.records():
            pass

    async def _load(self) -> str:
        """Make the directory what the store says, and tell from where to follow."""
        position = await self._store.position()
        await self.load_again()
        return position

    def _take(self, loaded: Loaded, record: Versioned, now: float, now_ms: int, gone: dict[str, int]) -> None:
        if not loaded.key.startswith(NODE_PREFIX):
            if (reading := self._directory.tables.read(record)) is not None:
                reading.show(loaded.version)
            return
        node = Record.of(record)
        if node is None:
            return
        gone.pop(node.node_id, None)
        self._directory.put(node, loaded.version, now, now_ms)
        age_s = None if loaded.beat_age_ms is None else loaded.beat_age_ms / 1000
        metrics = bytes(memoryview(loaded.beat)) if loaded.beat else None
        self._directory.restore(node.node_id, loaded.last_beat_at_ms, age_s, metrics, now)

    async def _follow(self, position: str) -> None:
        """Apply other workers' changes for ever, across outages of the store."""
        while True:
            while self._hears_nobody():
                await asyncio.sleep(RETRY_S)
                position = ""
            try:
                position = position or await self._load()
                async for changes in self._store.tail(position, is_patient=self._is_writer):
                    for change in changes:
                        self._apply(change)
                    if self._hears_nobody():
                        break
            except LookupError:
                event("stream_trimmed", logging.WARNING, action="loading every node again")
            except StoreUnavailable:
                pass  # the probe says so, once
            position = await self._reload()

    def _hears_nobody(self) -> bool:
        """Whether there is nothing to follow: everything that is written here is written by us."""
        return self._alone and self._is_writer()

    def _is_writer(self) -> bool:
        """Nearly all that a writer reads is its own; of others there are heartbeats, of which none is urgent."""
        return self.on_replaced is not None

    async def _reload(self) -> str:
        """Load again, as soon as it can be done: what was missed may be longer than the stream. The writer
        knows everything but the heartbeats of others: it does no harm."""
        while True:
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(StoreUnavailable):
                if self._is_writer():
                    return await self._store.position()
                return await self._load()

    def _apply(self, change: Change) -> None:
        now = self._clock.monotonic()
        if not change.key.startswith(NODE_PREFIX):
            self._apply_other(change)
            return
        node_id = change.key[len(NODE_PREFIX) :]
        if change.kind == "beat":
            self._directory.beat(node_id, change.data, change.at_ms, now, now_ms=self._clock.wall_ms())
            self.on_beat(change)
            return
        node = Record.of(unpack_record(change.key, change.data)) if change.kind == "put" else None
        if node is None:
            self._directory.delete(node_id, change.version)
        else:
            self._directory.put(node, change.version, now, self._clock.wall_ms())

    def _apply_other(self, change: Change) -> None:
        """A record that is no node."""
        tables = self._directory.tables
        if change.kind != "put":
            tables.drop(change.key, change.version)
        elif (reading := tables.read(unpack_record(change.key, change.data))) is not None:
            reading.show(change.version)

    async def _probe(self) -> None:
        """Know within a second when the store stops taking writes, and when it takes them again."""
        while True:
            asked_s = self._clock.monotonic()
            try:
                await self._store.ping()
                await self._recognise()
            except StoreUnavailable as error:
                if self.store_fault is None:
                    event("store_unavailable", logging.ERROR, reason=error.reason)
                self.store_fault = error.reason
            else:
                if self.store_fault is not None:
                    event("store_available", logging.WARNING)
                    self._directory.restart_counting(self._clock.monotonic())
                self.store_fault = None
                self.heard_until_s = asked_s
            await asyncio.sleep(self._probe_every_s)

    async def _recognise(self) -> None:
        """A store that was emptied or replaced under us says so by its id. The writer puts everything back;
        until it has, the other workers go on with what they know."""
        found = await self._store.setting("store_id", secrets.token_hex(16).encode())
        if self._store_id not in (None, found):
            event("store_replaced", logging.ERROR, action="everything is written to it again")
            for name, value in self._settings.items():
                await self._store.setting(name, value)
            if self.on_replaced is not None:
                await self.on_replaced()
        self._store_id = found
