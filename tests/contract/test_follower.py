"""The directory kept in step with a store that other workers write to: at start, by the change
stream, across a break of it, and with time. Time is moved by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from registry.directory import Directory
from registry.feed import Feed
from registry.follower import Follower
from registry.lifecycle import Transition, Windows
from registry.node import Intent
from registry.ports import Change, Loaded, Store, StoreUnavailable
from registry.store import RedisStore
from tests.support.clock import ManualClock
from tests.support.live import until
from tests.support.records import NOW_MS, record
from tests.support.stores import Bench

WINDOWS = Windows(0.1, 0.4, 1.0)
LONG = Windows(30, 90, 300)


class Follow:
    """A follower, its directory, and the transitions that it published."""

    def __init__(self, store: Store, clock: ManualClock, windows: Windows = WINDOWS) -> None:
        self.directory = Directory(windows, clock.monotonic())
        self.transitions: list[tuple[str, str, str]] = []
        feed = Feed()
        feed.subscribe(self._note)
        self.follower = Follower(store, self.directory, windows, clock, feed)

    def _note(self, transition: Transition) -> None:
        self.transitions.append((transition.node_id, transition.before, transition.after))

    def statuses(self) -> dict[str, str]:
        """What callers would see."""
        return {entry.node_id: entry.status for entry in self.directory.entries()}


@contextlib.asynccontextmanager
async def following(
    store: Store, clock: ManualClock | None = None, windows: Windows = WINDOWS
) -> AsyncIterator[Follow]:
    made = Follow(store, clock or ManualClock(), windows)
    await made.follower.start()
    try:
        yield made
    finally:
        await made.follower.stop()


async def becomes(condition: Callable[[], Any]) -> None:
    async def asked() -> Any:
        return condition()

    await until(asked, 5)


async def register(store: Store, node_id: str, *, at_ms: int = NOW_MS, beat: bytes | None = b"{}") -> int:
    return await store.put(node_id, record(node_id).encode(), expected=0, at_ms=at_ms, beat=beat)


# id, seconds since its last heartbeat, whether its key is gone, whether it was seen to go offline; and the status
AT_START = [
    ("fresh", 5, False, False, "online"),
    ("quiet", 100, False, False, "online"),  # it was heard 40 s before the stop
    ("late", 160, False, False, "degraded"),  # it was late already when the registry stopped
    ("expired", 320, True, False, "degraded"),  # its key ran out while nobody was there, and it was late before
    ("gone", 900, True, True, "offline"),
]


@pytest.mark.parametrize(("node_id", "age_s", "expired", "offline", "status"), AT_START, ids=[r[0] for r in AT_START])
async def test_a_start_takes_up_where_the_last_worker_stopped(
    region: Bench, node_id: str, age_s: int, expired: bool, offline: bool, status: str
) -> None:
    """Nobody was there for the last 60 s, and no other node tells so."""
    writer, raw = await region.worker("before", window_ms=300_000), await region.raw()
    await register(writer, node_id, at_ms=NOW_MS - age_s * 1000, beat=b'{"cpu_percent":7}')
    await raw.set(region.key("alive"), NOW_MS - 60_000)
    if expired:
        await raw.delete(region.key(f"beat:{node_id}"))
    else:
        await raw.pexpire(region.key(f"beat:{node_id}"), 300_000 - age_s * 1000)
    if offline:
        await writer.mark_offline([node_id])
    async with following(await region.worker(window_ms=300_000), windows=LONG) as made:
        assert made.statuses() == {node_id: status}
        assert made.follower.reasons == []
        entry = made.directory.get(node_id)
        assert entry is not None
        assert entry.beat_at_ms == NOW_MS - age_s * 1000
        assert entry.metrics == (b"{}" if expired else b'{"cpu_percent":7}')


async def test_other_workers_changes_arrive(region: Bench) -> None:
    other = await region.worker("other")
    async with following(await region.worker()) as made:
        version = await register(other, "a")
        await becomes(lambda: made.statuses() == {"a": "online"})
        changed = replace(record("a"), intent=Intent("maintenance"))
        version = await other.put("a", changed.encode(), expected=version, at_ms=NOW_MS)
        await becomes(lambda: made.statuses() == {"a": "maintenance"})
        await other.beat("a", b'{"cpu_percent":9}', NOW_MS + 1)
        await becomes(lambda: made.directory.get("a").metrics == b'{"cpu_percent":9}')
        await other.delete("a", expected=version, at_ms=NOW_MS)
        await becomes(lambda: made.statuses() == {})


async def test_silence_is_noticed_told_and_remembered(region: Bench) -> None:
    store, clock = await region.worker(), ManualClock()
    await register(store, "a", beat=None)
    async with following(store, clock) as made:
        clock.advance(0.41)
        await becomes(lambda: made.statuses() == {"a": "degraded"})
        clock.advance(0.6)
        await becomes(lambda: made.statuses() == {"a": "offline"})
        assert made.transitions == [("a", "online", "degraded"), ("a", "degraded", "offline")]

        async def marked() -> bool:
            return [n.offline async for chunk in store.load() for n in chunk] == [True]

        await until(marked, 5)
        await (await region.worker("other")).beat("a", b"{}", clock.wall_ms())
        await becomes(lambda: made.statuses() == {"a": "online"})
        assert made.transitions[2:] == [("a", "offline", "online")]


async def test_after_a_stall_of_ours_silence_counts_from_its_end(region: Bench) -> None:
    store, clock = await region.worker(), ManualClock()
    await register(store, "a", beat=None)
    async with following(store, clock) as made:
        await becomes(lambda: region_known(made))
        clock.advance(500)

        def silent() -> bool:
            clock.advance(0.05)
            return bool(made.transitions)

        await becomes(silent)
        assert made.transitions == [("a", "online", "degraded")]


class Breaking(RedisStore):
    """A store whose stream breaks when a test says so."""

    broken: Exception | None = None
    loads_fail = 0

    async def tail(self, position: str) -> AsyncIterator[list[Change]]:
        """See ports.Store."""
        async with contextlib.aclosing(super().tail(position)) as tail:
            while self.broken is None:
                reading = asyncio.ensure_future(anext(tail))
                done, _ = await asyncio.wait({reading}, timeout=0.01)
                while not done and self.broken is None:
                    done, _ = await asyncio.wait({reading}, timeout=0.01)
                if not done:
                    reading.cancel()
                    await asyncio.wait({reading})
                    break
                yield reading.result()
        error, self.broken = self.broken, None
        assert error is not None
        raise error

    async def load(self) -> AsyncIterator[list[Loaded]]:
        """See ports.Store."""
        if self.loads_fail:
            self.loads_fail -= 1
            raise StoreUnavailable("down")
        async for chunk in super().load():
            yield chunk


@pytest.mark.parametrize("error", [StoreUnavailable("down"), LookupError("trimmed")], ids=["broken", "trimmed"])
async def test_what_was_missed_while_the_stream_was_broken_is_loaded(region: Bench, error: Exception) -> None:
    """Even where the server was restarted, forgot the scripts, and is not ready at the first try."""
    other, store, raw = await region.worker("other"), await region.worker(kind=Breaking), await region.raw()
    gone = await register(other, "gone")
    await register(other, "stays")
    async with following(store, windows=LONG) as made:
        store.loads_fail = 2
        store.broken = error
        await other.delete("gone", expected=gone, at_ms=NOW_MS)
        await register(other, "new")
        await other.beat("stays", b'{"cpu_percent":3}', NOW_MS + 9)
        await raw.delete(region.key("changes"))
        await raw.script_flush()
        await becomes(lambda: made.statuses() == {"new": "online", "stays": "online"})
        await becomes(lambda: made.directory.get("stays").metrics == b'{"cpu_percent":3}')
        assert store.loads_fail == 0
        await register(other, "later")
        await becomes(lambda: "later" in made.statuses())


class Slow(RedisStore):
    """A store that is read for so long that something happens meanwhile."""

    meanwhile: Callable[[], Any] | None = None

    async def load(self) -> AsyncIterator[list[Loaded]]:
        """See ports.Store."""
        async for chunk in super().load():
            yield chunk
        if self.meanwhile is not None:
            await self.meanwhile()


async def test_a_node_registered_while_the_store_is_read_stays(region: Bench) -> None:
    store = await region.worker(kind=Slow)
    made = Follow(store, ManualClock())
    await register(store, "a")
    made.directory.put(record("lost"), 1, 0.0)  # the store no longer has it

    async def meanwhile() -> None:
        version = await register(store, "new")
        made.directory.put(record("new"), version, 0.0)

    store.meanwhile = meanwhile
    await made.follower.start()
    try:
        assert sorted(made.statuses()) == ["a", "new"]
    finally:
        await made.follower.stop()


async def test_a_store_that_was_emptied_is_believed(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    await register(store, "a")
    async with following(store) as made:
        await becomes(lambda: region_known(made))
        await raw.flushall()
        await becomes(lambda: made.statuses() == {})
        assert made.follower.reasons == []


def region_known(made: Follow) -> bool:
    """Whether the follower knows which store it follows, so that it can tell another one."""
    return made.follower._store_id is not None


async def test_the_store_s_faults_are_the_reasons_of_not_being_ready(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    async with following(store) as made:
        await raw.delete(region.key("settings"))
        await raw.set(region.key("settings"), "in the way")
        await becomes(lambda: made.follower.reasons == ["store: refused"])
        await raw.delete(region.key("settings"))
        await becomes(lambda: made.follower.reasons == [])
