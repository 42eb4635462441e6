"""The audit log in the store: one chain a region, whatever becomes of commits, stores and writers."""

import contextlib
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from registry import audit_chain
from registry.audit import Audit
from registry.audit_chain import START, Head, Line
from registry.audit_log import AuditLog
from registry.clock import SystemClock
from registry.ports import AuditBatch, Put, StoreUnavailable
from tests.support.live import until
from tests.support.regions import Faulty, Worker
from tests.support.stores import Bench


async def lines(store: Faulty, after: int = 0) -> list[Line]:
    return [audit_chain.read(raw) for raw in await store.audit_lines(after, 10_000)]


def is_whole(found: list[Line]) -> bool:
    return all(audit_chain.follows(later, earlier.head) is None for earlier, later in pairwise(found))


def actions(found: list[Line]) -> list[tuple[str, str]]:
    return [(line.entry["action"], line.entry["target"]) for line in found]


@contextlib.asynccontextmanager
async def started(region: Bench, name: str = "w1", filed: Head = START) -> AsyncIterator[tuple[Worker, Faulty]]:
    """A worker that writes, and its store; `filed`: where its log's file has come to."""
    store = await region.worker(name, kind=Faulty)
    worker = Worker(store)
    worker.region.audit_filed = lambda: filed
    await worker.region.start()
    try:
        yield worker, store
    finally:
        await worker.region.stop()
        await worker.follower.stop()


async def test_what_is_written_is_in_the_log_in_the_same_commit(region: Bench) -> None:
    async with started(region) as (worker, store):
        before = store.commits
        await worker.register("n1")
        assert store.commits == before + 1
        await worker.register("n1")  # no new id
        await worker.patch("n1", labels_add=["x"])
        await worker.delete("n1")
        found = await lines(store)
    assert is_whole(found)
    assert actions(found)[1:] == [("node.registered", "n1"), ("node.patched", "n1"), ("node.deregistered", "n1")]


@pytest.mark.parametrize("fault", ["lost", "unanswered"])
async def test_a_commit_that_is_made_again_keeps_each_entry_once(region: Bench, fault: str) -> None:
    async with started(region) as (worker, store):
        store.faults.append(fault)
        with pytest.raises(StoreUnavailable):
            await worker.register("n1")
        await until(lambda: _available(worker))
        await worker.register("n2")
        found = await lines(store)
    assert is_whole(found)
    assert actions(found)[1:] == [("node.registered", "n1"), ("node.registered", "n2")]


async def _available(worker: Worker) -> bool:
    return worker.writer.available


async def test_a_store_that_was_emptied_gets_the_newest_entries_back(region: Bench) -> None:
    async with started(region) as (worker, store):
        await worker.register("n1")
        await (await region.raw()).delete(*(region.key(name) for name in ("records", "seq", "meta", "audit")))
        await worker.writer.store_lost()
        await worker.patch("n1", labels_add=["x"])
        found = await lines(store)
    assert is_whole(found)
    assert found[0].head.seq == 1
    assert actions(found)[1:] == [("node.registered", "n1"), ("node.patched", "n1")]


async def test_the_next_writer_goes_on_where_the_chain_stands_or_where_the_file_does(region: Bench) -> None:
    async with started(region) as (worker, _):
        await worker.register("n1")
    async with started(region, "w2") as (_, store):
        found = await lines(store)
    assert is_whole(found)
    assert [line.entry["action"] for line in found] == ["writer.began", "node.registered", "writer.began"]
    await (await region.raw()).delete(region.key("audit"))
    async with started(region, "w3", filed=found[-1].head) as (_, store):
        (line,) = await lines(store)
    assert audit_chain.follows(line, found[-1].head) is None


async def test_what_other_workers_leave_is_kept_once(region: Bench) -> None:
    store = await region.worker(kind=Faulty)
    writer = await region.writer(store)
    note = audit_chain.body(at="", action="authentication", by={"kind": "none"})
    await store.audit_leave([note, b"what is no entry", note])
    log = AuditLog(Audit(SystemClock()), START)
    assert log.takes
    log.take_left(await store.audit_left(100))
    assert not log.takes
    batch = log.batch()
    assert batch is not None
    for _ in range(2):  # its answer was lost: it is made again
        await store.commit(writer.token, None, writer.number + 1, [], None, batch)
        await store.audit_leave([note])
    log.keep(batch)
    assert log.takes
    assert await store.audit_left(100) == [note, note]
    found = await lines(store)
    assert is_whole(found)
    assert [line.entry["action"] for line in found] == ["authentication", "audit.lost", "authentication"]


async def test_a_log_that_is_not_the_writers_does_not_swallow_entries(region: Bench) -> None:
    store = await region.worker(kind=Faulty)
    writer = await region.writer(store)
    raw = await region.raw()
    await raw.rpush(region.key("audit"), b'{"seq":999999,"planted":1}')
    head, line = audit_chain.link(START, audit_chain.body(at="", action="x", by={}))
    await store.commit(writer.token, None, 1, [Put("a", b"1")], None, AuditBatch(0, [line]))
    assert await store.audit_lines(0, 10) == [line]
    assert await store.audit_lines(1, 10) == []
    assert await store.audit_last() == line
    assert head.seq == 1


async def test_a_peer_that_is_kept_out_is_in_the_log(region: Bench) -> None:
    async with started(region) as (worker, store):
        for _ in range(3):
            worker.writer.alert("identity_changed", "us shows another identity than the one pinned", "us")
        worker.writer.alert("clock_ahead", "nobody's doing", "us")
        worker.region.audit.tick(all_of_it=True)
        await worker.writer.flushed()
        *_, line = await lines(store)
    assert actions([line]) == [("peer.identity_changed", "us")]
    assert line.entry["detail"]["count"] == 3
    assert "pinned" in line.entry["detail"]["why"]


async def test_a_writer_that_ends_leaves_what_was_not_kept_to_the_next(region: Bench) -> None:
    async with started(region) as (worker, store):
        store.is_down = True
        worker.region.audit.note("key.created", None, "k1")
        await worker.writer.stop()
        store.is_down = False
        assert [b'"key.created"' in entry for entry in worker.region.audit.take()] == [True]
