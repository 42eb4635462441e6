"""The way in for curl users: one file from the registry, run by a bare Python."""

import asyncio
import json
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
        assert found["metrics"]["cpu_percent"] is None
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
