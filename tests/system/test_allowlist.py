"""The allowlist across two regions, one of them of two workers: live nodes, approvals, an agent that waits."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import pytest

from tests.support.agents import NO_OLLAMA, agent
from tests.support.live import ADMIN_KEY, Process, clean_environment, running, session, until

SECRET = {"REGISTRY_FEDERATION_SECRET": "f" * 40}
QUICK = ("--heartbeat-interval-s", "0.5", "--degraded-after-s", "60", "--offline-after-s", "120")
BOUND_S = 10.0  # a change is everywhere within two; the rest is a busy machine's
ALLOWLIST, NODES = "/api/v1/allowlist", "/api/v1/nodes"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    folder = tmp_path_factory.mktemp("allowlist")
    with running(folder / "eu", "--region", "eu", "--workers", "2", *QUICK, env=SECRET) as eu:
        with running(folder / "us", "--region", "us", "--peer", eu.url, *QUICK, env=SECRET) as us:
            yield eu, us


class Region:
    """What an operator, and nodes, do at one registry."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self.url = url
        self._client = client

    async def call(self, method: str, path: str, body: Any = None, key: str | None = ADMIN_KEY) -> tuple[int, Json]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self._client.request(method, self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def done(self, method: str, path: str, body: Any = None) -> Json:
        status, answer = await self.call(method, path, body)
        assert status == 200, answer
        return answer

    async def register(self, node_id: str, key: str | None = None, **said: Any) -> tuple[int, Json]:
        return await self.call("POST", f"{NODES}/register", {"node_id": node_id, **said}, key)

    async def beats(self, node_id: str, key: str, times: int = 1) -> list[tuple[int, str | None]]:
        """Over connections of their own: the kernel chooses the worker."""
        found = []
        for _ in range(times):
            async with (
                session(self.url, key) as client,
                client.post(f"{NODES}/heartbeat", json={"node_id": node_id}) as answer,
            ):
                found.append((answer.status, (await answer.json(content_type=None)).get("code")))
        return found

    async def node(self, node_id: str) -> Json:
        return (await self.call("GET", f"{NODES}/{node_id}"))[1]

    async def offers(self, node_id: str) -> bool:
        found = await self.done("GET", f"{NODES}/discover?limit=1000")
        return node_id in [node["node_id"] for node in found["nodes"]]

    async def pending(self, node_id: str) -> list[Json]:
        found = await self.done("GET", f"{ALLOWLIST}/pending")
        return [row for row in found["pending"] if row["node_id"] == node_id]


class Pair(NamedTuple):
    eu: Region
    us: Region


@pytest.fixture
async def regions(pair: tuple[Process, Process]) -> AsyncIterator[Pair]:
    """The list is on and holds the node `stays`; at the end it is off and empty."""
    async with aiohttp.ClientSession() as client:
        both = Pair(*(Region(process.url, client) for process in pair))
        await both.eu.done("PATCH", ALLOWLIST, {"enforced": True, "approvals": True})
        await agree(both, lambda overview: overview["enforced"] and overview["approvals"])
        yield both
        await both.us.done("PATCH", ALLOWLIST, {"enforced": False, "approvals": False})
        for row in (await both.us.done("GET", ALLOWLIST))["entries"]:
            await both.us.call("DELETE", f"{ALLOWLIST}/{quote(row['entry'], safe='')}")
        await agree(both, lambda overview: not overview["enforced"] and not overview["entries"])


async def agree(both: Pair, holds: Any) -> None:
    """Wait until that is so at both."""

    async def said() -> bool:
        return all([holds(await region.done("GET", ALLOWLIST)) for region in both])

    await until(said, BOUND_S)


async def becomes(call: Any, wanted: Any) -> None:
    async def is_so() -> bool:
        return bool(await call() == wanted)

    await until(is_so, BOUND_S)


async def test_a_live_node_that_is_taken_off_is_refused_everywhere_and_comes_back_when_it_is_listed_again(
    regions: Pair,
) -> None:
    eu, us = regions
    await us.done("POST", ALLOWLIST, {"entry": "live"})
    await agree(regions, lambda overview: "live" in [row["entry"] for row in overview["entries"]])
    status, node = await eu.register("live")
    assert status == 200, node
    await until(lambda: us.offers("live"), BOUND_S)
    assert await eu.beats("live", node["api_key"], 8) == [(200, None)] * 8

    began_s = time.monotonic()
    answer = await us.done("DELETE", f"{ALLOWLIST}/live")
    assert "no node may register" in answer["warnings"][0]  # the last entry: nobody is let in by that
    for region in regions:
        await becomes(lambda region=region: region.offers("live"), False)
        await until(lambda region=region: shows(region, "live", "offline", "not on the allowlist"), BOUND_S)
    await becomes(lambda: eu.beats("live", node["api_key"], 8), [(403, "not_allowlisted")] * 8)  # either worker
    assert time.monotonic() - began_s < BOUND_S
    assert await us.beats("live", node["api_key"]) == [(403, "not_allowlisted")]
    assert (await eu.node("live"))["home_registry"] == "eu"  # a refused heartbeat moves nothing
    for path in (NODES, f"{NODES}/discover", "/api/v1/federation"):  # nor does it learn where the others are
        assert (await us.call("GET", path, key=node["api_key"]))[1].get("code") == "not_allowlisted"
    assert (await eu.register("new"))[1]["code"] == "pending"

    await eu.done("POST", ALLOWLIST, {"entry": "127.0.0.0/8", "note": "this machine"})
    for region in regions:
        await until(lambda region=region: shows(region, "live", "offline", "next heartbeat brings it back"), BOUND_S)
    assert await us.beats("live", node["api_key"]) == [(200, None)]
    for region in regions:
        await until(lambda region=region: region.offers("live"), BOUND_S)
    removed = await us.done("DELETE", f"{ALLOWLIST}/{quote('127.0.0.0/8', safe='')}")
    assert removed["entry"] == "127.0.0.0/8"
    await becomes(lambda: eu.offers("live"), False)


async def shows(region: Region, node_id: str, status: str, words: str) -> bool:
    node = await region.node(node_id)
    return node.get("status") == status and words in (node.get("status_reason") or "")


async def test_an_approval_is_for_who_was_approved_at_every_registry_and_for_nobody_else(regions: Pair) -> None:
    eu, us = regions
    attacker, owner = {"claim": "a" * 32, "hostname": "evil"}, {"claim": "b" * 32, "hostname": "gpu"}
    assert (await eu.register("gpu-7", **attacker))[1]["code"] == "pending"  # it comes first
    status, answer = await us.register("gpu-7", **owner)
    assert (status, answer["code"]) == (403, "pending")
    await becomes(lambda: count(eu, "gpu-7"), 2)
    rows = {row["hostname"]: row for row in await eu.pending("gpu-7")}
    assert rows["gpu"]["code"] in answer["detail"]
    assert rows["gpu"]["bound_to"] == "claim"
    assert rows["gpu"]["through"] == "us"
    assert rows["gpu"]["observed_ip"] == "127.0.0.1"
    status, answer = await eu.call("POST", f"{NODES}/gpu-7/approve")
    assert (status, answer["code"]) == (409, "ambiguous")
    approved = await eu.done("POST", f"{NODES}/gpu-7/approve", {"code": rows["gpu"]["code"].lower()})
    assert (approved["entry"], approved["source"]) == ("gpu-7", "approved")

    await becomes(lambda: count(us, "gpu-7"), 1)
    for region in regions:
        assert (await region.register("gpu-7", **attacker))[1]["code"] == "pending"
        assert (await region.register("gpu-7"))[1]["code"] == "pending"  # without any claim
    status, node = await us.register("gpu-7", **owner)
    assert status == 200
    await becomes(lambda: has(eu, "gpu-7"), True)
    assert (await eu.register("gpu-7", node["api_key"]))[0] == 200  # its key says as much as its claim
    assert (await eu.register("gpu-7", **attacker))[1]["code"] == "node_id_taken"

    await eu.done("POST", f"{NODES}/gpu-7/deny", {"code": rows["evil"]["code"]})
    denied = [row for row in await eu.pending("gpu-7") if row["state"] == "denied"]
    assert [row["hostname"] for row in denied] == ["evil"]
    assert "owner" not in json.dumps(await eu.node("gpu-7"))
    assert owner["claim"] not in json.dumps([await eu.node("gpu-7"), await eu.pending("gpu-7")])


async def count(region: Region, node_id: str) -> int:
    return len(await region.pending(node_id))


async def has(region: Region, node_id: str) -> bool:
    return "node_id" in await region.node(node_id)


async def test_an_agent_waits_for_its_approval_and_comes_in_by_itself(regions: Pair, tmp_path: Path) -> None:
    eu, us = regions
    env = {"NODE_REGISTRY_URL": f"{eu.url},{us.url}", "OLLAMA_BASE_URL": NO_OLLAMA}
    async with agent(tmp_path / "agent", "-m", "agent", "bootstrap", env=env) as waiting:
        await waiting.says("waiting for approval")
        await becomes(lambda: count(us, waiting.node_id), 1)  # it asked both, and is one request
        [row] = await us.pending(waiting.node_id)
        assert row["code"] in waiting.output
        listed = await operator(us, tmp_path, "pending", "--json")
        assert [each["code"] for each in json.loads(listed)["pending"] if each["node_id"] == row["node_id"]] == [
            row["code"]
        ]
        await operator(us, tmp_path, "approve", row["node_id"], "--code", row["code"])
        await waiting.says("registered as")
        assert waiting.output.count("waiting for approval") == 1
        await until(lambda: us.offers(waiting.node_id), BOUND_S)


async def operator(region: Region, folder: Path, *command: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "registry", "allow", *command, "--url", region.url],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=folder,
        env={**clean_environment(), "REGISTRY_ADMIN_KEY": ADMIN_KEY},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
