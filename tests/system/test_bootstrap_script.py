"""The way in for curl users: one file from the registry, run by a bare Python."""

import ast
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import ADMIN_KEY, Process, running
from tests.support.misbehaving import HANG, answering, http, json_answer
from tests.support.ollama import serving

DEADLINE_S = 20.0
# -I: nothing of ours on the path; -S: no installed packages.
BARE = [sys.executable, "-I", "-S", "-"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("registry") / "data", "--heartbeat-interval-s", "0.2") as process:
        yield process


@pytest.fixture(scope="module")
def script(registry: Process) -> bytes:
    """What `curl` gets."""
    with urllib.request.urlopen(f"{registry.url}/bootstrap/node_bootstrap.py", timeout=5) as answer:
        body: bytes = answer.read()
    return body


class Joined:
    """`curl ... | python3 -`, with its words in a file."""

    def __init__(self, folder: Path, script: bytes, url: str, **env: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder / "log"
        settings = {"HOME": str(folder), "NODE_REGISTRY_URL": url, "OLLAMA_BASE_URL": "http://127.0.0.1:1", **env}
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(BARE, stdin=subprocess.PIPE, stdout=log, stderr=log, env=settings, cwd=folder)
        assert self.popen.stdin is not None
        with self.popen.stdin as pipe:
            pipe.write(script)

    def says(self, words: str, times: int = 1) -> str:
        """Wait for it to print that; everything it printed."""
        deadline = time.monotonic() + DEADLINE_S
        while (text := self.log.read_text()).count(words) < times:
            assert self.popen.poll() is None, text
            assert time.monotonic() < deadline, f"{words!r} was not said: {text}"
            time.sleep(0.02)
        return text

    @property
    def node_id(self) -> str:
        """The id that it keeps."""
        return (self.folder / ".dagi" / "node_id").read_text().strip()

    def stop(self) -> str:
        """SIGTERM; everything it printed."""
        self.popen.send_signal(signal.SIGTERM)
        assert self.popen.wait(15) == 0
        return self.log.read_text()

    def __enter__(self) -> "Joined":
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(10)
        assert "Traceback" not in self.log.read_text()


def ask(registry: Process, method: str, path: str) -> Any:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    request = urllib.request.Request(registry.url + path, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def test_it_joins_heartbeats_leaves_and_comes_back_as_the_same_node(
    registry: Process, script: bytes, tmp_path: Path
) -> None:
    with Joined(tmp_path, script, registry.url, NODE_LABELS="a, b", NODE_ROLE="helper") as node:
        node.says("registered as node-")
        seen: set[str] = set()
        deadline = time.monotonic() + DEADLINE_S
        while len(seen) < 4 and time.monotonic() < deadline:
            found = ask(registry, "GET", f"/api/v1/nodes/{node.node_id}")
            seen.add(found["last_heartbeat"])
            time.sleep(0.02)
        assert len(seen) == 4
        assert (found["status"], found["role"], found["labels"]) == ("online", "helper", ["a", "b"])
        assert found["capabilities"]["cpu_cores"] > 0
        assert found["metrics"]["disk_percent"] > 0
        assert 0 <= found["metrics"]["cpu_percent"] <= 100
        assert found["metrics"]["memory_percent"] > 0
        assert found["local_ip"] == "127.0.0.1"
        assert "shown as draining" in node.stop()
    assert ask(registry, "GET", f"/api/v1/nodes/{node.node_id}")["status"] == "draining"
    for name in ("node_id", "credentials.json"):
        assert (tmp_path / ".dagi" / name).stat().st_mode & 0o777 == 0o600
    with Joined(tmp_path, script, registry.url) as again:
        again.says(f"registered as {node.node_id}", 2)
        ask(registry, "DELETE", f"/api/v1/nodes/{node.node_id}")  # an operator's mistake mends itself
        again.says(f"registered as {node.node_id}", 3)
        again.stop()


async def test_it_finds_ollamas_models(registry: Process, script: bytes, tmp_path: Path) -> None:
    async with serving() as ollama:
        with Joined(tmp_path, script, registry.url, OLLAMA_BASE_URL=ollama.url) as node:
            await asyncio.to_thread(node.says, "registered as")
            found = await asyncio.to_thread(ask, registry, "GET", f"/api/v1/nodes/{node.node_id}")
    assert found["capabilities"]["models"] == ["qwen3:8b", "nomic-embed-text:latest"]
    loaded, other = found["capabilities"]["model_details"]
    assert (loaded["loaded"], loaded["vram_gb"], loaded["context_length"]) == (True, 4.97, 4096)
    assert (other["loaded"], other["size_gb"], other["quantization"]) == (False, 0.26, "F16")


def test_an_id_that_is_anothers_is_given_up_for_a_new_one(registry: Process, script: bytes, tmp_path: Path) -> None:
    with Joined(tmp_path / "one", script, registry.url) as first:
        first.says("registered as")
    (tmp_path / "two" / ".dagi").mkdir(parents=True)
    (tmp_path / "two" / ".dagi" / "node_id").write_text(first.node_id)
    with Joined(tmp_path / "two", script, registry.url) as second:
        second.says("failed (409)")
        second.says("registered as node-")
    assert second.node_id != first.node_id


def test_where_nothing_can_be_kept_it_says_so_and_works(registry: Process, script: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with Joined(tmp_path, script, registry.url, DAGI_HOME=str(tmp_path / "file" / "dagi")) as node:
        assert "the identity cannot be kept" in node.says("registered as")
        node.stop()


async def test_strange_answers_are_told_and_survived(script: bytes, tmp_path: Path) -> None:
    strange = iter(
        [
            b"\x00 not HTTP\r\n\r\n",
            b"",
            http("500 Oops", b'{"detail":"\\u001b[2Jboom"}'),
            json_answer(b"[" * 100_000),
            json_answer(b'{"node_id":"other","config":{"heartbeat_interval_s":1}}'),
            json_answer(b'{"node_id":"lucky","config":{"heartbeat_interval_s":NaN}}'),
            json_answer(b'{"config":7}'),
        ]
    )
    (tmp_path / ".dagi").mkdir()
    (tmp_path / ".dagi" / "node_id").write_text("lucky")
    # Its own waits after failures grow to a minute; here it is only to go on at once.
    eager = script.replace(b"MAX_WAIT_S = 60.0", b"MAX_WAIT_S = 0.5")
    assert eager != script
    async with answering(lambda line: next(strange, HANG)) as url:
        with Joined(tmp_path, eager, url) as node:
            text = await asyncio.to_thread(node.says, "next try", 7)
            assert "\x1b" not in text
            assert "boom" in text
            await asyncio.to_thread(node.stop)


def test_flags_are_answered_with_what_it_is_told_by(script: bytes, tmp_path: Path) -> None:
    run = subprocess.run(
        [*BARE, "--role", "worker"], input=script, env={"HOME": str(tmp_path)}, capture_output=True, timeout=20
    )
    assert run.returncode == 2
    assert b"NODE_ROLE" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_in_the_python_of_old_machines(script: bytes) -> None:
    ast.parse(script, feature_version=(3, 8))
    old = shutil.which("python3.8")
    if old is None or subprocess.run([old, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip("no Python 3.8 here to run it with")
    run = subprocess.run([old, "-I", "-S", "-", "--help"], input=script, capture_output=True, timeout=20)
    assert (run.returncode, b"NODE_REGISTRY_URL" in run.stderr) == (2, True)


SMI = """#!/bin/sh
echo "NVIDIA GeForce RTX 4090, GPU-1d53ae5c-6ca3-4cf3-a0b6-3a2d8e2f2c4e, 24564, 22110, 7"
echo "NVIDIA GB10, GPU-9a1f0c66-0000-4cf3-a0b6-000000000001, [N/A], [N/A], [N/A]"
echo "Failed to initialize NVML: Driver/library version mismatch"
"""


def test_it_tells_of_the_machine_as_the_agent_does(registry: Process, script: bytes, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(SMI)
    tool.chmod(0o755)
    agents = tmp_path / "agents.json"
    agents.write_text('["one", "two"]')
    env = {"PATH": f"{tool.parent}:/usr/bin:/bin", "NODE_AGENTS": str(agents), "NODE_NAME": "box", "NODE_REGION": "us"}
    with Joined(tmp_path / "node", script, registry.url, **env) as node:
        node.says("registered as")
        deadline = time.monotonic() + DEADLINE_S
        while not (found := ask(registry, "GET", f"/api/v1/nodes/{node.node_id}"))["metrics"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    geforce, unified = found["capabilities"]["gpus"]
    assert (geforce["name"], geforce["vram_gb"], geforce["vram_free_gb"]) == ("NVIDIA GeForce RTX 4090", 23.99, 21.59)
    assert (geforce["utilization_percent"], geforce["unified"]) == (7.0, False)
    assert (unified["unified"], unified["vram_gb"]) == (True, found["capabilities"]["ram_gb"])
    assert "cuda" in found["capabilities"]["features"]
    assert (found["metrics"]["agent_count"], found["metrics"]["gpu_percent"]) == (2, 7.0)
    assert (found["node_name"], found["region"]) == ("box", "us")


async def test_it_goes_on_to_the_next_registry(registry: Process, script: bytes, tmp_path: Path) -> None:
    """Refusal, silence, and a registry that asks for patience."""
    busy = http("503 Busy", b'{"detail":"The store is down."}', "Retry-After: 60")
    asked: list[bytes] = []

    def count(line: bytes) -> bytes:
        asked.append(line)
        return busy

    async with answering(count) as patient, answering(lambda line: HANG) as silent:
        urls = f"http://127.0.0.1:1,{patient},{silent},{registry.url}"
        with Joined(tmp_path, script, urls) as node:
            text = await asyncio.to_thread(node.says, "registered as")
            assert f"{registry.url} is asked from now on" in text
            assert "The store is down." in text
            assert await asyncio.to_thread(ask, registry, "GET", f"/api/v1/nodes/{node.node_id}")
            await asyncio.to_thread(node.stop)
    assert len(asked) == 1


async def test_a_registry_that_asks_for_patience_has_it(script: bytes, tmp_path: Path) -> None:
    busy = http("429 Too Many Requests", b'{"detail":"Later."}', "Retry-After: 40")
    async with answering(lambda line: busy) as url:
        with Joined(tmp_path, script, url) as node:
            text = await asyncio.to_thread(node.says, "next try in")
            assert 39 <= int(text.rpartition("next try in ")[2].split()[0]) <= 43
            await asyncio.to_thread(node.stop)


def test_of_two_copies_that_run_one_takes_a_new_id(registry: Process, script: bytes, tmp_path: Path) -> None:
    with Joined(tmp_path / "one", script, registry.url) as one:
        one.says("registered as")
        shutil.copytree(tmp_path / "one" / ".dagi", tmp_path / "two" / ".dagi")
        with Joined(tmp_path / "two", script, registry.url) as two:
            deadline = time.monotonic() + DEADLINE_S
            while one.node_id == two.node_id:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            changed = next(each for each in (one, two) if "takes a new id" in each.log.read_text())
            changed.says(f"registered as {changed.node_id}")
            for each in (one, two):
                assert ask(registry, "GET", f"/api/v1/nodes/{each.node_id}")["status"] == "online"


def test_an_id_of_an_older_program_is_kept(registry: Process, script: bytes, tmp_path: Path) -> None:
    (tmp_path / ".dagi_node_id").write_text("node-of-old")
    with Joined(tmp_path, script, registry.url) as node:
        node.says("registered as node-of-old")
    assert node.node_id == "node-of-old"


def test_what_may_not_be_read_is_not_replaced(registry: Process, script: bytes, tmp_path: Path) -> None:
    path = tmp_path / ".dagi" / "credentials.json"
    path.mkdir(parents=True)  # stands for any file that is there and cannot be read, for root too
    (tmp_path / ".dagi" / "node_id").write_text("anothers")
    with Joined(tmp_path, script, registry.url) as node:
        assert node.says("registered as node-").count("the identity cannot be kept") == 1
    assert (node.node_id, path.is_dir()) == ("anothers", True)


def test_a_second_one_of_a_home_waits_for_the_first(registry: Process, script: bytes, tmp_path: Path) -> None:
    with Joined(tmp_path, script, registry.url) as first:
        first.says("registered as")
        with Joined(tmp_path, script, registry.url) as second:
            second.says("another agent runs for")
            first.popen.kill()
            second.says(f"registered as {first.node_id}", 2)
