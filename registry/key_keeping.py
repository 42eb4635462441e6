"""Writes now and then when keys were last used: the worker that writes for the region does, for all of its workers."""

import asyncio
import contextlib
import logging

import orjson

from federation.record import KEY_PREFIX
from registry.key_use import KeyUse
from registry.logs import event
from registry.ports import Store, StoreUnavailable
from registry.service import Role

EVERY_S = 60.0


class UseKeeper:
    """`worker`: our number among the `workers`, which tell each other through the store what they saw."""

    def __init__(self, use: KeyUse, role: Role, store: Store, worker: int, workers: int) -> None:
        self._use = use
        self._role = role
        self._store = store
        self._worker = worker
        self._others = [number for number in range(workers) if number != worker]
        self._published: dict[str, int] = {}

    async def keep_for_ever(self) -> None:
        """Once a minute."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.keep()
            except StoreUnavailable:
                continue  # it is kept in memory, and written when it can be
            except Exception:  # a fault of ours here must not end the worker
                event("key_use_failed", logging.ERROR, exc_info=True)

    async def keep(self) -> None:
        """Write what is due, or tell the worker that does. Raises StoreUnavailable."""
        writer = self._role.writer
        if writer is None:
            noted = self._use.noted()
            if noted != self._published:
                await self._store.publish(_topic(self._worker), orjson.dumps(noted))
                self._published = noted
            return
        for number in self._others:
            published = await self._store.published(_topic(number))
            for key_id, at_ms in orjson.loads(published or b"{}").items():
                self._use.note(key_id, at_ms)
        for key in list(self._use.due()):
            with contextlib.suppress(KeyError):
                await writer.annotate(KEY_PREFIX + key.key_id, key.encode_use())


def _topic(worker: int) -> str:
    return f"key-use:{worker}"
