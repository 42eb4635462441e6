"""registry.ports.Store: the lease, and the commits of the one that holds it."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from registry.ports import Change, Fenced, Lease, Put, StoreChanged, StoreUnavailable
from registry.store import MAX_PUTS, RedisStore
from tests.support.live import until
from tests.support.proxy import Proxy
from tests.support.stores import LONG_MS, Bench, Writer, loaded, told
from tests.support.valkey import valkey

AT = 1_700_000_000_000


async def state(region: Bench) -> dict[bytes, Any]:
    """All that lies in the region, but for its lease."""
    raw = await region.raw()
    found: dict[bytes, Any] = {}
    for key in await raw.keys(region.key("*")):
        kind = await raw.type(key)
        if kind == b"hash":
            found[key] = await raw.hgetall(key)
        elif kind == b"stream":
            found[key] = await raw.xrange(key)
        elif not key.endswith(b":lease"):
            found[key] = await raw.get(key)
    return found


# the lease


async def test_of_many_workers_one_holds_the_lease_and_all_know_it(region: Bench) -> None:
    workers = [await region.worker(f"w{i}") for i in range(5)]
    answers = await asyncio.gather(
        *(store.lease(f"t{i}", f"http://w{i} x", LONG_MS) for i, store in enumerate(workers) for _ in range(3))
    )
    assert len(set(answers)) == 1
    holder = answers[0]
    number = int(holder.token[1:])
    assert holder == Lease(f"t{number}", f"http://w{number} x")
    outcomes = await asyncio.gather(
        *(store.commit(f"t{i}", {0}, 1, [Put("n:a", b"%d" % i)], None) for i, store in enumerate(workers)),
        return_exceptions=True,
    )
    assert [i for i, outcome in enumerate(outcomes) if outcome is None] == [number]
    assert all(isinstance(outcome, Fenced) for i, outcome in enumerate(outcomes) if i != number)
    assert (await loaded(workers[0]))["n:a"].data == b"%d" % number


async def test_the_holder_makes_its_lease_last_and_moves_its_address(region: Bench) -> None:
    one, two, raw = await region.worker("w1"), await region.worker("w2"), await region.raw()
    await one.lease("t1", "here", 1_000)
    assert await one.lease("t1", "there", LONG_MS) == Lease("t1", "there")
    assert await raw.pttl(region.key("lease")) > 30_000
    assert await two.lease("t2", "", LONG_MS) == Lease("t1", "there")
    assert await two.lease("t", "", LONG_MS) == Lease("t1", "there")  # a part of a token is another token


async def test_a_lease_that_expired_is_anybodys(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    await one.lease("t1", "", 30)

    async def taken() -> bool:
        return (await two.lease("t2", "", LONG_MS)).token == "t2"

    await until(taken, 5)
    assert (await one.lease("t1", "", LONG_MS)).token == "t2"


async def test_only_the_holder_gives_the_lease_back(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    await one.release("t1")
    await one.lease("t1", "", LONG_MS)
    await two.release("t2")
    await two.release("t")
    assert (await two.lease("t2", "", LONG_MS)).token == "t1"
    await one.release("t1")
    assert (await two.lease("t2", "", LONG_MS)).token == "t2"


@pytest.mark.parametrize("token", ["", "two words", " t"])
async def test_a_token_is_one_word(region: Bench, token: str) -> None:
    with pytest.raises(ValueError, match="one word"):
        await (await region.worker()).lease(token, "", LONG_MS)


# fencing


async def test_who_does_not_hold_the_lease_writes_nothing(region: Bench) -> None:
    store = await region.worker()
    writer = Writer(store, "t1")
    puts = [Put("n:a", b"y"), Put("n:b", None)]
    with pytest.raises(Fenced):  # nobody does
        await writer.commit(*puts, meta=b"m")
    assert await state(region) == {}
    holder = await region.writer(store, "t2")
    await holder.put("n:a", "n:b")
    await store.beat("n:b", b"{}", AT)
    before = await state(region)
    for expected in (None, {1}):
        with pytest.raises(Fenced):  # somebody else does
            await writer.commit_on(expected, *puts, meta=b"m")
    writer.token = "t"
    with pytest.raises(Fenced):
        await writer.commit_on(None, *puts)
    await store.release("t2")
    holder.number = 1
    with pytest.raises(Fenced):  # it gave it back
        await holder.commit(*puts)
    assert await state(region) == before


async def test_a_writer_that_stood_while_its_lease_ran_out_writes_nothing_until_it_takes_it_again(
    region: Bench,
) -> None:
    store, raw = await region.worker(), await region.raw()
    writer = await region.writer(store)
    await writer.put("n:a")
    await store.lease(writer.token, "", 20)

    async def expired() -> bool:
        return not await raw.exists(region.key("lease"))

    await until(expired, 5)
    with pytest.raises(Fenced):
        await writer.put("n:b")
    assert await store.version() == 1
    await store.lease(writer.token, "", LONG_MS)  # nobody else took it meanwhile
    await writer.put("n:b")
    assert await store.keys() == {"n:a", "n:b"}


async def test_a_deposed_writer_does_not_write_over_its_successor(region: Bench) -> None:
    one, two = await region.worker("w1"), await region.worker("w2")
    old = await region.writer(one)
    await old.put("n:a", data=b"old")
    await one.release("t1")  # as if it had run out
    new = await region.writer(two, "t2")
    await new.put("n:a", data=b"new")
    for expected in ({1}, {2}, {1, 2}, None):
        with pytest.raises(Fenced):
            await old.commit_on(expected, Put("n:a", b"late"))
    assert (await loaded(one))["n:a"].data == b"new"


# commits


async def test_a_commit_keeps_removes_and_numbers(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    writer = await region.writer(store)
    assert (await store.version(), await store.meta(), await store.keys()) == (0, None, set())
    await writer.commit(Put("n:a", b"\x00one \xff\n"), Put("k:1", b""), Put("r:é", b"x"), meta=b"")
    assert (await store.version(), await store.meta(), await store.keys()) == (1, b"", {"n:a", "k:1", "r:é"})
    await store.beat("n:a", b"{}", AT)
    await store.beat("k:1", b"{}", AT)
    assert await raw.hexists(region.key("last"), "n:a")
    await writer.commit(Put("n:a", None), Put("n:never", None), Put("k:1", b"new"))
    assert await store.meta() == b""
    records = await loaded(store)
    assert {key: (r.version, r.data) for key, r in records.items()} == {"k:1": (2, b"new"), "r:é": (1, b"x")}
    assert not await raw.exists(region.key("beat:n:a"))
    assert not await raw.hexists(region.key("last"), "n:a")
    assert records["k:1"].beat == b"{}"
    await writer.put("n:a")
    record = (await loaded(store))["n:a"]
    assert (record.beat, record.last_beat_at_ms) == (None, None)


async def test_a_commit_of_nothing_but_meta_is_a_commit(region: Bench) -> None:
    store = await region.worker()
    writer = await region.writer(store)
    await writer.commit(meta=b"\x00m")
    assert (await store.version(), await store.meta(), await store.position()) == (1, b"\x00m", "0-0")
    await writer.commit()
    assert (await store.version(), await store.meta()) == (2, b"\x00m")


async def test_the_number_is_the_callers(region: Bench) -> None:
    """It may be the clock, and after the loss of the newest commits it may be lower."""
    store = await region.worker()
    await store.lease("t1", "", LONG_MS)
    for number in (AT, 9_999_999_999_999_999, 7):
        await store.commit("t1", None, number, [Put("n:a", b"x")], None)
        assert await store.version() == number
        assert (await loaded(store))["n:a"].version == number


async def test_of_two_changes_to_one_record_in_a_commit_the_later_one_counts(region: Bench) -> None:
    store = await region.worker()
    writer = await region.writer(store)
    await writer.commit(Put("n:a", b"x"), Put("n:a", b"y"), Put("n:b", b"x"), Put("n:b", None))
    assert {key: record.data for key, record in (await loaded(store)).items()} == {"n:a": b"y"}


@pytest.mark.parametrize("key", ["", "two words", "n:\n", " n", "n\t"])
async def test_keys_that_the_stream_could_not_tell_apart_are_refused(region: Bench, key: str) -> None:
    writer = await region.writer()
    with pytest.raises(ValueError, match="without spaces"):
        await writer.commit(Put("n:a", b"x"), Put(key, b"x"))
    assert await writer.store.version() == 0


async def test_the_largest_commit_is_taken_and_a_larger_one_is_not(region: Bench) -> None:
    writer = await region.writer()
    keys = [f"n:{i}" for i in range(MAX_PUTS + 1)]
    with pytest.raises(ValueError, match="at most"):
        await writer.put(*keys)
    await writer.put(*keys[:-1])
    assert await writer.store.keys() == set(keys[:-1])
    await writer.remove(*keys[:-1])
    assert await writer.store.keys() == set()


async def test_bulk(region: Bench) -> None:
    store, other = await region.worker("w1"), await region.worker("w2")
    writer = await region.writer(store)
    position = await other.position()
    puts = [Put(f"n:{i}", random.Random(i).randbytes(1_000)) for i in range(500)]
    await writer.commit(*puts, meta=b"m")
    assert {key: record.data for key, record in (await loaded(store)).items()} == {p.key: p.data for p in puts}
    assert await told(other, position, 500) == [Change("put", p.key, 1, p.data, 0) for p in puts]


# which store it is


@pytest.mark.parametrize(
    ("newest", "expected", "taken"),
    [
        (0, {0}, True),
        (0, {5}, False),  # it was emptied
        (5, {5}, True),
        (4, {5}, False),  # an older copy
        (6, {5}, False),  # somebody else wrote
        (5, {5, 6}, True),  # the commit of unknown outcome was not taken
        (6, {5, 6}, True),  # or was
        (7, {5, 6}, False),
        (4, {5, 6}, False),
        (0, {5, 6}, False),
        (5, set(), False),
        (0, None, True),
        (5, None, True),
        (15, {5, 51, 155, 150}, False),  # no number is a part of another
    ],
)
async def test_a_commit_goes_on_an_expected_one_only(
    region: Bench, newest: int, expected: set[int] | None, taken: bool
) -> None:
    store = await region.worker()
    await store.lease("t1", "", LONG_MS)
    if newest:
        await store.commit("t1", None, newest, [Put("n:a", b"x"), Put("n:b", b"x")], b"m")
        await store.beat("n:b", b"{}", AT)
    before = await state(region)
    changes = ("t1", expected, 200, [Put("n:a", b"y"), Put("n:b", None)], b"n")
    if taken:
        await store.commit(*changes)
        assert await store.version() == 200
        assert {key: record.data for key, record in (await loaded(store)).items()} == {"n:a": b"y"}
    else:
        with pytest.raises(StoreChanged):
            await store.commit(*changes)
        assert await state(region) == before


async def test_a_store_that_was_emptied_under_the_writer_is_found_out(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    writer = await region.writer(store)
    await writer.put("n:a")
    for key in await raw.keys(region.key("*")):
        await raw.delete(key)
    with pytest.raises(Fenced):  # the lease is gone with the rest
        await writer.put("n:b")
    await store.lease(writer.token, "", LONG_MS)
    with pytest.raises(StoreChanged):
        await writer.put("n:b")
    assert await store.version() == 0


# whole or not at all


async def test_a_commit_without_an_answer_may_be_made_again(real_region: Bench, way: Proxy) -> None:
    """Nobody knows the outcome: the next one goes on either number, and a late copy of the first does nothing."""
    store = await real_region.worker(url=f"redis://127.0.0.1:{way.port}")
    writer = await real_region.writer(store)
    await writer.put("n:a")
    way.lose_answer_to(b"unheard-of")
    with pytest.raises(StoreUnavailable) as caught:
        await writer.put("n:a", data=b"unheard-of")
    assert caught.value.reason == "slow"
    assert (await loaded(store))["n:a"].data == b"unheard-of"
    writer.number = 2
    await writer.commit_on({1, 2}, Put("n:a", b"again"))
    assert await store.version() == 3
    with pytest.raises(StoreChanged):
        await store.commit("t1", {1}, 2, [Put("n:a", b"unheard-of")], None)
    assert (await loaded(store))["n:a"].data == b"again"


@pytest.mark.parametrize("cut_after_s", [0.002, 0.02, 0.045, 0.08])
async def test_a_connection_that_breaks_in_a_commit_leaves_all_of_it_or_nothing(
    real_region: Bench, way: Proxy, cut_after_s: float
) -> None:
    store = await real_region.worker(url=f"redis://127.0.0.1:{way.port}")
    writer = await real_region.writer(store)
    await writer.put(*(f"n:{i}" for i in range(500)))
    way.delay(0.005)  # a piece: there are about eight of 64 KB, and the script's answer
    puts = [Put(f"n:{i}", None if i % 2 else bytes(2_000)) for i in range(500)]
    task = asyncio.create_task(writer.commit(*puts, meta=b"m"))
    await asyncio.sleep(cut_after_s)
    await asyncio.to_thread(way.cut)
    await asyncio.gather(task, return_exceptions=True)
    way.mend()
    way.delay(0)
    seen = await real_region.worker("w2")
    taken = await seen.version() == 2
    assert {r.version for r in (await loaded(seen)).values()} == ({2} if taken else {1})
    assert len(await seen.keys()) == (250 if taken else 500)
    assert await seen.meta() == (b"m" if taken else None)
    assert await (await real_region.raw()).xlen(real_region.key("changes")) == (2 if taken else 1)
    await seen.commit("t1", {1, 2}, 3, puts, b"m")
    assert {(r.version, r.data) for r in (await loaded(seen)).values()} == {(3, bytes(2_000))}


async def test_a_server_that_is_killed_in_a_commit_comes_back_with_all_of_it_or_nothing(tmp_path: Path) -> None:
    with valkey(tmp_path, "appendonly yes") as server:
        store = RedisStore(server.url, region="r", worker_id="w", beat_window_ms=1_000)
        await store.start()
        await store.lease("t1", "", LONG_MS)
        number = 0  # of the commit under way, which may or may not have been made
        for _ in range(3):

            async def write() -> None:
                nonlocal number
                while True:
                    number += 1
                    await store.commit("t1", None, number, [Put(f"n:{i}", bytes(500)) for i in range(200)], b"m")

            writing = asyncio.create_task(write())
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.kill)
            with pytest.raises(StoreUnavailable):
                await writing
            await asyncio.to_thread(server.start)
            await store.lease("t1", "", LONG_MS)
            newest = await store.version()
            assert {record.version for record in (await loaded(store)).values()} == {newest}
            # A disk that is busy syncing keeps a server from writing its file for up to two seconds: the newest
            # commits may be missing, as whole ones. Whoever writes finds that out by the number.
            assert 0 < newest <= number
            number = newest
        await store.aclose()


async def test_a_full_or_read_only_server_takes_nothing_of_a_commit(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        store = RedisStore(server.url, region="r", worker_id="w", beat_window_ms=1_000)
        await store.start()
        writer = Writer(store, "t1")
        await store.lease("t1", "", LONG_MS)
        await writer.put("n:a")
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable) as caught:
            await writer.commit(Put("n:a", b"y"), Put("n:b", b"y"), meta=b"m")
        assert caught.value.reason == "out_of_memory"
        server.ask("CONFIG", "SET", "maxmemory", "0")
        server.ask("REPLICAOF", "127.0.0.1", "1")
        for call in (writer.put("n:b"), store.release("t1")):
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert caught.value.reason == "read_only"
        server.ask("REPLICAOF", "NO", "ONE")
        assert (await store.version(), await store.meta(), await store.keys()) == (1, None, {"n:a"})
        await writer.put("n:b")
        await store.aclose()


@pytest.mark.parametrize("name", ["records", "last", "changes"])
async def test_where_a_key_holds_something_foreign_a_commit_has_no_number_and_can_be_made_again(
    region: Bench, name: str
) -> None:
    store, raw = await region.worker(), await region.raw()
    writer = await region.writer(store)
    await writer.put("n:a", "n:b")
    await raw.delete(region.key(name))
    await raw.set(region.key(name), "in the way")
    with pytest.raises(StoreUnavailable) as caught:
        await writer.commit(Put("n:a", b"y"), Put("n:b", None))
    assert caught.value.reason == "refused"
    assert await store.version() == 1
    await raw.delete(region.key(name))
    await writer.commit(Put("n:a", b"y"), Put("n:b", None))
    assert {key: record.data for key, record in (await loaded(store)).items()} == {"n:a": b"y"}
