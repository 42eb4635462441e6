"""Keeps the directory in step: with the store at start, with the other workers through the
region's change stream, and with time through the sweep."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from registry.directory import Directory
from registry.feed import Feed
from registry.lifecycle import Windows, liveness_at_start
from registry.logs import event
from registry.node import Record
from registry.ports import Change, Loaded, Store, StoreUnavailable
from registry.service import Clock

PROBE_S = 1.0
RETRY_S = 0.25


class Follower:
    """Runs beside the handlers, and publishes the transitions that it causes or hears of."""

    def __init__(
        self,
        store: Store,
        directory: Directory,
        windows: Windows,
        clock: Clock,
        feed: Feed,
        settings: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """`settings` are the region's, to be put back into a store that lost them."""
        self._feed = feed
        self._store = store
        self._directory = directory
        self._windows = windows
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded = False
        self._store_fault: str | None = None
        self._settings = settings
        self._store_id: bytes | None = None
        self._heard_until_s = clock.monotonic()
        self._sweep_every_s = min(1.0, windows.degraded_after_s / 20)
        self._probe_every_s = min(PROBE_S, windows.degraded_after_s / 10)

    @property
    def reasons(self) -> list[str]:
        """Why the registry is not ready; empty when it is."""
        reasons = [] if self._loaded else ["loading nodes from the store"]
        return reasons + ([f"store: {self._store_fault}"] if self._store_fault else [])

    async def start(self) -> None:
        """Load every node, then follow. Raises StoreUnavailable when the store cannot be read."""
        position = await self._load()
        self._tasks = [
            asyncio.create_task(self._follow(position), name="follow"),
            asyncio.create_task(self._probe(), name="probe"),
            asyncio.create_task(self._sweep(), name="sweep"),
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

    async def _load(self) -> str:
        """Make the directory what the store says, and tell from where to follow. Nobody is blamed for
        our own absence."""
        position = await self._store.position()
        alive_ms = await self._store.last_alive_ms() or 0
        before = {entry.node_id: entry.version for entry in self._directory.entries()}
        gone, fresh = dict(before), []
        async for chunk in self._store.load():
            now = self._clock.monotonic()
            for node in chunk:
                gone.pop(node.node_id, None)
                alive_ms = max(alive_ms, node.last_beat_at_ms or 0)
                entry = self._directory.put(Record.decode(node.data), node.version, now)
                if node.node_id in before or entry is None:
                    self._catch_up(node, now)
                    continue
                if node.beat:
                    entry.take_metrics(bytes(memoryview(node.beat)))
                fresh.append(replace(node, data=b"", beat=None))  # the bytes are in the directory now
            await asyncio.sleep(0)
        self._restore(fresh, alive_ms)
        for node_id, version in gone.items():
            # What was registered while we were reading is newer than this, and stays.
            self._directory.delete(node_id, version)
        self._directory.restart_counting(self._clock.monotonic())
        self._loaded = True
        return position

    def _restore(self, nodes: Sequence[Loaded], alive_ms: int) -> None:
        """Set the liveness of nodes that were not known before. `alive_ms` is when this region last
        had a worker that could hear them."""
        now, now_ms = self._clock.monotonic(), self._clock.wall_ms()
        downtime_s = max(0, now_ms - alive_ms) / 1000
        for node in nodes:
            entry = self._directory.get(node.node_id)
            at_ms = node.last_beat_at_ms
            if entry is None or (entry.beat_at_ms or 0) > (at_ms or 0):
                continue
            age_s = None if node.beat_age_ms is None else node.beat_age_ms / 1000
            # The key expired, perhaps while nobody was there to notice: the wall clock must do.
            silence_s = (now_ms - at_ms) / 1000 if age_s is None and at_ms and not node.offline else age_s
            liveness = liveness_at_start(silence_s, downtime_s, node.offline, self._windows)
            self._directory.restore(entry, liveness, at_ms, age_s, now)

    def _catch_up(self, node: Loaded, now: float) -> None:
        """A known node's heartbeats that we missed while we could not follow."""
        entry = self._directory.get(node.node_id)
        if entry is None or node.beat is None or node.beat_age_ms is None or node.last_beat_at_ms is None:
            return
        if node.last_beat_at_ms > (entry.beat_at_ms or 0):
            heard_s = now - node.beat_age_ms / 1000
            self._feed.publish(
                self._directory.beat(node.node_id, bytes(memoryview(node.beat)), node.last_beat_at_ms, heard_s)
            )

    async def _follow(self, position: str) -> None:
        """Apply other workers' changes for ever, across outages of the store."""
        while True:
            try:
                async for changes in self._store.tail(position):
                    for change in changes:
                        self._apply(change)
            except LookupError:
                event("stream_trimmed", logging.WARNING, action="loading every node again")
            except StoreUnavailable:
                pass  # the probe says so, once
            position = await self._reload()

    async def _reload(self) -> str:
        """Load again, as soon as it can be done: what was missed may be longer than the stream."""
        while True:
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(StoreUnavailable):
                return await self._load()

    def _apply(self, change: Change) -> None:
        now = self._clock.monotonic()
        if change.kind == "delete":
            self._directory.delete(change.node_id, change.version)
            return
        metrics = change.data if change.kind == "beat" else change.beat
        known = self._directory.get(change.node_id)
        if change.kind == "put" and (known is None or known.version < change.version):
            self._directory.put(Record.decode(change.data), change.version, now)
        if metrics is not None:
            self._feed.publish(self._directory.beat(change.node_id, metrics, change.at_ms, now))

    async def _probe(self) -> None:
        """Know within a second when the store stops taking writes, and when it takes them again."""
        while True:
            asked_s = self._clock.monotonic()
            try:
                await self._store.ping()
                await self._recognise()
            except StoreUnavailable as error:
                if self._store_fault is None:
                    event("store_unavailable", logging.ERROR, reason=error.reason)
                self._store_fault = error.reason
            else:
                if self._store_fault is not None:
                    event("store_available", logging.WARNING)
                    self._directory.restart_counting(self._clock.monotonic())
                self._store_fault = None
                self._heard_until_s = asked_s
            await asyncio.sleep(self._probe_every_s)

    async def _recognise(self) -> None:
        """A store that was emptied or replaced under us says so by its id. What it holds is then what
        is registered; the other nodes get a 404 and register again."""
        found = await self._store.setting("store_id", secrets.token_hex(16).encode())
        if self._store_id not in (None, found):
            event("store_replaced", logging.ERROR, action="loading every node again; nodes not in it must register")
            for name, value in self._settings.items():
                await self._store.setting(name, value)
            await self._load()
        self._store_id = found

    async def _sweep(self) -> None:
        """Move silent nodes on; after a stall of ours, silence counts from its end."""
        expected = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            if now - expected > max(1.0, self._windows.degraded_after_s / 3):
                event("stalled", logging.WARNING, seconds=round(now - expected, 1))
                self._directory.restart_counting(now)
            elif self._store_fault is None:
                # Not later: heartbeats after it may be failing, and no probe has told us yet.
                await self._expire(min(now, self._heard_until_s))
            expected = self._clock.monotonic() + self._sweep_every_s
            await asyncio.sleep(self._sweep_every_s)

    async def _expire(self, now: float) -> None:
        transitions = self._directory.sweep(now, self._clock.wall_ms())
        for transition in transitions:
            self._feed.publish(transition)
        offline = [t.node_id for t in transitions if t.after == "offline"]
        if offline:
            with contextlib.suppress(StoreUnavailable):
                await self._store.mark_offline(offline)
