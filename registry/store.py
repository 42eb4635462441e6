"""The store: Redis or Valkey. What lies under which key, and the change stream; group_commit.py sends it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from registry import store_scripts as lua
from registry.group_commit import HANG_UP_S, GroupCommit, unavailable
from registry.ports import Change, Loaded, Stored, StoreUnavailable, VersionConflict
from registry.redis_url import connect

# A look at the stream every ten milliseconds: a round trip costs as much as several heartbeats.
TAIL_PAUSE_S = 0.01
TAIL_COUNT = 256
_BLOCK_MS = 1_000
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
        self._reader = client(url, timeout_s=_BLOCK_MS / 1000 + 2)
        self._prefix = f"dagi:{{{region}}}:"
        self._keys = [self._key(name) for name in (lua.RECORDS, lua.LAST, lua.OFFLINE, lua.CHANGES, lua.SEQ)]
        self._worker = worker_id
        self._window_ms = beat_window_ms
        beat_arguments = [self._beat_key(""), beat_window_ms, worker_id]
        self._batches = GroupCommit(self._redis, self._keys, beat_arguments, on_commit)

    async def start(self) -> None:
        """Check that the server is one we can use, and give it the scripts."""
        info = await self._guarded(self._redis.info("server"))
        version = str(info.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _MIN_VERSION:
            raise StoreUnavailable("refused", f"it is Redis {version}; 6.2 or newer is needed")
        await self._guarded(self._batches.load_scripts())

    # ports.Store

    async def get(self, node_id: str) -> Stored | None:
        """See ports.Store."""
        found = await self._batches.submit(None, ["HGET", self._keys[0], node_id])
        return _stored(found) if found is not None else None

    async def put(self, node_id: str, data: bytes, *, expected: int, at_ms: int, beat: bytes | None = None) -> int:
        """See ports.Store."""
        value = self._value(at_ms, beat) if beat is not None else b""
        version = await self._batches.submit(
            lua.PUT,
            [node_id, _stamp(expected), at_ms, self._worker, data, self._beat_key(node_id), value, self._window_ms],
        )
        if not version:
            raise VersionConflict(node_id)
        return int(version)

    async def delete(self, node_id: str, *, expected: int, at_ms: int) -> int:
        """See ports.Store."""
        version = await self._batches.submit(
            lua.DELETE, [node_id, _stamp(expected), at_ms, self._worker, self._beat_key(node_id)]
        )
        if not version:
            raise VersionConflict(node_id)
        return int(version)

    def beat(self, node_id: str, payload: bytes, at_ms: int) -> Awaitable[bool]:
        """See ports.Store."""
        return self._batches.beat(node_id, payload, at_ms)

    async def mark_offline(self, node_ids: Sequence[str]) -> list[str]:
        """See ports.Store."""
        marked: list[str] = []
        for start in range(0, len(node_ids), 1_000):
            chunk = node_ids[start : start + 1_000]
            found = await self._batches.submit(
                lua.MARK_OFFLINE, [self._beat_key(""), time.time_ns() // 1_000_000, *chunk]
            )
            marked += [node_id.decode() for node_id in found]
        return marked

    async def setting(self, name: str, value: bytes) -> bytes:
        """See ports.Store."""
        key = self._key("settings")
        await self._batches.submit(None, ["HSETNX", key, name, value])
        return cast(bytes, await self._batches.submit(None, ["HGET", key, name]))

    async def load(self) -> AsyncIterator[list[Loaded]]:
        """See ports.Store."""
        cursor = 0
        seen: set[bytes] = set()
        while True:
            cursor, found = await self._guarded(self._redis.hscan(self._keys[0], cursor, count=1_000))
            # HSCAN may show a field twice.
            fresh = {key: value for key, value in found.items() if key not in seen}
            seen.update(fresh)
            for chunk in _chunks(list(fresh.items()), 1_000):
                yield await self._loaded(chunk)
            if cursor == 0:
                return

    async def position(self) -> str:
        """See ports.Store."""
        newest = await self._guarded(self._redis.xrevrange(self._keys[3], count=1))
        return newest[0][0].decode() if newest else "0-0"

    async def tail(self, position: str) -> AsyncIterator[list[Change]]:
        """See ports.Store."""
        stream = self._keys[3]
        while True:
            answer = await self._guarded(self._reader.xread({stream: position}, count=TAIL_COUNT, block=_BLOCK_MS))
            if not answer:
                continue
            entries = (answer[stream.encode()][0] if isinstance(answer, dict) else answer[0][1]) or []
            if len(entries) == TAIL_COUNT and position != "0-0":
                await self._check_reach(position)
            position = entries[-1][0].decode()
            changes = [change for _, fields in entries for change in _changes(fields, self._worker)]
            if changes:
                yield changes
            await asyncio.sleep(TAIL_PAUSE_S)

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

    def _beat_key(self, node_id: str) -> str:
        return f"{self._prefix}beat:{node_id}"

    def _value(self, at_ms: int, payload: bytes) -> bytes:
        """A beat key's value: the window it was written with, its time, what the node measured."""
        return b"%d %d %b" % (self._window_ms, at_ms, payload)

    async def _loaded(self, chunk: Sequence[tuple[bytes, bytes]]) -> list[Loaded]:
        ids = [key for key, _ in chunk]
        beats, last, offline = await self._guarded(
            self._batches.pipeline(
                [
                    self._batches.call(lua.READ_BEATS, [self._beat_key(""), *ids]),
                    ["HMGET", self._keys[1], *ids],
                    ["HMGET", self._keys[2], *ids],
                ]
            )
        )
        for answer in (beats, last, offline):
            if isinstance(answer, Exception):
                raise unavailable(answer)
        found = []
        for i, (key, value) in enumerate(chunk):
            stored = _stored(value)
            beat, left_ms = beats[2 * i], beats[2 * i + 1]
            window, _, payload = _split_value(beat) if beat else (0, 0, None)
            found.append(
                Loaded(
                    node_id=key.decode(),
                    version=stored.version,
                    data=stored.data,
                    beat=payload,
                    beat_age_ms=max(0, window - int(left_ms)) if beat else None,
                    last_beat_at_ms=int(last[i]) if last[i] else None,
                    offline=offline[i] is not None,
                )
            )
        return found

    async def _check_reach(self, position: str) -> None:
        """Far behind: if even the entry read last is gone from the stream, so may be later ones."""
        oldest = await self._guarded(self._reader.xrange(self._keys[3], count=1))
        if oldest and _order(oldest[0][0].decode()) > _order(position):
            raise LookupError("the change stream no longer reaches back to the reader")

    @staticmethod
    async def _guarded(call: Awaitable[Any]) -> Any:
        try:
            return await call
        except (redis_errors.RedisError, OSError, TimeoutError) as error:
            raise unavailable(error) from None


def _stamp(version: int) -> str:
    return f"{version:016d}"


def _stored(value: bytes) -> Stored:
    return Stored(int(value[:16]), value[16:])


def _split_value(value: bytes) -> tuple[int, int, bytes]:
    window, at_ms, payload = value.split(b" ", 2)
    return int(window), int(at_ms), payload


def _order(position: str) -> tuple[int, int]:
    ms, _, sequence = position.partition("-")
    return int(ms), int(sequence or 0)


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _beats(batch: bytes) -> Iterator[Change]:
    """The heartbeats of one batch, as group_commit wrote them."""
    at = 0
    while at < len(batch):
        start = batch.index(b"\n", at) + 1
        node_id, at_ms, size = batch[at:start].split()
        at = start + int(size)
        yield Change("beat", node_id.decode(), 0, batch[start:at], int(at_ms))


def _changes(fields: Any, own_worker: str) -> list[Change]:
    """The changes of one stream entry, but for our own heartbeats. Our own records and deletions may
    be ones that the store took after we had given up on it."""
    pairs = list(fields.items())
    kind, value = pairs[1]
    if kind == b"h":
        return [] if pairs[0][1].decode() == own_worker else list(_beats(value))
    rest = dict(pairs[2:])
    version, at_ms = int(rest[b"v"]), int(rest[b"t"])
    if kind == b"x":
        return [Change("delete", value.decode(), version, b"", at_ms)]
    beat = _split_value(rest[b"b"])[2] if rest[b"b"] else None
    return [Change("put", value.decode(), version, rest[b"d"], at_ms, beat)]
