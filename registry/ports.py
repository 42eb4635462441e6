"""Ports of the registry's core: what it asks of a store, and what a store may answer.

A store keeps opaque bytes by key. One worker of a region writes records: it holds the region's lease, and
numbers its commits. The store checks both, so that a writer that was deposed while it stood still changes
nothing, and so that a store which lost its newest commits is found out. It decides nothing else.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class StoreUnavailable(Exception):
    """The store did not accept the operation; nothing of it was written, or nobody can tell.

    `reason` is one of `down`, `slow`, `read_only`, `out_of_memory`, `busy`, `refused`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Fenced(Exception):
    """The lease is not ours (any more): nothing was written. Take it again before writing."""


class StoreChanged(Exception):
    """The store's newest commit is not the one that we left there: it was emptied, replaced, or is an old
    copy. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Put:
    """A record to keep, or (no data) to remove."""

    key: str
    data: bytes | None


@dataclass(frozen=True, slots=True)
class AuditBatch:
    """Lines of the audit log for one commit: those that come after entry number `after`. The first `taken` of
    the entries that other workers left are among them, the last of those as number `taken_by`."""

    after: int
    lines: Sequence[bytes]
    taken: int = 0
    taken_by: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """Who writes for the region. `address`: where the other workers send what needs writing."""

    token: str
    address: str


class Loaded(NamedTuple):
    """One record at start, and what is known of its last heartbeat here.

    `beat_age_ms` is None when the beat key has expired (no heartbeat within the offline window).
    """

    key: str
    version: int
    data: bytes
    beat: bytes | None
    beat_age_ms: int | None
    last_beat_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """What another worker committed or heard.

    `data` is the record for `put`, empty for `remove`, the payload for `beat`. `version` is the commit's;
    0 for a `beat`: those are ordered by `at_ms`, the wall clock, in milliseconds, of the worker that took it,
    which is 0 for the others. A record is told as it is when it is read, maybe by a later commit.
    """

    kind: Literal["put", "remove", "beat"]
    key: str
    version: int
    data: bytes
    at_ms: int


class Store(Protocol):
    """What the registry needs of Redis (store.py). Everything raises StoreUnavailable."""

    # the one writer

    async def lease(self, token: str, address: str, ttl_ms: int) -> Lease:
        """Take the region's lease if nobody holds it, make it last `ttl_ms` from now if it is ours (the same
        token); who holds it now. A token is used by one holder once."""

    async def release(self, token: str) -> None:
        """Give the lease back, if it is ours."""

    async def version(self) -> int:
        """The newest commit's number; 0 for an empty store."""

    async def commit(
        self,
        token: str,
        expected: Collection[int] | None,
        version: int,
        puts: Sequence[Put],
        meta: bytes | None,
        audit: AuditBatch | None = None,
    ) -> None:
        """In one atomic step: write the records and (if given) the meta, and number the commit `version`,
        if the newest commit is one of `expected` (None: whatever it is). Lines of the audit log that the store
        has already are not added again.

        `expected` has two numbers after a commit that nobody knows the outcome of. Raises Fenced, StoreChanged.
        """

    async def keys(self) -> set[str]:
        """The keys of all records."""

    async def meta(self) -> bytes | None:
        """The newest meta."""

    async def audit_left(self, count: int) -> list[bytes]:
        """What workers have left for the audit log, oldest first; a commit that says so takes it away."""

    # every worker

    async def audit_leave(self, entries: Sequence[bytes]) -> None:
        """Leave entries for the writer to put into the audit log."""

    async def audit_lines(self, after: int, count: int) -> list[bytes]:
        """The newest lines of the audit log that come after that number, the first `count` of them."""

    async def audit_last(self) -> bytes | None:
        """The newest line of the audit log."""

    def beat(self, key: str, payload: bytes, at_ms: int) -> Awaitable[bool]:
        """Renew the key's expiry and keep the payload. False: there is no such record, nothing was written."""

    async def unheard(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that have no live beat."""

    async def setting(self, name: str, value: bytes) -> bytes:
        """The region's value of `name`; `value` becomes it if there was none (first writer wins)."""

    async def publish(self, name: str, value: bytes, beats: bytes = b"") -> None:
        """Set what `published` of that name answers. `beats`: a batch of group_commit.frame, for the
        other workers to apply without anything being kept."""

    async def published(self, name: str) -> bytes | None:
        """What was last published under that name."""

    def load(self) -> AsyncIterator[list[Loaded]]:
        """Every record, in chunks."""

    async def position(self) -> str:
        """The change stream's end now: take it before `load`, then tail from it."""

    def tail(self, position: str, *, is_patient: Callable[[], bool] = lambda: False) -> AsyncIterator[list[Change]]:
        """What other workers did after `position`, for ever; somewhat later while `is_patient()`. Raises
        StoreUnavailable when the connection breaks, and LookupError when the stream no longer reaches back to
        where the reader was: load again."""

    async def ping(self) -> None:
        """Note that a worker is alive. Raises StoreUnavailable unless the store answers and accepts
        the write."""

    async def last_alive_ms(self) -> int | None:
        """The wall clock, in milliseconds, at the newest ping of any worker."""

    async def aclose(self) -> None:
        """Finish what is queued, then disconnect."""
