"""Ports of the registry's core: what it asks of a store, and what a store may answer.

A store keeps opaque bytes. It orders every change of a region by one commit sequence
(`version`), so that workers which see the same changes in a different order agree: the
greater version stands. It never decides what a record should say.
"""

from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class StoreUnavailable(Exception):
    """The store did not accept the operation; nothing of it was written, or nobody can tell.

    `reason` is one of `down`, `slow`, `read_only`, `out_of_memory`, `refused`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class VersionConflict(Exception):
    """The record changed since it was read: read it again, decide again, write again."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as the store holds it. `version` 0 never occurs: it means "absent" when expected."""

    version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """One node at start: its record and what is known of its last heartbeat.

    `beat_age_ms` is None when the beat key has expired (no heartbeat within the offline window);
    `offline` tells that some worker had already seen it go offline before.
    """

    node_id: str
    version: int
    data: bytes
    beat: bytes | None
    beat_age_ms: int | None
    last_beat_at_ms: int | None
    offline: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One committed change, as the other workers of the region learn it.

    `data` is the record for `put`, empty for `delete`, the beat's payload for `beat`.
    `version` is 0 for `beat`: heartbeats are ordered by `at_ms`, the wall clock of the worker
    that took it, in milliseconds. A `put` with `beat` given counts as a heartbeat as well.
    """

    kind: Literal["put", "delete", "beat"]
    node_id: str
    version: int
    data: bytes
    at_ms: int
    beat: bytes | None = None


class Store(Protocol):
    """What the registry needs of Redis (store.py); the fake in the tests passes the same contract."""

    async def get(self, node_id: str) -> Stored | None:
        """The newest committed record, or None. Raises StoreUnavailable."""

    async def put(self, node_id: str, data: bytes, *, expected: int, at_ms: int, beat: bytes | None = None) -> int:
        """Write the record if its version is `expected` (0: it must not exist); return the new version.

        With `beat`, the node counts as just heard, in the same atomic step.
        Raises VersionConflict or StoreUnavailable.
        """

    async def delete(self, node_id: str, *, expected: int, at_ms: int) -> int:
        """Remove the record and its beat if its version is `expected`; return the deletion's version."""

    def beat(self, node_id: str, payload: bytes, at_ms: int) -> Awaitable[bool]:
        """Renew the node's expiry and keep the payload. False: there is no such record, nothing written."""

    async def mark_offline(self, node_ids: Sequence[str]) -> list[str]:
        """Remember that these nodes went offline; returns those really marked (no live beat key)."""

    async def setting(self, name: str, value: bytes) -> bytes:
        """The region's value of `name`; `value` becomes it if there was none (first writer wins)."""

    def load(self) -> AsyncIterator[list[Loaded]]:
        """Every node, in chunks."""

    async def position(self) -> str:
        """The change stream's end now: take it before `load`, then tail from it."""

    def tail(self, position: str) -> AsyncIterator[list[Change]]:
        """Changes committed after `position`, for ever; of this worker's own heartbeats it may leave
        any out, as the worker knows them. Raises StoreUnavailable
        when the connection breaks, and LookupError when the stream no longer reaches back to
        where the reader was: load again."""

    async def ping(self) -> None:
        """Note that a worker is alive. Raises StoreUnavailable unless the store answers and accepts
        the write."""

    async def last_alive_ms(self) -> int | None:
        """The wall clock, in milliseconds, at the newest ping of any worker."""

    async def aclose(self) -> None:
        """Finish what is queued, then disconnect."""
