"""The store: Redis or Valkey. What lies under which key; group_commit.py sends it, change_stream.py follows it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from registry import store_scripts as lua
from registry.change_stream import BLOCK_MS, ChangeStream
from registry.group_commit import HANG_UP_S, GroupCommit, guarded, unavailable
from registry.ports import AuditBatch, Change, Fenced, Lease, Loaded, Put, StoreChanged, StoreUnavailable
from registry.redis_url import connect

MAX_PUTS = 1_000  # a commit: Lua's unpack takes 8,000 values at most, and nobody else is served meanwhile
CHUNK = 1_000
MAX_LEFT = 20_000  # entries that wait for a writer: an hour of refusals of ten workers
_MIN_VERSION = (6, 2)


class RedisStore:
    """ports.Store over one region's keys, `dagi:{region}:...` (the braces keep them in one slot)."""

    def __init__(
        self,
        url: str,
        *,
        region: str,
        worker_id: str,
        beat_window_ms: int,
        on_commit: Callable[[int, float], None] | None = None,
        client: Callable[..., Redis] = connect,
    ) -> None:
        self._redis = client(url)
        self._reader = client(url, timeout_s=BLOCK_MS / 1000 + 2)
        self._prefix = f"dagi:{{{region}}}:"
        self._keys = [self._key(name) for name in lua.KEYS]
        self._records, _, self._changes, self._seq, self._meta, _ = self._keys
        self._worker = worker_id
        self._audit = self._key("audit")
        beat_arguments = [self._beat_key(""), beat_window_ms, worker_id]
        self._batches = GroupCommit(self._redis, self._keys, beat_arguments, on_commit)
        self._stream = ChangeStream(
            self._reader, changes=self._changes, records=self._records, seq=self._seq, worker=worker_id
        )

    async def start(self) -> None:
        """Check that the server is one we can use, and give it the scripts."""
        info = await guarded(self._redis.info("server"))
        version = str(info.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _MIN_VERSION:
            raise StoreUnavailable("refused", f"it is Redis {version}; 6.2 or newer is needed")
        await guarded(self._batches.load_scripts())

    # ports.Store: the one writer

    async def lease(self, token: str, address: str, ttl_ms: int) -> Lease:
        """See ports.Store. Where the answer is lost, ask again with the same token: it may hold the lease."""
        if token.split() != [token]:
            raise ValueError("a lease's token is one word")
        holder = await self._batches.submit(lua.LEASE, [token, address, ttl_ms])
        held_by, _, where = holder.decode().partition(" ")
        return Lease(held_by, where)

    async def release(self, token: str) -> None:
        """See ports.Store."""
        await self._batches.submit(lua.RELEASE, [token])

    async def version(self) -> int:
        """See ports.Store."""
        return int(await self._batches.submit(None, ["GET", self._seq]) or 0)

    async def commit(
        self,
        token: str,
        expected: Collection[int] | None,
        version: int,
        puts: Sequence[Put],
        meta: bytes | None,
        audit: AuditBatch | None = None,
    ) -> None:
        """See ports.Store. At most MAX_PUTS; of two for one key the later one counts."""
        records = {put.key.encode(): put.data for put in puts}
        keys = b" ".join(records)
        if len(records) > MAX_PUTS or keys.split() != list(records):
            raise ValueError(f"a commit has {MAX_PUTS} records at most, and keys without spaces")
        stamp = _stamp(version)
        values = [part for key, data in records.items() if data is not None for part in (key, stamp + data)]
        removed = [key for key, data in records.items() if data is None]
        known = b"" if expected is None else b" %b " % b" ".join(map(_stamp, expected))
        head = [token, known, stamp, self._worker, keys, self._beat_key(""), int(meta is not None), meta or b""]
        head += self._audit_arguments(audit)
        outcome = await self._batches.submit(lua.COMMIT, [*head, len(values), *values, *removed])
        if outcome == b"fenced":
            raise Fenced
        if outcome == b"changed":
            raise StoreChanged
        self._stream.settled(version)

    async def keys(self) -> set[str]:
        """See ports.Store."""
        keys: set[str] = set()
        cursor = b"0"
        while True:
            cursor, *found = await self._batches.submit(lua.SCAN_KEYS, [cursor, CHUNK])
            keys.update(key.decode() for key in found)
            if cursor == b"0":
                return keys

    async def meta(self) -> bytes | None:
        """See ports.Store."""
        return cast(bytes | None, await self._batches.submit(None, ["GET", self._meta]))

    async def audit_left(self, count: int) -> list[bytes]:
        """See ports.Store."""
        return list(await self._batches.submit(None, ["LRANGE", self._audit + ":left", 0, count - 1]))

    def _audit_arguments(self, batch: AuditBatch | None) -> list[object]:
        if batch is None:
            return [self._audit, b"", 0, 0, 0]
        return [self._audit, b"\n".join(batch.lines), batch.after, batch.taken, batch.taken_by]

    # ports.Store: every worker

    async def audit_leave(self, entries: Sequence[bytes]) -> None:
        """See ports.Store."""
        if await self._batches.submit(None, ["LLEN", self._audit + ":left"]) >= MAX_LEFT:
            raise StoreUnavailable("slow", "nobody takes what is left for the audit log")
        await self._batches.submit(None, ["RPUSH", self._audit + ":left", *entries])

    async def audit_lines(self, after: int, count: int) -> list[bytes]:
        """See ports.Store."""
        return list(await self._batches.submit(lua.AUDIT_LINES, [self._audit, after, count]))

    async def audit_last(self) -> bytes | None:
        """See ports.Store."""
        return cast(bytes | None, await self._batches.submit(None, ["LINDEX", self._audit, -1]))

    def beat(self, key: str, payload: bytes, at_ms: int) -> Awaitable[bool]:
        """See ports.Store."""
        return self._batches.beat(key, payload, at_ms)

    async def unheard(self, keys: Sequence[str]) -> list[str]:
        """See ports.Store."""
        silent: list[str] = []
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            positions = await self._batches.submit(lua.UNHEARD, [self._beat_key(""), *chunk])
            silent += [chunk[position] for position in positions]
        return silent

    async def setting(self, name: str, value: bytes) -> bytes:
        """See ports.Store."""
        key = self._key("settings")
        await self._batches.submit(None, ["HSETNX", key, name, value])
        return cast(bytes, await self._batches.submit(None, ["HGET", key, name]))

    async def publish(self, name: str, value: bytes, beats: bytes = b"") -> None:
        """See ports.Store. The batch stays in the stream for as long as any other entry: keep it small."""
        await self._batches.submit(lua.PUBLISH, [self._key(f"pub:{name}"), value, self._worker, beats])

    async def published(self, name: str) -> bytes | None:
        """See ports.Store."""
        return cast(bytes | None, await self._batches.submit(None, ["GET", self._key(f"pub:{name}")]))

    async def load(self) -> AsyncIterator[list[Loaded]]:
        """See ports.Store."""
        cursor = b"0"
        seen: set[bytes] = set()
        while True:
            cursor, *found = await self._read(lua.LOAD, [self._beat_key(""), cursor, CHUNK])
            fresh: list[Loaded] = []
            for key, *told in zip(*(found[i::5] for i in range(5)), strict=True):
                if key not in seen:  # HSCAN may show a field twice
                    seen.add(key)
                    fresh.append(_one_loaded(key.decode(), *told))
            for start in range(0, len(fresh), CHUNK):
                yield fresh[start : start + CHUNK]
            if cursor == b"0":
                return

    async def position(self) -> str:
        """See ports.Store."""
        newest = await guarded(self._redis.xrevrange(self._changes, count=1))
        return newest[0][0].decode() if newest else "0-0"

    def tail(self, position: str, *, is_patient: Callable[[], bool] = lambda: False) -> AsyncIterator[list[Change]]:
        """See ports.Store."""
        return self._stream.tail(position, is_patient)

    async def ping(self) -> None:
        """See ports.Store."""
        await self._batches.submit(None, ["SET", self._key("alive"), time.time_ns() // 1_000_000])

    async def last_alive_ms(self) -> int | None:
        """See ports.Store."""
        found = await self._batches.submit(None, ["GET", self._key("alive")])
        return int(found) if found is not None else None

    async def aclose(self) -> None:
        """See ports.Store."""
        await self._batches.close()
        for client in (self._redis, self._reader):
            with contextlib.suppress(redis_errors.RedisError, OSError, TimeoutError):
                async with asyncio.timeout(HANG_UP_S):
                    await client.aclose()

    # parts

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _beat_key(self, key: str) -> str:
        return f"{self._prefix}beat:{key}"

    async def _read(self, script: str, arguments: list[object]) -> list[Any]:
        """A script's answer, apart from the batches: nobody waits for a long one."""
        (answer,) = await guarded(self._batches.apart([self._batches.call(script, arguments)]))
        if isinstance(answer, Exception):
            raise unavailable(answer)
        return cast(list[Any], answer)


def _one_loaded(key: str, value: bytes, beat: bytes | None, left_ms: int, last: bytes | None) -> Loaded:
    age_ms = payload = None
    if beat:  # "window at_ms payload": the window that it was written with
        window, _, payload = beat.split(b" ", 2)
        age_ms = max(0, int(window) - left_ms)
    return Loaded(key, int(value[:16]), value[16:], payload, age_ms, int(last) if last else None)


def _stamp(version: int) -> bytes:
    return b"%016d" % version
