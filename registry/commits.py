"""What the region's writer keeps, in the store: commit after commit, each against the version that the last one left.

A store that is not as we left it, and that nobody has written after us, was emptied, replaced or is an old copy: it
gets back everything that we hold, however often that has to begin anew.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from federation.record import Record
from federation.replica import Replica
from registry.audit_log import AuditLog
from registry.clock import Clock
from registry.ports import Fenced, Put, Store, StoreChanged, StoreUnavailable
from registry.stored import pack_meta, pack_record

COMMIT_PUTS = 500  # about ten milliseconds of the store's time
MAX_DOUBTFUL = 16  # commits in a row of which nobody knows whether they were made

Beat = tuple[str, bytes, int]
"""A node that was heard: its key, what it measured, wall-clock milliseconds."""
Records = Sequence[tuple[str, Record | None]]
"""Records as they stand, by key; None: there is none any more."""


class Commits:
    """See the module. `token`: of our lease. `version`: what the store is at. `read` looks at records that are to be
    kept, and gives what shows them, as they were then, under the version that they were kept with."""

    def __init__(
        self,
        store: Store,
        replica: Replica,
        log: AuditLog,
        clock: Clock,
        token: str,
        version: int,
        *,
        read: Callable[[Records], Callable[[int], None]],
        store_changed: Callable[[], None],
        overtaken: Callable[[], None],
    ) -> None:
        self._store = store
        self._replica = replica
        self._log = log
        self._clock = clock
        self._token = token
        self._version = version
        self._expected = {version}
        self._rewriting = False  # the store has not yet got back all that it lost
        self._read = read
        self._store_changed = store_changed
        self._overtaken = overtaken

    async def keep(self, keys: Sequence[str], meta: bytes | None, beats: Sequence[Beat]) -> None:
        """Keep these records as they stand, the meta last, as it speaks of them, and what waits for the audit log.
        Raises StoreUnavailable when that is not known to be made, Fenced when others write for the region."""
        if self._rewriting:
            await self._rewrite()
        while self._log.crowded:
            await self._commit((), None)
        for start in range(0, max(1, len(keys)), COMMIT_PUTS):
            chunk = keys[start : start + COMMIT_PUTS]
            last = start + COMMIT_PUTS >= len(keys)
            await self._commit(chunk, meta if last else None, beats if last else ())
            if not last:
                await asyncio.sleep(0)

    def forget_old_doubts(self) -> None:
        """Bound what the store may be at, while nobody knows which commits were made."""
        if len(self._expected) > MAX_DOUBTFUL:
            known, *doubtful = sorted(self._expected)  # the least is the last one that is known to have been made
            self._expected = {known, *doubtful[1 - MAX_DOUBTFUL :]}

    async def _commit(self, keys: Sequence[str], meta: bytes | None, beats: Sequence[Beat] = ()) -> None:
        try:
            await self._commit_once(keys, meta, beats)
        except StoreChanged:
            self._rewriting = True
            await self._rewrite()

    async def _commit_once(self, keys: Sequence[str], meta: bytes | None, beats: Sequence[Beat] = ()) -> None:
        """One commit, shown once it is made. Heartbeats of what it registers go with it in one batch."""
        lines = self._log.batch()
        if not keys and meta is None and lines is None:
            return
        records = [(key, self._replica.get(key)) for key in keys]
        puts = [Put(key, pack_record(record) if record is not None else None) for key, record in records]
        show = self._read(records)
        version = max(self._version + 1, self._clock.wall_ms())
        commit = asyncio.ensure_future(self._store.commit(self._token, self._expected, version, puts, meta, lines))
        await asyncio.sleep(0)  # it is queued now, and what follows comes after it
        heard: list[Awaitable[bool]] = []
        with contextlib.suppress(StoreUnavailable):  # no room: what becomes of the commit must be known all the same
            heard += [self._store.beat(*beat) for beat in beats]
        outcomes = await asyncio.gather(commit, *heard, return_exceptions=True)
        if isinstance(outcomes[0], StoreUnavailable):
            self._version = version
            self._expected.add(version)
        if isinstance(outcomes[0], BaseException):
            raise outcomes[0]
        self._version, self._expected = version, {version}
        if lines is not None:
            self._log.keep(lines)
        show(version)

    async def _rewrite(self) -> None:
        """Write everything to a store that lost it. Somebody who wrote for the region after us knows better than we.
        The meta tells of nothing that came in meanwhile."""
        found = await self._store.version()
        if found > self._version:
            self._overtaken()
            raise Fenced
        self._store_changed()
        self._expected = {found}
        self._log.store_lost()
        meta = pack_meta(self._replica.meta())
        keys = [record.key for record in self._replica.records()]
        superfluous = sorted(await self._store.keys() - set(keys))
        try:
            for start in range(0, len(keys) + len(superfluous), COMMIT_PUTS):
                await self._commit_once([*keys, *superfluous][start : start + COMMIT_PUTS], None)
                await asyncio.sleep(0)
            await self._commit_once((), meta)
            self._rewriting = False
        except StoreChanged:
            raise StoreUnavailable("down", "it changed again while everything was written to it") from None
