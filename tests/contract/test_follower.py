"""The directory kept in step with a store that another worker writes to: at start, by the change stream, across
a break of it; and the store's health. Time is moved by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from federation.record import Record as Versioned
from federation.record import Section
from registry.directory import Directory
from registry.follower import Follower
from registry.lifecycle import Liveness, Windows
from registry.node import Intent, Word, node_key
from registry.ports import Change, Loaded, Put, Store, StoreUnavailable
from registry.store import RedisStore
from registry.stored import pack_record
from registry.tables import Table
from tests.support.clock import ManualClock
from tests.support.live import until
from tests.support.records import NOW_MS, at_home, record, versioned
from tests.support.regions import HERE, becomes, emptied, in_store
from tests.support.stores import Bench, Writer, loaded

WINDOWS = Windows(0.1, 0.4, 1.0)
LONG = Windows(30, 90, 300)


class Follow:
    """A follower and its directory."""

    def __init__(
        self, store: Store, clock: ManualClock, windows: Windows = WINDOWS, settings: dict[str, bytes] | None = None
    ) -> None:
        self.directory = Directory(windows, clock.monotonic(), HERE)
        self.follower = Follower(store, self.directory, windows, clock, settings or {})

    def statuses(self) -> dict[str, str]:
        """What callers would see."""
        return {entry.node_id: entry.status for entry in self.directory.entries()}

    def metrics(self, node_id: str) -> bytes | None:
        entry = self.directory.get(node_id)
        return entry.metrics if entry is not None else None

    @property
    def knows_its_store(self) -> bool:
        """Whether it would know another one."""
        return self.follower._store_id is not None


@contextlib.asynccontextmanager
async def following(store: Store, clock: ManualClock | None = None, **options: Any) -> AsyncIterator[Follow]:
    made = Follow(store, clock or ManualClock(), **options)
    await made.follower.start()
    try:
        yield made
    finally:
        await made.follower.stop()


def put(node_id: str, liveness: Liveness = "online", intent: str | None = None, home: str = HERE, **report: Any) -> Put:
    """A node as a commit has it."""
    node = replace(record(node_id, **report), word=Word(liveness), intent=Intent(intent))
    return Put(node_key(node_id), pack_record(versioned(at_home(node, home))))


def thing(name: str, payload: bytes) -> Put:
    """A record that is no node, as a commit has it."""
    made = Versioned("x:" + name)
    made.life, made.spec = 1, Section(1, HERE, 0, payload, 1, 1)
    return Put(made.key, pack_record(made))


def payload_of(held: Versioned) -> bytes | None:
    return held.spec.payload if held.spec is not None else None


async def other_worker(region: Bench, window_ms: int = 60_000) -> Writer:
    """The region's writer."""
    return await region.writer(await region.worker("other", window_ms=window_ms))


# seconds since its last heartbeat, whether its key is gone, the last word on it
AT_START: dict[str, tuple[int, bool, Liveness]] = {
    "fresh": (5, False, "online"),
    "late": (160, False, "online"),  # it may have beaten while nobody was there: nobody is blamed for that
    "expired": (320, True, "online"),
    "degraded": (160, False, "degraded"),
    "gone": (900, True, "offline"),
}


@pytest.mark.parametrize("case", AT_START)
async def test_a_start_has_the_last_word_and_the_last_heartbeat_of_each_node(region: Bench, case: str) -> None:
    age_s, expired, liveness = AT_START[case]
    writer, raw = await other_worker(region, 300_000), await region.raw()
    await writer.commit(put("a", liveness))
    await writer.store.beat("n:a", b'{"cpu_percent":7}', NOW_MS - age_s * 1000)
    if expired:
        await raw.delete(region.key("beat:n:a"))
    else:
        await raw.pexpire(region.key("beat:n:a"), 300_000 - age_s * 1000)
    clock = ManualClock()
    async with following(await region.worker(window_ms=300_000), clock, windows=LONG) as made:
        assert made.statuses() == {"a": liveness}
        assert made.follower.reasons == []
        entry = made.directory.get("a")
        assert entry is not None
        assert entry.beat_at_ms == NOW_MS - age_s * 1000
        assert entry.metrics == (b"{}" if expired else b'{"cpu_percent":7}')
        assert made.directory.due(clock.monotonic() + 89.9) == []
        due = made.directory.due(clock.monotonic() + 90.1)
        assert [item.word.liveness for item in due] == (["degraded"] if liveness == "online" else [])


async def test_a_start_takes_nodes_and_leaves_what_else_the_federation_keeps(region: Bench) -> None:
    writer = await other_worker(region)
    gone = versioned(record("gone"))
    gone.life = 2
    other = versioned(record("x"))
    other.key = "r:there"
    await writer.commit(
        put("ours"), put("theirs", home="there"), Put("n:gone", pack_record(gone)), Put("r:there", pack_record(other))
    )
    made = Follow(await region.worker(), ManualClock())
    records = [record async for chunk in made.follower.records() for record in chunk]
    assert {record.key for record in records} == {"n:ours", "n:theirs", "n:gone", "r:there"}
    assert {record.key: record.state() for record in records} == in_store(await loaded(writer.store))
    assert made.statuses() == {"ours": "online", "theirs": "online"}
    theirs = made.directory.get("theirs")
    assert theirs is not None
    assert theirs.owner.registry_id == "there"


async def test_what_is_no_node_is_held_in_its_table(region: Bench) -> None:
    """At a start, from the change stream, and after reading everything anew."""
    other = await other_worker(region)
    await other.commit(thing("a", b"1"), thing("b", b"1"), Put("y:elsewhere", thing("a", b"1").data))
    made = Follow(await region.worker(), ManualClock())
    table = made.directory.tables.add(Table("x:", payload_of))
    await made.follower.start()
    try:
        assert dict(table.items()) == {"a": b"1", "b": b"1"}
        await other.commit(thing("a", b"2"), Put("x:b", None), thing("c", b"1"))
        await becomes(lambda: dict(table.items()) == {"a": b"2", "c": b"1"})
        table.put("lost", b"1", 1)  # the store no longer has it
        await made.follower.load_again()
        assert dict(table.items()) == {"a": b"2", "c": b"1"}
    finally:
        await made.follower.stop()


async def test_another_workers_changes_arrive(region: Bench) -> None:
    other = await other_worker(region)
    async with following(await region.worker()) as made:
        heard: list[Change] = []
        made.follower.on_beat = heard.append
        await other.commit(put("a"))
        await becomes(lambda: made.statuses() == {"a": "online"})
        await other.commit(put("a", intent="maintenance"))
        await becomes(lambda: made.statuses() == {"a": "maintenance"})
        await other.store.beat("n:a", b'{"cpu_percent":9}', NOW_MS + 1)
        await becomes(lambda: made.metrics("a") == b'{"cpu_percent":9}')
        await becomes(lambda: [(change.key, change.at_ms) for change in heard] == [("n:a", NOW_MS + 1)])
        tombstone = versioned(record("a"))
        tombstone.life = 2
        await other.commit(Put("n:a", pack_record(tombstone)), Put("r:x", pack_record(versioned(record("x")))))
        await becomes(lambda: made.statuses() == {})
        await other.commit(put("b"))
        await becomes(lambda: made.statuses() == {"b": "online"})
        await other.remove("n:b")
        await becomes(lambda: made.statuses() == {})


async def test_a_record_that_is_no_node_takes_the_node_away_and_stops_nothing(region: Bench) -> None:
    other = await other_worker(region)
    async with following(await region.worker()) as made:
        await other.commit(put("a"), put("b"))
        await becomes(lambda: len(made.statuses()) == 2)
        broken = versioned(record("a"))
        assert broken.spec is not None
        broken.spec = broken.spec._replace(payload=b"[]")
        await other.commit(Put("n:a", pack_record(broken)))
        await becomes(lambda: made.statuses() == {"b": "online"})
        await other.commit(put("c"))
        await becomes(lambda: "c" in made.statuses())


class Breaking(RedisStore):
    """A store whose stream breaks when a test says so."""

    broken: Exception | None = None
    loads_fail = 0
    loads = 0

    async def tail(self, position: str, **options: Any) -> AsyncIterator[list[Change]]:
        """See ports.Store."""
        async with contextlib.aclosing(super().tail(position, **options)) as tail:  # type: ignore[type-var]  # a port promises no aclose
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
        self.loads += 1
        if self.loads_fail:
            self.loads_fail -= 1
            raise StoreUnavailable("down")
        async for chunk in super().load():
            yield chunk


BREAKS = pytest.mark.parametrize("error", [StoreUnavailable("down"), LookupError("trimmed")], ids=["broken", "trimmed"])


@BREAKS
async def test_what_was_missed_while_the_stream_was_broken_is_loaded(region: Bench, error: Exception) -> None:
    """Even where the server was restarted, forgot the scripts, and is not ready at the first try."""
    other, store, raw = await other_worker(region), await region.worker(kind=Breaking), await region.raw()
    await other.commit(put("gone"), put("stays"))
    async with following(store, windows=LONG) as made:
        store.loads_fail = 2
        store.broken = error
        await other.commit(put("new"), Put("n:gone", None))
        await other.store.beat("n:stays", b'{"cpu_percent":3}', NOW_MS + 9)
        await raw.delete(region.key("changes"))
        await raw.script_flush()
        await becomes(lambda: made.statuses() == {"new": "online", "stays": "online"})
        await becomes(lambda: made.metrics("stays") == b'{"cpu_percent":3}')
        assert store.loads_fail == 0
        await other.commit(put("later"))
        await becomes(lambda: "later" in made.statuses())


@BREAKS
async def test_a_writer_knows_better_than_the_store_and_loads_nothing(region: Bench, error: Exception) -> None:
    other, store = await other_worker(region), await region.worker(kind=Breaking)
    await other.commit(put("a"))
    async with following(store, windows=LONG) as made:

        async def replaced() -> None:
            raise AssertionError("the store is the same")

        made.follower.on_replaced = replaced
        made.directory.put(record("only-here"), 2**50, 0.0)
        loads = store.loads
        store.broken = error
        await becomes(lambda: store.broken is None)

        async def heard() -> bool:
            """Heartbeats that come between the two streams are not told: nobody needs every one."""
            await other.store.beat("n:a", b'{"cpu_percent":5}', NOW_MS + 10)
            return made.metrics("a") == b'{"cpu_percent":5}'

        await until(heard, 10)
        assert store.loads == loads
        assert set(made.statuses()) == {"a", "only-here"}


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
    writer = await region.writer(store)
    made = Follow(store, ManualClock())
    await writer.commit(put("a"))
    made.directory.put(record("lost"), 1, 0.0)  # the store no longer has it

    async def meanwhile() -> None:
        version = await writer.commit(put("new"))
        made.directory.put(record("new"), version, 0.0)

    store.meanwhile = meanwhile
    await made.follower.start()
    try:
        assert sorted(made.statuses()) == ["a", "new"]
    finally:
        await made.follower.stop()


async def test_a_store_that_was_emptied_is_not_believed_and_the_writer_hears_of_it(region: Bench) -> None:
    writer = await other_worker(region)
    store = await region.worker()
    await writer.commit(put("a"))
    async with following(store, settings={"admin_key_hash": b"kept"}) as made:
        await becomes(lambda: made.knows_its_store)
        told = asyncio.Event()

        async def replaced() -> None:
            told.set()

        made.follower.on_replaced = replaced
        await emptied(region)
        await asyncio.wait_for(told.wait(), 5)
        assert await store.setting("admin_key_hash", b"another") == b"kept"
        assert made.statuses() == {"a": "online"}
        await becomes(lambda: made.follower.reasons == [])


async def test_the_store_s_faults_are_the_reasons_of_not_being_ready(region: Bench) -> None:
    writer, store, raw, clock = await other_worker(region), await region.worker(), await region.raw(), ManualClock()
    await writer.commit(put("a"))
    async with following(store, clock) as made:
        await becomes(lambda: made.knows_its_store)
        await raw.delete(region.key("settings"))
        await raw.set(region.key("settings"), "in the way")
        await becomes(lambda: made.follower.reasons == ["store: refused"])
        heard_until_s = made.follower.heard_until_s
        clock.advance(50)
        await raw.delete(region.key("settings"))
        await becomes(lambda: made.follower.reasons == [])
        assert made.directory.due(clock.monotonic() + 0.39) == []  # nobody is blamed for the outage
        assert len(made.directory.due(clock.monotonic() + 0.41)) == 1
        assert made.follower.heard_until_s > heard_until_s


async def test_until_it_has_loaded_it_is_not_ready(region: Bench) -> None:
    made = Follow(await region.worker(), ManualClock())
    assert made.follower.reasons == ["loading nodes from the store"]


async def test_foreign_bytes_in_the_store_are_named_at_the_start(region: Bench) -> None:
    writer = await other_worker(region)
    await writer.commit(put("a"), Put("n:old", b'{"node_id":"old"}'))
    made = Follow(await region.worker(), ManualClock())
    with pytest.raises(ValueError, match="what the store holds under n:old is no record of this version"):
        await made.follower.start()
