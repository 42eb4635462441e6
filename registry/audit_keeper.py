"""What each worker does for the audit log beside its requests: hands on what it noted, has it signed, files it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from registry import audit_chain
from registry.audit_chain import BrokenLine
from registry.audit_files import AuditFiles
from registry.audit_witness import Witness
from registry.logs import event
from registry.ports import Store, StoreUnavailable
from registry.region import Region

EVERY_S = 0.5  # how far the files may lie behind the store
LINES = 1_000  # at a time: 400 KB
END_S = 0.3  # for each of the last steps: a stop may take 5 s in all
STARTED = "audit_started"  # what the newest start published
LEFT = 200  # entries of other workers at a time


class AuditKeeper:
    """`behind` is told how many entries the files lack: anything but 0 for long means that they cannot be written."""

    def __init__(
        self, region: Region, store: Store, files: AuditFiles, witness: Witness, behind: Callable[[int], None]
    ) -> None:
        self._region = region
        self._id = region.registry_id
        self._audit = region.audit
        self._store = store
        self._files = files
        self._witness = witness
        self._behind = behind
        self._failing = False
        self._start: dict[str, Any] | None = None
        self._store_away = False
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, facts: Mapping[str, Any] | None, started_ms: int) -> None:
        """From now on, until `finish`. `facts`: the settings that matter, of the worker that speaks for all."""
        if facts is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._note_start(facts, started_ms)
        self._task = asyncio.create_task(self._run(), name="audit")

    async def _run(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._ending.wait()
            try:
                await self._step()
            except Exception:  # a fault of ours, in what a peer signed perhaps: the rest goes on
                event("audit_failed", logging.ERROR, exc_info=True)

    def begin_to_end(self) -> None:
        """Start nothing new, while requests are finished."""
        self._ending.set()

    async def finish(self) -> None:
        """The last entries, before the role is given up. A store that does not answer holds up no stop: what it did
        not get is lost, but for what had been committed."""
        self.begin_to_end()
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=END_S)
            if late:
                self._task.cancel()
                return  # the lock ends with the process: a thread may be writing
        writer = self._region.writer
        if self._store_away or (writer is not None and not writer.available):
            return
        self._audit.tick(all_of_it=True)
        try:
            async with asyncio.timeout(END_S):
                await self._last_words()
        except (StoreUnavailable, TimeoutError):
            return
        await self._file_rest()

    async def _last_words(self) -> None:
        if self._start is not None:
            self._audit.note("registry.stopped", None, self._id)
            await self._store.publish(STARTED, orjson.dumps({**self._start, "stopped": True}))
        writer = self._region.writer
        if writer is not None:
            await writer.flushed()
        elif entries := self._audit.take():
            await self._store.audit_leave(entries)

    async def _file_rest(self) -> None:
        filing = asyncio.create_task(self._file())
        _, late = await asyncio.wait({filing}, timeout=END_S)
        if late:
            filing.cancel()
            return
        if not isinstance(filing.exception(), StoreUnavailable | None):
            filing.result()
        self._files.close()

    async def _note_start(self, facts: Mapping[str, Any], started_ms: int) -> None:
        known = await self._store.published(STARTED)
        before = orjson.loads(known) if known else {}
        self._start = {"facts": dict(facts), "started_ms": started_ms}
        if before.get("started_ms") == started_ms:
            self._audit.note("worker.restarted", None, self._id)
        else:
            was = before.get("facts", {})
            changed = {name: [was[name], value] for name, value in facts.items() if was.get(name, value) != value}
            more: dict[str, Any] = {"changed": changed} if changed else {}
            if before and not before.get("stopped"):
                more["before"] = "it had not been stopped: killed, or the machine went down"
            self._audit.note("registry.started", None, self._id, **facts, **more)
        await self._store.publish(STARTED, orjson.dumps(self._start))

    async def _step(self) -> None:
        self._audit.tick()
        self._store_away = True
        with contextlib.suppress(StoreUnavailable):  # the probe says so
            await self._pass_on()
            await self._file()
            self._store_away = False

    async def _pass_on(self) -> None:
        """The writer takes what others left, which is in the store until it is in the log."""
        writer = self._region.writer
        if writer is not None:
            if writer.log.takes and (left := await self._store.audit_left(LEFT)):
                writer.log.take_left(left)
            await self._witness.step(writer)
        elif entries := self._audit.take():
            try:
                await self._store.audit_leave(entries)
            except StoreUnavailable:
                self._audit.give_back(entries)
                raise

    async def _file(self) -> None:
        try:
            if self._files.acquire():
                await self._append()
        except OSError as error:
            if not self._failing:
                event("audit_file_failed", logging.ERROR, folder=str(self._files.folder), error=error.strerror)
            self._failing = True
        else:
            if self._failing:
                event("audit_file_available", logging.WARNING, folder=str(self._files.folder))
            self._failing = False

    async def _append(self) -> None:
        """All that the store has and the files have not."""
        if not self._files.find_again():
            event("audit_file_replaced", logging.ERROR, folder=str(self._files.folder), entry=self._files.head.seq)
        writer = self._region.writer
        while writer is None or writer.log.kept.seq != self._files.head.seq or self._failing:
            lines = await self._store.audit_lines(self._files.head.seq, LINES)
            self._behind(len(lines))
            if not lines:
                return
            self._check(lines[0])
            await asyncio.to_thread(self._files.append, lines)
        self._behind(0)

    def _check(self, first: bytes) -> None:
        """It is written whatever it is: `audit verify` has to find it."""
        try:
            fault = audit_chain.follows(audit_chain.read(first), self._files.head)
        except BrokenLine as broken:
            fault = str(broken)
        if fault is not None:
            event("audit_broken", logging.ERROR, entry=self._files.head.seq + 1, why=fault)
