"""The store: Redis or Valkey, with group commit.

Operations that arrive in the same turn of the event loop, or while a batch is under way, share one
pipeline; each caller is answered after its own write is in Redis.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from registry import store_scripts as lua
from registry.ports import Change, Loaded, Stored, StoreUnavailable, VersionConflict
from registry.redis_url import connect

MAX_WAITING = 20_000  # about two seconds of work; more would only time out later
MAX_BEATS = 512  # a script call: Lua's unpack takes 8,000 values at most
BATCH_TIMEOUT_S = 1.5
HANG_UP_S = 0.2
CLOSE_S = 0.5
# Under load, at most a batch every two milliseconds, and a look at the stream every ten: a round trip
# costs as much as several heartbeats, whatever it carries. A lone caller never waits.
GATHER_S = 0.002
TAIL_PAUSE_S = 0.01
TAIL_COUNT = 256
_BLOCK_MS = 1_000
_MIN_VERSION = (6, 2)


@dataclass(slots=True)
class _Beat:
    node_id: str
    at_ms: int
    payload: bytes
    done: "asyncio.Future[bool]"


@dataclass(slots=True)
class _Command:
    script: str | None  # None: a plain command
    arguments: list[Any]
    done: "asyncio.Future[Any]"


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
        self._on_commit = on_commit
        self._beats: list[_Beat] = []
        self._commands: list[_Command] = []
        self._flusher: asyncio.Task[None] | None = None
        self._batch_began_s = 0.0
        self._batch_shared = False

    async def start(self) -> None:
        """Check that the server is one we can use, and give it the scripts."""
        info = await self._guarded(self._redis.info("server"))
        version = str(info.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _MIN_VERSION:
            raise StoreUnavailable("refused", f"it is Redis {version}; 6.2 or newer is needed")
        for script in _SHA:
            await self._guarded(self._redis.script_load(script))

    # ports.Store

    async def get(self, node_id: str) -> Stored | None:
        """See ports.Store."""
        found = await self._submit(None, ["HGET", self._keys[0], node_id])
        return _stored(found) if found is not None else None

    async def put(self, node_id: str, data: bytes, *, expected: int, at_ms: int, beat: bytes | None = None) -> int:
        """See ports.Store."""
        value = self._value(at_ms, beat) if beat is not None else b""
        version = await self._submit(
            lua.PUT,
            [node_id, _stamp(expected), at_ms, self._worker, data, self._beat_key(node_id), value, self._window_ms],
        )
        if not version:
            raise VersionConflict(node_id)
        return int(version)

    async def delete(self, node_id: str, *, expected: int, at_ms: int) -> int:
        """See ports.Store."""
        version = await self._submit(
            lua.DELETE, [node_id, _stamp(expected), at_ms, self._worker, self._beat_key(node_id)]
        )
        if not version:
            raise VersionConflict(node_id)
        return int(version)

    def beat(self, node_id: str, payload: bytes, at_ms: int) -> Awaitable[bool]:
        """See ports.Store."""
        self._check_room()
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._beats.append(_Beat(node_id, at_ms, payload, done))
        self._wake()
        return done

    async def mark_offline(self, node_ids: Sequence[str]) -> list[str]:
        """See ports.Store."""
        marked: list[str] = []
        for start in range(0, len(node_ids), 1_000):
            chunk = node_ids[start : start + 1_000]
            found = await self._submit(lua.MARK_OFFLINE, [self._beat_key(""), time.time_ns() // 1_000_000, *chunk])
            marked += [node_id.decode() for node_id in found]
        return marked

    async def setting(self, name: str, value: bytes) -> bytes:
        """See ports.Store."""
        key = self._key("settings")
        await self._submit(None, ["HSETNX", key, name, value])
        return cast(bytes, await self._submit(None, ["HGET", key, name]))

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
        await self._submit(None, ["SET", self._key("alive"), time.time_ns() // 1_000_000])

    async def last_alive_ms(self) -> int | None:
        """See ports.Store."""
        found = await self._submit(None, ["GET", self._key("alive")])
        return int(found) if found is not None else None

    async def aclose(self) -> None:
        """See ports.Store."""
        if self._flusher is not None:
            await asyncio.wait([self._flusher], timeout=CLOSE_S)
        for client in (self._redis, self._reader):
            with contextlib.suppress(redis_errors.RedisError, OSError, TimeoutError):
                async with asyncio.timeout(HANG_UP_S):
                    await client.aclose()

    # group commit

    async def _submit(self, script: str | None, arguments: list[Any]) -> Any:
        self._check_room()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._commands.append(_Command(script, arguments, done))
        self._wake()
        return await done

    def _check_room(self) -> None:
        if len(self._beats) + len(self._commands) >= MAX_WAITING:
            raise StoreUnavailable("slow", "too many operations wait for it")

    def _wake(self) -> None:
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name="group-commit")

    async def _flush(self) -> None:
        """Send batches, one at a time, until nothing waits. Runs as a task of its own: a caller that
        is cancelled leaves its batch, and everybody else's answers, alone."""
        while self._beats or self._commands:
            await self._gather()
            beats, self._beats = self._beats, []
            commands, self._commands = self._commands, []
            started = self._batch_began_s = time.perf_counter()
            self._batch_shared = len(beats) + len(commands) > 1
            try:
                async with asyncio.timeout(BATCH_TIMEOUT_S):
                    await self._execute(commands, beats)
            except BaseException as error:
                unavailable = _unavailable(error)
                _fail([*commands, *beats], unavailable)
                if unavailable.reason == "slow":
                    self._fail_waiting(unavailable)
                await self._hang_up()
                if not isinstance(error, Exception):
                    raise
            if self._on_commit is not None:
                self._on_commit(len(commands) + len(beats), time.perf_counter() - started)

    def _fail_waiting(self, error: StoreUnavailable) -> None:
        """Who came while a batch ran into its time-out has waited long enough."""
        _fail([*self._commands, *self._beats], error)
        self._commands, self._beats = [], []

    async def _hang_up(self) -> None:
        """The connection may hold half an answer: never use it again. Closing it politely would wait
        for a frozen server to take what is left to send."""
        with contextlib.suppress(redis_errors.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(HANG_UP_S):
                await self._redis.connection_pool.disconnect()

    async def _gather(self) -> None:
        """While batches are shared, let a few more callers join before the next one."""
        left_s = self._batch_began_s + GATHER_S - time.perf_counter()
        if self._batch_shared and left_s > 0:
            await asyncio.sleep(left_s)

    async def _execute(self, commands: list[_Command], beats: list[_Beat]) -> None:
        groups = list(_chunks(beats, MAX_BEATS))
        calls = [self._call(c.script, c.arguments) for c in commands]
        calls += [self._call(lua.BEATS, self._beat_arguments(group)) for group in groups]
        answers = await self._pipeline(calls)
        for command, answer in zip(commands, answers, strict=False):
            _settle(command.done, answer)
        for group, answer in zip(groups, answers[len(commands) :], strict=True):
            lacking = set() if isinstance(answer, Exception) else set(answer)
            for index, beat in enumerate(group):
                _settle(beat.done, answer if isinstance(answer, Exception) else index not in lacking)

    async def _pipeline(self, calls: list[list[Any]]) -> list[Any]:
        """Every call's answer, or its error."""
        answers = await self._once(calls)
        missing = [i for i, answer in enumerate(answers) if isinstance(answer, redis_errors.NoScriptError)]
        if missing:  # the server was restarted or flushed: nothing of these was run
            for script in _SHA:
                await self._redis.script_load(script)
            for i, answer in zip(missing, await self._once([calls[i] for i in missing]), strict=True):
                answers[i] = answer
        return answers

    async def _once(self, calls: list[list[Any]]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for call in calls:
            pipe.execute_command(*call)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    def _call(self, script: str | None, arguments: list[Any]) -> list[Any]:
        if script is None:
            return arguments
        return ["EVALSHA", _SHA[script], len(self._keys), *self._keys, *arguments]

    def _beat_arguments(self, group: Sequence[_Beat]) -> list[Any]:
        lines = [
            b"%b %d %d\n%b" % (beat.node_id.encode(), beat.at_ms, len(beat.payload), beat.payload) for beat in group
        ]
        return [self._beat_key(""), self._window_ms, self._worker, b"".join(lines)]

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
            self._pipeline(
                [
                    self._call(lua.READ_BEATS, [self._beat_key(""), *ids]),
                    ["HMGET", self._keys[1], *ids],
                    ["HMGET", self._keys[2], *ids],
                ]
            )
        )
        for answer in (beats, last, offline):
            if isinstance(answer, Exception):
                raise _unavailable(answer)
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
            raise _unavailable(error) from None


_SHA = {
    script: sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (lua.BEATS, lua.PUT, lua.DELETE, lua.MARK_OFFLINE, lua.READ_BEATS)
}


def _settle(done: "asyncio.Future[Any]", answer: Any) -> None:
    if done.done():  # its caller was cancelled
        return
    if isinstance(answer, Exception):
        done.set_exception(_unavailable(answer))
    else:
        done.set_result(answer)


def _fail(waiting: Sequence[_Command | _Beat], error: StoreUnavailable) -> None:
    for item in waiting:
        if not item.done.done():
            item.done.set_exception(error)


def _unavailable(error: BaseException) -> StoreUnavailable:
    """What went wrong, by whose fault, in the terms of ports."""
    text = str(error)
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, TimeoutError | redis_errors.TimeoutError):
        return StoreUnavailable("slow", "no answer in time")
    if isinstance(error, redis_errors.ReadOnlyError) or "READONLY" in text:
        return StoreUnavailable("read_only", "it is a replica")
    if isinstance(error, redis_errors.OutOfMemoryError) or "OOM " in text:
        return StoreUnavailable("out_of_memory", "it is over its memory limit")
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.ResponseError):
        return StoreUnavailable("refused", text[:200])
    return StoreUnavailable("down", type(error).__name__)


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
    """The heartbeats of one batch, as _beat_arguments wrote them."""
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
