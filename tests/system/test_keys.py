"""Keys across regions: good at once everywhere, and once revoked nowhere any more."""

import asyncio
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from registry.keys import key_hash, key_id_of
from tests.support.agents import AgentProcess, agent
from tests.support.live import ADMIN_KEY, Process, clean_environment, running, session, until

SECRET = {"REGISTRY_FEDERATION_SECRET": "f" * 40}
KEYS, NODES = "/api/v1/keys", "/api/v1/nodes"
BOUND_S = 5.0  # what a revocation may take once two registries can reach each other


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Two workers: what one is told holds at the other."""
    flags = ("--workers", "2", "--heartbeat-interval-s", "0.2", "--degraded-after-s", "30", "--offline-after-s", "60")
    with running(tmp_path_factory.mktemp("keys") / "data", *flags) as process:
        yield process


async def ask(url: str, method: str, path: str, key: str | None = ADMIN_KEY, body: Any = None) -> tuple[int, Any]:
    """Over a new connection: any worker may answer it."""
    async with session(url, key) as client, client.request(method, path, json=body) as answer:
        return answer.status, await answer.json()


async def made(url: str, **asked: Any) -> tuple[str, str]:
    """A new key and its id."""
    status, body = await ask(url, "POST", KEYS, body=asked)
    assert status == 200, body
    return body["key"], body["key_id"]


async def refused(url: str, key: str) -> bool:
    return (await ask(url, "GET", NODES, key))[0] == 401


async def test_a_key_works_where_nobody_has_heard_of_it_and_a_revocation_reaches_everybody(tmp_path: Path) -> None:
    eu = Process(tmp_path / "eu", "--region", "eu", env=SECRET)
    us = Process(tmp_path / "us", "--region", "us", env=SECRET)
    try:
        eu.wait_ready()
        us.wait_ready()  # the two know nothing of each other: no record can have arrived
        read, read_id = await made(eu.url, kind="read")
        join, join_id = await made(eu.url, kind="join", max_uses=1)
        admin, _ = await made(eu.url, kind="admin")
        assert (await ask(us.url, "GET", NODES, read))[0] == 200
        status, node = await ask(us.url, "POST", f"{NODES}/register", join, {"node_id": "n"})
        assert (status, node["metadata"]["joined_with"]) == (200, join_id)
        assert (await ask(us.url, "POST", f"{NODES}/register", join, {"node_id": "m"}))[0] == 403  # one use, by the key
        assert (await ask(us.url, "GET", f"{KEYS}/{read_id}", admin))[0] == 404
        # A node's key, too, and what revokes one that is known nowhere but there.
        assert (await ask(eu.url, "GET", NODES, node["api_key"]))[0] == 200
        own_id = key_id_of(key_hash(node["api_key"]))
        for key_id in (read_id, own_id):
            assert (await ask(us.url, "DELETE", f"{KEYS}/{key_id}", admin))[0] == 200
        assert await refused(us.url, read)
        assert await refused(us.url, node["api_key"])
        assert not await refused(eu.url, read)  # it cannot know
        us.stop()
        us = Process(tmp_path / "us", "--region", "us", "--peer", eu.url, env=SECRET)
        us.wait_ready()
        assert await refused(us.url, read)  # it was kept
        for key in (read, node["api_key"]):
            await until(lambda key=key: refused(eu.url, key), BOUND_S)
        status, shown = await ask(eu.url, "GET", f"{KEYS}/{read_id}")
        assert (shown["status"], shown["kind"]) == ("revoked", "read")
        assert shown["revoked_by"] == key_id_of(key_hash(admin))
    finally:
        for process in (eu, us):
            process.stop()


async def test_what_is_revoked_is_refused_by_every_worker_and_its_watchers_are_told_nothing_more(
    registry: Process,
) -> None:
    read, key_id = await made(registry.url, kind="read", name="a page", expires_in_s=3600)
    async with session(registry.url, read) as client, client.get(f"{NODES}/watch") as stream:
        assert stream.status == 200
        assert await stream.content.readline()
        assert (await ask(registry.url, "DELETE", f"{KEYS}/{key_id}"))[0] == 200
        async with asyncio.timeout(5):
            await stream.read()  # it ends
    await until(lambda: every_worker(registry.url, read))
    status, body = await ask(registry.url, "GET", NODES, read)
    assert (status, body["code"]) == (401, "key_revoked")
    assert (await ask(registry.url, "DELETE", f"{KEYS}/{key_id_of(key_hash(ADMIN_KEY))}"))[0] == 409  # its own


async def every_worker(url: str, key: str) -> bool:
    return all([await refused(url, key) for _ in range(16)])


async def test_a_rotated_key_ends_after_the_overlap(registry: Process) -> None:
    old, key_id = await made(registry.url, kind="read", scopes=["nodes"], expires_in_s=3600)
    status, new = await ask(registry.url, "POST", f"{KEYS}/{key_id}/rotate", body={"overlap_s": 1})
    assert (status, new["scopes"], new["replaces"]) == (200, ["nodes"], key_id)
    assert (await ask(registry.url, "GET", NODES, new["key"]))[0] == 200
    await until(lambda: every_worker(registry.url, old), 5)
    status, body = await ask(registry.url, "GET", NODES, old)
    assert (status, body["code"]) == (401, "key_expired")
    assert (await ask(registry.url, "POST", f"{KEYS}/{key_id}/rotate"))[0] == 409
    listed = (await ask(registry.url, "GET", f"{KEYS}?status=expired&limit=1000"))[1]["keys"]
    assert [(key["key_id"], key["replaced_by"]) for key in listed] == [(key_id, new["key_id"])]


async def test_a_scoped_key_sees_what_it_was_made_for(registry: Process) -> None:
    for node_id, role in (("w", "worker"), ("g", "gpu")):
        await ask(registry.url, "POST", f"{NODES}/register", body={"node_id": node_id, "role": role})
    key, _ = await made(registry.url, kind="read", scopes=["role:gpu"])

    async def seen(method: str, path: str, body: Any = None) -> tuple[int, list[str]]:
        status, found = await ask(registry.url, method, path, key, body)
        return status, [node["node_id"] for node in found.get("nodes", [])]

    async def followed() -> bool:  # a worker that does not write hears of nodes a moment later
        return all([(await seen("GET", NODES)) == (200, ["g"]) for _ in range(16)])

    await until(followed)
    assert await seen("GET", f"{NODES}?role=gpu") == (200, ["g"])
    assert await seen("GET", f"{NODES}/discover") == (200, ["g"])
    assert await seen("POST", f"{NODES}/discover", {"role": "gpu"}) == (200, ["g"])
    for path in (f"{NODES}?role=worker", f"{NODES}/discover?role=worker", f"{NODES}/discover?explain=1", "/metrics"):
        assert (await seen("GET", path))[0] == 403, path
    for path in (f"{NODES}/w", f"{NODES}/w/profile", f"{NODES}/w/dashboard", f"{NODES}/nobody"):
        assert (await seen("GET", path))[0] == 404, path
    async with session(registry.url, key) as client, client.get(f"{NODES}/watch") as stream:
        snapshot = await events_of(stream, 2)
    assert b'"g"' in snapshot
    assert b'"w"' not in snapshot


async def events_of(stream: aiohttp.ClientResponse, lines: int) -> bytes:
    return b"".join([await stream.content.readline() for _ in range(lines + 1)])


def operator(registry: Process, folder: Path, *words: str) -> tuple[str, str]:
    """`dagi-registry ...`, as an operator of that registry; what it printed, and what it said beside."""
    env = {**clean_environment(), "REGISTRY_ADMIN_KEY": ADMIN_KEY, "REGISTRY_URL": registry.url}
    done = subprocess.run(
        [sys.executable, "-m", "registry", *words], capture_output=True, text=True, timeout=20, cwd=folder, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def settings_of(command: str) -> dict[str, str]:
    """What a pasted command sets."""
    words = shlex.split(command)
    return dict(word.split("=", 1) for word in words if word.startswith("NODE_"))


async def test_the_printed_command_lets_a_machine_in_and_its_key_can_be_replaced_and_revoked(
    registry: Process, tmp_path: Path
) -> None:
    command, _ = operator(registry, tmp_path, "join-token", "create", "--max-uses", "1")
    assert command.endswith(" ./scripts/join-network.sh")
    settings = settings_of(command)
    joined_with = key_id_of(key_hash(settings["NODE_JOIN_TOKEN"]))
    async with agent(tmp_path / "box", "-m", "agent", "bootstrap", "--auto", env=settings) as box:
        await box.says("registered as")
        _, node = await ask(registry.url, "GET", f"{NODES}/{box.node_id}")
        assert node["metadata"]["joined_with"] == joined_with
        first = kept_key(box)
        assert rotated(tmp_path, settings, box) == 0
        assert kept_key(box) != first
        await until(lambda: every_worker(registry.url, first))
        before = await last_heartbeat(registry, box)
        await until(lambda: moved_on(registry, box, before))  # the one that runs has taken it up
        assert "401" not in box.output
        operator(registry, tmp_path, "keys", "revoke", "--node", box.node_id)
        await box.says("has been revoked")
        await box.says(f"this machine stays {box.node_id}; an operator gives it a new key")
        assert kept_key(box).startswith("sk-node-")
        new, said = operator(registry, tmp_path, "keys", "rotate", "--node", box.node_id)
        assert "NODE_API_KEY" in said
        await box.stop()
    async with agent(tmp_path / "box", "-m", "agent", "bootstrap", env={**settings, "NODE_API_KEY": new}) as back:
        await back.says("registered as", times=2)
        assert back.node_id == box.node_id


def rotated(folder: Path, settings: dict[str, str], box: AgentProcess) -> int:
    """`dagi-agent rotate-key` beside an agent that runs; its exit status."""
    command = [sys.executable, "-m", "agent", "rotate-key", "--overlap-s", "2"]  # for it to keep the new one
    env = {**clean_environment(), **settings, "HOME": str(box.home)}
    return subprocess.run(command, timeout=20, cwd=folder, env=env).returncode


def kept_key(box: AgentProcess) -> str:
    return str(json.loads((box.home / ".dagi" / "credentials.json").read_text())["api_key"])


async def last_heartbeat(registry: Process, box: AgentProcess) -> str:
    return str((await ask(registry.url, "GET", f"{NODES}/{box.node_id}"))[1]["last_heartbeat"])


async def moved_on(registry: Process, box: AgentProcess, before: str) -> bool:
    return await last_heartbeat(registry, box) > before


async def test_the_command_with_curl_works_as_it_is_printed(registry: Process, tmp_path: Path) -> None:
    command, said = operator(registry, tmp_path, "join-token", "create", "--curl", "--name", "the lab")
    assert "this machine only" in " ".join(said.split())  # it is advertised on loopback
    joined_with = key_id_of(key_hash(settings_of(command)["NODE_JOIN_TOKEN"]))
    shell = pasted(command, tmp_path)
    try:

        async def joined() -> bool:
            nodes = (await ask(registry.url, "GET", f"{NODES}?limit=1000"))[1]["nodes"]
            return joined_with in [node["metadata"].get("joined_with") for node in nodes]

        await until(joined)
    finally:
        os.killpg(shell.pid, 15)
        shell.wait(10)

    async def counted() -> bool:  # a worker that does not write hears of it a moment later
        shown = (await ask(registry.url, "GET", f"{KEYS}/{joined_with}"))[1]
        return (shown["name"], shown["uses"], shown["status"]) == ("the lab", 1, "active")

    await until(counted)


def pasted(command: str, folder: Path) -> subprocess.Popen[bytes]:
    """A line in a shell, in a process group of its own."""
    env = {**clean_environment(), "HOME": str(folder), "OLLAMA_BASE_URL": "http://127.0.0.1:1"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", command], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
