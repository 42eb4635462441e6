"""Keeps the directory in step: with the store at start, with the other workers through the
region's change stream, and with time through the sweep."""

import asyncio
import contextlib
import logging

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

    def __init__(self, store: Store, directory: Directory, windows: Windows, clock: Clock, feed: Feed) -> None:
        self._feed = feed
        self._store = store
        self._directory = directory
        self._windows = windows
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded = False
        self._store_fault: str | None = None
        self._sweep_every_s = min(1.0, windows.degraded_after_s / 20)

    @property
    def reasons(self) -> list[str]:
        """Why the registry is not ready; empty when it is."""
        reasons = [] if self._loaded else ["loading nodes from the store"]
        return reasons + ([f"store: {self._store_fault}"] if self._store_fault else [])

    async def start(self) -> None:
        """Load every node, then follow. Raises StoreUnavailable when the store cannot be read."""
        position = await self._store.position()
        await self._load()
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

    async def _load(self) -> None:
        """Make the directory what the store says. Nobody is blamed for our own absence."""
        known: list[tuple[str, int | None, int | None, bool]] = []
        seen: set[str] = set()
        async for chunk in self._store.load():
            now = self._clock.monotonic()
            for node in chunk:
                seen.add(node.node_id)
                if self._take(node, now):
                    known.append((node.node_id, node.beat_age_ms, node.last_beat_at_ms, node.offline))
            await asyncio.sleep(0)
        now, now_ms = self._clock.monotonic(), self._clock.wall_ms()
        newest_ms = max((at for _, _, at, _ in known if at is not None), default=now_ms)
        downtime_s = max(0, now_ms - newest_ms) / 1000
        for node_id, age_ms, at_ms, was_offline in known:
            entry = self._directory.get(node_id)
            if entry is None or (entry.beat_at_ms or 0) > (at_ms or 0):
                continue
            age_s = None if age_ms is None else age_ms / 1000
            liveness = liveness_at_start(age_s, downtime_s, was_offline, self._windows)
            self._directory.restore(entry, liveness, at_ms, age_s, now)
        for gone in [e for e in self._directory.entries() if e.node_id not in seen]:
            self._directory.delete(gone.node_id, gone.version)
        self._directory.restart_counting(now)
        self._loaded = True

    def _take(self, node: Loaded, now: float) -> bool:
        entry = self._directory.put(Record.decode(node.data), node.version, now)
        if entry is not None and node.beat:
            entry.take_metrics(bytes(memoryview(node.beat)))
        return entry is not None

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
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(StoreUnavailable):
                # What was missed meanwhile may be longer than the stream: load again.
                position = await self._store.position()
                await self._load()

    def _apply(self, change: Change) -> None:
        now = self._clock.monotonic()
        if change.kind == "delete":
            self._directory.delete(change.node_id, change.version)
            return
        metrics = change.data if change.kind == "beat" else change.beat
        if change.kind == "put":
            self._directory.put(Record.decode(change.data), change.version, now)
        if metrics is not None:
            self._feed.publish(self._directory.beat(change.node_id, metrics, change.at_ms, now))

    async def _probe(self) -> None:
        """Know within a second when the store stops taking writes, and when it takes them again."""
        while True:
            try:
                await self._store.ping()
            except StoreUnavailable as error:
                if self._store_fault is None:
                    event("store_unavailable", logging.ERROR, reason=error.reason)
                self._store_fault = error.reason
            else:
                if self._store_fault is not None:
                    event("store_available", logging.WARNING)
                    self._directory.restart_counting(self._clock.monotonic())
                self._store_fault = None
            await asyncio.sleep(PROBE_S)

    async def _sweep(self) -> None:
        """Move silent nodes on; after a stall of ours, silence counts from its end."""
        expected = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            if now - expected > max(1.0, self._windows.degraded_after_s / 3):
                event("stalled", logging.WARNING, seconds=round(now - expected, 1))
                self._directory.restart_counting(now)
            elif self._store_fault is None:
                await self._expire(now)
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
