"""registry.ports.Store under many callers at once, and on servers that forget, refuse or are not there."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from registry.group_commit import MAX_BEATS
from registry.ports import Stored, StoreUnavailable, VersionConflict
from registry.store import RedisStore
from tests.support.stores import Bench, heard, loaded, told

AT = 1_700_000_000_000


async def test_what_arrives_in_one_turn_shares_one_pipeline(region: Bench) -> None:
    commits: list[int] = []
    store = await region.worker(on_commit=lambda number, seconds: commits.append(number))
    await store.put("a", b"x", expected=0, at_ms=AT)
    commits.clear()
    before = region.pipelines
    await asyncio.gather(
        *(store.put(f"n{i}", b"x", expected=0, at_ms=AT) for i in range(40)),
        *(heard(store, AT) for _ in range(40)),
        *(store.get("a") for _ in range(40)),
    )
    assert region.pipelines - before == 1
    assert commits == [120]


async def test_what_arrives_while_a_batch_is_under_way_shares_the_next(region: Bench) -> None:
    store = await region.worker()
    before = region.pipelines
    first = asyncio.create_task(store.put("a", b"x", expected=0, at_ms=AT))
    for _ in range(3):  # until it is on its way
        await asyncio.sleep(0)
    assert region.pipelines - before == 1
    assert not first.done()
    await asyncio.gather(first, *(store.put(f"n{i}", b"x", expected=0, at_ms=AT) for i in range(20)))
    assert region.pipelines - before == 2


async def test_a_turn_of_very_many_heartbeats_answers_each(region: Bench) -> None:
    store = await region.worker()
    known = [f"n{i}" for i in range(0, MAX_BEATS + 100, 3)]
    await asyncio.gather(*(store.put(node_id, b"x", expected=0, at_ms=AT) for node_id in known))
    ids = [f"n{i}" for i in range(MAX_BEATS + 100)]
    answers = await asyncio.gather(*(store.beat(node_id, b"{}", AT) for node_id in ids))
    assert [node_id for node_id, there in zip(ids, answers, strict=True) if there] == known


async def test_one_callers_conflict_is_nobody_elses(region: Bench) -> None:
    store = await region.worker()
    answers = await asyncio.gather(
        store.put("a", b"x", expected=7, at_ms=AT),
        store.put("b", b"x", expected=0, at_ms=AT),
        store.delete("c", expected=7, at_ms=AT),
        store.get("b"),
        return_exceptions=True,
    )
    assert isinstance(answers[0], VersionConflict)
    assert isinstance(answers[2], VersionConflict)
    assert answers[3] == Stored(answers[1], b"x")


@pytest.mark.parametrize("turns", range(5))
async def test_a_caller_that_is_cancelled_disturbs_nobody(region: Bench, turns: int) -> None:
    store = await region.worker()
    await store.put("a", b"x", expected=0, at_ms=AT)
    tasks = [
        asyncio.create_task(store.put("gone", b"x", expected=0, at_ms=AT)),
        asyncio.create_task(store.put("stays", b"y", expected=0, at_ms=AT)),
        asyncio.create_task(heard(store, AT)),
        asyncio.create_task(heard(store, AT + 1)),
    ]
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1] > 0
    assert answers[3] is True
    assert await store.get("stays") == Stored(answers[1], b"y")
    assert (await loaded(store))["a"].last_beat_at_ms == AT + 1


async def test_no_more_wait_than_can_be_served(region: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.group_commit.MAX_WAITING", 10)
    store = await region.worker()
    answers = await asyncio.gather(*(store.get("a") for _ in range(15)), return_exceptions=True)
    assert [getattr(answer, "reason", None) for answer in answers] == [None] * 10 + ["slow"] * 5
    assert await store.get("a") is None


async def test_closing_finishes_what_is_queued(region: Bench) -> None:
    store, other = await region.worker("w1"), await region.worker("w2")
    queued = [asyncio.create_task(store.put(f"n{i}", b"x", expected=0, at_ms=AT)) for i in range(5)]
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*queued)
    assert len(await loaded(other)) == 5


# a server that was restarted, replaced, or is not there


@pytest.mark.parametrize("operation", ["put", "beat", "delete", "mark_offline", "load"])
async def test_a_server_that_forgot_the_scripts_is_given_them_again(region: Bench, operation: str) -> None:
    store, raw = await region.worker(), await region.raw()
    version = await store.put("a", b"x", expected=0, at_ms=AT, beat=b"{}")
    await raw.script_flush()
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "put": lambda: store.put("a", b"y", expected=version, at_ms=AT),
        "beat": lambda: store.beat("a", b"{}", AT),
        "delete": lambda: store.delete("a", expected=version, at_ms=AT),
        "mark_offline": lambda: store.mark_offline(["a"]),
        "load": lambda: loaded(store),
    }
    answer = await calls[operation]()
    assert answer or operation == "mark_offline"
    if operation == "load":
        assert answer["a"].beat == b"{}"


async def test_an_operation_that_the_server_refuses_fails_alone(region: Bench) -> None:
    store, raw = await region.worker(), await region.raw()
    await raw.set(region.key("settings"), "not a hash")
    answers = await asyncio.gather(
        store.setting("s", b"x"), store.put("a", b"x", expected=0, at_ms=AT), return_exceptions=True
    )
    assert isinstance(answers[0], StoreUnavailable)
    assert answers[0].reason == "refused"
    assert await store.get("a") == Stored(answers[1], b"x")


async def test_a_server_that_is_not_there_is_told_to_every_caller(tmp_path: Path) -> None:
    store = RedisStore(f"unix://{tmp_path}/none", region="r", worker_id="w", beat_window_ms=1_000)
    calls = [
        store.get("a"),
        store.put("a", b"x", expected=0, at_ms=AT),
        store.delete("a", expected=1, at_ms=AT),
        heard(store, AT),
        store.mark_offline(["a"]),
        store.setting("s", b"x"),
        store.ping(),
        store.last_alive_ms(),
        store.position(),
        loaded(store),
        told(store, "0-0", 1),
        store.start(),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(answer, "reason", answer) for answer in answers] == ["down"] * len(calls)
    await store.aclose()
