"""How a registry starts, stops and is killed: what it leaves behind, what it prints, whom it refuses."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

from registry.embedded import EmbeddedValkey
from registry.settings import ConfigurationError
from tests.support.live import ADMIN_KEY, START_S, Process, running, session, until
from tests.support.valkey import valkey

NODES = "/api/v1/nodes"
STOP_S = 8.0  # five are promised; the rest is room for a loaded machine
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
IN_FLIGHT = 4  # of two workers, each very likely has one, the one that writes and the one that passes them on
OWN_KEY: dict[str, str | None] = {"REGISTRY_ADMIN_KEY": None}


def head(body_bytes: int) -> bytes:
    lines = (
        f"POST {NODES}/register HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Authorization: Bearer {ADMIN_KEY}",
        f"Content-Length: {body_bytes}",
        "Expect: 100-continue",  # answered when the request is taken up: how a test knows that it is in flight
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def connected(process: Process) -> socket.socket:
    port = int(process.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def final(connection: socket.socket) -> bytes:
    """What follows on the answers that only say to go on: a worker that has become the one that writes may say so
    once more."""
    while (told := connection.recv(4096)) == CONTINUE:
        pass
    return told.removeprefix(CONTINUE)


def ends(process: Process) -> float:
    """Stop it; how long that took, in seconds. Its status must be 0, and nothing of it may stay."""
    children = psutil.Process(process.popen.pid).children(recursive=True)
    started = time.monotonic()
    assert process.stop() == 0, process.output()
    took_s = time.monotonic() - started
    assert not [child for child in children if lives(child)]
    assert "Traceback" not in process.output()
    return took_s


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_is_in_flight_is_finished_and_nothing_new_is_taken(tmp_path: Path, workers: str) -> None:
    for turn in range(5):  # on a busy machine the two seconds for it may be over before the stop is seen
        if await is_finished(tmp_path / f"data-{turn}", workers):
            return
    raise AssertionError("it was never seen in time that nothing new is taken")


async def is_finished(folder: Path, workers: str) -> bool:
    """Whether that could be seen."""
    process = Process(folder, "--workers", workers)
    process.wait_ready()
    with contextlib.ExitStack() as stack:
        idle, *busy = (stack.enter_context(connected(process)) for _ in range(1 + IN_FLIGHT))
        halfway = [stack.enter_context(connected(process)) for _ in range(IN_FLIGHT)]
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")  # and it stays open
        body = json.dumps({"node_id": "in-flight"}).encode()
        for connection in busy:
            connection.sendall(head(len(body)) + body[:5])
        for connection in halfway:
            connection.sendall(head(1000) + b'{"node_id":')
        for connection in (*busy, *halfway):
            assert await asyncio.to_thread(connection.recv, 4096) == CONTINUE
        began_s = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(ends, process))

        async def closed() -> bool:
            try:
                connected(process).close()
            except ConnectionRefusedError:
                return True
            return False

        await until(closed)
        in_time = time.monotonic() - began_s < 1.0
        if in_time:
            for connection in busy:
                connection.sendall(body[5:])
            for connection in busy:
                assert (await asyncio.to_thread(final, connection)).startswith(b"HTTP/1.1 200")
        assert await stopping < STOP_S
        return in_time


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_frozen_store_does_not_hold_the_stop(tmp_path: Path, workers: str) -> None:
    process = Process(tmp_path / "data", "--workers", workers)
    process.wait_ready()
    store = embedded(tmp_path / "data")
    store.send_signal(signal.SIGSTOP)
    waiting = connected(process)
    body = json.dumps({"node_id": "n"}).encode()
    waiting.sendall(head(len(body)) + body)
    assert await asyncio.to_thread(waiting.recv, 4096) == CONTINUE
    assert await asyncio.to_thread(ends, process) < STOP_S
    assert final(waiting).startswith(b"HTTP/1.1 503")
    waiting.close()
    assert not lives(store)


def test_a_stop_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    process = Process(tmp_path / "data")
    noted = tmp_path / "data" / "valkey.pid"
    deadline = time.monotonic() + 20
    while not (noted.exists() and noted.read_text().count("\n") == 3):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert ends(process) < STOP_S
    assert not noted.exists()


async def test_an_embedded_store_that_was_killed_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path / "data") as process:
        async with session(process.url) as admin:
            async with admin.post(f"{NODES}/register", json={"node_id": "n"}) as answer:
                assert answer.status == 200
            first = embedded(tmp_path / "data")
            first.kill()

            async def taken() -> bool:
                async with admin.post(f"{NODES}/heartbeat", json={"node_id": "n"}) as answer:
                    return answer.status == 200

            await until(taken)
            assert embedded(tmp_path / "data").pid != first.pid
            assert "embedded_store_died" in process.output()


async def test_kill_nine_leaves_a_store_that_the_next_start_ends(tmp_path: Path) -> None:
    process = Process(tmp_path / "data")
    process.wait_ready()
    orphan = embedded(tmp_path / "data")
    process.kill()
    assert orphan.is_running()
    with running(tmp_path / "data"):
        assert not lives(orphan)
        assert embedded(tmp_path / "data").pid != orphan.pid


def test_a_left_store_that_nobody_reaps_does_not_keep_the_next_from_starting(tmp_path: Path) -> None:
    """Its parent, as PID 1 of some containers, leaves it a zombie."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], cwd=sys.argv[1]).pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=PIPE, stdout=PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        (tmp_path / "valkey.pid").write_text(f"{orphan.pid}\n{orphan.create_time():.2f}\n/nowhere\n")
        store = EmbeddedValkey(tmp_path)
        store.start()
        assert orphan.status() == psutil.STATUS_ZOMBIE
        assert embedded(tmp_path).pid != orphan.pid
        store.stop()


def test_a_left_store_of_another_user_is_not_joined_by_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(process: psutil.Process) -> str:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "cwd", denied)
    myself = psutil.Process()
    (tmp_path / "valkey.pid").write_text(f"{myself.pid}\n{myself.create_time():.2f}\n/nowhere\n")
    for _ in range(2):  # nor by the next try
        with pytest.raises(ConfigurationError, match="is another user's"):
            EmbeddedValkey(tmp_path).start()


def embedded(folder: Path) -> psutil.Process:
    """The Valkey that serves a data folder."""
    return psutil.Process(int((folder / "valkey.pid").read_text().split("\n")[0]))


def test_the_admin_key_is_shown_once_and_kept_only_as_a_hash(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder, env=OWN_KEY) as first:
        lines = [line for line in first.output().splitlines() if "sk-admin-" in line]
        assert len(lines) == 1
        key = lines[0].split()[-1]
        assert key.encode() not in everything(folder)
    with running(folder, env=OWN_KEY) as second:
        assert second.output().count("sk-admin-") == 1  # the first start's line, in the same file
        asyncio.run(works(second.url, key))
    assert b"admin_key_hash" in everything(folder)  # so the search does look where it is kept
    assert key.encode() not in everything(folder)


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def works(url: str, key: str) -> None:
    async with session(url, key) as admin, admin.post("/api/v1/maintenance/cleanup") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_two_registries_never_share_a_port(tmp_path: Path, workers: str) -> None:
    with running(tmp_path / "one", "--workers", workers) as one:
        port = int(one.url.rpartition(":")[2])
        others = [Process(tmp_path / f"other-{count}", "--workers", count, port=port) for count in ("1", "2")]
        for other in others:
            other.popen.wait(START_S)
            assert other.stop() == 2
            assert f"--port {port} cannot be used" in other.output()
            assert "Traceback" not in other.output()


NAMES = {"unicode and spaces": "вузол  \u2014 'київ' \"x\"", "very long": "/".join(["d" * 100] * 20)}


@pytest.mark.parametrize("name", NAMES)
async def test_any_data_folder_works(tmp_path: Path, name: str) -> None:
    with running(tmp_path / "up" / NAMES[name]) as process:
        async with session(process.url) as admin:
            async with admin.post(f"{NODES}/register", json={"node_id": "n"}) as answer:
                assert answer.status == 200


def test_a_data_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    names = ("file", "file/below", "x" * 300)
    tried = [Process(tmp_path / f"log-{i}", "--data-dir", str(tmp_path / name)) for i, name in enumerate(names)]
    for process in tried:
        process.popen.wait(START_S)
        assert process.stop() == 2
        assert "--data-dir" in process.output()
        assert "Traceback" not in process.output()


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_line_carries_a_secret(tmp_path: Path, log_format: str) -> None:
    password = "pass-word-of-the-store"
    with valkey(tmp_path / "store", f"requirepass {password}") as store:
        url = f"unix://:{password}@{store.socket}"
        flags = ("--redis-url", url, "--log-format", log_format, "--log-level", "debug")
        secret = "federation-secret-" + "f" * 32
        with running(tmp_path / "data", *flags, env={"REGISTRY_FEDERATION_SECRET": secret}) as process:
            node_key = await traffic(process.url)
            store.kill()
            async with session(process.url, node_key) as node:
                async with node.post(f"{NODES}/heartbeat", json={"node_id": "n"}) as answer:
                    assert answer.status == 503

                async def noticed() -> bool:
                    return "store_unavailable" in process.output()

                await until(noticed)
        lines = process.output()
        for word in (password, secret, ADMIN_KEY, node_key, "sk-", "Bearer", "body-of-a-request"):
            assert word not in lines
        if log_format == "json":
            for line in lines.splitlines():
                assert "listening on" in line or json.loads(line)["event"]


async def traffic(url: str) -> str:
    """What could end up in a log: good keys, bad ones, bodies; the node's key."""
    async with session(url, None) as anyone:
        async with anyone.post(f"{NODES}/register", json={"node_id": "n", "x": "body-of-a-request"}) as answer:
            key: str = (await answer.json())["api_key"]
        for headers in ({"Authorization": "Bearer sk-node-wrong"}, {"Authorization": f"Basic {key}"}):
            async with anyone.get(NODES, headers=headers) as answer:
                assert answer.status == 401
        async with anyone.get(f"{NODES}?api_key={key}", headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as answer:
            assert answer.status == 422
        async with anyone.post(f"{NODES}/register", data=b"{body-of-a-request") as answer:
            assert answer.status == 415
    return key


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before and lives(child)]
    assert not left
