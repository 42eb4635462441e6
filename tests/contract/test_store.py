"""registry.ports.Store: one contract, on a fake server and on a real one."""

import asyncio
import contextlib

import pytest

from registry.ports import Change, Loaded, Store, Stored, VersionConflict
from registry.store import TAIL_COUNT
from tests.support.live import until
from tests.support.stores import Bench, loaded, told

AT = 1_700_000_000_000


# records and their versions


async def test_what_is_put_is_got(region: Bench) -> None:
    store = await region.worker()
    assert await store.get("a") is None
    version = await store.put("a", b"\x00one \xff", expected=0, at_ms=AT)
    assert await store.get("a") == Stored(version, b"\x00one \xff")
    newer = await store.put("a", b"two", expected=version, at_ms=AT)
    assert newer > version
    assert await store.get("a") == Stored(newer, b"two")
    gone = await store.delete("a", expected=newer, at_ms=AT)
    assert gone > newer
    assert await store.get("a") is None
    assert await loaded(store) == {}


async def test_a_write_on_another_version_is_a_conflict_and_changes_nothing(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    position = await store.position()
    for expected in (1, 5):
        with pytest.raises(VersionConflict):
            await store.put("a", b"x", expected=expected, at_ms=AT, beat=b"{}")
        with pytest.raises(VersionConflict):
            await store.delete("a", expected=expected, at_ms=AT)
    assert await store.position() == position
    assert not await raw.exists(region.key("beat:a"))
    version = await store.put("a", b"one", expected=0, at_ms=AT)
    for expected in (0, version - 1, version + 1):
        with pytest.raises(VersionConflict):
            await store.put("a", b"two", expected=expected, at_ms=AT, beat=b"{}")
        with pytest.raises(VersionConflict):
            await store.delete("a", expected=expected, at_ms=AT)
    assert await store.get("a") == Stored(version, b"one")
    assert (await loaded(store))["a"].beat is None


async def test_of_many_writers_none_overwrites_another(region: Bench) -> None:
    workers = [await region.worker(f"w{i}") for i in range(3)]

    async def increment(store: Store) -> None:
        while True:
            found = await store.get("a")
            value = int(found.data) + 1 if found else 1
            with contextlib.suppress(VersionConflict):
                await store.put("a", b"%d" % value, expected=found.version if found else 0, at_ms=AT)
                return

    await asyncio.gather(*(increment(store) for store in workers for _ in range(5)))
    assert (await workers[0].get("a")).data == b"15"


async def test_versions_grow_over_all_nodes_whatever_the_clock_does(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    versions = [
        await store.put(f"n{i}", b"x", expected=0, at_ms=AT + jump)
        for i, (store, jump) in enumerate([(one, 0), (two, -50_000), (one, 9), (two, 9), (one, -9)])
    ]
    assert versions == sorted(set(versions))


async def test_versions_grow_past_the_loss_of_everything(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    before = [await store.put(f"n{i}", b"x", expected=0, at_ms=AT) for i in range(5)]
    await raw.flushall()
    assert await store.get("n0") is None
    assert await store.put("n0", b"y", expected=0, at_ms=AT + 1_000) > before[-1]


# heartbeats


async def test_a_heartbeat_needs_a_record(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    assert await store.beat("nobody", b"{}", AT) is False
    assert await raw.keys(region.key("*")) == []
    await store.put("a", b"x", expected=0, at_ms=AT)
    assert (await loaded(store))["a"] == Loaded("a", (await store.get("a")).version, b"x", None, None, None, False)
    assert await store.beat("a", b'{"cpu percent": 1}', AT + 5) is True
    node = (await loaded(store))["a"]
    assert (node.beat, node.last_beat_at_ms, node.offline) == (b'{"cpu percent": 1}', AT + 5, False)


async def test_the_newest_heartbeat_is_kept(region: Bench) -> None:
    store = await region.worker()
    await store.put("a", b"x", expected=0, at_ms=AT, beat=b"first")
    assert (await loaded(store))["a"].beat == b"first"
    await asyncio.gather(*(store.beat("a", b"%d" % i, AT + i) for i in range(5)))
    node = (await loaded(store))["a"]
    assert (node.beat, node.last_beat_at_ms) == (b"4", AT + 4)


async def test_the_age_of_a_heartbeat_is_what_its_key_has_lived(region: Bench) -> None:
    store, raw = await region.worker(window_ms=60_000), await region.raw()
    await store.put("a", b"x", expected=0, at_ms=AT, beat=b"{}")
    assert 0 <= (await loaded(store))["a"].beat_age_ms < 30_000
    await raw.pexpire(region.key("beat:a"), 20_000)
    assert 40_000 <= (await loaded(store))["a"].beat_age_ms < 60_000
    # A worker with another window reads it by the window that it was written with.
    other = await region.worker("w2", window_ms=1_000_000)
    assert 40_000 <= (await loaded(other))["a"].beat_age_ms < 60_000


async def test_a_heartbeat_expires_with_its_window_and_its_time_stays(region: Bench) -> None:
    store = await region.worker(window_ms=40)
    await store.put("a", b"x", expected=0, at_ms=AT, beat=b"{}")

    async def expired() -> bool:
        return (await loaded(store))["a"].beat_age_ms is None

    await until(expired, 5)
    node = (await loaded(store))["a"]
    assert (node.beat, node.last_beat_at_ms, node.data) == (None, AT, b"x")


async def test_a_deletion_takes_everything_of_the_node(region: Bench) -> None:
    store, raw = await region.worker(window_ms=60_000), await region.raw()
    version = await store.put("a", b"x", expected=0, at_ms=AT, beat=b"{}")
    await store.delete("a", expected=version, at_ms=AT)
    assert await store.beat("a", b"{}", AT) is False
    for name in ("records", "last", "offline"):
        assert not await raw.hexists(region.key(name), "a")
    assert not await raw.exists(region.key("beat:a"))
    await store.put("a", b"y", expected=0, at_ms=AT)
    assert (await loaded(store))["a"].last_beat_at_ms is None


async def test_only_silent_nodes_are_marked_offline_and_a_sign_of_life_clears_it(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    for node_id in ("silent", "dead", "alive"):
        await store.put(node_id, b"x", expected=0, at_ms=AT, beat=b"{}" if node_id == "alive" else None)
    assert sorted(await store.mark_offline(["silent", "dead", "alive", "nobody"])) == ["dead", "silent"]
    assert {n.node_id for n in (await loaded(store)).values() if n.offline} == {"silent", "dead"}
    assert not await raw.hexists(region.key("offline"), "nobody")
    await store.beat("silent", b"{}", AT)
    dead = await store.get("dead")
    await store.put("dead", b"x", expected=dead.version, at_ms=AT)  # an operator's change is no sign of life
    assert {n.node_id for n in (await loaded(store)).values() if n.offline} == {"dead"}
    dead = await store.get("dead")
    await store.put("dead", b"x", expected=dead.version, at_ms=AT, beat=b"{}")
    assert not any(n.offline for n in (await loaded(store)).values())
    assert await store.mark_offline([]) == []


# what belongs to the region


async def test_the_first_writer_of_a_setting_wins(region: Bench) -> None:
    workers = [await region.worker(f"w{i}") for i in range(4)]
    answers = await asyncio.gather(*(w.setting("secret", b"%d" % i) for i, w in enumerate(workers)))
    assert len(set(answers)) == 1
    assert await workers[3].setting("secret", b"late") == answers[0]
    assert await workers[3].setting("other", b"late") == b"late"


async def test_the_newest_ping_of_any_worker_is_known(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    assert await two.last_alive_ms() is None
    await one.ping()
    first = await two.last_alive_ms()
    assert first > AT
    await two.ping()
    assert await one.last_alive_ms() >= first


async def test_every_key_is_the_regions(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    before = set(await raw.keys("*"))
    version = await store.put("a", b"x", expected=0, at_ms=AT, beat=b"{}")
    await store.put("b", b"x", expected=0, at_ms=AT)
    await store.beat("a", b"{}", AT)
    await store.mark_offline(["b"])
    await store.delete("a", expected=version, at_ms=AT)
    await store.setting("s", b"x")
    await store.ping()
    made = set(await raw.keys("*")) - before
    assert made
    assert all(key.startswith(region.key("").encode()) for key in made)


async def test_regions_on_one_server_do_not_see_each_other(region: Bench) -> None:
    here = await region.worker()
    await here.put("a", b"x", expected=0, at_ms=AT, beat=b"{}")
    region.region += "-other"
    there = await region.worker()
    assert await there.get("a") is None
    assert await there.beat("a", b"{}", AT) is False
    assert await loaded(there) == {}
    assert await there.position() == "0-0"


async def test_every_node_is_loaded_once_in_chunks(region: Bench) -> None:
    store = await region.worker()
    ids = {f"n{i}" for i in range(1_300)}
    await asyncio.gather(*(store.put(node_id, node_id.encode(), expected=0, at_ms=AT) for node_id in ids))
    await asyncio.gather(*(store.beat(node_id, b"{}", AT) for node_id in ids))
    chunks = [chunk async for chunk in store.load()]
    assert all(0 < len(chunk) <= 1_000 for chunk in chunks)
    nodes = [node for chunk in chunks for node in chunk]
    assert len(nodes) == len(ids)
    assert {node.node_id for node in nodes} == ids
    assert all(node.data == node.node_id.encode() and node.beat == b"{}" for node in nodes)


# the change stream


async def test_a_worker_is_told_of_the_others_changes_in_their_order(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    await one.put("before", b"x", expected=0, at_ms=AT)
    position = await two.position()
    first = await one.put("a", b"one", expected=0, at_ms=AT + 1)
    await one.beat("a", b"m 1", AT + 2)
    second = await one.put("a", b"two", expected=first, at_ms=AT + 3, beat=b"m 2")
    await two.beat("a", b"own", AT + 4)
    gone = await one.delete("a", expected=second, at_ms=AT + 5)
    assert await told(two, position, 4) == [
        Change("put", "a", first, b"one", AT + 1),
        Change("beat", "a", 0, b"m 1", AT + 2),
        Change("put", "a", second, b"two", AT + 3, b"m 2"),
        Change("delete", "a", gone, b"", AT + 5),
    ]


async def test_a_waiting_worker_is_told_at_once(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    waiting = asyncio.create_task(told(two, await two.position(), 1))
    await asyncio.sleep(0)
    version = await one.put("a", b"x", expected=0, at_ms=AT)
    assert await waiting == [Change("put", "a", version, b"x", AT)]


async def test_heartbeats_of_one_turn_are_each_told(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    ids = [":w", "h", "w", "a:b", "A", "a"]
    for node_id in ids:
        await one.put(node_id, b"x", expected=0, at_ms=AT)
    position = await two.position()
    await asyncio.gather(*(one.beat(node_id, node_id.encode(), AT + i) for i, node_id in enumerate(ids)))
    assert await told(two, position, len(ids)) == [
        Change("beat", node_id, 0, node_id.encode(), AT + i) for i, node_id in enumerate(ids)
    ]


async def test_nothing_is_missed_between_position_and_load(region: Bench) -> None:
    """Position first, then load: what comes in between is in either or in both."""
    one, two = await region.worker("w1"), await region.worker("w2")
    await one.put("a", b"x", expected=0, at_ms=AT)
    position = await two.position()
    await one.put("b", b"x", expected=0, at_ms=AT)
    assert set(await loaded(two)) == {"a", "b"}
    await one.put("c", b"x", expected=0, at_ms=AT)
    assert [change.node_id for change in await told(two, position, 2)] == ["b", "c"]


async def test_a_reader_far_behind_gets_everything_or_is_told_to_load_again(region: Bench) -> None:
    one, two, raw = await region.worker("w1"), await region.worker("w2"), await region.raw()
    await one.put("a", b"x", expected=0, at_ms=AT)
    position = await two.position()
    for i in range(TAIL_COUNT + 40):
        await one.beat("a", b"{}", AT + i)
    changes = await told(two, position, TAIL_COUNT + 40)
    assert [change.at_ms - AT for change in changes] == list(range(TAIL_COUNT + 40))
    await raw.xtrim(region.key("changes"), maxlen=TAIL_COUNT + 20, approximate=False)
    with pytest.raises(LookupError):
        await told(two, position, TAIL_COUNT + 20)
