"""Roles in a region: one worker writes, the others follow; starts, takeovers, stores that lose what they had.
Real time where the lease is concerned; every wait is for a condition."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from federation.clock import Now
from federation.effects import Effect
from federation.engine import Engine
from registry import region as region_module
from registry import service as service_module
from registry.errors import ApiError
from registry.lifecycle import Windows
from registry.model import HeartbeatRequest, PatchRequest, parse
from registry.node import Record, node_key
from registry.ports import StoreUnavailable
from registry.region import BOOTSTRAP_ALONE_S, BOOTSTRAP_S
from registry.round_trips import packed, split, unpacked
from registry.service import NotWriter
from registry.writer import Writer
from tests.support.clock import ManualClock
from tests.support.regions import (
    ADMIN,
    ANYONE,
    HERE,
    THERE,
    Copy,
    FakeLinks,
    Faulty,
    Peer,
    Worker,
    becomes,
    emptied,
    in_store,
    lease_lost,
    working,
)
from tests.support.stores import Bench, loaded

QUICK = Windows(0.1, 0.5, 1.0)


async def kept(worker: Worker) -> dict[str, tuple[Any, ...]]:
    return in_store(await loaded(worker.store))


async def held(worker: Worker) -> dict[str, tuple[Any, ...]]:
    return {record.key: record.state() for record in worker.writer.engine.replica.records()}


async def patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """What an agent does: try again on 503. A 404 would make it register again: that is a failure here."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.02)


@pytest.fixture
async def worker(region: Bench) -> AsyncIterator[Worker]:
    async with working(await region.worker(kind=Faulty)) as made:
        yield made


# starts


async def test_a_lone_worker_writes_at_once(worker: Worker) -> None:
    assert worker.region.reasons == []
    answer = await worker.register("a", labels=["x"])
    assert (answer["status"], answer["status_age_s"], answer["home_registry"]) == ("online", 0, HERE)
    assert answer["api_key"].startswith("sk-node-")
    assert answer["version"] == str(worker.writer.position)
    beat = await worker.beat("a", metrics={"cpu_percent": 5}, token=answer["token"])
    assert (beat["success"], "version" in beat) == (True, False)  # nothing was written
    assert await kept(worker) == await held(worker)


async def test_a_restart_keeps_nodes_words_intents_keys_and_deletions(region: Bench) -> None:
    store = await region.worker()
    async with working(store) as first:
        for node_id in ("plain", "leaves", "drained", "removed"):
            await first.register(node_id)
        key = first.directory.get("plain")
        await first.beat("leaves", status="leaving")
        await first.patch("drained", status="maintenance", labels_add=["spare"])
        await first.delete("removed")
        generation, records = first.writer.engine.replica.generation, await held(first)
        token = (await first.beat("plain", metrics={"cpu_percent": 9}))["token"]
        statuses = first.statuses()
    async with working(await region.worker("w2")) as second:
        assert second.statuses() == statuses == {"plain": "online", "leaves": "draining", "drained": "maintenance"}
        assert second.writer.engine.replica.generation > generation
        assert {k: v for k, v in (await held(second)).items() if k != f"r:{HERE}"} == {
            k: v for k, v in records.items() if k != f"r:{HERE}"
        }
        entry = second.directory.get("plain")
        assert entry is not None
        assert key is not None
        assert (entry.key_hash, entry.token) == (key.key_hash, token)
        assert orjson.loads(entry.metrics) == {"cpu_percent": 9}
        with pytest.raises(ApiError, match="No node removed is registered"):
            await second.beat("removed")
        assert (await second.beat("plain", token=token))["success"]
        assert (await second.patch("drained", status="online"))["labels"] == ["spare"]


async def test_a_start_after_a_kill_waits_for_the_lease_of_the_one_before(region: Bench) -> None:
    store = await region.worker()
    first = Worker(store)
    await first.region.start()
    await first.register("a")
    await first.die()
    began_s = time.monotonic()
    async with working(await region.worker("w2")) as second:
        assert second.statuses() == {"a": "online"}
        assert time.monotonic() - began_s < 10
        with pytest.raises(StoreUnavailable):
            await first.register("b")
    assert "n:b" not in await kept(first)


async def test_a_first_look_at_everything_may_outlast_the_lease(region: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    store, look, looks = await region.worker(), Engine.tick, []

    def slowly(engine: Engine, now: Now) -> list[Effect]:
        if not looks:
            time.sleep(0.3)  # nothing else has its turn meanwhile, as with many records
        looks.append(now)
        return look(engine, now)

    monkeypatch.setattr(region_module, "LEASE_S", 0.2)
    monkeypatch.setattr(Engine, "tick", slowly)
    async with working(store) as started:
        await started.register("a")
        assert await kept(started) == await held(started)


async def test_a_start_whose_first_commit_fails_can_be_tried_again(region: Bench) -> None:
    store = await region.worker(kind=Faulty)
    worker = Worker(store, address="/nowhere")
    store.is_down = True
    with pytest.raises(StoreUnavailable):
        await worker.region.start()
    store.is_down = False
    await worker.region.start()
    try:
        await worker.register("a")
        assert await kept(worker) == await held(worker)
    finally:
        await worker.stop()


# several workers


@contextlib.asynccontextmanager
async def two(region: Bench, **options: Any) -> AsyncIterator[tuple[Worker, Worker]]:
    one_store = await region.worker("w1", kind=Faulty)
    other_store = await region.worker("w2", kind=Faulty)
    async with working(one_store, address="/one", **options) as one:
        async with working(other_store, address="/other", **options) as other:
            await becomes(lambda: other.region.writer_address == "/one")
            yield one, other


async def test_one_worker_writes_and_the_others_know_where_it_is(region: Bench) -> None:
    async with two(region) as (one, other):
        assert (one.region.writer_address, other.region.writer) == (None, None)
        assert other.region.reasons == []
        with pytest.raises(NotWriter):
            await other.register("a")
        await one.register("a")
        await becomes(lambda: other.statuses() == {"a": "online"})
        beat = await other.beat("a", metrics={"cpu_percent": 3})  # needs no writer
        assert beat["success"]
        await becomes(lambda: one.directory.get("a").metrics == b'{"cpu_percent":3}')  # type: ignore[union-attr]  # there is one, or the test fails
        for call in (
            other.beat("a", status="leaving"), other.beat("nobody"), other.patch("a", status="draining"),
            other.delete("a"), other.registry.seen(str(one.writer.position)),
        ):  # fmt: skip
            with pytest.raises(NotWriter):
                await call
        await one.beat("a", status="leaving")
        await becomes(lambda: other.statuses() == {"a": "draining"})
        await one.delete("a")
        await becomes(lambda: other.statuses() == {})


async def test_a_writer_that_dies_is_replaced_within_three_seconds_and_changes_nothing_any_more(region: Bench) -> None:
    async with two(region) as (one, other):
        await one.register("a")
        await one.patch("a", status="maintenance")
        generation = one.writer.engine.replica.generation
        await one.die()
        began_s = time.monotonic()
        await becomes(lambda: other.region.writer is not None)
        took_s = time.monotonic() - began_s
        assert other.writer.engine.replica.generation > generation
        assert other.statuses() == {"a": "maintenance"}
        await other.register("b")
        before = await kept(other)
        with pytest.raises(StoreUnavailable):
            await one.register("c")
        with pytest.raises(StoreUnavailable):
            await one.patch("a", status="online")
        assert await kept(other) == before == await held(other)
        assert took_s < 6  # 3 s are promised; the rest is room for a slow machine


async def test_a_writer_that_stops_hands_over_at_once(region: Bench) -> None:
    async with two(region) as (one, other):
        await one.register("a")
        await one.stop()
        await becomes(lambda: other.region.writer is not None, 5)
        await other.register("b")
        assert await kept(other) == await held(other)


async def test_a_deposed_writer_steps_down_and_follows(region: Bench) -> None:
    """It stood still for longer than its lease."""
    async with two(region) as (one, other):
        await one.register("a")
        campaign = one.region._campaign
        assert campaign is not None
        campaign.cancel()
        await asyncio.wait({campaign})
        await becomes(lambda: other.region.writer is not None)
        await other.register("b")
        with pytest.raises(StoreUnavailable):
            await one.register("c")
        one.region._campaign = asyncio.create_task(one.region._campaign_for_ever())
        await becomes(lambda: one.region.writer is None and one.region.writer_address == "/other")
        await becomes(lambda: one.statuses() == {"a": "online", "b": "online"})
        with pytest.raises(NotWriter):
            await one.register("c")
        await other.stop()  # and it writes again, from what the store has
        await becomes(lambda: one.region.writer is not None)
        await one.register("c")
        assert set(one.statuses()) == {"a", "b", "c"}
        assert await kept(one) == await held(one)


async def test_a_worker_is_not_ready_while_nobody_can_be_asked_to_write(region: Bench) -> None:
    """The one with the lease is loading, or is not listening yet."""
    one = Worker(await region.worker("w1"), address="/one")
    one.region.serving = False
    await one.region.start()
    async with working(await region.worker("w2"), address="/other") as other:
        assert other.region.reasons == ["no worker writes for this region at the moment"]
        assert one.region.reasons == []
        one.region.serving = True
        await becomes(lambda: other.region.reasons == [])
        assert other.region.writer_address == "/one"
        await one.stop()


async def test_a_lost_lease_that_nobody_took_is_taken_back(worker: Worker, region: Bench) -> None:
    await worker.register("a")
    generation = worker.writer.engine.replica.generation
    await lease_lost(region)
    assert (await patiently(lambda: worker.register("b")))["node_id"] == "b"
    assert worker.writer.engine.replica.generation == generation


async def test_the_other_workers_hear_how_owners_stand_and_where_else_nodes_may_go(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_module, "PUBLISH_S", 0.05)
    made: list[FakeLinks] = []

    def make_links(writer: Writer) -> FakeLinks:
        made.append(FakeLinks())
        return made[-1]

    async with two(region, links=make_links) as (one, other):
        peer = Peer(one.writer, made[0])
        peer.connect()
        _, effects = peer.engine.register(
            "n:t", (await one_spec(one)), peer.now, incarnation=0, judgement=b'["online",null,null,null]'
        )
        peer.do(effects)
        await becomes(lambda: "t" in other.statuses())
        entry = other.directory.get("t")
        assert entry is not None
        told: list[Any] = []
        other.region.on_registries = told.append
        one.region.tell([{"url": "http://there.example.org", "region": "us"}])

        def stands() -> bool:
            peer.engine.measured("n:t", bytes([10, 255, 255, 255, 255, 255]), peer.now)
            peer.tick()
            return entry.reachable and orjson.loads(entry.metrics) == {"cpu_percent": 20}

        await becomes(stands)
        assert orjson.loads(entry.fragment() + b"}")["status_age_s"] is not None
        await becomes(lambda: told and told[-1] == [{"url": "http://there.example.org", "region": "us"}])


async def test_round_trips_of_nodes_cross_the_federation_and_reach_every_worker(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_module, "PUBLISH_S", 0.05)
    made: list[FakeLinks] = []

    def make_links(writer: Writer) -> FakeLinks:
        made.append(FakeLinks())
        return made[-1]

    async with two(region, links=make_links) as (one, other):
        peer = Peer(one.writer, made[0])
        peer.connect()
        _, effects = peer.engine.register(
            "n:t", (await one_spec(one)), peer.now, incarnation=0, judgement=b'["online",null,null,null]'
        )
        peer.do(effects)
        await becomes(lambda: other.directory.get("t") is not None)
        plain, rtts = bytes([10, 255, 255, 255, 255, 255]), packed({HERE: 12.0, "nobody": 3.0}, 50)

        def heard(numbers: bytes, cpu_percent: int) -> bool:
            peer.engine.measured("n:t", numbers, peer.now)
            peer.tick()
            shown = [orjson.loads(entry.metrics) for each in (one, other) if (entry := each.directory.get("t"))]
            vectors = [each.directory.vector_of("t") for each in (one, other)]
            told = {"cpu_percent": cpu_percent, "registry_rtt_ms": {HERE: pytest.approx(12, rel=0.03)}}
            return shown == [told] * 2 and vectors == [{HERE: pytest.approx(12, rel=0.03)}] * 2

        await becomes(lambda: heard(plain + rtts, 20))
        await becomes(lambda: heard(bytes([11]) + plain[1:], 22)), "the next one says nothing of them"

        await one.register("ours")
        for worker in (one, other):  # each hears heartbeats
            await becomes(lambda worker=worker: worker.directory.get("ours") is not None)
            ms = 40.0 if worker is one else 90.0
            await worker.beat("ours", metrics={"cpu_percent": 20, "registry_rtt_ms": {THERE: ms, "nobody": 1.0}})

            def told(ms: float = ms) -> bool:
                record = peer.engine.replica.get("n:ours")
                beat = record.metrics if record is not None else b""
                return unpacked(split(beat)[1], [THERE]) == {THERE: pytest.approx(ms, rel=0.03)}

            await becomes(told)


async def test_what_a_connection_tells_counts_where_the_node_tells_nothing(region: Bench) -> None:
    async with working(await region.worker()) as worker:
        await worker.register("a")

        async def beaten(rtt_ms: float | None, **report: Any) -> tuple[dict[str, Any], dict[str, float]]:
            request = parse(HeartbeatRequest, {"node_id": "a", **report})
            await worker.registry.heartbeat(ADMIN, request, rtt_ms)
            entry = worker.directory.get("a")
            assert entry is not None
            return orjson.loads(entry.metrics), worker.directory.vector_of("a")

        assert await beaten(None, metrics={"cpu_percent": 1}) == ({"cpu_percent": 1}, {})
        told = {"registry_rtt_ms": {HERE: 7.5}}
        assert await beaten(7.5) == ({"cpu_percent": 1, **told}, {HERE: 7.5}), "beside what it said before"
        assert await beaten(None, metrics={"cpu_percent": 2}) == ({"cpu_percent": 2, **told}, {HERE: 7.5})
        assert (await beaten(9.0, metrics={}))[1] == {HERE: 9.0}, "the newest"
        worker.directory.hear(THERE, reachable=True, age_s=0.0, now_ms=1, generation=1, known=())
        own = {"registry_rtt_ms": {HERE: 5.0, THERE: 80.0}}
        assert await beaten(9.0, metrics=own) == (own, own["registry_rtt_ms"])
        assert await beaten(9.0, metrics={}) == (own, own["registry_rtt_ms"]), "what it told itself stands"
        junk = {"registry_rtt_ms": [1]}
        assert (await beaten(9.0, metrics=junk))[0] == junk
        assert (await beaten(9.0, metrics={"x": {"registry_rtt_ms": {}}}))[1] == {HERE: 9.0}


async def test_what_was_said_of_owners_grows_old_while_nobody_can_tell_more(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(region) as (one, other):
        await one.register("a")
        node = replace(node_of(one, "a"), node_id="t", home_registry=THERE, said=(7, 1))
        words = orjson.dumps([other.clock.wall_ms(), [[THERE, True, 1.0, 7, [[7, 10]]]], []])
        monkeypatch.setattr(one.store, "publish", other.store.ping)
        await region_published(one, words)
        other.directory.put(node, 1, other.clock.monotonic())
        entry = other.directory.get("t")
        assert entry is not None
        await becomes(lambda: entry.reachable)

        async def away(*_: Any) -> Any:
            raise StoreUnavailable("down", "a test says so")

        monkeypatch.setattr(other.store, "lease", away)
        await asyncio.sleep(0)
        other.region._words_at_s -= 60
        await becomes(lambda: not entry.reachable)
        assert orjson.loads(entry.fragment() + b"}")["status_age_s"] >= 60


async def region_published(worker: Worker, words: bytes) -> None:
    await type(worker.store).publish(worker.store, region_module.OWNERS, words)


async def one_spec(worker: Worker) -> bytes:
    """A registration's payload."""
    await worker.register("a")
    record = worker.writer.engine.replica.get("n:a")
    assert record is not None
    assert record.spec is not None
    return record.spec.payload


# a store that loses what it had, at run time


@pytest.mark.parametrize("how", ["emptied", "an older copy"])
async def test_heartbeats_never_hear_that_their_node_is_gone(worker: Worker, region: Bench, how: str) -> None:
    copy = Copy(region)
    for node_id in ("a", "b"):
        await worker.register(node_id)
    await copy.take()
    await worker.register("c")
    await worker.patch("a", status="draining")
    await worker.beat("b", status="leaving")
    before, statuses = await held(worker), worker.statuses()
    if how == "emptied":
        await emptied(region)
    else:
        await copy.restore()
    for node_id in ("a", "b", "c"):
        assert (await patiently(lambda node_id=node_id: worker.beat(node_id)))["success"]
    assert worker.statuses() == statuses == {"a": "draining", "b": "draining", "c": "online"}
    await becomes(lambda: worker.writer.available and not worker.writer._busy)
    assert await kept(worker) == before == await held(worker)
    assert not worker.writer.deposed.is_set()
    await patiently(lambda: worker.register("d"))
    assert await kept(worker) == await held(worker)


async def test_a_store_that_was_emptied_gets_everything_back_though_nobody_asks(worker: Worker, region: Bench) -> None:
    await worker.register("a")
    await becomes(lambda: worker.follower._store_id is not None)
    await emptied(region)
    await becomes(lambda: worker.writer.alerts["store_changed"] > 0)
    await becomes(lambda: worker.writer.available and not worker.writer._busy)
    assert await kept(worker) == await held(worker)
    assert worker.statuses() == {"a": "online"}


async def test_every_worker_s_heartbeats_survive_a_store_that_was_emptied(region: Bench) -> None:
    async with two(region) as (one, other):
        await one.register("a")
        await becomes(lambda: other.statuses() == {"a": "online"})
        await emptied(region)

        async def through_the_other() -> Any:
            try:
                return await other.beat("a")
            except NotWriter:  # forwarded, as the gate does
                return await one.beat("a")

        assert (await patiently(through_the_other))["success"]
        assert one.region.writer is not None or other.region.writer is not None
        await becomes(lambda: one.statuses() == other.statuses() == {"a": "online"})


async def test_a_store_that_was_emptied_is_left_to_the_worker_that_knows_everything(region: Bench) -> None:
    async with two(region) as (one, other):
        await one.register("a")
        await one.patch("a", status="maintenance")
        await becomes(lambda: other.statuses() == {"a": "maintenance"})
        await emptied(region)
        await other.region._run_for_it()  # it asks for the lease first
        assert other.region.writer is None
        await becomes(lambda: one.writer.alerts["store_changed"] > 0)
        await becomes(lambda: one.writer.available and not one.writer._busy)
        assert await kept(one) == await held(one)
        assert one.statuses() == other.statuses() == {"a": "maintenance"}


async def test_a_store_that_was_emptied_when_its_writer_died_has_another_writer_soon(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_module, "LEFT_S", 0.5)
    one, other = Worker(await region.worker("w1"), address="/one"), Worker(await region.worker("w2"), address="/two")
    await one.region.start()
    await other.region.start()
    try:
        await one.register("a")
        await becomes(lambda: other.statuses() == {"a": "online"})
        await one.die()
        await emptied(region)
        await becomes(lambda: other.region.writer is not None)
        assert other.statuses() == {}  # nobody has it any more: the node registers again
        await other.register("a")
    finally:
        await other.stop()


async def test_a_writer_that_was_replaced_reads_what_it_may_have_missed(region: Bench) -> None:
    async with two(region) as (one, other):
        await one.register("a")
        campaign = one.region._campaign
        assert campaign is not None
        campaign.cancel()
        await asyncio.wait({campaign})
        await becomes(lambda: other.region.writer is not None)
        # Its stream had broken, and as a writer it went on with the newest: this deletion came before that.
        one.directory.put(replace(node_of(other, "a"), node_id="deleted"), 1, one.clock.monotonic())
        one.region._campaign = asyncio.create_task(one.region._campaign_for_ever())
        await becomes(lambda: set(one.statuses()) == {"a"})


def node_of(worker: Worker, node_id: str) -> Record:
    node = worker.writer.node(node_id)
    assert node is not None
    return node


@pytest.mark.parametrize("by", ["the writer", "another worker"])
async def test_what_only_a_lost_store_had_said_is_said_again_once_the_node_is_heard(region: Bench, by: str) -> None:
    made: list[FakeLinks] = []

    def make_links(writer: Writer) -> FakeLinks:
        made.append(FakeLinks())
        return made[-1]

    async with working(await region.worker("w0"), links=make_links) as before:
        peer = Peer(before.writer, made[-1])
        peer.connect()
        token = (await before.register("a"))["token"]
        await becomes(lambda: peer.engine.replica.get("n:a") is not None)
    await emptied(region)
    async with two(region, links=make_links) as (one, other):
        peer.relink(one.writer, made[-1])
        await becomes(lambda: other.statuses() == {"a": "online"} and not one.writer._busy)

        def stands() -> bool:
            peer.tick()
            standing = peer.engine.standing("n:a", peer.now)
            return standing is not None and standing.reachable

        assert not stands()
        worker = one if by == "the writer" else other
        assert (await worker.beat("a", token=token))["token"] == token
        await becomes(stands)
        await becomes(lambda: not one.writer.unconfirmed)
        position = one.writer.position
        await worker.beat("a", token=token)
        assert one.writer.position == position  # once


# registrations in doubt


@pytest.mark.parametrize("fault", ["lost", "unanswered"])
async def test_a_registration_that_nobody_was_answered_is_taken_back(worker: Worker, fault: str) -> None:
    assert isinstance(worker.store, Faulty)
    worker.store.faults.append(fault)
    with pytest.raises(StoreUnavailable):
        await worker.register("a", ANYONE)
    await becomes(lambda: worker.writer.available)
    await becomes(lambda: not worker.registry._doubts.open())
    assert worker.statuses() == {}
    record = worker.writer.engine.replica.get(node_key("a"))
    assert record is not None
    assert record.deleted
    again = await worker.register("a", ANYONE)
    assert again["api_key"].startswith("sk-node-")
    assert await kept(worker) == await held(worker)


async def test_who_registers_again_before_it_is_taken_back_keeps_the_node(worker: Worker) -> None:
    """The first key was shown to nobody: whoever asks first gets the id."""
    assert isinstance(worker.store, Faulty)
    worker.store.faults.append("unanswered")
    worker.writer.on_recovered = lambda: None
    with pytest.raises(StoreUnavailable):
        await worker.register("a", ANYONE)
    await becomes(lambda: worker.writer.available)
    with pytest.raises(ApiError, match="No node a"):  # an operator's will would go with it
        await worker.registry.patch(ADMIN, "a", PatchRequest(status="maintenance"))
    answer = await worker.register("a", ANYONE, labels=["mine"])
    assert answer["api_key"].startswith("sk-node-")
    worker.registry.recovered()
    await becomes(lambda: worker.registry._taking_back.done())  # type: ignore[union-attr]  # it is there
    assert worker.statuses() == {"a": "online"}
    entry = worker.directory.get("a")
    assert entry is not None
    assert orjson.loads(entry.fragment() + b"}")["labels"] == ["mine"]


async def test_a_doubt_stays_until_it_could_be_acted_on(worker: Worker) -> None:
    assert isinstance(worker.store, Faulty)
    worker.store.faults.append("unanswered")
    worker.writer.on_recovered = lambda: None
    with pytest.raises(StoreUnavailable):
        await worker.register("a", ANYONE)
    await becomes(lambda: worker.writer.available)
    await worker.register("other")
    worker.store.is_down = True
    with pytest.raises(StoreUnavailable):
        await worker.delete("other")
    worker.registry.recovered()  # it was not: the store is away again
    await becomes(lambda: worker.registry._taking_back.done())  # type: ignore[union-attr]  # it is there
    assert worker.registry._doubts.open() == ["a"]
    worker.writer.on_recovered = worker.registry.recovered
    worker.store.is_down = False
    await becomes(lambda: not worker.registry._doubts.open())
    assert "a" not in worker.statuses()


# reads that wait for a write


async def test_a_read_waits_for_the_write_that_it_asks_for(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await worker.register("a")
    await worker.registry.seen(answer["version"])
    await worker.registry.seen(None)
    for text in ("", "x", "here:1", "here:0:1"):
        with pytest.raises(ApiError, match="min_version") as caught:
            await worker.registry.seen(text)
        assert caught.value.status == 422
    monkeypatch.setattr(service_module, "SEEN_WITHIN_S", 0.05)
    position = worker.writer.position
    for text in (f"{HERE}:{position.chain[1]}:{position.seq + 1}", f"{THERE}:7:1"):
        with pytest.raises(ApiError) as caught:
            await worker.registry.seen(text)
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "not_yet_visible", 1)


# a federation's start


class Starting:
    """A worker that starts as a member, its clock moved by hand."""

    def __init__(self, region: Bench) -> None:
        self.region = region
        self.clock = ManualClock(int(time.time() * 1000))
        self.links = FakeLinks()

    async def worker(self, **options: Any) -> Worker:
        store = await self.region.worker(kind=Faulty)
        return Worker(store, clock=self.clock, links=lambda writer: self.links, **options)


async def refused(worker: Worker) -> str:
    with pytest.raises(ApiError) as caught:
        await worker.register("a")
    return caught.value.code


async def test_a_start_that_reaches_nobody_serves_what_it_has(region: Bench) -> None:
    starting = Starting(region)
    worker = await starting.worker(expects_peers=True)
    await worker.region.start()
    assert starting.links.started
    assert worker.region.reasons == ["catching up with the federation"]
    assert await refused(worker) == "catching_up"
    starting.clock.advance(BOOTSTRAP_ALONE_S - 0.1)
    assert await refused(worker) == "catching_up"
    starting.clock.advance(0.1)
    assert worker.region.reasons == []
    await worker.register("a")
    await worker.stop()
    assert not starting.links.started


async def test_a_start_waits_for_what_a_peer_has(region: Bench) -> None:
    """Its nodes would be registered anew otherwise, over what their peers know of them."""
    starting = Starting(region)
    worker = await starting.worker(expects_peers=True)
    await worker.region.start()
    peer = Peer(worker.writer, starting.links)
    _, effects = peer.engine.register("n:t", b"[]", peer.now, incarnation=0, judgement=b"")
    peer.do(effects)
    peer.connect()
    await becomes(lambda: worker.region.reasons == [])
    assert worker.writer.engine.caught_up
    await worker.register("a")
    await worker.stop()


async def test_a_peer_that_gives_nothing_is_not_waited_for_without_end(region: Bench) -> None:
    starting = Starting(region)
    worker = await starting.worker(expects_peers=True)
    await worker.region.start()
    worker.writer.connected(THERE)
    worker.writer.engine.links[THERE].greeted = True
    assert worker.region.reasons != []
    starting.clock.advance(BOOTSTRAP_ALONE_S + 1)
    assert await refused(worker) == "catching_up"  # somebody is there
    starting.clock.advance(BOOTSTRAP_S)
    assert worker.region.reasons == []
    await worker.stop()


async def test_a_member_without_peers_in_its_roster_or_settings_waits_for_nobody(region: Bench) -> None:
    starting = Starting(region)
    worker = await starting.worker()
    await worker.region.start()
    assert worker.region.reasons == []
    await worker.register("a")
    await worker.stop()


async def test_a_member_that_knows_others_from_before_waits_for_them(region: Bench) -> None:
    starting = Starting(region)
    first = await starting.worker()
    await first.region.start()
    peer = Peer(first.writer, starting.links)
    peer.connect()
    await becomes(lambda: f"r:{THERE}" in first.writer.engine.replica.roster)
    await first.writer.flushed()
    await first.stop()
    starting.links = FakeLinks()
    second = Worker(await region.worker("w2"), clock=starting.clock, links=lambda writer: starting.links)
    await second.region.start()
    assert second.region.reasons == ["catching up with the federation"]
    assert THERE in starting.links.roster
    await second.stop()


# silence


async def test_silent_nodes_are_judged_and_come_back_with_a_heartbeat(region: Bench) -> None:
    transitions: list[tuple[str, str]] = []
    store = await region.worker(window_ms=1_000)
    worker = Worker(store, windows=QUICK)
    worker.directory.on_transition = lambda change: transitions.append((change.before, change.after))
    await worker.region.start()
    try:
        answer = await worker.register("a")
        await becomes(lambda: worker.statuses() == {"a": "offline"})
        assert transitions == [("online", "degraded"), ("degraded", "offline")]
        assert await kept(worker) == await held(worker)
        beat = await worker.beat("a", token=answer["token"])
        assert (beat["status"], "version" in beat) == ("online", True)
        assert transitions[2:] == [("offline", "online")]
        assert orjson.loads(worker.directory.get("a").fragment() + b"}")["status_reason"] is None  # type: ignore[union-attr]  # there is one, or the test fails
    finally:
        await worker.stop()


async def test_a_node_that_another_worker_still_hears_is_not_called_offline(region: Bench) -> None:
    """The store has its beat: the change stream only has not told us yet."""
    worker = Worker(await region.worker(window_ms=60_000), windows=QUICK)
    await worker.region.start()
    try:
        await worker.register("a")
        await becomes(lambda: worker.statuses() == {"a": "degraded"})
        due = 0

        def overdue() -> bool:
            nonlocal due
            due += bool(worker.directory._overdue)
            return due > 5

        await becomes(overdue)
        assert worker.statuses() == {"a": "degraded"}
    finally:
        await worker.stop()


async def test_after_a_stall_of_ours_silence_counts_from_its_end(region: Bench) -> None:
    clock = ManualClock(int(time.time() * 1000))
    worker = Worker(await region.worker(), windows=QUICK, clock=clock)
    await worker.region.start()
    try:
        await worker.register("a")
        counted: list[float] = []
        worker.directory.restart_counting = counted.append  # type: ignore[method-assign]  # to see that it is called
        clock.advance(500)
        await becomes(lambda: counted)
        assert worker.statuses() == {"a": "online"}
    finally:
        await worker.stop()


async def test_many_silent_nodes_are_told_of_and_not_called_offline(region: Bench) -> None:
    worker = Worker(await region.worker(window_ms=1_000), windows=QUICK)
    await worker.region.start()
    try:
        await asyncio.gather(*(worker.register(f"n{number}") for number in range(25)))
        await becomes(lambda: worker.writer.alerts["expiry_held"] == 1)
        assert set(worker.statuses().values()) <= {"online", "degraded"}
        assert worker.directory.hold_left_s(worker.clock.monotonic()) is not None
        await becomes(lambda: set(worker.statuses().values()) == {"offline"})  # the hold ends by itself
    finally:
        await worker.stop()


async def test_a_fault_in_what_time_brings_stops_no_write(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(now: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(worker.writer.engine, "tick", broken)
    await becomes(lambda: worker.writer.alerts["tick_failed"] > 1)
    await worker.register("a")
    assert await kept(worker) == await held(worker)


async def test_a_fault_of_a_task_is_the_region_s_own(region: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(await region.worker())
    await worker.region.start()
    try:

        def broken(now: float) -> None:
            raise RuntimeError("a fault")

        monkeypatch.setattr(worker.directory, "due", broken)
        with pytest.raises(RuntimeError, match="a fault"):
            await asyncio.wait_for(worker.region.failed(), 5)
    finally:
        await worker.stop()
