"""Two machines under one id: the registry tells the one that did not register last, and nobody else."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.live import Process, running, session


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("clones") / "data", "--workers", "2") as process:
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
    assert (await post(url, "heartbeat", node_id="twin", instance_id="a", token=again["token"]))[0] == 200
    assert (await post(url, "heartbeat", node_id="twin", instance_id="b", token=second["token"]))[0] == 409


async def test_agents_that_do_not_say_which_run_they_are_are_not_told_apart(registry: Process) -> None:
    url = registry.url
    _, first = await post(url, "register", node_id="old")
    await post(url, "register", node_id="old", instance_id="b")
    assert (await post(url, "heartbeat", node_id="old", token=first["token"]))[0] == 200
    assert (await post(url, "heartbeat", node_id="old", instance_id="a"))[0] == 200
    assert (await post(url, "heartbeat", node_id="old", instance_id=7))[0] == 422
