"""What other workers committed and heard, read from the region's change stream.

A commit's entry holds the keys and its number. The records are read where they lie, so a reader gets the newest
of each: maybe of a later commit, whose own entry is then told again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from registry import store_scripts as lua
from registry.group_commit import frames, guarded
from registry.ports import Change

# A look at the stream every ten milliseconds: a round trip costs as much as several heartbeats.
TAIL_PAUSE_S = 0.01
PATIENT_PAUSE_S = 0.05
TAIL_COUNT = 256
PORTION = 1_000  # changes told at once, and records read for them; one entry may be more
BLOCK_MS = 1_000


@dataclass(frozen=True, slots=True)
class _Commit:
    version: int
    keys: list[bytes]

    def __len__(self) -> int:
        return len(self.keys)


class ChangeStream:
    """One worker's reader. `redis` is of its own: its reads block for BLOCK_MS."""

    def __init__(self, redis: Redis, *, changes: str, records: str, seq: str, worker: str) -> None:
        self._redis = redis
        self._changes, self._records, self._seq = changes, records, seq
        self._worker = worker
        self._settled: dict[int, None] = {}

    def settled(self, version: int) -> None:
        """A commit of ours is known to be in the store: do not tell of it. One that we have given up on,
        and the store has taken all the same, is news to us as anybody else's."""
        self._settled[version] = None
        if len(self._settled) > lua.STREAM_LENGTH:
            del self._settled[next(iter(self._settled))]

    async def tail(self, position: str, is_patient: Callable[[], bool]) -> AsyncIterator[list[Change]]:
        """See ports.Store."""
        stream = self._changes
        while True:
            answer = await guarded(self._redis.xread({stream: position}, count=TAIL_COUNT, block=BLOCK_MS))
            if not answer:
                continue
            entries = (answer[stream.encode()][0] if isinstance(answer, dict) else answer[0][1]) or []
            if len(entries) == TAIL_COUNT:
                await self._check_reach(position)
            position = entries[-1][0].decode()
            for portion in self._portions(entries):
                yield await self._told(portion)
            await asyncio.sleep(PATIENT_PAUSE_S if len(entries) < TAIL_COUNT and is_patient() else TAIL_PAUSE_S)

    async def _check_reach(self, position: str) -> None:
        """Far behind: if even the entry read last is gone from the stream, so may be later ones.
        Where the stream was empty no entry was read: then, if it may have been trimmed at all."""
        if position == "0-0":
            lost = await guarded(self._redis.xlen(self._changes)) >= lua.STREAM_LENGTH
        else:
            oldest = await guarded(self._redis.xrange(self._changes, count=1))
            lost = bool(oldest) and _order(oldest[0][0].decode()) > _order(position)
        if lost:
            raise LookupError("the change stream no longer reaches back to the reader")

    def _portions(self, entries: Any) -> Iterator[list[_Commit | list[Change]]]:
        portion: list[_Commit | list[Change]] = []
        size = 0
        for _, fields in entries:
            entry = self._entry(list(fields.items()))
            if portion and size + len(entry) > PORTION:
                yield portion
                portion, size = [], 0
            if len(entry):
                portion.append(entry)
                size += len(entry)
        if portion:
            yield portion

    def _entry(self, fields: list[tuple[bytes, bytes]]) -> _Commit | list[Change]:
        """What one entry says; of our own heartbeats and settled commits, nothing."""
        (_, worker), (kind, value), *rest = fields
        own = worker.decode() == self._worker
        if kind == b"h":
            return [] if own else [Change("beat", key, 0, payload, at_ms) for key, at_ms, payload in frames(value)]
        version = int(rest[0][1])
        return [] if own and version in self._settled else _Commit(version, value.split(b" "))

    async def _told(self, portion: list[_Commit | list[Change]]) -> list[Change]:
        """The changes, in their order; of each record, once."""
        versions: dict[bytes, int] = {}
        for entry in portion:
            if isinstance(entry, _Commit):
                versions.update(dict.fromkeys(entry.keys, entry.version))
        found = await self._read(versions) if versions else {}
        changes: list[Change] = []
        for entry in portion:
            if isinstance(entry, _Commit):
                changes += [found.pop(key) for key in entry.keys if key in found]
            else:
                changes += entry
        return changes

    async def _read(self, versions: Mapping[bytes, int]) -> dict[bytes, Change]:
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(self._seq)
        pipe.hmget(self._records, list(versions))
        newest, values = await guarded(pipe.execute())
        if int(newest or 0) < max(versions.values()):
            # Emptied, or an older copy, since we read the entries: what it lacks was not removed.
            raise LookupError("the store is not the one that the changes were read from")
        return {
            key: _put(key.decode(), value) if value is not None else Change("remove", key.decode(), version, b"", 0)
            for (key, version), value in zip(versions.items(), values, strict=True)
        }


def _put(key: str, value: bytes) -> Change:
    return Change("put", key, int(value[:16]), value[16:], 0)


def _order(position: str) -> tuple[int, int]:
    ms, _, sequence = position.partition("-")
    return int(ms), int(sequence or 0)
