"""The one writer over a store that fails, is emptied, goes back in time, or has another writer: what was
acknowledged is kept, what is sent tells only of what is kept. Time is moved by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest

from federation.clock import Chain, Dot, Now, hlc_of
from federation.effects import Effect
from federation.messages import Push, Watermarks
from federation.record import REGISTRY_PREFIX, Item, Section, SectionKind
from federation.record import Record as Versioned
from registry import commits
from registry import writer as writer_module
from registry.directory import Directory, Due
from registry.node import Intent, Record, Word, node_key
from registry.ports import Put, StoreUnavailable
from registry.positions import Position
from registry.stored import pack_record, unpack_meta, unpack_record
from registry.tables import Table
from registry.writer import PAUSE_AFTER_S, Writer
from tests.support.clock import ManualClock
from tests.support.records import NOW_MS, record
from tests.support.regions import (
    HERE,
    THERE,
    WINDOWS,
    Copy,
    FakeLinks,
    Faulty,
    Peer,
    becomes,
    begin_writer,
    emptied,
    in_store,
    lease_lost,
)
from tests.support.rosters import registry_key
from tests.support.stores import LONG_MS, Bench, loaded


class Rig:
    """A writer, its store and clock, and the links that it is given."""

    def __init__(self, bench: Bench, store: Faulty, clock: ManualClock, writer: Writer, directory: Directory) -> None:
        self.bench, self.store, self.clock, self.writer, self.directory = bench, store, clock, writer, directory
        self.links = FakeLinks()

    async def register(self, node_id: str, **report: Any) -> None:
        await self.writer.register(record(node_id, **report), 0, None, (b"{}", 0))

    async def refused(self, work: Any) -> str:
        with pytest.raises(StoreUnavailable) as caught:
            await asyncio.wait_for(work, 5)
        return str(caught.value)

    async def kept(self) -> dict[str, tuple[Any, ...]]:
        return in_store(await loaded(self.store))

    async def holds_everything(self) -> None:
        """The store has what the replica has, no more, and a meta as new."""
        replica = self.writer.engine.replica
        assert await self.kept() == {held.key: held.state() for held in replica.records()}
        meta = await self.store.meta()
        assert meta is not None
        assert unpack_meta(meta) == replica.meta()

    async def peer(self) -> Peer:
        """A peer with a link that is up; each knows the other."""
        self.writer.attach(self.links)
        peer = Peer(self.writer, self.links)
        peer.connect()
        await becomes(lambda: THERE in self.writer.roster() and HERE in roster_of(peer) and not self.writer._busy)
        return peer


def roster_of(peer: Peer) -> set[str]:
    return {key.removeprefix(REGISTRY_PREFIX) for key in peer.engine.replica.roster}


@contextlib.asynccontextmanager
async def rigged(bench: Bench) -> AsyncIterator[Rig]:
    store, clock = await bench.worker(kind=Faulty), ManualClock()
    directory = Directory(WINDOWS, clock.monotonic(), HERE)
    rig = Rig(bench, store, clock, await begin_writer(store, clock, directory=directory), directory)
    try:
        yield rig
    finally:
        store.goes_on.set()
        await rig.writer.stop()


@pytest.fixture
async def rig(region: Bench) -> AsyncIterator[Rig]:
    async with rigged(region) as made:
        yield made


# what is kept, seen and sent


async def test_what_is_answered_is_in_the_store_and_in_the_directory(rig: Rig) -> None:
    await rig.register("a", labels=["x"])
    await rig.holds_everything()
    entry = rig.directory.get("a")
    assert entry is not None
    assert (entry.status, entry.owner.is_us) == ("online", True)
    assert await rig.writer.heard("a", Word(reported="leaving"), b"", None)
    await rig.writer.amend("a", Intent("maintenance", at_ms=NOW_MS).encode(), None)
    assert entry.status == "maintenance"
    await rig.writer.judge([Due("a", Word("offline", "leaving", "silent", NOW_MS))])
    assert entry.status == "offline"
    await rig.holds_everything()
    await rig.writer.delete("a", "asked for")
    assert rig.directory.get("a") is None
    assert rig.writer.node("a") is None
    assert not await rig.writer.heard("a", Word(), b"", None)
    await rig.holds_everything()


async def test_what_is_no_node_is_held_in_its_table_once_it_is_kept(rig: Rig) -> None:
    table = rig.directory.tables.add(Table("k:", standing))
    rig.store.goes_on.clear()
    putting = asyncio.create_task(rig.writer.put("k:one", b"1"))
    await becomes(lambda: rig.writer.engine.replica.get("k:one") is not None)
    assert dict(table.items()) == {}
    rig.store.goes_on.set()
    await putting
    await rig.writer.put("k:two", b"2")
    assert dict(table.items()) == {"one": b"1", "two": b"2"}
    await rig.writer.revoke("k:one", "lost")
    await rig.writer.revoke("k:unheard-of", "lost")
    assert dict(table.items()) == {"one": b"revoked", "two": b"2", "unheard-of": b"revoked"}
    assert await rig.writer.remove("k:two", "asked for")
    assert not await rig.writer.remove("k:two", "asked for")
    assert dict(table.items()) == {"one": b"revoked", "unheard-of": b"revoked"}
    with pytest.raises(ValueError, match="too often"):
        await rig.writer.put("k:two", b"3")
    await rig.holds_everything()


def standing(held: Versioned) -> bytes | None:
    if held.deleted:
        return None
    return b"revoked" if held.end is not None else held.spec.payload if held.spec is not None else None


async def test_a_node_that_beats_as_before_costs_no_commit(rig: Rig) -> None:
    await rig.register("a")
    before = rig.store.commits
    assert await rig.writer.heard("a", Word(), b"", None)
    await rig.writer.judge([Due("a", Word())])
    assert rig.store.commits == before


async def test_what_is_sent_waits_for_the_store(rig: Rig) -> None:
    peer = await rig.peer()
    rig.links.sent.clear()
    rig.store.goes_on.clear()
    writing = asyncio.create_task(rig.register("a"))
    await becomes(lambda: rig.writer.node("a") is not None)
    for _ in range(5):  # whatever the engine wants to be sent meanwhile
        rig.writer.perform(rig.writer.engine.tick(rig.writer.now))
        rig.clock.advance(1.0)
        await asyncio.sleep(0)
    assert (rig.links.sent, writing.done(), rig.directory.get("a")) == ([], False, None)
    rig.store.goes_on.set()
    await writing
    await becomes(lambda: "Watermarks" in rig.links.kinds())
    kinds = rig.links.kinds()
    assert kinds.index("Push") < kinds.index("Watermarks")  # in the order that it was asked for
    assert peer.engine.replica.get("n:a") is not None


async def test_what_comes_in_while_a_commit_is_under_way_is_sent_after_the_next_one(rig: Rig) -> None:
    await rig.peer()
    await rig.writer.flushed()
    rig.links.sent.clear()
    rig.store.goes_on.clear()
    writing = [asyncio.create_task(rig.register("a"))]
    await becomes(lambda: rig.writer._busy)
    await asyncio.sleep(0)
    writing.append(asyncio.create_task(rig.register("b")))
    await becomes(lambda: rig.writer.node("b") is not None)
    seen: list[tuple[set[str], set[str]]] = []

    def note(_number: int) -> None:
        told = {
            entry.item.key
            for _, message in rig.links.sent
            if isinstance(message, Push)
            for segment in message.segments
            for entry in segment.entries
        }
        seen.append((told, {entry.node_id for entry in rig.directory.entries()}))

    rig.store.on_commit = note
    rig.store.goes_on.set()
    await asyncio.gather(*writing)
    note(0)
    for told, kept in seen:
        assert {key for key in told if key.startswith("n:")} <= {node_key(node_id) for node_id in kept}
    assert {"n:a", "n:b"} <= seen[-1][0]


async def test_messages_that_come_while_a_commit_is_under_way_are_taken_together_before_the_next(rig: Rig) -> None:
    await rig.writer.flushed()
    rig.store.goes_on.clear()
    writing = [asyncio.create_task(rig.register("a"))]
    await becomes(lambda: rig.writer._busy)
    for _ in range(5):
        await asyncio.sleep(0)
    taken: list[tuple[str, int]] = []

    async def link(peer: str) -> None:
        await rig.writer.ready()
        taken.append((peer, commits))

    commits = 0

    def note(_number: int) -> None:
        nonlocal commits
        commits += 1

    rig.store.on_commit = note
    links = [asyncio.create_task(link(peer)) for peer in ("us", "asia")]
    writing.append(asyncio.create_task(rig.register("b")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not taken
    rig.store.goes_on.set()
    await asyncio.gather(*writing, *links)
    assert taken == [("us", 1), ("asia", 1)]
    await asyncio.wait_for(rig.writer.ready(), 1)


async def test_messages_are_not_held_back_for_long(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "HELD_BACK_S", 0.001)
    rig.store.goes_on.clear()
    writing = asyncio.create_task(rig.register("a"))
    await becomes(lambda: rig.writer._busy)
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.wait_for(rig.writer.ready(), 1)
    assert not writing.done()
    rig.store.goes_on.set()
    await writing


async def test_messages_do_not_wait_for_a_store_that_is_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "RETRY_S", 60.0)
    rig.store.is_down = True
    await rig.refused(rig.register("a"))
    await asyncio.wait_for(rig.writer.ready(), 1)


async def test_many_changes_are_kept_in_commits_of_bounded_size(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commits.COMMIT_PUTS > 3
    monkeypatch.setattr(commits, "COMMIT_PUTS", 3)
    rig.store.goes_on.clear()
    first = asyncio.create_task(rig.register("first"))
    await becomes(lambda: rig.writer._busy)
    writing = [asyncio.create_task(rig.register(f"n{number}")) for number in range(10)]
    await becomes(lambda: rig.writer.node("n9") is not None)
    before = rig.store.commits
    rig.store.goes_on.set()
    await asyncio.gather(first, *writing)
    assert rig.store.commits - before in (4, 5)  # one, and ten in threes; the first may have waited uncounted
    await rig.holds_everything()


# commits that fail


@pytest.mark.parametrize("fault", ["lost", "unanswered"])
async def test_a_commit_that_fails_is_made_again_until_it_is_made(rig: Rig, fault: str) -> None:
    peer, recovered = await rig.peer(), asyncio.Event()
    await rig.register("before")
    rig.writer.on_recovered = recovered.set
    rig.store.faults.extend([fault, fault])
    await rig.refused(rig.register("a"))
    assert not rig.writer.available
    await rig.refused(rig.register("b"))  # refused before it is begun
    assert rig.writer.node("b") is None
    assert peer.engine.replica.get("n:a") is None
    await asyncio.wait_for(recovered.wait(), 5)
    assert rig.writer.available
    await rig.holds_everything()
    assert rig.directory.get("a") is not None
    assert peer.engine.replica.get("n:a") is not None  # nothing that was to be sent is lost
    await rig.register("b")
    await rig.holds_everything()


async def test_a_long_outage_in_which_nothing_was_lost_costs_no_new_beginning(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "RETRY_S", 0.001)
    await rig.register("a")
    rig.store.faults.extend(["lost"] * (3 * commits.MAX_DOUBTFUL))
    await rig.refused(rig.register("b"))
    await becomes(lambda: rig.writer.available)
    assert not rig.writer.alerts["store_changed"]
    await rig.holds_everything()


async def test_a_registration_s_heartbeat_that_finds_no_room_leaves_no_doubt_about_its_commit(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*beat: Any) -> Any:
        raise StoreUnavailable("slow", "too many operations wait for it")

    monkeypatch.setattr(rig.store, "beat", full)
    await rig.register("a")
    await rig.register("b")
    assert not rig.writer.deposed.is_set()
    assert not rig.writer.alerts["store_changed"]
    await rig.holds_everything()


async def test_a_node_that_was_heard_since_it_came_due_is_not_judged_by_its_silence(rig: Rig) -> None:
    await rig.register("a")
    silent = Word("degraded", None, "silent", NOW_MS)
    await rig.writer.judge([Due("a", silent, Word())])
    assert await rig.writer.heard("a", Word(), b"", None)
    await rig.writer.judge([Due("a", Word("offline", None, "silent", NOW_MS), silent)])
    node = rig.writer.node("a")
    assert node is not None
    assert node.word == Word()
    await rig.writer.judge([Due("a", silent, Word())])
    node = rig.writer.node("a")
    assert node is not None
    assert node.word == silent


async def test_a_store_that_is_away_for_long_ends_the_links_until_it_is_back(rig: Rig) -> None:
    await rig.peer()
    await rig.register("before")
    rig.store.is_down = True
    await rig.refused(rig.register("a"))
    assert rig.links.paused is None
    rig.clock.advance(PAUSE_AFTER_S)
    await becomes(lambda: rig.links.paused is not None)
    rig.links.sent.clear()
    rig.writer.disconnected(THERE)
    rig.store.is_down = False
    await becomes(lambda: rig.links.paused is None)
    assert not [message for message in rig.links.sent if isinstance(message[1], Push)]  # over a link that is gone
    await rig.holds_everything()


async def test_nobody_waits_for_a_writer_that_has_ended(rig: Rig) -> None:
    rig.store.goes_on.clear()
    writing = asyncio.create_task(rig.register("a"))
    reading = asyncio.create_task(rig.writer.visible.reached(Position((HERE, 2**62), 1)))
    await becomes(lambda: rig.writer._busy and rig.writer.visible.waiting)
    await rig.writer.stop()
    for task in (writing, reading):
        await rig.refused(task)


async def test_a_fault_of_ours_in_a_commit_is_an_error_and_holds_nobody_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(key: str) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(rig.writer, "_show", broken)
    await rig.refused(rig.register("a"))
    with pytest.raises((RuntimeError, TypeError)):
        await asyncio.wait_for(rig.writer.tick_for_ever(), 5)


# stores that are not as they were left


async def aged(rig: Rig) -> Copy:
    """Some history: a copy of the store is from its middle."""
    await rig.register("kept", labels=["x"])
    await rig.register("removed")
    await rig.register("changed", labels=["old"])
    copy = Copy(rig.bench)
    await copy.take()
    await rig.writer.delete("removed", "asked for")
    await rig.register("changed", labels=["new"])
    await rig.writer.amend("kept", Intent("draining", at_ms=NOW_MS).encode(), None)
    await rig.register("later")
    return copy


@pytest.mark.parametrize("how", ["emptied", "an older copy"])
async def test_a_store_that_lost_something_gets_everything_back(rig: Rig, how: str) -> None:
    copy = await aged(rig)
    before = {held.key: held.state() for held in rig.writer.engine.replica.records()}
    if how == "emptied":
        await emptied(rig.bench)
    else:
        await copy.restore()
        raw = await rig.bench.raw()
        stray = b"0" * 16 + pack_record(Versioned("n:stray"))
        await raw.hset(rig.bench.key("records"), "n:stray", stray)  # collected since the copy was made
    await rig.refused(rig.writer.store_lost())  # the lease went with it
    await rig.store.lease("t1", "", LONG_MS)
    await becomes(lambda: rig.writer.available)
    await rig.writer.store_lost()
    assert rig.writer.alerts["store_changed"] == 1
    assert not rig.writer.deposed.is_set()
    assert await rig.kept() == before
    await rig.holds_everything()
    await rig.register("more")
    await rig.holds_everything()


@pytest.mark.parametrize("fault", ["lost", "unanswered"])
@pytest.mark.parametrize("at", range(5))
async def test_what_is_written_again_is_whole_however_often_that_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, at: int, fault: str
) -> None:
    monkeypatch.setattr(commits, "COMMIT_PUTS", 2)
    for number in range(6):
        await rig.register(f"n{number}")
    await emptied(rig.bench)
    await rig.store.lease("t1", "", LONG_MS)
    rig.store.faults.extend([None] * (at + 1) + [fault])  # the first is the commit that finds it out
    with contextlib.suppress(StoreUnavailable):
        await rig.writer.store_lost()
    await becomes(lambda: rig.writer.available and not rig.writer._busy)
    assert not rig.writer.deposed.is_set()
    await rig.register("more")
    await rig.holds_everything()


async def test_the_meta_never_tells_of_what_the_store_does_not_have(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever commit is the last before a kill, also of a store that is being written again."""
    monkeypatch.setattr(commits, "COMMIT_PUTS", 2)
    for number in range(5):
        await rig.register(f"n{number}")
    await emptied(rig.bench)
    await rig.store.lease("t1", "", LONG_MS)
    writing: list[asyncio.Task[None]] = []

    def more(number: int) -> None:
        """Somebody registers while everything is written again: one node that the store has got back already,
        and a new one."""
        if len(writing) < 6:
            writing.append(asyncio.create_task(rig.register("n0", labels=[str(number)])))
            writing.append(asyncio.create_task(rig.register(f"new{number}")))

    rig.store.on_commit = more
    commit = rig.store.commit

    async def checked(*args: Any) -> None:
        await commit(*args)
        data = await rig.store.meta()
        vector = unpack_meta(data).vector if data else {}
        kept = await rig.kept()
        for held in rig.writer.engine.replica.records():
            for item in held.items():
                dot = item.section.dot
                if vector.get(dot.chain, 0) >= dot.seq:
                    assert held.key in kept
                    assert item.section in kept[held.key]

    monkeypatch.setattr(rig.store, "commit", checked)
    await rig.writer.store_lost()
    await asyncio.gather(*writing)
    await rig.holds_everything()


# other writers


async def test_a_deposed_writer_changes_nothing_any_more(rig: Rig) -> None:
    await rig.register("a")
    await lease_lost(rig.bench)
    other_store, other_clock = await rig.bench.worker("w2", kind=Faulty), ManualClock(NOW_MS + 60_000)
    other = await begin_writer(other_store, other_clock, "t2")
    await other.register(record("b"), 0, None, (b"{}", 0))
    before = await rig.kept()
    for _ in range(2):
        await rig.refused(rig.register("c"))
        await rig.refused(rig.writer.delete("a", "asked for"))
    assert await rig.kept() == before
    # Its lease would come back to it when the other one died: what it holds is of no use all the same.
    await other_store.release("t2")
    await rig.store.lease("t1", "", LONG_MS)
    await becomes(rig.writer.deposed.is_set)
    assert "another worker" in await rig.refused(rig.writer.flushed())
    await rig.refused(rig.writer.store_lost())
    assert await rig.kept() == before
    assert not rig.writer.available
    await other.stop()


async def test_a_lease_that_ran_out_and_was_nobody_s_meanwhile_costs_nothing(rig: Rig) -> None:
    await rig.register("a")
    await lease_lost(rig.bench)
    await rig.refused(rig.register("b"))
    await rig.store.lease("t1", "", LONG_MS)
    await becomes(lambda: rig.writer.available)
    assert not rig.writer.deposed.is_set()
    await rig.holds_everything()
    assert rig.directory.get("b") is not None


async def test_a_start_has_a_new_generation_and_everything_of_the_ones_before(rig: Rig) -> None:
    await aged(rig)
    before, generation = await rig.kept(), rig.writer.engine.replica.generation
    await rig.writer.stop()
    await lease_lost(rig.bench)
    again = await begin_writer(rig.store, rig.clock, "t2")
    assert again.engine.replica.generation > generation
    after = {held.key: held.state() for held in again.engine.replica.records()}
    roster = REGISTRY_PREFIX + HERE
    assert {key: state for key, state in after.items() if key != roster} == {
        key: state for key, state in before.items() if key != roster
    }
    assert again.visible.vector == again.engine.replica.vector
    assert again.engine.replica.get("n:removed") is not None  # its tombstone
    await again.register(record("more"), 0, None, (b"{}", 0))
    await again.stop()


# versions


async def test_a_version_is_visible_once_it_is_kept(rig: Rig) -> None:
    await rig.register("a")
    await asyncio.wait_for(rig.writer.visible.reached(rig.writer.position), 1)
    rig.store.goes_on.clear()
    writing = asyncio.create_task(rig.register("b"))
    await becomes(lambda: rig.writer.node("b") is not None)
    reading = asyncio.create_task(rig.writer.visible.reached(rig.writer.position))
    await becomes(lambda: rig.writer.visible.waiting)
    assert not reading.done()
    rig.store.goes_on.set()
    await reading
    assert rig.directory.get("b") is not None
    await writing


async def test_a_write_tells_its_own_place_and_not_of_what_others_wrote_while_it_was_kept(rig: Rig) -> None:
    rig.store.goes_on.clear()
    first = asyncio.create_task(rig.writer.put("k:first", b"1"))
    await becomes(lambda: rig.writer.engine.replica.get("k:first") is not None)
    for _ in range(5):  # its round is under way
        await asyncio.sleep(0)
    second = asyncio.create_task(rig.writer.put("k:second", b"2"))
    await becomes(lambda: rig.writer.engine.replica.get("k:second") is not None)
    rig.store.goes_on.set()
    position = await first
    assert rig.writer.visible.vector[position.chain] == position.seq  # whoever reads by it does not wait
    assert (await second).seq == position.seq + 1 == rig.writer.position.seq


async def test_what_was_written_together_is_pushed_in_one_piece(rig: Rig) -> None:
    await rig.peer()
    await rig.writer.flushed()
    rig.links.sent.clear()
    rig.store.goes_on.clear()
    writing = [asyncio.create_task(rig.register("first"))]
    await becomes(lambda: rig.writer.node("first") is not None)
    for _ in range(5):  # its round is under way
        await asyncio.sleep(0)
    writing += [asyncio.create_task(rig.register(f"n{number}")) for number in range(5)]
    await becomes(lambda: all(rig.writer.node(f"n{number}") is not None for number in range(5)))
    rig.store.goes_on.set()
    await asyncio.gather(*writing)
    await becomes(lambda: not rig.writer.engine.may_push and not rig.writer._busy)
    pushes = [message for _, message in rig.links.sent if isinstance(message, Push)]
    keys = [[entry.item.key for segment in push.segments for entry in segment.entries] for push in pushes]
    assert [set(each) for each in keys] == [{"n:first"}, {f"n:n{number}" for number in range(5)}]


async def test_a_fault_of_ours_in_a_push_is_told_and_keeps_nobody_waiting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await rig.peer()
    real = rig.writer.engine.push

    def broken(now: Now) -> list[Effect]:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(rig.writer.engine, "push", broken)
    await asyncio.wait_for(rig.register("a"), 5)
    assert rig.writer.alerts["push_failed"] > 0
    assert peer.engine.replica.get("n:a") is None
    monkeypatch.setattr(rig.writer.engine, "push", real)
    await becomes(lambda: peer.engine.replica.get("n:a") is not None)


async def test_a_version_of_another_registry_is_visible_when_it_has_arrived(rig: Rig) -> None:
    peer = await rig.peer()
    await rig.writer.flushed()
    made, effects = peer.engine.register(
        "n:b", record("b").encode_spec(), peer.now, incarnation=0, judgement=Word().encode()
    )
    replica = peer.engine.replica
    reading = asyncio.create_task(rig.writer.visible.reached(Position(replica.chain, replica.vector[replica.chain])))
    await becomes(lambda: rig.writer.visible.waiting)
    peer.do(effects)
    await asyncio.wait_for(reading, 5)
    entry = rig.directory.get("b")
    assert entry is not None
    assert (entry.owner.registry_id, made.life) == (THERE, 1)


@pytest.mark.parametrize("silent_s", [10, 60])
async def test_a_node_that_is_heard_here_is_not_called_silent_by_another(rig: Rig, silent_s: float) -> None:
    """It had beaten there, was not answered, and came back; the link was down meanwhile. After long silence here, too,
    the other's word stands."""
    await rig.register("a")
    peer = await rig.peer()
    await becomes(lambda: peer.engine.replica.get("n:a") is not None)
    rig.clock.advance(silent_s)
    _, effects = peer.engine.heartbeat("n:a", peer.now, judgement=Word().encode(), metrics=b"", token=None)
    effects += peer.engine.judge("n:a", Word("offline", None, "silent").encode(), peer.now)
    peer.do(effects)
    entry = rig.directory.get("a")
    assert entry is not None
    if silent_s < WINDOWS.degraded_after_s / 2:
        await becomes(lambda: peer.engine.replica.get("n:a").judgement.origin == HERE)
        assert (entry.liveness, entry.owner.is_us) == ("online", True)
    else:
        await becomes(lambda: entry.liveness == "offline")
        assert entry.owner.registry_id == THERE


async def test_whoever_stops_waiting_leaves_nothing_behind(rig: Rig) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await rig.writer.visible.reached(Position((THERE, 1), 1))
    assert rig.writer.visible.waiting == []


# what peers bring


async def test_a_peer_s_nodes_words_and_numbers_are_in_the_directory(rig: Rig) -> None:
    peer = await rig.peer()
    rig.writer.engine.on_measured(rig.writer._measured)
    _, effects = peer.engine.register(
        "n:b", record("b").encode_spec(), peer.now, incarnation=0, judgement=Word().encode()
    )
    peer.do(effects)
    await becomes(lambda: rig.directory.get("b") is not None)
    entry = rig.directory.get("b")
    assert entry is not None
    assert not entry.reachable  # no watermark of it has come
    beats: list[tuple[str, bytes, int]] = []
    rig.writer.on_beats = beats.extend
    ticking = asyncio.create_task(rig.writer.tick_for_ever())

    def passes() -> bool:
        rig.clock.advance(0.5)
        peer.engine.measured("n:b", bytes([10, 255, 255, 255, 3, 0]), peer.now)
        peer.tick()
        return entry.reachable and entry.metrics != b"{}" and bool(beats)

    await becomes(passes)
    ticking.cancel()
    assert orjson.loads(entry.metrics) == {"cpu_percent": 20, "agent_count": 3}
    assert beats[0][:2] == ("n:b", entry.metrics)
    assert THERE in rig.links.roster
    assert rig.writer.pinned(THERE) == registry_key(THERE).public
    assert rig.writer.pinned("nobody") is None


HOSTILE = {
    "no JSON": ("n:x", b"\xff"),
    "another shape": ("n:x", b"[]"),
    "half a node": ("n:x", orjson.dumps([{"capabilities": {}}, "", "", 0, 0, None])),
    "a name that is none": ("n:x y", record("x").encode_spec()),
    "nothing that is known": ("z:x", b""),
    "a registry that is none": ("r:evil", b"\x00"),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_whatever_a_peer_writes_stops_nothing(rig: Rig, case: str) -> None:
    key, payload = HOSTILE[case]
    peer = await rig.peer()
    _, effects = peer.engine.register(key, payload, peer.now, incarnation=0, judgement=b"\x00")
    peer.do(effects)
    _, effects = peer.engine.register(
        "n:good", record("good").encode_spec(), peer.now, incarnation=0, judgement=Word().encode()
    )
    peer.do(effects)
    await becomes(lambda: rig.directory.get("good") is not None)
    await rig.register("ours")
    assert [entry.node_id for entry in rig.directory.entries()] == ["good", "ours"]
    assert rig.writer.roster().keys() == {HERE, THERE}
    await rig.holds_everything()
    again = [unpack_record(key, kept.data) for key, kept in (await loaded(rig.store)).items()]  # a start can read it
    assert {node.node_id for held in again if (node := Record.of(held))} == {"good", "ours"}


async def test_a_message_that_cannot_be_handled_ends_its_link_and_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.peer()

    def broken(*_: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(rig.writer.engine, "receive", broken)
    rig.writer.received(THERE, Watermarks(0, 0, ()))
    assert rig.links.closed == [(THERE, "a message of it could not be handled")]
    assert rig.writer.alerts["message_failed"] == 1
    await rig.register("a")
    await rig.holds_everything()


async def test_a_registry_is_forgotten_when_an_operator_says_so(rig: Rig) -> None:
    await rig.peer()
    rig.writer._tell_roster()
    assert rig.links.roster.keys() == {HERE, THERE}
    rosters: list[set[str]] = []
    rig.writer.on_roster = lambda roster: rosters.append(set(roster))
    assert await rig.writer.forget_registry(THERE)
    assert not await rig.writer.forget_registry(THERE)
    assert THERE not in rig.writer.roster()
    rig.writer._tell_roster()
    assert rosters == [{HERE}]
    assert rig.links.roster.keys() == {HERE}
    assert rig.writer.pinned(THERE) is None


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many sealed writes are taken over at once."""
    monkeypatch.setattr(writer_module, "TAKEN_OVER_AT_ONCE", 10)
    return 10


async def peer_that_sealed(rig: Rig, count: int) -> Peer:
    """A peer whose so many entries are here; its link is down by now."""
    peer = await rig.peer()
    for number in range(count):
        peer.do(peer.engine.put(f"a:{number}", b"x", peer.now))
    await becomes(lambda: rig.writer.engine.replica.get(f"a:{count - 1}") is not None and not rig.writer._busy)
    rig.writer.disconnected(THERE)
    return peer


async def soon(condition: Callable[[], bool]) -> None:
    """Return at the first turn of the loop at which it is so."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come true")


def sealed_by(rig: Rig, origin: str) -> int:
    specs = [held.spec for held in rig.writer.engine.replica.records() if held.key.startswith("a:")]
    return sum(spec is not None and spec.origin == origin for spec in specs)


def ours(records: Iterable[Versioned], chain: Chain, upto: int) -> set[Dot]:
    """What was written in that chain, up to there."""
    dots = {item.section.dot for held in records for item in held.items()}
    return {dot for dot in dots if dot.chain == chain and dot.seq <= upto}


async def test_much_that_a_forgotten_registry_had_sealed_is_taken_over_bit_by_bit(rig: Rig, at_once: int) -> None:
    count = 5 * at_once
    await peer_that_sealed(rig, count)
    forgetting = asyncio.create_task(rig.writer.forget_registry(THERE))
    taken = [0]
    while not forgetting.done():
        taken.append(sealed_by(rig, HERE))
        await asyncio.sleep(0)
    assert await forgetting
    assert max(later - before for before, later in pairwise(taken)) == at_once
    assert taken[-1] == count
    await rig.holds_everything()


async def test_what_is_kept_while_a_registry_is_forgotten_tells_of_nothing_that_is_not(
    rig: Rig, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write meanwhile: a commit's meta must speak of no write whose record was in no commit yet."""
    await peer_that_sealed(rig, 20 * at_once)
    chain, commit = rig.writer.engine.replica.chain, rig.store.commit
    ahead: set[Dot] = set()

    async def looked_at(*args: Any) -> None:
        await commit(*args)
        meta = await rig.store.meta()
        assert meta is not None
        upto = unpack_meta(meta).vector.get(chain, 0)
        kept = [unpack_record(key, found.data) for key, found in (await loaded(rig.store)).items()]
        ahead.update(ours(rig.writer.engine.replica.records(), chain, upto) - ours(kept, chain, upto))

    monkeypatch.setattr(rig.store, "commit", looked_at)
    forgetting = asyncio.create_task(rig.writer.forget_registry(THERE))
    for number in range(1_000):
        if forgetting.done():
            break
        await rig.writer.put(f"b:{number}", b"y")
    assert await forgetting
    assert not ahead
    await rig.holds_everything()


async def test_what_another_forgets_meanwhile_is_forgotten_once_that_is_kept(rig: Rig, at_once: int) -> None:
    await peer_that_sealed(rig, 2 * at_once)
    notes: list[str] = []
    forgetting = [asyncio.create_task(rig.writer.forget_registry(THERE, lambda: notes.append(THERE))) for _ in range(2)]
    await soon(lambda: bool(notes))
    rig.store.goes_on.clear()
    for _ in range(50):
        await asyncio.sleep(0)
    assert not any(each.done() for each in forgetting)
    rig.store.goes_on.set()
    assert all(await asyncio.gather(*forgetting))
    assert notes == [THERE]
    assert THERE not in rig.writer.roster()
    await rig.holds_everything()


async def test_an_entry_of_which_only_another_part_has_come_cannot_be_forgotten_yet(rig: Rig) -> None:
    word = Item(f"{REGISTRY_PREFIX}x", 3, 0, SectionKind.JUDGEMENT, Section(1, "x", 0, b"", 1, 2))
    rig.writer.engine.replica.apply(word)
    assert word.key in rig.writer.engine.replica.roster
    assert not await rig.writer.forget_registry("x")


async def test_who_came_back_while_it_was_being_forgotten_stays(rig: Rig, at_once: int) -> None:
    await peer_that_sealed(rig, 3 * at_once)
    engine, key, notes = rig.writer.engine, f"{REGISTRY_PREFIX}{THERE}", list[str]()
    entry = engine.replica.roster[key].spec
    assert entry is not None
    forgetting = asyncio.create_task(rig.writer.forget_registry(THERE, lambda: notes.append(THERE)))
    await soon(lambda: sealed_by(rig, HERE) >= at_once)
    rig.writer.perform(engine.forget(THERE, b"", rig.writer.now))
    assert THERE not in rig.writer.roster()
    rig.writer.perform(engine.put(key, entry.payload, rig.writer.now))
    assert await forgetting
    assert THERE in rig.writer.roster()
    assert notes == []


@pytest.mark.parametrize("deposed", [False, True])
async def test_a_registry_is_not_forgotten_where_nothing_can_be_kept(rig: Rig, at_once: int, *, deposed: bool) -> None:
    """And nothing more is taken over then."""
    await peer_that_sealed(rig, 30 * at_once)
    forgetting = [asyncio.create_task(rig.writer.forget_registry(THERE)) for _ in range(2)]
    await becomes(lambda: sealed_by(rig, HERE) >= at_once)
    if deposed:
        rig.writer.deposed.set()
    else:
        rig.store.is_down = True
    for each in forgetting:
        await rig.refused(each)
    assert sealed_by(rig, THERE)
    assert THERE in rig.writer.roster()


async def test_causes_that_peers_invent_are_counted_and_take_no_more_room(rig: Rig) -> None:
    for number in range(2_500):
        rig.writer.alert("quarantined", "x", f"p{number}")
    assert rig.writer.alerts["quarantined"] == 2_500
    assert len(rig.writer._loud) <= 1_001
    assert rig.writer.last_alerts["quarantined"]["peer"] == "p2499"


async def test_a_node_that_moves_to_a_peer_is_its_own_from_then_on(rig: Rig) -> None:
    peer = await rig.peer()
    await rig.register("a")
    await becomes(lambda: peer.engine.replica.get("n:a") is not None)
    rig.clock.advance(1.0)
    _, effects = peer.engine.heartbeat("n:a", peer.now, judgement=Word("degraded").encode())
    peer.do(effects)
    entry = rig.directory.get("a")
    assert entry is not None
    await becomes(lambda: entry.owner.registry_id == THERE)
    assert entry.status == "degraded"
    await rig.writer.judge([Due("a", Word("offline"))])  # a word of ours would be of no use
    assert entry.status == "degraded"
    assert await rig.writer.heard("a", Word(), b"", None)
    assert (entry.owner.registry_id, entry.status) == (HERE, "online")
    standing = rig.writer.engine.replica.get("n:a")
    assert standing is not None
    assert standing.judgement is not None
    assert standing.judgement.major > hlc_of(NOW_MS)


async def test_what_lies_in_the_store_is_read_back_as_the_replica_has_it(rig: Rig) -> None:
    await rig.register("a", labels=["x"])
    held = rig.writer.engine.replica.get("n:a")
    assert held is not None
    (kept,) = [found for key, found in (await loaded(rig.store)).items() if key == "n:a"]
    assert unpack_record("n:a", kept.data).state() == held.state()
    node = rig.writer.node("a")
    assert node is not None
    assert node == Record.of(held)
    assert replace(node, spec={}).word == Word()
    assert Put("n:a", kept.data) == Put("n:a", pack_record(held))
