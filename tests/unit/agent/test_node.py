"""The parts of a node's life that need no network."""

import asyncio
from pathlib import Path

import pytest

from agent import node
from agent.config import AgentSettings
from agent.identity import Home
from agent.session import Outcome


async def test_told_to_stop_a_step_has_a_moment_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "FINISH_S", 0.01)
    stop, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> Outcome:
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    stop.set()
    assert (await node._unless(stop, hang())).status is None
    await ended.wait()


async def test_a_step_that_is_nearly_done_is_not_cut_off() -> None:
    stop, answer = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def step() -> Outcome:
        stop.set()
        asyncio.get_running_loop().call_soon(answer.set_result, Outcome(200))
        return await answer

    assert (await node._unless(stop, step())).status == 200


async def test_a_step_ends_before_any_stop() -> None:
    async def step() -> Outcome:
        return Outcome(404)

    assert (await node._unless(asyncio.Event(), step())).status == 404


async def test_a_registry_that_wants_another_pace_gets_fresh_measurements_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first measurement may end before the registry has told its pace; it must not sleep by the old one."""
    agent = node.Agent(AgentSettings(), Home(tmp_path))
    agent.session.interval_s = 3600
    measured: asyncio.Queue[None] = asyncio.Queue()

    async def measure() -> None:
        measured.put_nowait(None)

    monkeypatch.setattr(agent, "measure", measure)
    measuring = asyncio.create_task(agent._keep_measuring())
    try:
        await measured.get()
        await asyncio.sleep(0)  # it is asleep now
        assert measured.empty()
        agent._obey({"heartbeat_interval_s": 3000})
        async with asyncio.timeout(10):
            await measured.get()
        agent._obey({"heartbeat_interval_s": 3000})  # nothing new
        await asyncio.sleep(0)
        assert measured.empty()
    finally:
        measuring.cancel()
