"""registry.ports.Store under many callers at once, and on servers that forget, refuse or are not there."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from registry.group_commit import BATCH_TIMEOUT_S, MAX_BEATS, frame, frames
from registry.ports import Fenced, Lease, Put, StoreChanged, StoreUnavailable
from registry.region import LEASE_S, RENEW_S
from registry.store import RedisStore
from tests.support.stores import Bench, heard, loaded, told

AT = 1_700_000_000_000


async def test_what_arrives_in_one_turn_shares_one_round_trip(region: Bench) -> None:
    batches: list[int] = []
    store = await region.worker(on_commit=lambda number, seconds: batches.append(number))
    await (await region.writer(store)).put("a")
    batches.clear()
    before = region.round_trips
    await asyncio.gather(
        *(store.setting(f"s{i}", b"x") for i in range(40)),
        *(heard(store, AT) for _ in range(40)),
        *(store.published("p") for _ in range(40)),
        store.commit("t1", {1}, 2, [Put("b", b"x")], None),
    )
    assert batches[0] == 121
    assert region.round_trips - before == 2  # the settings are read in another
    assert batches[1:] == [40]


async def test_a_heartbeat_of_the_same_turn_finds_the_record_of_a_commit(region: Bench) -> None:
    store = await region.worker()
    await region.writer(store)
    answers = await asyncio.gather(heard(store, AT), store.commit("t1", {0}, 1, [Put("a", b"x")], None))
    assert answers[0] is True


async def test_what_arrives_while_a_batch_is_under_way_shares_the_next(region: Bench) -> None:
    store = await region.worker()
    before = region.round_trips
    first = asyncio.create_task(store.ping())
    for _ in range(10):
        if region.round_trips > before:  # it is on its way
            break
        await asyncio.sleep(0)
    assert region.round_trips - before == 1
    assert not first.done()
    await asyncio.gather(first, *(store.publish(f"n{i}", b"x") for i in range(20)))
    assert region.round_trips - before == 2


async def test_a_turn_of_very_many_heartbeats_answers_each(region: Bench) -> None:
    store = await region.worker()
    known = [f"n{i}" for i in range(0, MAX_BEATS + 100, 3)]
    await (await region.writer(store)).put(*known)
    ids = [f"n{i}" for i in range(MAX_BEATS + 100)]
    answers = await asyncio.gather(*(store.beat(key, b"{}", AT) for key in ids))
    assert [key for key, there in zip(ids, answers, strict=True) if there] == known


def test_the_lease_can_be_renewed_after_a_batch_that_got_no_answer() -> None:
    assert BATCH_TIMEOUT_S + RENEW_S < LEASE_S


def test_a_batch_is_taken_apart_as_it_was_put_together() -> None:
    beats = [("n:a", AT, b""), ("é:1", 0, b"n:b 1 2\n"), ("n:a", AT + 1, b"\n \x00")]
    assert list(frames(b"".join(frame(*beat) for beat in beats))) == beats
    assert list(frames(b"")) == []


async def test_one_callers_refusal_is_nobody_elses(region: Bench) -> None:
    store = await region.worker()
    await region.writer(store)
    answers = await asyncio.gather(
        store.commit("t2", {0}, 7, [Put("b", b"x")], None),
        store.commit("t1", {0}, 1, [Put("a", b"x")], None),
        store.commit("t1", {0}, 2, [Put("c", b"x")], None),
        store.version(),
        heard(store, AT),
        return_exceptions=True,
    )
    assert isinstance(answers[0], Fenced)
    assert isinstance(answers[2], StoreChanged)
    assert [answers[1], *answers[3:]] == [None, 1, True]
    assert await store.keys() == {"a"}


@pytest.mark.parametrize("turns", range(5))
async def test_a_caller_that_is_cancelled_disturbs_nobody(region: Bench, turns: int) -> None:
    store = await region.worker()
    await (await region.writer(store)).put("a")
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(store.publish("gone", b"x")),
        asyncio.create_task(store.commit("t1", {1}, 2, [Put("stays", b"y")], None)),
        asyncio.create_task(heard(store, AT)),
        asyncio.create_task(heard(store, AT + 1)),
    ]
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1] is None
    assert answers[3] is True
    records = await loaded(store)
    assert (records["stays"].data, records["a"].last_beat_at_ms) == (b"y", AT + 1)


async def test_no_more_wait_than_can_be_served(region: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.group_commit.MAX_WAITING", 10)
    store = await region.worker()
    answers = await asyncio.gather(*(store.published("a") for _ in range(15)), return_exceptions=True)
    assert [getattr(answer, "reason", None) for answer in answers] == [None] * 10 + ["busy"] * 5
    assert await store.published("a") is None


async def test_closing_finishes_what_is_queued(region: Bench) -> None:
    store, other = await region.worker("w1"), await region.worker("w2")
    await (await region.writer(store)).put("a")
    queued: list[asyncio.Task[Any]] = [asyncio.create_task(store.publish(f"n{i}", b"x")) for i in range(5)]
    queued.append(asyncio.create_task(store.commit("t1", {1}, 2, [Put("b", b"x")], None)))
    queued.append(asyncio.create_task(heard(store, AT)))
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*queued)
    assert await other.keys() == {"a", "b"}
    assert [await other.published(f"n{i}") for i in range(5)] == [b"x"] * 5
    assert await other.unheard(["a", "b"]) == ["b"]


# a server that was restarted, replaced, or is not there


CALLS: dict[str, Callable[[RedisStore], Awaitable[Any]]] = {
    "beat": lambda store: store.beat("a", b"{}", AT),
    "commit": lambda store: store.commit("t1", {1}, 2, [Put("a", b"y"), Put("b", None)], b"m"),
    "keys": lambda store: store.keys(),
    "last_alive_ms": lambda store: store.last_alive_ms(),
    "lease": lambda store: store.lease("t1", "here", 1_000),
    "load": lambda store: loaded(store),
    "meta": lambda store: store.meta(),
    "ping": lambda store: store.ping(),
    "position": lambda store: store.position(),
    "publish": lambda store: store.publish("p", b"x"),
    "published": lambda store: store.published("p"),
    "release": lambda store: store.release("t1"),
    "setting": lambda store: store.setting("s", b"x"),
    "start": lambda store: store.start(),
    "tail": lambda store: told(store, "0-0", 1),
    "unheard": lambda store: store.unheard(["a", "b"]),
    "version": lambda store: store.version(),
}


@pytest.mark.parametrize("operation", ["beat", "commit", "keys", "lease", "load", "publish", "release", "unheard"])
async def test_a_server_that_forgot_the_scripts_is_given_them_again(region: Bench, operation: str) -> None:
    store, raw = await region.worker(), await region.raw()
    await (await region.writer(store)).put("a", "b")
    await store.beat("a", b"{}", AT)
    await raw.script_flush()
    answer = await CALLS[operation](store)
    answers = {"beat": True, "keys": {"a", "b"}, "lease": Lease("t1", "here"), "unheard": ["b"]}
    if operation == "load":
        assert answer["a"].beat == b"{}"
    else:
        assert answer == answers.get(operation)
    assert await store.version() == (2 if operation == "commit" else 1)
    assert await store.published("p") == (b"x" if operation == "publish" else None)
    assert await raw.exists(region.key("lease")) == (operation != "release")


async def test_an_operation_that_the_server_refuses_fails_alone(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    await region.writer(store)
    await raw.set(region.key("settings"), "not a hash")
    answers = await asyncio.gather(
        store.setting("s", b"x"), store.commit("t1", {0}, 1, [Put("a", b"x")], None), return_exceptions=True
    )
    assert isinstance(answers[0], StoreUnavailable)
    assert answers[0].reason == "refused"
    assert answers[1] is None
    assert await store.keys() == {"a"}


async def test_a_server_that_is_not_there_is_told_to_every_caller(tmp_path: Path) -> None:
    store = RedisStore(f"unix://{tmp_path}/none", region="r", worker_id="w", beat_window_ms=1_000)
    answers = await asyncio.gather(*(call(store) for call in CALLS.values()), return_exceptions=True)
    assert [getattr(answer, "reason", answer) for answer in answers] == ["down"] * len(CALLS)
    await store.aclose()
