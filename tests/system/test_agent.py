"""The agent as its users run it: a real process against a real registry."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.discovery import AsyncNodeDiscovery, NodeDiscovery, RegistryUnreachable, RequestRefused
from tests.support.agents import NO_OLLAMA, AgentProcess, agent
from tests.support.live import Process, clean_environment, running, session, until
from tests.support.ollama import PULLED, serving

BOOTSTRAP = ("-m", "agent", "bootstrap")
DOCUMENTED = ("-m", "tools.dagi_node_agent.bootstrap")
FAST = ("--heartbeat-interval-s", "0.2", "--degraded-after-s", "20", "--offline-after-s", "60")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("key") / "data", *FAST) as process:
        yield process


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("open") / "data", "--auth", "open", *FAST) as process:
        yield process


async def ask(url: str, path: str) -> Any:
    async with session(url) as admin, admin.get(path) as answer:
        return await answer.json() if answer.status == 200 else None


async def shown(url: str, node: AgentProcess) -> Any:
    return await ask(url, f"/api/v1/nodes/{node.node_id}")


async def beats(url: str, node: AgentProcess, times: int) -> None:
    """Wait for so many heartbeats of a node, each seen in the registry."""
    seen = set()

    async def enough() -> bool:
        seen.add((await shown(url, node) or {}).get("last_heartbeat"))
        return len(seen - {None}) > times

    await until(enough)


async def test_it_registers_this_machine_and_heartbeats_what_it_measures(registry: Process, tmp_path: Path) -> None:
    command = (*BOOTSTRAP, "--registry-url", registry.url, "--role", "trainer", "--labels", "gpu, home")
    async with agent(tmp_path, *command) as node:
        await node.says(f"registered as node-{socket.gethostname().split('.')[0].lower()}-")
        await beats(registry.url, node, 4)  # at the registry's pace: the agent's own is 30 s
        found = await shown(registry.url, node)
    assert (found["role"], found["labels"], found["status"]) == ("trainer", ["gpu", "home"], "online")
    assert found["hostname"] == socket.gethostname()
    assert found["local_ip"] == found["observed_ip"] == "127.0.0.1"
    capabilities, metrics = found["capabilities"], found["metrics"]
    assert capabilities["cpu_cores"] == os.cpu_count()
    assert capabilities["ram_gb"] == round(psutil.virtual_memory().total / 2**30, 2)
    assert capabilities["disk_gb"] > 0
    for name in ("cpu_percent", "memory_percent", "disk_percent"):
        assert 0 <= metrics[name] <= 100
    assert metrics["memory_percent"] > 0
    assert metrics["agent_count"] is None
    assert (metrics["services"], metrics["models"]) == ([], [])
    kept = json.loads((node.home / ".dagi" / "credentials.json").read_text())
    assert kept["node_id"] == node.node_id
    assert kept["api_key"].startswith("sk-node-")
    assert kept["api_key"] not in node.output


async def test_a_registry_that_dies_and_comes_back_gets_its_node_back(tmp_path: Path) -> None:
    first = Process(tmp_path / "data", *FAST)
    url = first.wait_ready()
    try:
        async with agent(tmp_path / "node", *BOOTSTRAP, "--registry-url", url) as node:
            await node.says("registered as")
            await beats(url, node, 1)
            first.kill()
            await node.says("connection refused")
            with running(tmp_path / "data", *FAST, port=int(url.rpartition(":")[2])):
                await node.says("accepted again")
                await beats(url, node, 1)
                assert node.output.count("registered as") == 1
    finally:
        first.kill()


async def test_a_node_that_an_admin_removed_registers_again(registry: Process, tmp_path: Path) -> None:
    async with agent(tmp_path, *BOOTSTRAP, "--registry-url", registry.url) as node:
        await node.says("registered as")
        async with session(registry.url) as admin, admin.delete(f"/api/v1/nodes/{node.node_id}") as answer:
            assert answer.status == 200
        await node.says("registering again")
        await node.says(f"registered as {node.node_id}", 2)
        await beats(registry.url, node, 1)


async def test_a_wrong_key_is_said_and_tried_again_later(registry: Process, tmp_path: Path) -> None:
    wrong = {"NODE_API_KEY": "sk-node-" + "x" * 40}
    async with agent(tmp_path, *BOOTSTRAP, "--registry-url", registry.url, env=wrong) as node:
        await node.says("answered 401: The key is not known to this registry")
        await node.says("next try in")
        assert await node.stop() == 0
        assert node.output.endswith("stopped; it was not registered\n")
        assert wrong["NODE_API_KEY"] not in node.output


async def test_an_id_that_is_anothers_is_given_up_for_a_new_one(registry: Process, tmp_path: Path) -> None:
    async with session(registry.url) as admin:
        async with admin.post("/api/v1/nodes/register", json={"node_id": "template"}) as answer:
            assert answer.status == 200
    (tmp_path / "home" / ".dagi").mkdir(parents=True)
    (tmp_path / "home" / ".dagi" / "node_id").write_text("template")  # an image made of a machine
    async with agent(tmp_path, *BOOTSTRAP, "--registry-url", registry.url) as node:
        await node.says("template is another node's; this machine takes a new id")
        await node.says("registered as node-")
        assert node.node_id != "template"
        assert (await shown(registry.url, node))["status"] == "online"


async def test_stopped_it_is_draining_killed_it_is_not_and_started_it_is_the_same_node(
    registry: Process, tmp_path: Path
) -> None:
    command = (*BOOTSTRAP, "--registry-url", registry.url)
    async with agent(tmp_path, *command) as node:
        await node.says("registered as")
        first = node.node_id
        node.kill()
        assert (await shown(registry.url, node))["status"] == "online"
    async with agent(tmp_path, *command) as again:
        await again.says(f"registered as {first}", 2)
        assert await again.stop() == 0
        assert "shown as draining" in again.output
        assert (await shown(registry.url, again))["status"] == "draining"
    async with agent(tmp_path, *command) as back:
        await back.says(f"registered as {first}", 3)
        assert (await shown(registry.url, back))["status"] == "online"


async def test_two_homes_on_one_machine_are_two_nodes(registry: Process, tmp_path: Path) -> None:
    command = (*BOOTSTRAP, "--registry-url", registry.url)
    shared = {"DAGI_HOME": str(tmp_path / "third")}
    async with agent(tmp_path / "a", *command) as one, agent(tmp_path / "b", *command) as two:
        async with agent(tmp_path / "c", *command, env=shared, home=tmp_path / "a" / "home") as three:
            for node in (one, two, three):
                await node.says("registered as")
            third = (tmp_path / "third" / "node_id").read_text().strip()
            assert len({one.node_id, two.node_id, third}) == 3
            listed = await ask(registry.url, "/api/v1/nodes?limit=1000")
    assert {one.node_id, two.node_id, third} <= {node["node_id"] for node in listed["nodes"]}


async def test_once_registers_beats_once_and_ends(registry: Process, tmp_path: Path) -> None:
    async with agent(tmp_path, *BOOTSTRAP, "--registry-url", registry.url, "--once") as node:
        assert await node.ends() == 0
        found = await shown(registry.url, node)
    assert found["status"] == "online"
    assert found["metrics"]["memory_percent"] > 0


async def test_once_without_a_registry_says_so_and_ends_with_one(tmp_path: Path) -> None:
    async with agent(tmp_path, *BOOTSTRAP, "--registry-url", "http://127.0.0.1:1", "--once") as node:
        assert await node.ends() == 1
    assert node.output == "failed: http://127.0.0.1:1: connection refused (is the registry running there?)\n"


async def test_forget_deregisters_and_leaves_no_identity(registry: Process, tmp_path: Path) -> None:
    command = (*BOOTSTRAP, "--registry-url", registry.url)
    async with agent(tmp_path, *command, "--once") as node:
        assert await node.ends() == 0
        node_id = node.node_id
    for _ in range(2):  # a second time there is nothing to forget, which is no failure
        async with agent(tmp_path, *command, "--forget") as node:
            assert await node.ends() == 0
    assert await ask(registry.url, f"/api/v1/nodes/{node_id}") is None
    assert list((tmp_path / "home" / ".dagi").iterdir()) == []


async def test_forget_without_a_registry_keeps_the_identity(tmp_path: Path) -> None:
    (tmp_path / "home" / ".dagi").mkdir(parents=True)
    (tmp_path / "home" / ".dagi" / "node_id").write_text("mine")
    async with agent(tmp_path, *BOOTSTRAP, "--registry-url", "http://127.0.0.1:1", "--forget") as node:
        assert await node.ends() == 1
    assert "not deregistered; the identity stays" in node.output
    assert node.node_id == "mine"


async def test_the_documented_command_line(registry: Process, tmp_path: Path) -> None:
    flags = ("--role", "production-node", "--labels", "gpu,cpu,ollama", "--registry-url", registry.url)
    async with agent(tmp_path, *DOCUMENTED, *flags) as node:
        await node.says("registered as")
        found = await shown(registry.url, node)
    assert (found["role"], found["labels"]) == ("production-node", ["gpu", "cpu", "ollama"])


async def test_the_documented_env_file_with_auto(registry: Process, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        f"# Node Registry URL\nNODE_REGISTRY_URL={registry.url}\n\nNATS_URL=nats://192.0.2.1:4222\n\n"
        f"NODE_ROLE=worker-node\nNODE_LABELS=gpu,inference,home\n\nOLLAMA_BASE_URL={NO_OLLAMA}\nNODE_LABLES=typo\n"
    )
    async with agent(tmp_path, *DOCUMENTED, "--auto") as node:
        await node.says("registered as")
        await node.says("did you mean NODE_LABELS?")
        found = await shown(registry.url, node)
    assert (found["role"], found["labels"]) == ("worker-node", ["gpu", "inference", "home"])


async def test_models_of_ollama_are_found_and_one_pulled_later_too(registry: Process, tmp_path: Path) -> None:
    async with serving() as ollama:
        env = {"OLLAMA_BASE_URL": ollama.url}
        async with agent(tmp_path, *BOOTSTRAP, "--registry-url", registry.url, env=env) as node:
            await node.says("registered as")
            await beats(registry.url, node, 2)

            async def holders(model: str) -> list[str]:
                found = await ask(registry.url, f"/api/v1/nodes/discover?model={model}")
                return [each["node_id"] for each in found["nodes"]]

            async def offered() -> bool:  # its answers may have been too slow for the registration
                return await holders("qwen3:8b") == [node.node_id]

            await until(offered)
            assert await holders("nomic-embed-text") == [node.node_id]
            assert await holders("big:480b-cloud") == []
            found = await shown(registry.url, node)
            assert found["capabilities"]["models"] == ["qwen3:8b", "nomic-embed-text:latest"]
            assert found["metrics"]["services"] == ["ollama"]
            assert {m["name"]: m["loaded"] for m in found["metrics"]["models"]} == {
                "qwen3:8b": True,
                "nomic-embed-text:latest": False,
            }
            async with AsyncNodeDiscovery(registry.url, api_key=_key_of(node)) as discovery:
                best = await discovery.find_best_node_for_model("QWEN3:8b")
                assert best is not None
                assert best["node_id"] == node.node_id
                assert await discovery.find_best_node_for_model("nothing:1b") is None
            ollama.answers["/api/tags"] = PULLED

            async def has_it() -> bool:
                return await holders("mistral:7b") == [node.node_id]

            await until(has_it)


def _key_of(node: AgentProcess) -> str:
    return str(json.loads((node.home / ".dagi" / "credentials.json").read_text())["api_key"])


SAMPLE_BOOTSTRAP = """
from tools.dagi_node_agent.bootstrap import NodeBootstrap
bootstrap = NodeBootstrap({url!r})
print(f"Registering node: {{bootstrap.node_id}}")
facts = bootstrap.collect_capabilities()
assert {{"hostname", "ip_address", "local_ip", "os", "os_version", "cpu_cores", "ram_gb", "disk_gb", "gpu",
        "ollama"}} <= set(facts), facts
result = bootstrap.register()
assert result["node_id"] == bootstrap.generate_node_id() == bootstrap.node_id
print(f"API Key: {{result['api_key']}}")
bootstrap.start_heartbeat()
"""

SAMPLE_DISCOVERY = """
from tools.dagi_node_agent.node_discovery import NodeDiscovery
discovery = NodeDiscovery({url!r})
gpu_nodes = discovery.find_nodes(capability="gpu")
print(f"Found {{len(gpu_nodes)}} nodes with GPU")
node = discovery.find_best_node_for_model("deepseek-r1:70b")
if node:
    print(f"Model available on: {{node['node_name']}}")
print(discovery.get_nearest_node()["node_id"])
"""


async def test_the_documented_samples_run_as_they_stand(open_registry: Process, tmp_path: Path) -> None:
    url = open_registry.url
    report = {"node_id": "big", "node_name": "big box", "capabilities": {"gpu": "L4", "models": ["deepseek-r1:70b"]}}
    async with session(url, None) as anyone, anyone.post("/api/v1/nodes/register", json=report) as answer:
        assert answer.status == 200
    async with agent(tmp_path / "one", "-c", SAMPLE_BOOTSTRAP.format(url=url)) as node:
        await node.says("API Key: sk-node-")
        await beats(url, node, 2)
        assert await node.stop() == 0
        assert "shown as draining" in node.output
    async with agent(tmp_path / "two", "-c", SAMPLE_DISCOVERY.format(url=url)) as found:
        assert await found.ends() == 0
    # Nothing else: a program that forgets to close must not end with complaints.
    assert found.output == "Found 1 nodes with GPU\nModel available on: big box\nbig\n"


async def test_discovery_in_both_colours_gives_the_same(open_registry: Process) -> None:
    url = open_registry.url
    async with session(url, None) as anyone:
        for name, role in (("c1", "cook"), ("c2", "cook"), ("w1", "waiter")):
            body = {"node_id": name, "role": role, "capabilities": {"features": ["stove"], "ram_gb": 64}}
            async with anyone.post("/api/v1/nodes/register", json=body) as answer:
                assert answer.status == 200
    async with AsyncNodeDiscovery(url) as discovery:
        cooks = await discovery.find_nodes(role="cook", capability="stove")
        nearest = await discovery.get_nearest_node("w1")
        with pytest.raises(RequestRefused, match="422"):
            await discovery.find_nodes(colour="red")
    with NodeDiscovery(url) as plain:  # beside this test's own running loop
        again = plain.find_nodes("cook", "stove", "online")  # as good as each other: in any order
        assert sorted(again, key=itemgetter("node_id")) == sorted(cooks, key=itemgetter("node_id"))
        assert plain.find_nodes(role="cook", min_ram_gb=128) == []
        assert plain.get_nearest_node("w1").keys() == nearest.keys()
    assert {node["node_id"] for node in cooks} == {"c1", "c2"}


async def test_a_watch_tells_what_comes_changes_and_goes(open_registry: Process) -> None:
    async with session(open_registry.url) as admin, AsyncNodeDiscovery(open_registry.url) as discovery:

        async def register(labels: list[str]) -> None:
            body = {"node_id": "watched", "role": "watchman", "labels": labels}
            async with admin.post("/api/v1/nodes/register", json=body) as answer:
                assert answer.status == 200

        await register([])
        changes = discovery.watch(role="watchman")
        seen = []
        for do in (None, register(["new"]), admin.delete("/api/v1/nodes/watched")):
            if do is not None:
                await do
            async with asyncio.timeout(20):
                change = await anext(changes)
            seen.append((change.kind, change.node.node_id, change.node["labels"]))
        await changes.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert seen == [("upsert", "watched", []), ("upsert", "watched", ["new"]), ("remove", "watched", ["new"])]


async def test_a_key_of_another_registry_does_not_stop_discovery_here(
    open_registry: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGI_HOME", str(tmp_path))
    kept = {"node_id": "elsewhere", "api_key": "sk-node-" + "y" * 40, "token": None}
    (tmp_path / "credentials.json").write_text(json.dumps(kept))
    async with AsyncNodeDiscovery(open_registry.url) as discovery:
        assert isinstance(await discovery.find_nodes(), list)
    async with AsyncNodeDiscovery(open_registry.url, api_key=kept["api_key"]) as discovery:
        with pytest.raises(RequestRefused, match="401"):
            await discovery.find_nodes()


async def test_discovery_goes_on_to_the_next_registry_and_says_when_none_answers(open_registry: Process) -> None:
    async with AsyncNodeDiscovery(f"http://127.0.0.1:1,{open_registry.url}/") as discovery:
        assert isinstance(await discovery.find_nodes(), list)
    with NodeDiscovery(["http://127.0.0.1:1"]) as plain, pytest.raises(RegistryUnreachable, match="refused"):
        plain.find_nodes()


def test_discover_and_nodes_from_the_command_line(open_registry: Process, tmp_path: Path) -> None:
    url = open_registry.url
    for number in (1, 2):
        body = json.dumps({"node_id": f"cli-{number}", "role": "clerk", "capabilities": {"models": [f"m{number}"]}})
        request = urllib.request.Request(
            f"{url}/api/v1/nodes/register", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200

    def dagi_agent(*command: str) -> subprocess.CompletedProcess[str]:
        env = {**clean_environment(), "HOME": str(tmp_path), "COLUMNS": "80"}
        line = [sys.executable, "-m", "agent", *command]
        return subprocess.run(line, capture_output=True, text=True, timeout=20, cwd=tmp_path, env=env)

    found = dagi_agent("discover", "--model", "m2", "--role", "clerk", "--near", "auto", "--registry-url", url)
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["NODE", "cli-2"]
    listed = json.loads(dagi_agent("nodes", "--role", "clerk", "--json", "--registry-url", url).stdout)
    assert [each["node_id"] for each in listed["nodes"]] == ["cli-1", "cli-2"]
    wrong = dagi_agent("discover", "--sort", "colour", "--registry-url", url)
    assert (wrong.returncode, "query.sort" in wrong.stderr) == (2, True)
    away = dagi_agent("nodes", "--registry-url", "http://127.0.0.1:1")
    assert (away.returncode, "connection refused" in away.stderr, away.stdout) == (1, True, "")


WRONG = [
    (("bootstrap", "--registry-url", "registry.example.org"), "is not a URL such as"),
    (("bootstrap", "--env-file", "no.env"), "there is no such file"),
    (("bootstrap", "--rolle", "x"), "No such option"),
    (("dance",), "No such command"),
]


@pytest.mark.parametrize(("command", "words"), WRONG)
def test_a_wrong_command_line_is_refused_with_what_to_do(tmp_path: Path, command: tuple[str, ...], words: str) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "200"}
    line = [sys.executable, "-m", "agent", *command]
    done = subprocess.run(line, capture_output=True, text=True, timeout=20, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_detect_prints_what_would_be_reported(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "OLLAMA_BASE_URL": NO_OLLAMA}
    line = [sys.executable, "-m", "agent", "detect"]
    run = {"capture_output": True, "text": True, "timeout": 20, "cwd": tmp_path, "env": env, "check": True}
    words = subprocess.run(line, **run).stdout
    for subject in ("Host", "CPU", "RAM", "Disk", "GPU", "Ollama"):
        assert f"\n{subject}" in "\n" + words
    found = json.loads(subprocess.run([*line, "--json"], **run).stdout)
    assert found["system"]["cpu_cores"] == os.cpu_count()
    assert list(tmp_path.iterdir()) == []
