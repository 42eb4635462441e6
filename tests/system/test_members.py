"""`dagi-registry members` and `status` as operators run them, against real registries."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from registry.cli import app
from tests.support.live import ADMIN_KEY, Process, clean_environment, running
from tests.support.misbehaving import Answer, answering, http
from tests.support.tls import certificate

SECRET = {"REGISTRY_FEDERATION_SECRET": "f" * 40}
NOBODY = "http://127.0.0.1:1"
DEADLINE_S = 20.0


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Operator:
    """Somebody at a terminal, in an empty folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def __call__(self, *command: str, key: str | None = ADMIN_KEY, **env: str) -> Done:
        """In this process: dozens of starts of Python take their time."""
        wanted = {**clean_environment(), **({"REGISTRY_ADMIN_KEY": key} if key else {}), **env}
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ.keys() - wanted.keys():
                patch.delenv(name)
            for name, value in wanted.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            done = CliRunner().invoke(app, command)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    def alone(self, *command: str) -> Done:
        """In a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "registry", *command],
            capture_output=True,
            text=True,
            timeout=20,
            cwd=self.folder,
            env={**clean_environment(), "REGISTRY_ADMIN_KEY": ADMIN_KEY},
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "operator")


@pytest.fixture(scope="module")
def eu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("eu") / "data", "--region", "eu", env=SECRET) as process:
        yield process


@pytest.fixture(scope="module")
def us(tmp_path_factory: pytest.TempPathFactory, eu: Process) -> Iterator[Process]:
    flags = ("--region", "us", "--peer", eu.url)
    with running(tmp_path_factory.mktemp("us") / "data", *flags, env=SECRET) as process:
        yield process


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
    return found


def row(operator: Operator, at: Process, registry_id: str) -> Any:
    rows = json.loads(operator("members", "--url", at.url, "--json").out)
    return next((each for each in rows if each["registry_id"] == registry_id), None)


def settled(operator: Operator, at: Process, registry_id: str) -> Any:
    """The row, once that registry is up and was heard."""

    def good() -> Any:
        found = row(operator, at, registry_id)
        return found if found and found["state"] == "up" and found["rtt_ms"] and found["lag_s"] is not None else None

    return until(good)


# two that are well


def test_members_for_people(operator: Operator, eu: Process, us: Process) -> None:
    settled(operator, us, "eu")
    done = operator.alone("members", "--url", us.url)
    assert (done.status, done.err) == (0, "")
    assert "\x1b" not in done.out
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["ID", "REGION", "STATE", "SINCE", "REACHABLE", "LAG", "RTT", "NODES"]
    assert lines[1] == ["us", "(self)", "us", "up", "-", "-", "-", "-", "0"]
    assert lines[2][:3] == ["eu", "eu", "up"]
    assert "yes" in lines[2]
    assert ["eu", eu.url, "-"] in lines
    assert max(map(len, done.out.splitlines())) <= 80


def test_members_for_programs(operator: Operator, eu: Process, us: Process) -> None:
    found = settled(operator, eu, "us")
    assert 0 <= found["lag_s"] < 5
    assert 0 < found["rtt_ms"] < 1000
    assert (found["region"], found["url"], found["reachable"], found["self"]) == ("us", us.url, True, False)
    assert 0 <= found["since_s"] < 300
    own = row(operator, eu, "eu")
    assert (own["self"], own["url"], own["state"]) == (True, eu.url, "up")


def test_status_for_people_and_programs(operator: Operator, eu: Process, us: Process) -> None:
    settled(operator, us, "eu")
    done = operator.alone("status", "--url", us.url)
    assert (done.status, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80
    told = dict(line.split(maxsplit=1) for line in done.out.splitlines() if not line.startswith("Expiry hold"))
    assert (told["Registry"].strip(), told["Ready"].strip(), told["Peers"].strip()) == ("us", "yes", "1 of 1 up")
    assert told["Nodes"].startswith("0 in all")
    report = json.loads(operator("status", "--url", us.url, "--json").out)
    assert (report["ready"], report["reasons"], report["problems"]) == (True, [], [])
    assert report["peers"] == {"up": 1, "total": 1}
    assert set(report["nodes"]) == {"online", "degraded", "offline", "maintenance", "draining"}
    assert report["uptime_s"] > 0
    assert report["records"] >= 2  # each registry's own, and what they tell each other of
    assert report["worst_lag_of"] == "eu"


def test_settings_come_from_the_environment_and_from_a_file(operator: Operator, eu: Process) -> None:
    assert operator("status", REGISTRY_URL=eu.url).status == 0
    (operator.folder / "eu.env").write_text(f"REGISTRY_URL={eu.url}\nREGISTRY_ADMIN_KEY={ADMIN_KEY}\n")
    assert operator("status", "--env-file", "eu.env", key=None).status == 0
    (operator.folder / "eu.env").rename(operator.folder / ".env")
    assert operator("members", key=None).status == 0


def test_a_nodes_key_reads_and_removes_nobody(operator: Operator, eu: Process) -> None:
    registered = subprocess.run(
        [
            "curl",
            "-s",
            "-H",
            "Content-Type: application/json",
            "-d",
            '{"node_id": "n"}',
            f"{eu.url}/api/v1/nodes/register",
        ],
        capture_output=True,
        check=True,
    )
    key = json.loads(registered.stdout)["api_key"]
    assert operator("members", "--url", eu.url, key=None, REGISTRY_READ_KEY=key).status == 0
    done = operator("members", "--url", eu.url, "--forget", "us", key=None, REGISTRY_READ_KEY=key)
    assert (done.status, done.out) == (2, "")
    assert "refuses this to the key in REGISTRY_READ_KEY: This needs an admin key." in done.err
    assert key not in done.err


# nobody, somebody else, a wrong key


@pytest.mark.parametrize("command", ["members", "status"])
def test_nobody_there(operator: Operator, command: str) -> None:
    done = operator.alone(command, "--url", NOBODY, "--json")
    assert (done.status, done.out) == (2, "")
    assert f"{NOBODY} cannot be asked: connection refused; is it running?" in done.err


@pytest.mark.parametrize("command", ["members", "status"])
def test_wrong_and_missing_keys(operator: Operator, eu: Process, command: str) -> None:
    wrong = "sk-admin-" + "w" * 40
    done = operator(command, "--url", eu.url, key=wrong)
    assert (done.status, done.out) == (2, "")
    assert "does not know the key in REGISTRY_ADMIN_KEY" in done.err
    assert wrong not in done.err
    done = operator(command, "--url", eu.url, key=None)
    assert (done.status, done.out) == (2, "")
    assert "needs a key: set REGISTRY_ADMIN_KEY" in done.err


STRANGERS: dict[str, tuple[Answer, str]] = {
    "a login page": (http("200 OK", b"<title>Hotel</title>"), "is no node registry"),
    "a redirect": (http("302 Found", b"", "Location: http://192.0.2.7/login"), "is no node registry"),
    "another service": (http("404 Not Found", b'{"error": "x"}'), "is no node registry"),
    "garbage": (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
    "half an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "is no node registry"),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_what_is_no_registry(operator: Operator, name: str) -> None:
    answer, words = STRANGERS[name]
    async with answering(lambda line: answer) as url:
        done = await asyncio.to_thread(operator, "members", "--url", url)
    assert (done.status, done.out) == (2, "")
    assert words in done.err


def test_tls(operator: Operator, tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path / "tls")
    flags = ("--tls-cert", str(cert), "--tls-key", str(cert.with_name("key.pem")))
    process = Process(tmp_path / "data", *flags)
    try:
        until(lambda: "listening on" in process.output())
        url = process.output().rsplit("listening on ", 1)[1].split()[0]
        assert operator("status", "--url", url, "--tls-ca", str(cert)).status == 0
        assert operator("status", "--url", url, REGISTRY_TLS_CA=str(cert)).status == 0
        done = operator("status", "--url", url)
        assert done.status == 2
        assert "--tls-ca names the authority to trust" in done.err
        done = operator("status", "--url", url.replace("https", "http"))
        assert done.status == 2
        assert "is it https://?" in done.err
    finally:
        process.stop()


# a peer that is gone, and one that comes back as somebody else


def test_a_peer_that_died_is_named_and_one_that_lost_its_identity_is_taken_in_again(
    operator: Operator, tmp_path: Path, eu: Process
) -> None:
    flags = ("--region", "asia", "--peer", eu.url)
    with running(tmp_path / "asia", *flags, env=SECRET):
        settled(operator, eu, "asia")
    until(lambda: row(operator, eu, "asia")["state"] == "down")
    done = operator("members", "--url", eu.url)
    assert done.status == 1
    assert "dagi-registry: asia has been down for" in done.err
    assert operator("status", "--url", eu.url).status == 1
    with running(tmp_path / "another", *flags, env=SECRET) as again:  # its data folder is lost, its identity with it

        def noted() -> str:
            said = operator("members", "--url", eu.url).out
            return said if "another identity" in said else ""

        words = " ".join(until(noted).split())
        assert "asia shows another identity" in words
        assert "dagi-registry members --forget asia" in words
        done = operator("members", "--url", again.url)
        assert done.status == 1
        assert "dagi-registry: eu has been down for" in done.err
        done = operator("members", "--url", eu.url, "--forget", "asia")
        assert (done.status, done.err) == (0, "")
        assert "asia is out of the roster" in done.out
        settled(operator, eu, "asia")
        settled(operator, again, "eu")
        assert operator("members", "--url", eu.url).status == 0
    done = operator("members", "--url", eu.url, "--forget", "eu")
    assert done.status != 0
    assert "is this registry itself" in " ".join(done.err.split())
    done = operator("members", "--url", eu.url, "--forget", "mars")
    assert done.status == 1
    assert "nothing was forgotten: mars is not in the roster" in done.err


def test_a_peer_that_was_never_reached_is_named_by_its_url(operator: Operator, tmp_path: Path) -> None:
    with running(tmp_path / "data", "--region", "eu", "--peer", NOBODY, env=SECRET) as lonely:
        done = operator("members", "--url", lonely.url)
        assert done.status == 1
        assert f"no registry was reached at {NOBODY}" in done.err
        assert "(unknown)" in done.out


def test_help_names_no_key_as_a_flag(operator: Operator) -> None:
    for command in ("members", "status"):
        done = operator(command, "--help", COLUMNS="120", NO_COLOR="1")
        assert done.status == 0
        for flag in ("--url", "--env-file", "--tls-ca", "--json"):
            assert flag in done.out
        assert "--key" not in done.out
