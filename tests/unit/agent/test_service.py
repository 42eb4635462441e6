"""The texts of a service, read back by the managers' own tools where they are, and what managers answer."""

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.service import (
    LABEL,
    PLIST,
    SYSTEM_UNIT,
    UNIT,
    Found,
    Machine,
    Manager,
    Service,
    found,
    manager_of,
    managers_of,
    may_read,
    plist,
    text_of,
    to_see,
    to_start,
    to_stop,
    unit,
    written,
)

SYSTEM = Manager("systemd", SYSTEM_UNIT)
OWN = Manager("systemd", f"/home/ada/.config/systemd/user/{UNIT}", own=True)
DAEMON = Manager("launchd", PLIST)
PLAIN = Service("/opt/nodes/.venv/bin/python", "/opt/nodes/.env", "/home/ada/.dagi", "ada")
ODD = Service('/opt/my "nodes"/100%/.venv/bin/python', "/opt/a b\\c/$HOME/.env", "/home/ünï cödé/.dagi 5%", None)


@pytest.mark.parametrize("manager", [SYSTEM, OWN, DAEMON])
@pytest.mark.parametrize("service", [PLAIN, ODD])
def test_a_text_says_what_it_is_to_run_and_is_known_as_ours(service: Service, manager: Manager) -> None:
    text = text_of(service, manager)
    assert written(text, manager) == service
    assert text == text_of(service, manager)


FOREIGN = ["", "[Service]\nExecStart=/bin/true\n", "{", "<plist/>", "\x00", plist(PLAIN).replace(LABEL, "org.other")]


@pytest.mark.parametrize("text", [*FOREIGN, unit(PLAIN, own=False).replace("bootstrap", "dance")])
@pytest.mark.parametrize("manager", [SYSTEM, DAEMON])
def test_a_file_that_somebody_else_wrote_is_not_ours(text: str, manager: Manager) -> None:
    assert written(text, manager) is None


def test_the_machine_s_unit_is_kept_alive_watched_and_hides_nothing() -> None:
    lines = unit(PLAIN, own=False).splitlines()
    for line in (
        'ExecStart="/opt/nodes/.venv/bin/python" -I -m agent bootstrap --auto --env-file "/opt/nodes/.env"',
        'Environment="DAGI_HOME=/home/ada/.dagi"',
        "User=ada",
        "Type=notify",
        "Restart=always",
        "RestartPreventExitStatus=2",
        "WatchdogSec=120",
        'ReadWritePaths="-/home/ada/.dagi"',
        "WantedBy=multi-user.target",
    ):
        assert line in lines
    settings = {line.partition("=")[0] for line in lines if not line.startswith("#")}
    # Each of these hides GPUs or models, or (by NoNewPrivileges) keeps the driver from making its devices.
    assert not settings & {
        "PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectHome", "PrivateUsers", "PrivateNetwork",
        "NoNewPrivileges", "SystemCallFilter", "RestrictAddressFamilies", "MemoryDenyWriteExecute",
        "ProtectKernelModules", "ProtectKernelTunables", "RestrictSUIDSGID", "LockPersonality", "DynamicUser",
    }  # fmt: skip


def test_a_user_s_own_unit_asks_for_nothing_that_only_root_can_have() -> None:
    text = unit(PLAIN, own=True)
    assert "ProtectSystem" not in text
    assert "sysinit" not in text
    assert "WantedBy=default.target" in text


def test_odd_paths_are_quoted_as_systemd_reads_them() -> None:
    lines = unit(ODD, own=False).splitlines()
    assert any(line.startswith('ExecStart="/opt/my \\"nodes\\"/100%%/.venv/bin/python" -I') for line in lines)
    assert any(line.endswith('--env-file "/opt/a b\\\\c/$$HOME/.env"') for line in lines)
    assert 'Environment="DAGI_HOME=/home/ünï cödé/.dagi 5%%"' in lines
    with pytest.raises(ValueError, match="cannot be written"):
        unit(Service("/x\n[Service]", "/e", "/h"), own=False)


@pytest.mark.parametrize("own", [False, True])
def test_systemd_accepts_the_unit(own: bool, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here")
    folder = tmp_path / "a b 5%"
    folder.mkdir()
    service = Service(sys.executable, str(folder / ".env"), str(folder), None if own else "root")
    path = tmp_path / UNIT
    path.write_text(unit(service, own=own))
    line = [tool, *(["--user"] if own else []), "verify", "--man=no", str(path)]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, env=env)
    if "Failed to" in done.stderr and UNIT not in done.stderr:
        pytest.skip(f"systemd-analyze does not run here: {done.stderr.strip()[:200]}")
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT in line]) == (0, [])


def test_macos_accepts_the_daemon(tmp_path: Path) -> None:
    tool = shutil.which("plutil")
    if tool is None:
        pytest.skip("no plutil here")
    path = tmp_path / "agent.plist"
    path.write_text(plist(ODD))
    assert subprocess.run([tool, "-lint", str(path)], capture_output=True, timeout=30).returncode == 0


def test_the_daemon_is_kept_alive_as_its_user() -> None:
    content = plistlib.loads(plist(PLAIN).encode())
    assert (content["Label"], content["UserName"]) == (LABEL, "ada")
    assert content["KeepAlive"] is content["RunAtLoad"] is True
    assert content["ProgramArguments"][-2:] == ["--env-file", "/opt/nodes/.env"]
    assert content["StandardOutPath"] == "/home/ada/.dagi/agent.log"
    assert "UserName" not in plistlib.loads(plist(ODD).encode())


def machine(**facts: object) -> Machine:
    usual = {"platform": "linux", "is_root": True, "systemd": True, "own_systemd": False, "container": False}
    return Machine(**{**usual, "config_home": "/home/ada/.config", **facts})  # type: ignore[arg-type]  # a table's cells


# machine, whether the user's own manager was asked for -> manager, or words of a sentence
MANAGERS: list[tuple[Machine, bool, Manager | str]] = [
    (machine(), False, SYSTEM),
    (machine(own_systemd=True), False, SYSTEM),
    (machine(own_systemd=True), True, OWN),
    (machine(is_root=False, own_systemd=True), False, OWN),
    (machine(is_root=False), False, "sudo dagi-agent install"),
    (machine(), True, "sudo dagi-agent install"),
    (machine(systemd=False), False, "nohup dagi-agent bootstrap --auto"),
    (machine(systemd=False, container=True), False, "--restart unless-stopped"),
    (machine(systemd=False, container=True, is_root=False), True, "--restart unless-stopped"),
    (machine(platform="darwin", systemd=False), False, DAEMON),
    (machine(platform="darwin", systemd=False, is_root=False), False, "sudo dagi-agent install"),
    (machine(platform="darwin", systemd=False), True, "sudo dagi-agent install"),
]


@pytest.mark.parametrize(("facts", "own", "expected"), MANAGERS)
def test_who_keeps_it_alive(facts: Machine, own: bool, expected: Manager | str) -> None:
    chosen = manager_of(facts, own=own, command="dagi-agent")
    if isinstance(expected, str):
        assert isinstance(chosen, str)
        assert expected in chosen
    else:
        assert chosen == expected


# mode of a file of user 1 and group 10, a user and its groups -> whether that one may read it
READERS: list[tuple[int, int, list[int], bool]] = [
    (0o100600, 1, [10], True),
    (0o100600, 0, [0], True),
    (0o100600, 2, [10], False),
    (0o100640, 2, [20, 10], True),
    (0o100640, 2, [20], False),
    (0o100604, 2, [20], True),
    (0o100604, 2, [10], False),  # the group's bits count for its members, also where there are more for others
    (0o100044, 1, [10], False),
]


@pytest.mark.parametrize(("mode", "user", "groups", "expected"), READERS)
def test_who_may_read_a_file(mode: int, user: int, groups: list[int], expected: bool) -> None:
    assert may_read(mode, (1, 10), user, groups) is expected


def test_where_a_service_may_be() -> None:
    assert managers_of(machine(), own=False) == [SYSTEM, OWN]
    assert managers_of(machine(), own=True) == [OWN]
    assert managers_of(machine(platform="darwin"), own=False) == [DAEMON]


def test_what_managers_are_asked_to_do() -> None:
    assert to_start(SYSTEM) == [
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", UNIT],
        ["systemctl", "restart", "--no-block", UNIT],  # it has started when a registry has taken it
    ]
    assert to_start(OWN)[0] == ["systemctl", "--user", "daemon-reload"]
    assert to_start(DAEMON)[-1] == ["launchctl", "bootstrap", "system", PLIST]
    assert to_stop(OWN) == [["systemctl", "--user", "disable", "--now", UNIT]]
    assert to_stop(DAEMON) == [["launchctl", "bootout", f"system/{LABEL}"]]
    assert to_see(SYSTEM)[:3] == ["systemctl", "show", UNIT]
    assert to_see(DAEMON) == ["launchctl", "print", f"system/{LABEL}"]


# `systemctl show` as systemd 255 prints it, and what it means
SHOWN: list[tuple[str, Found]] = [
    (
        "Result=success\nNRestarts=0\nExecMainStatus=0\nStatusText=registered as n with eu (23 ms)\n"
        "ActiveState=active\nSubState=running\n",
        Found("running", "registered as n with eu (23 ms)"),
    ),
    (
        "Result=success\nNRestarts=0\nExecMainStatus=0\nStatusText=registration failed: refused\n"
        "ActiveState=activating\nSubState=start\n",
        Found("starting", "registration failed: refused"),
    ),
    (
        "Result=watchdog\nNRestarts=3\nExecMainStatus=0\nStatusText=\nActiveState=activating\nSubState=auto-restart\n",
        Found("failed", "about to be started again: watchdog; restarted 3 times"),
    ),
    (
        "Result=exit-code\nNRestarts=0\nExecMainStatus=2\nStatusText=\nActiveState=failed\nSubState=failed\n",
        Found("failed", "exit-code, exit status 2"),
    ),
    ("Result=success\nNRestarts=0\nActiveState=inactive\nSubState=dead\n", Found("stopped")),
    ("", Found("stopped")),
]


@pytest.mark.parametrize(("answer", "expected"), SHOWN)
def test_what_systemd_answers(answer: str, expected: Found) -> None:
    assert found(SYSTEM, answer) == expected


# `launchctl print`, shortened
PRINTED: list[tuple[str, Found]] = [
    ("system/org.dagi.agent = {\n\tactive count = 1\n\tstate = running\n\n\tpid = 501\n\truns = 1\n"
     "\tlast exit code = (never exited)\n\n\tspawn type = daemon (3)\n}\n", Found("running", "pid 501")),
    ("system/org.dagi.agent = {\n\tstate = not running\n\truns = 4\n\tlast exit code = 2\n}\n",
     Found("failed", "last exit status 2")),
    ("system/org.dagi.agent = {\n\tstate = spawn scheduled\n\tlast exit code = 78: EX_CONFIG\n}\n",
     Found("failed", "last exit status 78: EX_CONFIG")),
    ("system/org.dagi.agent = {\n\tstate = not running\n\tlast exit code = 0\n}\n", Found("stopped")),
    ('Could not find service "org.dagi.agent" in domain for system\n', Found("stopped")),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "expected"), PRINTED)
def test_what_launchd_answers(answer: str, expected: Found) -> None:
    assert found(DAEMON, answer) == expected
