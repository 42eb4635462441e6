"""Two machines under one id: the registry tells the one that did not register last, and nobody else."""

import asyncio
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import AgentProcess, agent
from tests.support.live import Process, running, session, until


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(
        tmp_path_factory.mktemp("clones") / "data", "--workers", "2", "--heartbeat-interval-s", "0.2"
    ) as process:
        yield process


async def post(url: str, path: str, **body: Any) -> tuple[int, Any]:
    async with session(url) as admin, admin.post(f"/api/v1/nodes/{path}", json=body) as answer:
        return answer.status, await answer.json()


async def test_of_two_runs_with_one_id_the_later_to_register_is_the_node(registry: Process) -> None:
    url = registry.url
    _, first = await post(url, "register", node_id="twin", instance_id="a")
    _, second = await post(url, "register", node_id="twin", instance_id="b", token=first["token"])
    for path in ("heartbeat", "twin/heartbeat"):
        status, problem = await post(url, path, node_id="twin", instance_id="a", token=first["token"], status="leaving")
        assert (status, problem["code"]) == (409, "instance_replaced")
    for _ in range(4):  # either worker
        status, beat = await post(url, "heartbeat", node_id="twin", instance_id="b", token=second["token"])
        assert (status, beat["status"]) == (200, "online")
    # The first claims its id, and has it: only the one that is told twice should give it up.
    _, again = await post(url, "register", node_id="twin", instance_id="a", token=first["token"])
    await until(partial(_is_told, url, {"node_id": "twin", "instance_id": "b", "token": second["token"]}))
    assert (await post(url, "heartbeat", node_id="twin", instance_id="a", token=again["token"]))[0] == 200


async def test_runs_that_register_at_the_same_moment_are_told_apart(registry: Process) -> None:
    """Each answer carries the token of its own request: with the other's a run would be taken for the later one."""
    url = registry.url
    runs = [f"run-{n}" for n in range(8)]
    for n in range(6):
        node_id = f"quick-{n}"
        await post(url, "register", node_id=node_id)
        answers = await asyncio.gather(
            *(post(url, "register", node_id=node_id, instance_id=each) for each in runs),
        )
        tokens = {each: answer["token"] for each, (_, answer) in zip(runs, answers, strict=True)}
        assert len(set(tokens.values())) == len(runs)
        beats = {each: {"node_id": node_id, "instance_id": each, "token": tokens[each]} for each in runs}
        current = await until(partial(_survivor, url, beats))
        # A heartbeat that is under way while another run registers must not bring home that one's token.
        together = [post(url, "heartbeat", **beats[current]) for _ in range(24)]
        together.insert(8, post(url, "register", node_id=node_id, instance_id="late"))
        answers = await asyncio.gather(*together)
        taken = [answer["token"] for status, answer in (*answers[:8], *answers[9:]) if status == 200]
        assert set(taken) <= {tokens[current]}
        await until(partial(_is_told, url, beats[current]))


async def _survivor(url: str, beats: dict[str, Any]) -> str | None:
    """The one run that may go on, once each worker knows it."""
    found = {each: (await post(url, "heartbeat", **beat))[0] for each, beat in beats.items()}
    may = [each for each, status in found.items() if status == 200]
    return may[0] if len(may) == 1 else None


async def _is_told(url: str, beat: dict[str, Any]) -> bool:
    return (await post(url, "heartbeat", **beat))[0] == 409


async def test_agents_that_do_not_say_which_run_they_are_are_not_told_apart(registry: Process) -> None:
    url = registry.url
    _, first = await post(url, "register", node_id="old")
    await post(url, "register", node_id="old", instance_id="b")
    assert (await post(url, "heartbeat", node_id="old", token=first["token"]))[0] == 200
    assert (await post(url, "heartbeat", node_id="old", instance_id="a"))[0] == 200
    assert (await post(url, "heartbeat", node_id="old", instance_id=7))[0] == 422


BOOTSTRAP = ("-m", "agent", "bootstrap", "--registry-url")


async def test_of_two_machines_with_one_home_s_copies_one_takes_a_new_id(registry: Process, tmp_path: Path) -> None:
    async with agent(tmp_path / "one", *BOOTSTRAP, registry.url) as one:
        await one.says("registered as")
        shutil.copytree(one.home, tmp_path / "copy")
        async with agent(tmp_path / "two", *BOOTSTRAP, registry.url, home=tmp_path / "copy") as two:
            async with session(registry.url) as admin:

                async def are_two() -> bool:
                    ids = {one.node_id, two.node_id}
                    listed = await (await admin.get("/api/v1/nodes?status=online")).json()
                    told = all(f"registered as {each.node_id}" in each.output for each in (one, two))
                    return told and len(ids) == 2 and ids <= {node["node_id"] for node in listed["nodes"]}

                await until(are_two, 40.0)
            gave_way = [each for each in (one, two) if "this machine takes a new id" in each.output]
            assert len(gave_way) == 1
            assert "another agent has registered as this node" in gave_way[0].output
            settled = [each.output for each in (one, two)]
            # From here on they are two nodes like any others: nobody is told anything again.
            for each in (one, two):
                await _beats(registry, each, 5)
            assert [each.output for each in (one, two)] == settled


async def _beats(registry: Process, node: AgentProcess, times: int) -> None:
    seen = set()
    async with session(registry.url) as admin:

        async def enough() -> bool:
            async with admin.get(f"/api/v1/nodes/{node.node_id}") as answer:
                seen.add((await answer.json()).get("last_heartbeat"))  # a worker may not know it yet
            return len(seen - {None}) > times

        await until(enough)


async def test_a_second_agent_of_a_home_waits_for_the_first_to_end(registry: Process, tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with agent(tmp_path / "one", *BOOTSTRAP, registry.url, home=home) as one:
        await one.says("registered as")
        async with agent(tmp_path / "once", *BOOTSTRAP, registry.url, "--once", home=home) as once:
            assert await once.ends() == 1
            assert "another agent runs for" in once.output
        async with agent(tmp_path / "two", *BOOTSTRAP, registry.url, home=home) as two:
            await two.says("waiting for it to end")
            one.kill()
            await two.says("registered as")
    assert "takes a new id" not in one.output + two.output
