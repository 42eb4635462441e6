"""Registrations that failed without an answer from the store: it may have taken them all the same.

The caller was told that nothing was changed, and the key minted for it was shown to nobody: were the
record left standing, nobody could ever use that node id again. So what turns up later is taken back.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from registry.ports import Store, StoreUnavailable, VersionConflict

MAX_DOUBTS = 1_000  # an outage under load; the callers beyond it may need an operator
CHECK_EVERY_S = 1.0
CHECKS = 20  # a command that was on its way arrives within seconds of the store's return


@dataclass(slots=True)
class _Doubt:
    data: bytes
    checks_left: int = CHECKS


class Doubts:
    """Remembers such registrations until the store has told what became of them."""

    def __init__(self, store: Store, wall_ms: Callable[[], int]) -> None:
        self._store = store
        self._wall_ms = wall_ms
        self._open: dict[str, _Doubt] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, node_id: str, data: bytes) -> None:
        """The store did not answer whether it took this record."""
        self._open[node_id] = _Doubt(data)
        if len(self._open) > MAX_DOUBTS:
            del self._open[next(iter(self._open))]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._settle(), name="doubts")

    def holds(self, node_id: str, data: bytes) -> bool:
        """Whether this record is one whose registration failed: its id is free to take."""
        doubt = self._open.get(node_id)
        return doubt is not None and doubt.data == data

    def forget(self, node_id: str) -> None:
        """The id was registered since, by somebody who has its key."""
        self._open.pop(node_id, None)

    async def _settle(self) -> None:
        while self._open:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                for node_id in list(self._open):
                    await self._check(node_id)
            except StoreUnavailable:
                continue

    async def _check(self, node_id: str) -> None:
        doubt = self._open.get(node_id)
        found = await self._store.get(node_id) if doubt is not None else None
        if doubt is None or node_id not in self._open:
            return
        if found is not None:
            if found.data == doubt.data:
                # A conflict: somebody registers it at this moment, with a key that will be shown.
                with contextlib.suppress(VersionConflict):
                    await self._store.delete(node_id, expected=found.version, at_ms=self._wall_ms())
            self._open.pop(node_id, None)
            return
        doubt.checks_left -= 1
        if doubt.checks_left == 0:
            del self._open[node_id]
