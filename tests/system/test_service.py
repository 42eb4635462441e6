"""`dagi-agent install`, `status`, `uninstall` as users run them, beside a systemctl that notes what it is told."""

import json
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from agent.cli import app
from agent.service import UNIT
from tests.support.agents import NO_OLLAMA
from tests.support.live import Process, running

# What stands where systemd's tool would: it keeps what it was told, and is "active" once something was started.
SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$SYSTEMCTL_LOG"
case "$*" in
*--property=Version*) echo Version=255 ;;
*restart*) touch "$SYSTEMCTL_LOG.active" ;;
*disable*) rm -f "$SYSTEMCTL_LOG.active" ;;
*show*) test -e "$SYSTEMCTL_LOG.active" && echo ActiveState=active || echo ActiveState=failed ;;
esac
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("service") / "data", "--heartbeat-interval-s", "0.2") as process:
        yield process


class User:
    """Somebody at a machine that has systemd, as far as `dagi-agent` can see."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.unit = folder / "config" / "systemd" / "user" / UNIT
        self.told = folder / "told"
        self.env_file = folder / "my settings" / ".env"
        self.env_file.parent.mkdir()
        self.env_file.write_text(f"NODE_REGISTRY_URL={url}\nNODE_LABELS=served\nOLLAMA_BASE_URL={NO_OLLAMA}\n")
        tool = folder / "bin" / "systemctl"
        tool.parent.mkdir()
        tool.write_text(SYSTEMCTL)
        tool.chmod(0o755)
        self.env = {
            "PATH": f"{tool.parent}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "SYSTEMCTL_LOG": str(self.told),
            "COLUMNS": "100",
        }

    def runs(self, *command: str, **env: str) -> Result:
        """One command of `dagi-agent`, to its end, in this process: a dozen starts of Python take their time."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(("NODE_", "DAGI_", "OLLAMA_", "SUDO_"))]:
                patch.delenv(name)
            for name, value in {**self.env, **env}.items():
                patch.setenv(name, value)
            patch.chdir(self.env_file.parent)
            result = CliRunner().invoke(app, command)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def was_told(self) -> list[str]:
        """What systemctl was told since last asked, but for questions."""
        lines = self.told.read_text().splitlines() if self.told.exists() else []
        self.told.unlink(missing_ok=True)
        return [line.removeprefix("--user ") for line in lines if " show" not in line]


@pytest.fixture
def user(tmp_path: Path, registry: Process) -> User:
    return User(tmp_path, registry.url)


def test_it_is_installed_once_seen_and_removed(user: User) -> None:
    shown = user.runs("install", "--user", "--print")
    assert shown.exit_code == 0
    assert not user.unit.exists()
    assert user.was_told() == []

    done = user.runs("install", "--user", NODE_ROLE="trainer")
    assert done.exit_code == 0, done.stderr
    assert shown.stdout == f"# {user.unit}\n{user.unit.read_text()}"
    assert "NODE_ROLE: set here, but the service reads" in done.stderr
    assert "enable-linger" in done.stdout
    assert user.was_told() == ["daemon-reload", f"enable {UNIT}", f"restart --no-block {UNIT}"]
    assert (user.folder / "home" / ".dagi").stat().st_mode & 0o777 == 0o700

    again = user.runs("install", "--user")
    assert "nothing to do" in again.stdout
    assert user.was_told() == []

    (user.folder / "home" / ".dagi" / "node_id").write_text("kept")
    gone = user.runs("uninstall", "--user")
    assert (gone.exit_code, user.unit.exists()) == (0, False)
    assert user.was_told() == [f"disable --now {UNIT}", "daemon-reload"]
    assert (user.folder / "home" / ".dagi" / "node_id").read_text() == "kept"
    assert "nothing to remove" in user.runs("uninstall", "--user").stdout


def test_what_somebody_else_wrote_is_left_alone(user: User) -> None:
    user.unit.parent.mkdir(parents=True)
    user.unit.write_text("[Service]\nExecStart=/bin/true\n")
    for command in ("install", "uninstall"):
        done = user.runs(command, "--user")
        assert done.exit_code == 1
        assert "not written by" in done.stderr
    assert user.unit.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert user.was_told() == []


def test_without_settings_or_with_wrong_ones_nothing_is_written(user: User) -> None:
    user.env_file.write_text("NODE_REGISTRY_URL=nonsense\n")
    wrong = user.runs("install", "--user")
    user.env_file.unlink()
    none = user.runs("install", "--user")
    assert (wrong.exit_code, none.exit_code) == (2, 2)
    assert "NODE_REGISTRY_URL" in wrong.stderr
    assert "copy config/agent.env to .env" in none.stderr
    assert not user.unit.exists()


def test_where_nothing_keeps_services_alive_it_says_what_to_do(user: User) -> None:
    done = user.runs("install", "--user", PATH="/nowhere")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert any(words in done.stderr for words in ("sudo", "nohup", "--restart unless-stopped"))
    assert not user.unit.exists()


def test_what_the_unit_runs_is_the_agent_and_status_tells_how_it_fares(user: User) -> None:
    assert user.runs("install", "--user").exit_code == 0
    lines = user.unit.read_text().splitlines()
    start, given = (
        shlex.split(next(line for line in lines if line.startswith(name)).removeprefix(name))
        for name in ("ExecStart=", "Environment=")
    )
    assert _status(user, 1)["registry"]["problem"] == "this machine has not registered"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(user.folder / "notify"))
        manager.settimeout(20)
        told = {"NOTIFY_SOCKET": str(user.folder / "notify"), "WATCHDOG_USEC": "400000"}
        env = dict(each.split("=", 1) for each in given) | told
        service = subprocess.Popen(start, env=env, cwd="/", stdout=subprocess.DEVNULL)
        try:
            heard: list[str] = []
            while heard.count("WATCHDOG=1") < 3:
                heard.append(manager.recv(4096).decode())
            assert heard[0].startswith("STATUS=registered as node-")
            assert heard.index("READY=1") < heard.index("WATCHDOG=1")
            found = _status(user, 0)
            assert (found["service"]["state"], found["service"]["file"]) == ("running", str(user.unit))
            assert found["identity"]["has_key"]
            assert found["registry"]["status"] == "online"
            table = user.runs("status", "--user").stdout
            assert f"Node       {found['identity']['node_id']}, with a key of its own" in table
            assert "online, last heard" in table
        finally:
            service.terminate()
            assert service.wait(15) == 0
        while not heard[-1].startswith("STATUS=stopped"):
            heard.append(manager.recv(4096).decode())
        assert "STOPPING=1" in heard
    assert _status(user, 1)["registry"]["status"] == "draining"
    Path(f"{user.told}.active").unlink()
    assert _status(user, 3)["service"]["state"] == "failed"


def test_after_a_pasted_join_command_the_registry_that_it_named_is_asked(user: User, registry: Process) -> None:
    user.env_file.unlink()
    joined = user.runs("bootstrap", "--once", NODE_REGISTRY_URL=registry.url, OLLAMA_BASE_URL=NO_OLLAMA)
    assert joined.exit_code == 0, joined.output
    node_id = (user.folder / "home" / ".dagi" / "node_id").read_text().strip()
    told = json.loads(user.runs("status", "--json").stdout)
    assert (told["registry"]["url"], told["registry"]["problem"]) == (registry.url, None)
    assert node_id in user.runs("nodes", "--json").stdout
    assert user.runs("bootstrap", "--forget").exit_code == 0
    assert not (user.folder / "home" / ".dagi" / "registries.json").exists()


def _status(user: User, expected: int) -> Any:
    done = user.runs("status", "--user", "--json")
    assert done.exit_code == expected, done.stdout + done.stderr
    return json.loads(done.stdout)
