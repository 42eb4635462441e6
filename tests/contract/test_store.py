"""registry.ports.Store but for its writer (test_commit.py) and its stream (test_tail.py): heartbeats, and what
belongs to the region. One contract, on a fake server and on a real one."""

import asyncio

from registry.ports import Loaded, Put
from registry.store import CHUNK
from tests.support.live import until
from tests.support.stores import Bench, loaded

AT = 1_700_000_000_000


# heartbeats


async def test_a_heartbeat_needs_a_record(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    assert await store.beat("n:nobody", b"{}", AT) is False
    assert await raw.keys(region.key("*")) == []
    writer = await region.writer(store)
    version = await writer.put("n:a")
    assert (await loaded(store))["n:a"] == Loaded("n:a", version, b"x", None, None, None)
    assert await store.beat("n:a", b'{"cpu percent": 1}', AT + 5) is True
    record = (await loaded(store))["n:a"]
    assert (record.beat, record.last_beat_at_ms) == (b'{"cpu percent": 1}', AT + 5)
    await writer.remove("n:a")
    assert await store.beat("n:a", b"{}", AT + 6) is False
    assert not await raw.exists(region.key("beat:n:a"))


async def test_the_newest_heartbeat_is_kept(region: Bench) -> None:
    store = await region.worker()
    await (await region.writer(store)).put("n:a")
    await asyncio.gather(*(store.beat("n:a", b"%d" % i, AT + i) for i in range(5)))
    record = (await loaded(store))["n:a"]
    assert (record.beat, record.last_beat_at_ms) == (b"4", AT + 4)


async def test_a_record_that_is_written_again_keeps_its_heartbeat(region: Bench) -> None:
    store = await region.worker()
    writer = await region.writer(store)
    await writer.put("n:a")
    await store.beat("n:a", b"heard", AT)
    version = await writer.put("n:a", data=b"y")
    record = (await loaded(store))["n:a"]
    assert (record.version, record.data, record.beat, record.last_beat_at_ms) == (version, b"y", b"heard", AT)


async def test_the_age_of_a_heartbeat_is_what_its_key_has_lived(region: Bench) -> None:
    store, raw = await region.worker(window_ms=60_000), await region.raw()
    await (await region.writer(store)).put("n:a")
    await store.beat("n:a", b"{}", AT)
    assert 0 <= (await loaded(store))["n:a"].beat_age_ms < 30_000
    await raw.pexpire(region.key("beat:n:a"), 20_000)
    assert 40_000 <= (await loaded(store))["n:a"].beat_age_ms < 60_000
    # A worker with another window reads it by the window that it was written with.
    other = await region.worker("w2", window_ms=1_000_000)
    assert 40_000 <= (await loaded(other))["n:a"].beat_age_ms < 60_000


async def test_a_heartbeat_expires_with_its_window_and_its_time_stays(region: Bench) -> None:
    store = await region.worker(window_ms=40)
    await (await region.writer(store)).put("n:a")
    await store.beat("n:a", b"{}", AT)

    async def expired() -> bool:
        return (await loaded(store))["n:a"].beat_age_ms is None

    await until(expired, 5)
    record = (await loaded(store))["n:a"]
    assert (record.beat, record.last_beat_at_ms, record.data) == (None, AT, b"x")


async def test_the_unheard_are_those_without_a_live_heartbeat(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    await (await region.writer(store)).put("n:heard", "n:expired", "n:never")
    for key in ("n:heard", "n:expired"):
        await store.beat(key, b"", AT)
    await raw.delete(region.key("beat:n:expired"))
    asked = ["n:never", "n:heard", "n:expired", "n:nobody"]
    assert await store.unheard(asked) == ["n:never", "n:expired", "n:nobody"]
    assert await store.unheard([]) == []
    many = [f"n:{i}" for i in range(CHUNK + 5)]
    assert await store.unheard([*many, "n:heard", "n:never"]) == [*many, "n:never"]


# what belongs to the region


async def test_the_first_writer_of_a_setting_wins(region: Bench) -> None:
    workers = [await region.worker(f"w{i}") for i in range(4)]
    answers = await asyncio.gather(*(w.setting("secret", b"%d" % i) for i, w in enumerate(workers)))
    assert len(set(answers)) == 1
    assert await workers[3].setting("secret", b"late") == answers[0]
    assert await workers[3].setting("other", b"late") == b"late"


async def test_what_was_published_last_under_a_name_is_answered(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    assert await two.published("peers") is None
    await one.publish("peers", b"\x00 first")
    await one.publish("others", b"")
    assert await two.published("peers") == b"\x00 first"
    await two.publish("peers", b"second")
    assert await one.published("peers") == b"second"
    assert await one.published("others") == b""


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
    writer = await region.writer(store)
    await writer.commit(Put("n:a", b"x"), Put("n:b", b"x"), meta=b"m")
    await store.beat("n:a", b"{}", AT)
    await writer.remove("n:b")
    await store.setting("s", b"x")
    await store.publish("p", b"x", b"n:c 1 0\n")
    await store.ping()
    made = set(await raw.keys("*")) - before
    names = ("alive", "beat:n:a", "changes", "last", "lease", "meta", "pub:p", "records", "seq", "settings")
    assert made == {region.key(name).encode() for name in names}


async def test_regions_on_one_server_do_not_see_each_other(region: Bench) -> None:
    here = await region.worker()
    await (await region.writer(here)).commit(Put("n:a", b"x"), meta=b"m")
    await here.beat("n:a", b"{}", AT)
    await here.publish("p", b"x")
    region.region += "-other"
    there = await region.worker()
    assert await there.beat("n:a", b"{}", AT) is False
    assert await loaded(there) == {}
    assert await there.keys() == set()
    assert (await there.version(), await there.meta(), await there.published("p")) == (0, None, None)
    assert await there.position() == "0-0"
    assert (await there.lease("t2", "there", 1_000)).token == "t2"


async def test_every_record_is_loaded_once_in_chunks(region: Bench) -> None:
    store = await region.worker()
    writer = await region.writer(store)
    keys = [f"n:{i}" for i in range(1_300)]
    for some in (keys[:700], keys[700:]):
        await writer.commit(*(Put(key, key.encode()) for key in some))
    await asyncio.gather(*(store.beat(key, b"{}", AT) for key in keys))
    chunks = [chunk async for chunk in store.load()]
    assert all(0 < len(chunk) <= CHUNK for chunk in chunks)
    records = [record for chunk in chunks for record in chunk]
    assert sorted(record.key for record in records) == sorted(keys)
    assert all(record.data == record.key.encode() and record.beat == b"{}" for record in records)
    assert await store.keys() == set(keys)
