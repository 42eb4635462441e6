"""registry.ports.Store: the change stream, which other workers follow."""

import asyncio
import contextlib
from typing import Any

import pytest

from registry.change_stream import PORTION, TAIL_COUNT
from registry.group_commit import frame
from registry.ports import Change, Put, StoreUnavailable
from tests.support.proxy import Proxy
from tests.support.stores import Bench, loaded, told

AT = 1_700_000_000_000


def put(key: str, version: int, data: bytes = b"x") -> Change:
    return Change("put", key, version, data, 0)


def beat(key: str, payload: bytes, at_ms: int) -> Change:
    return Change("beat", key, 0, payload, at_ms)


async def test_a_worker_is_told_of_the_others_changes_in_their_order(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    writer = await region.writer(one)
    await writer.put("n:before", "n:gone")
    position = await two.position()
    first = await writer.commit(Put("n:a", b"\x00 one"), Put("r:eu", b"two"))
    await one.beat("n:a", b"m 1", AT + 2)
    await two.beat("n:a", b"own", AT + 4)
    gone = await writer.commit(Put("n:gone", None), Put("k:1", b"three"))
    assert await told(two, position, 5) == [
        put("n:a", first, b"\x00 one"),
        put("r:eu", first, b"two"),
        beat("n:a", b"m 1", AT + 2),
        Change("remove", "n:gone", gone, b"", 0),
        put("k:1", gone, b"three"),
    ]


async def test_a_record_is_told_as_it_is_now_and_once(region: Bench) -> None:
    """Each change is told with the newest state; a heartbeat in between comes after the record it needs."""
    one, two = await region.worker("w1"), await region.worker("w2")
    writer = await region.writer(one)
    position = await two.position()
    await writer.put("n:a", "n:b", "n:c")
    await one.beat("n:a", b"m", AT)
    newest = await writer.put("n:a", data=b"y")
    gone = await writer.remove("n:b")
    await writer.remove("n:c")
    again = await writer.put("n:c", data=b"z")
    assert await told(two, position, 4) == [
        put("n:a", newest, b"y"),
        Change("remove", "n:b", gone, b"", 0),
        put("n:c", again, b"z"),
        beat("n:a", b"m", AT),
    ]


async def test_a_waiting_worker_is_told_at_once(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    writer = await region.writer(one)
    waiting = asyncio.create_task(told(two, await two.position(), 1))
    await asyncio.sleep(0)
    version = await writer.put("n:a")
    assert await waiting == [put("n:a", version)]


async def test_a_worker_is_not_told_of_what_it_did_itself(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    writer = await region.writer(one)
    position = await one.position()
    await writer.put("n:a")
    await one.beat("n:a", b"own", AT)
    await one.publish("p", b"", frame("n:far", AT, b"own"))
    await writer.remove("n:a")
    await one.release(writer.token)
    other = await region.writer(two, "t2")
    version = await other.put("n:b")
    assert await told(one, position, 1) == [put("n:b", version)]


async def test_a_commit_that_was_given_up_and_landed_is_told_to_its_own_worker(region: Bench) -> None:
    """Its caller was cancelled, or got no answer: it does not know."""
    store, raw = await region.worker(), await region.raw()
    writer = await region.writer(store)
    position = await store.position()
    task = asyncio.create_task(writer.put("n:a"))
    for _ in range(2):  # until it is queued
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await told(store, position, 1) == [put("n:a", 1)]
    assert await raw.xlen(region.key("changes")) == 1


async def test_who_is_far_behind_may_be_told_of_its_own_oldest_commits(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many commits a worker remembers as its own is bounded."""
    monkeypatch.setattr("registry.store_scripts.STREAM_LENGTH", 2)
    store = await region.worker()
    writer = await region.writer(store)
    position = await store.position()
    oldest = await writer.put("n:a")
    await writer.put("n:b")
    await writer.put("n:c")
    assert await told(store, position, 1) == [put("n:a", oldest)]


async def test_heartbeats_of_one_turn_are_each_told(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    keys = [":w", "h", "w", "a:b", "A", "a", "c", "v"]
    await (await region.writer(one)).put(*keys)
    position = await two.position()
    await asyncio.gather(*(one.beat(key, key.encode(), AT + i) for i, key in enumerate(keys)))
    assert await told(two, position, len(keys)) == [beat(key, key.encode(), AT + i) for i, key in enumerate(keys)]


async def test_published_heartbeats_are_told_and_nothing_is_kept_of_them(region: Bench) -> None:
    """They are other regions' nodes: whether there is a record is not asked."""
    one, two, raw = await region.worker("w1"), await region.worker("w2"), await region.raw()
    await (await region.writer(one)).put("n:here")
    position = await two.position()
    await one.publish("p", b"seen", frame("n:far", AT, b"m 1\n") + frame("n:here", AT + 1, b""))
    await one.publish("p", b"quiet")
    assert await told(two, position, 2) == [beat("n:far", b"m 1\n", AT), beat("n:here", b"", AT + 1)]
    assert await two.published("p") == b"quiet"
    assert await raw.xlen(region.key("changes")) == 2
    assert await two.unheard(["n:far", "n:here"]) == ["n:far", "n:here"]
    assert not await raw.exists(region.key("last"))


async def test_nothing_is_missed_between_position_and_load(region: Bench) -> None:
    """Position first, then load: what comes in between is in either or in both."""
    one, two = await region.worker("w1"), await region.worker("w2")
    writer = await region.writer(one)
    await writer.put("n:a")
    position = await two.position()
    await writer.put("n:b")
    assert set(await loaded(two)) == {"n:a", "n:b"}
    await writer.put("n:c")
    assert [change.key for change in await told(two, position, 2)] == ["n:b", "n:c"]


async def test_the_stream_holds_no_records_and_is_told_in_portions(region: Bench) -> None:
    """A newcomer region's records come in bulk."""
    one, two, raw = await region.worker("w1"), await region.worker("w2"), await region.raw()
    writer = await region.writer(one)
    position = await two.position()
    keys = [f"n:{i}" for i in range(5 * 500)]
    for start in range(0, len(keys), 500):
        await writer.put(*keys[start : start + 500], data=b"large" * 200)
    entries = await raw.xrange(region.key("changes"))
    assert len(entries) == 5
    assert all(b"large" not in value for _, fields in entries for value in fields.values())
    sizes, seen = [], []
    async with asyncio.timeout(10), contextlib.aclosing(two.tail(position)) as tail:
        async for some in tail:
            sizes.append(len(some))
            seen += some
            if len(seen) >= len(keys):
                break
    assert [change.key for change in seen] == keys
    assert all(change.data == b"large" * 200 for change in seen)
    assert sizes == [PORTION, PORTION, 500]


async def test_a_reader_far_behind_gets_everything_or_is_told_to_load_again(region: Bench) -> None:
    one, two, raw = await region.worker("w1"), await region.worker("w2"), await region.raw()
    await (await region.writer(one)).put("n:a")
    position = await two.position()
    for i in range(TAIL_COUNT + 40):
        await one.beat("n:a", b"{}", AT + i)
    changes = await told(two, position, TAIL_COUNT + 40)
    assert [change.at_ms - AT for change in changes] == list(range(TAIL_COUNT + 40))
    await raw.xtrim(region.key("changes"), maxlen=TAIL_COUNT + 20, approximate=False)
    with pytest.raises(LookupError):
        await told(two, position, TAIL_COUNT + 20)


async def test_who_began_at_an_empty_stream_is_told_when_it_may_have_been_trimmed(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    position = await two.position()
    await (await region.writer(one)).put("n:a")
    for i in range(TAIL_COUNT + 40):
        await one.beat("n:a", b"{}", AT + i)
    assert len(await told(two, position, TAIL_COUNT + 41)) == TAIL_COUNT + 41
    monkeypatch.setattr("registry.store_scripts.STREAM_LENGTH", TAIL_COUNT)
    with pytest.raises(LookupError):
        await told(two, position, TAIL_COUNT + 41)


@pytest.mark.parametrize("seq", [None, 1], ids=["emptied", "older"])
async def test_records_that_a_changed_store_lacks_are_not_told_as_removed(region: Bench, seq: int | None) -> None:
    """It is emptied, or an older copy takes its place, after the entries were read."""
    one, two, raw = await region.worker("w1"), await region.worker("w2"), await region.raw()
    writer = await region.writer(one)
    position = await two.position()
    await writer.put("n:a")
    await writer.put("n:b")
    await raw.delete(region.key("records"), region.key("seq"))
    if seq is not None:
        await raw.set(region.key("seq"), f"{seq:016d}")
    with pytest.raises(LookupError):
        await told(two, position, 1)


async def test_a_connection_that_breaks_ends_the_tail(real_region: Bench, way: Proxy) -> None:
    two = await real_region.worker("w2", url=f"redis://127.0.0.1:{way.port}")
    position = await two.position()
    reading: asyncio.Task[Any] = asyncio.create_task(told(two, position, 1))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(way.cut)
    with pytest.raises(StoreUnavailable) as caught:
        await reading
    assert caught.value.reason == "down"
    way.mend()
    version = await (await real_region.writer()).put("n:a")
    assert await told(two, position, 1) == [put("n:a", version)]


async def test_a_tail_of_something_else_is_refused(real_region: Bench) -> None:
    one, two, raw = await real_region.worker("w1"), await real_region.worker("w2"), await real_region.raw()
    await raw.set(real_region.key("changes"), "in the way")
    with pytest.raises(StoreUnavailable) as caught:
        await told(two, "0-0", 1)
    assert caught.value.reason == "refused"
    await raw.delete(real_region.key("changes"))
    version = await (await real_region.writer(one)).put("n:a")
    assert await told(two, "0-0", 1) == [put("n:a", version)]
