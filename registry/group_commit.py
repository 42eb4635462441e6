"""Group commit: operations that arrive in the same turn of the event loop, or while a batch is under
way, share one pipeline; each caller is answered after its own write is in Redis.

redis-py has no such thing, and a call of its that is cancelled can leave later answers off by one:
here no caller's fate touches a connection.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

from hiredis import pack_command
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from registry import store_scripts as lua
from registry.ports import StoreUnavailable

MAX_WAITING = 20_000  # about two seconds of work; more would only time out later
MAX_BEATS = 512  # a script call: Lua's unpack takes 8,000 values at most
BATCH_TIMEOUT_S = 1.0  # so that the lease can be renewed over another connection before it ends (region.py)
HANG_UP_S = 0.2
CLOSE_S = 0.5
# Under load, at most a batch every two milliseconds: a round trip costs as much as several heartbeats,
# whatever it carries. A lone caller never waits.
GATHER_S = 0.002


@dataclass(slots=True)
class _Beat:
    key: str
    at_ms: int
    payload: bytes
    done: "asyncio.Future[bool]"


@dataclass(slots=True)
class _Command:
    script: str | None  # None: a plain command
    arguments: list[Any]
    done: "asyncio.Future[Any]"


class GroupCommit:
    """One connection's batches. `keys` go with every script, `beat_arguments` with every batch of
    heartbeats; `on_commit` hears of each batch's size and duration."""

    def __init__(
        self,
        redis: Redis,
        keys: Sequence[str],
        beat_arguments: Sequence[Any],
        on_commit: Callable[[int, float], None] | None = None,
    ) -> None:
        self._redis = redis
        self._keys = list(keys)
        self._beat_arguments = list(beat_arguments)
        self._on_commit = on_commit
        self._beats: list[_Beat] = []
        self._commands: list[_Command] = []
        self._flusher: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._batch_began_s = 0.0
        self._batch_shared = False

    async def load_scripts(self) -> None:
        """Give the server the scripts."""
        for script in _SHA:
            await self._redis.script_load(script)

    def beat(self, key: str, payload: bytes, at_ms: int) -> Awaitable[bool]:
        """Renew a key's expiry in the next batch. False: there is no such record."""
        self._check_room()
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._beats.append(_Beat(key, at_ms, payload, done))
        self._wake()
        return done

    async def submit(self, script: str | None, arguments: list[Any]) -> Any:
        """Run a script, or without one a plain command, in the next batch; its answer. Raises StoreUnavailable."""
        self._check_room()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._commands.append(_Command(script, arguments, done))
        self._wake()
        return await done

    def _check_room(self) -> None:
        if len(self._beats) + len(self._commands) >= MAX_WAITING:
            raise StoreUnavailable("busy", "too many operations wait for it")

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
                why = unavailable(error)
                _fail([*commands, *beats], why)
                if why.reason == "slow":
                    self._fail_waiting(why)
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
        """While batches are shared, let a few more callers join before the next one: a turn of the loop at least, in
        which those that the last one answered go on. Without it eight heartbeats are taken in the time of nine."""
        left_s = self._batch_began_s + GATHER_S - time.perf_counter()
        if self._batch_shared:
            await asyncio.sleep(max(0.0, left_s))

    async def _execute(self, commands: list[_Command], beats: list[_Beat]) -> None:
        groups = [beats[i : i + MAX_BEATS] for i in range(0, len(beats), MAX_BEATS)]
        calls = [self.call(c.script, c.arguments) for c in commands]
        calls += [self.call(lua.BEATS, [*self._beat_arguments, _batch(group)]) for group in groups]
        answers = await self._pipeline(await self._own_connection(), calls)
        for command, answer in zip(commands, answers, strict=False):
            _settle(command.done, answer)
        for group, answer in zip(groups, answers[len(commands) :], strict=True):
            lacking = set() if isinstance(answer, Exception) else set(answer)
            for index, beat in enumerate(group):
                _settle(beat.done, answer if isinstance(answer, Exception) else index not in lacking)

    async def _own_connection(self) -> AbstractConnection:
        """The batches' own: the pool's bookkeeping and a time-out for each step cost a third of a small batch."""
        pool = self._redis.connection_pool
        if self._connection is None:
            self._connection = await pool.get_connection()  # type: ignore[no-untyped-call]  # the library has no types
            self._connection.socket_timeout = None  # BATCH_TIMEOUT_S is for the whole
        elif self._connection.should_reconnect():  # type: ignore[no-untyped-call]  # the server moves
            await self._connection.disconnect()
        await pool.ensure_connection(self._connection)
        return self._connection

    async def apart(self, calls: list[list[Any]]) -> list[Any]:
        """Every call's answer, or its error; over a connection on which no batch waits for them."""
        pool = self._redis.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]  # the library has no types
        try:
            return await self._pipeline(connection, calls)
        finally:
            await pool.release(connection)

    async def _pipeline(self, connection: AbstractConnection, calls: list[list[Any]]) -> list[Any]:
        answers = await _round_trip(connection, calls)
        missing = [i for i, answer in enumerate(answers) if isinstance(answer, redis_errors.NoScriptError)]
        if missing:  # the server was restarted or flushed: nothing of these was run
            loading = [["SCRIPT", "LOAD", script] for script in _SHA]
            again = await _round_trip(connection, [*loading, *(calls[i] for i in missing)])
            for i, answer in zip(missing, again[len(loading) :], strict=True):
                answers[i] = answer
        return answers

    def call(self, script: str | None, arguments: list[Any]) -> list[Any]:
        """The command that runs a script, or the plain command."""
        if script is None:
            return arguments
        return ["EVALSHA", _SHA[script], len(self._keys), *self._keys, *arguments]

    async def close(self) -> None:
        """Wait a moment for what is queued."""
        if self._flusher is not None:
            await asyncio.wait([self._flusher], timeout=CLOSE_S)


_SHA = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in lua.ALL}


def frame(key: str, at_ms: int, payload: bytes) -> bytes:
    """One heartbeat of a batch; a batch is such frames, joined."""
    return b"%b %d %d\n%b" % (key.encode(), at_ms, len(payload), payload)


def frames(batch: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Key, at_ms and payload of each heartbeat of a batch."""
    at = 0
    while at < len(batch):
        start = batch.index(b"\n", at) + 1
        key, at_ms, size = batch[at:start].split()
        at = start + int(size)
        yield key.decode(), int(at_ms), batch[start:at]


async def _round_trip(connection: AbstractConnection, calls: list[list[Any]]) -> list[Any]:
    """redis-py's pipeline does the same in twice the time, most of it packing arguments one by one; a connection on
    which something went wrong has closed itself."""
    await connection.send_packed_command(b"".join([pack_command(tuple(call)) for call in calls]))
    return [await _answer(connection) for _ in calls]


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except redis_errors.ResponseError as refusal:  # of this call: the next one's answer follows
        return refusal


def _batch(beats: Sequence[_Beat]) -> bytes:
    return b"".join([frame(beat.key, beat.at_ms, beat.payload) for beat in beats])


def _settle(done: "asyncio.Future[Any]", answer: Any) -> None:
    if done.done():  # its caller was cancelled
        return
    if isinstance(answer, Exception):
        done.set_exception(unavailable(answer))
    else:
        done.set_result(answer)


def _fail(waiting: Sequence[_Command | _Beat], error: StoreUnavailable) -> None:
    for item in waiting:
        if not item.done.done():
            item.done.set_exception(error)


async def guarded(call: Awaitable[Any]) -> Any:
    """The call's answer. Raises StoreUnavailable for what goes wrong with the server or on the way to it."""
    try:
        return await call
    except (redis_errors.RedisError, OSError, TimeoutError, RuntimeError) as error:
        # RuntimeError is how uvloop says that a connection was closed before something was sent.
        raise unavailable(error) from None


def unavailable(error: BaseException) -> StoreUnavailable:
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
