"""The parts of a node's life that need no network."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agent import node
from agent.config import AgentSettings, ConfigurationError
from agent.identity import Credentials, Home
from agent.session import Outcome
from agent.wake import Reading
from federation.tls import Files
from tests.support.tls import Authority


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


async def test_a_wait_is_cut_short_where_the_machine_has_slept_and_connections_are_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    reading = Reading(0.0, 1_000.0, 0.0, "192.0.2.10")
    readings = iter([reading, reading, replace(reading, boot_s=7_200.0, wall_s=8_200.0)])
    monkeypatch.setattr(node, "read", lambda: next(readings))
    monkeypatch.setattr(node, "SLICE_S", 0.01)
    agent = node.Agent(AgentSettings(), Home(tmp_path), say=said.append)
    opened = agent.client.session()
    async with asyncio.timeout(10):
        assert not await agent._pause(asyncio.Event(), 3_600.0)
    assert opened.closed
    assert said == ["the machine, or this program, stood still for 2 h; asking the registries again at once"]


async def test_a_wait_ends_when_it_is_over_or_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "SLICE_S", 0.01)
    agent, stop = node.Agent(AgentSettings(), Home(tmp_path), say=pytest.fail), asyncio.Event()
    async with asyncio.timeout(10):
        assert not await agent._pause(stop, 0.0)
        assert not await agent._pause(stop, 0.03)
        asyncio.get_running_loop().call_soon(stop.set)
        assert await agent._pause(stop, 3_600.0)
        assert await agent._pause(stop, 0.0)


# certificates


def with_certificate(files: Files, folder: Path, said: list[str] | None = None) -> node.Agent:
    settings = AgentSettings(node_cert=files.cert, node_key=files.key, ca_cert=files.ca)
    return node.Agent(settings, Home(folder), (said if said is not None else []).append)


def test_a_home_that_is_another_nodes_than_its_certificate_says_is_a_wrong_setting(tmp_path: Path) -> None:
    box, home = Authority(tmp_path).issue("node", "box"), tmp_path / "home"
    assert with_certificate(box, home).node_id == "box"
    assert with_certificate(box, home).node_id == "box"
    Home(home).keep_id("other")
    Home(home).keep_credentials(Credentials("other", None, "t", None))
    with pytest.raises(ConfigurationError) as refused:
        with_certificate(box, home)
    assert "NODE_CERT is node box's, and" in str(refused.value)
    assert "dagi-registry ca issue --node other" in str(refused.value)
    assert "DAGI_HOME to become box" in str(refused.value)


async def test_a_certificate_that_expires_soon_is_said_while_the_agent_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    box = Authority(tmp_path).issue("node", "box", days=10)
    agent, measured = with_certificate(box, tmp_path / "home", said), asyncio.Event()

    async def measure() -> None:
        measured.set()

    monkeypatch.setattr(agent, "measure", measure)
    measuring = asyncio.create_task(agent._keep_measuring())
    try:
        async with asyncio.timeout(10):
            await measured.wait()
    finally:
        measuring.cancel()
    assert said == [
        f"certificate: {box.cert} expires in 9 days; put a new one in its place, nothing has to be restarted"
    ]
