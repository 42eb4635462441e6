"""Whatever answers where a registry should be, and wherever nothing can be kept: told, and survived."""

import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent import connection
from agent.config import load
from agent.identity import Home
from agent.node import Agent
from tests.support.agents import AgentProcess, agent
from tests.support.live import Process, running, until
from tests.support.misbehaving import HANG, Answer, answering, http, json_answer

NODE = b'{"node_id":"lucky","api_key":"sk-node-x","token":"t","config":{"heartbeat_interval_s":0.1}}'
HEALTH = b'{"status":"healthy","registry_id":"local","region":"local"}'
BEAT = b'{"success":true,"node_id":"lucky","status":"online","token":"t"}'
PORTAL = b"<!DOCTYPE html><title>Welcome to the hotel</title><form action=/login>Room: <input name=room></form>"

# what answers -> words that are said of it
STRANGE: dict[str, tuple[Answer, str]] = {
    "garbage": (b"\x00\x01\x02 not HTTP at all\r\n\r\n", "does not speak HTTP"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
    "closed without an answer": (b"", "was closed before the answer"),
    "closed in the headers": (b"HTTP/1.1 200 OK\r\nContent-", "was closed before the answer"),
    "closed in the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{", "was closed before the answer"),
    "hangs": (HANG, "did not answer within"),
    "500": (http("500 Internal Server Error", b"oops"), "answered 500"),
    "503": (
        http("503 Service Unavailable", b'{"detail":"The store is down."}', "Retry-After: 1"),
        "The store is down.",
    ),
    "login page": (http("200 OK", PORTAL, "Content-Type: text/html"), "is not a registry"),
    "redirect": (http("302 Found", b"", "Location: http://192.0.2.7/login"), "redirects to http://192.0.2.7/login"),
    "redirect to nowhere": (http("301 Moved Permanently", b""), "redirects to nowhere"),
    "early hints only": (b"HTTP/1.1 100 Continue\r\n\r\n", "was closed before the answer"),
    "no content": (http("204 No Content", b""), "answered 204"),
    "empty": (json_answer(b""), "is not a registry"),
    "null": (json_answer(b"null"), "is not a registry"),
    "a list": (json_answer(b"[]"), "is not a registry"),
    "no fields": (json_answer(b"{}"), "is not a registry"),
    "wrong fields": (json_answer(b'{"node_id":7,"api_key":[],"config":"x"}'), "is not a registry"),
    "nested for ever": (json_answer(b"[" * 500_000), "is not a registry"),
    "not gzip": (http("200 OK", b"x", "Content-Encoding: gzip"), ""),
    "a bomb": (http("200 OK", gzip.compress(bytes(64 * 2**20), 9), "Content-Encoding: gzip"), "that is no registry's"),
}


@pytest.mark.parametrize("name", STRANGE)
async def test_what_is_no_registrys_answer_is_a_failure_in_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, words = STRANGE[name]
    monkeypatch.setattr(connection, "SILENCE_S", 0.3 if answer is HANG else 10)
    async with answering(lambda line: answer) as url:
        node = Agent(load({"node_registry_url": url}, None), Home(tmp_path), say=lambda line: None)
        node._capabilities = {"system": {}, "gpu": {}, "ollama": {}}  # it is not what is tried here
        try:
            for outcome in ((await node.register())[0], await node.heartbeat()):
                assert outcome.status != 200
                assert words in outcome.detail
                assert outcome.detail.isprintable()
                assert url in outcome.detail
            await node.forget()  # a 200 to a DELETE says all there is to say
        finally:
            await node.client.close()
    assert node.home.credentials() is None


FIELDS = [
    b'{"node_id":"lucky"}',
    b'{"node_id":"lucky","api_key":5,"token":{},"config":[]}',
    b'{"node_id":"lucky","api_key":"k\\r\\nX: y","config":{"heartbeat_interval_s":"soon"}}',
    b'{"node_id":"lucky","config":{"heartbeat_interval_s":1e999}}',
    b'{"node_id":"lucky","config":{"heartbeat_interval_s":NaN,"registries":7}}',
]


@pytest.mark.parametrize("body", FIELDS)
async def test_an_answer_that_lacks_fields_is_used_for_what_it_has(body: bytes, tmp_path: Path) -> None:
    async with answering(lambda line: json_answer(body if b"register" in line else BEAT)) as url:
        node = Agent(load({"node_registry_url": url}, None), Home(tmp_path), say=lambda line: None)
        node._capabilities = {"system": {}, "gpu": {}, "ollama": {}}
        try:
            assert (await node.register())[0].status == 200
            assert (await node.heartbeat()).status == 200
        finally:
            await node.client.close()
    assert node.node_id == "lucky"
    assert 0.1 <= node.session.interval_s <= 3600


async def test_the_newest_token_goes_with_the_next_request_and_outlives_the_agent(tmp_path: Path) -> None:
    beat = BEAT.replace(b'"t"', b'"t2"')
    async with answering(lambda line: json_answer(NODE if b"register" in line else beat)) as url:
        node = Agent(load({"node_registry_url": url}, None), Home(tmp_path), say=lambda line: None)
        try:
            await node.register()
            await node.heartbeat()
        finally:
            await node.client.close()
    kept = Home(tmp_path).credentials()
    assert kept is not None
    assert (kept.api_key, kept.token) == ("sk-node-x", "t2")


async def test_a_running_agent_lives_through_all_of_it(tmp_path: Path) -> None:
    """Each strange answer comes once, between good ones, to the real process."""
    names = ("garbage", "closed in the body", "login page", "redirect", "no fields")
    script = iter([each for name in names for each in (STRANGE[name][0], json_answer(BEAT))])
    good_again = json_answer(BEAT)

    def answer(line: bytes) -> Answer:
        if b"healthz" in line:
            return json_answer(HEALTH)
        return json_answer(NODE) if b"register" in line else next(script, good_again)

    async with answering(answer) as url:
        async with agent(tmp_path, "-m", "agent", "bootstrap", "--registry-url", url) as node:
            await node.says("accepted again", len(names))
            assert await node.stop() == 0
    assert node.output.count("registered as lucky") == 1


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("registry") / "data", "--heartbeat-interval-s", "0.2") as process:
        yield process


async def test_a_home_that_cannot_be_written_is_told_and_the_node_works(registry: Process, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    env = {"DAGI_HOME": str(tmp_path / "file" / "dagi")}
    async with agent(tmp_path, "-m", "agent", "bootstrap", "--registry-url", registry.url, env=env) as node:
        await node.says("the identity cannot be kept")
        await node.says("DAGI_HOME")
        await node.says("registered as")
        assert await node.stop() == 0
    assert "shown as draining" in node.output


def test_a_full_disk_is_told_and_the_node_works(registry: Process, tmp_path: Path) -> None:
    """No file may grow by a byte; the pipe that is read here is none."""
    done = subprocess.run(
        [sys.executable, "-m", "agent", "bootstrap", "--registry-url", registry.url, "--once"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "", "OLLAMA_BASE_URL": "http://127.0.0.1:1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.returncode == 0
    assert "the identity cannot be kept" in done.stdout
    assert "registered as" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [path for path in (tmp_path / ".dagi").iterdir() if path.is_file()] == []


def test_when_nobody_reads_its_words_it_lives_on(registry: Process, tmp_path: Path) -> None:
    node = subprocess.Popen(
        [sys.executable, "-m", "agent", "bootstrap", "--registry-url", registry.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "", "OLLAMA_BASE_URL": "http://127.0.0.1:1"},
    )
    assert node.stdout is not None
    assert node.stderr is not None
    try:
        assert b"registered as" in node.stdout.readline()
        node.stdout.close()
        node.terminate()
        assert node.wait(15) == 0
        assert node.stderr.read() == b""
    finally:
        node.kill()
        node.wait(10)
        node.stderr.close()


async def test_sigterm_is_obeyed_in_time_while_a_registry_hangs(tmp_path: Path) -> None:
    async with answering(lambda line: HANG) as url:
        async with agent(tmp_path, "-m", "agent", "bootstrap", "--registry-url", url) as node:
            await _connected(node, url)
            assert await node.stop() == 0
    assert node.output == "stopped; it was not registered\n"


async def _connected(node: AgentProcess, url: str) -> None:
    port = int(url.rpartition(":")[2])

    async def there() -> bool:
        return any(each.raddr and each.raddr.port == port for each in psutil.Process(node.popen.pid).net_connections())

    await until(there)


async def test_damaged_files_cost_no_more_than_a_new_id(registry: Process, tmp_path: Path) -> None:
    folder = tmp_path / "home" / ".dagi"
    folder.mkdir(parents=True)
    (folder / "node_id").write_text("not an id\n")
    (folder / "credentials.json").write_text('{"node_id":"x","api_key":{"a":1}}')
    async with agent(tmp_path, "-m", "agent", "bootstrap", "--registry-url", registry.url, "--once") as node:
        assert await node.ends() == 0
    assert json.loads((folder / "credentials.json").read_text())["node_id"] == node.node_id
