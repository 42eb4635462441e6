"""The agent as a service of the machine: the texts for systemd and launchd, and what their answers mean. Pure."""

import plistlib
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

UNIT = "dagi-agent.service"
LABEL = "org.dagi.agent"
SYSTEM_UNIT = f"/etc/systemd/system/{UNIT}"
PLIST = f"/Library/LaunchDaemons/{LABEL}.plist"
WATCHDOG_S = 120  # the longest step is a request to each of a list of registries, 2 s of silence each
_MARK = "# Written by `dagi-agent install`, which writes it anew; `dagi-agent uninstall` removes it."
_COMMAND = ("-I", "-m", "agent", "bootstrap", "--auto", "--env-file")
State = Literal["running", "starting", "failed", "stopped", "not installed"]


@dataclass(frozen=True, slots=True)
class Service:
    """What is to run. Paths are absolute. `user`: whom it runs as; None: whoever's service manager it is."""

    python: str
    env_file: str
    home: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Manager:
    """Who keeps services alive here, and the file that tells it of ours. `own`: the user's own, not the machine's."""

    kind: Literal["systemd", "launchd"]
    path: str
    own: bool = False

    def call(self, *arguments: str) -> list[str]:
        """A command to it."""
        if self.kind == "launchd":
            return ["launchctl", *arguments]
        return ["systemctl", *(["--user"] if self.own else []), *arguments]


@dataclass(frozen=True, slots=True)
class Found:
    """How the service fares. `detail` for people."""

    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides who keeps services alive: `systemd` is the init here, `own_systemd` the user has one."""

    platform: str
    is_root: bool
    systemd: bool
    own_systemd: bool
    container: bool
    config_home: str


def manager_of(machine: Machine, *, own: bool, command: str) -> Manager | str:
    """Who is to keep the service alive, or a sentence that says what to do instead. `own`: the user's own was asked
    for; `command`: how this program was called."""
    if machine.platform == "darwin":
        if own or not machine.is_root:
            return f"on macOS it is a daemon, so that it runs while nobody is logged in: sudo {command} install"
        return Manager("launchd", PLIST)
    if machine.systemd and machine.is_root and not own:
        return Manager("systemd", SYSTEM_UNIT)
    if machine.own_systemd and (own or not machine.is_root):
        return managers_of(machine, own=True)[0]
    if machine.container:
        return (
            "a container has no service manager: let it run `dagi-agent bootstrap --auto` as its command, with "
            "docker run --restart unless-stopped, and keep ~/.dagi in a volume"
        )
    if machine.systemd:
        return f"this user has no service manager of its own here: sudo {command} install"
    return f"no systemd and no launchd here: nohup {command} bootstrap --auto >> agent.log 2>&1 &"


def managers_of(machine: Machine, *, own: bool) -> list[Manager]:
    """Who may have a service of ours, the machine's before the user's own. `own`: the latter alone."""
    mine = Manager("systemd", f"{machine.config_home}/systemd/user/{UNIT}", own=True)
    if machine.platform == "darwin":
        return [Manager("launchd", PLIST)]
    return [mine] if own else [Manager("systemd", SYSTEM_UNIT), mine]


# systemd


def unit(service: Service, *, own: bool) -> str:
    """The text of a systemd unit."""
    lines = [
        _MARK,
        "[Unit]",
        "Description=Agent that keeps this machine in its network of nodes",
        "# It has started when a registry has taken it, which may be in hours: the start of the machine does not wait.",
        "DefaultDependencies=no",
        *_order(own=own),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        f"ExecStart={_command_line(service)}",
        f"Environment={_quoted(f'DAGI_HOME={service.home}')}",
        f"WorkingDirectory=-{_folder_of(service.env_file).replace('%', '%%')}",
        *([f"User={service.user}"] if service.user else []),
        "# Both are put off by progress alone.",
        f"TimeoutStartSec={WATCHDOG_S}",
        f"WatchdogSec={WATCHDOG_S}",
        "TimeoutStopSec=20",
        "Restart=always",
        "RestartSec=5",
        "# A wrong setting, which no restart mends.",
        "RestartPreventExitStatus=2",
        "UMask=0077",
        *([] if own else _hardening(service)),
        "",
        "[Install]",
        f"WantedBy={'default' if own else 'multi-user'}.target",
    ]
    return "\n".join(lines) + "\n"


def _order(*, own: bool) -> list[str]:
    after = ["After=basic.target"] if own else ["Requires=sysinit.target", "After=sysinit.target basic.target"]
    return [*after, *([] if own else ["After=network.target"]), "Conflicts=shutdown.target", "Before=shutdown.target"]


def _hardening(service: Service) -> list[str]:
    return [
        "# No PrivateDevices, which hides GPUs; no ProtectHome, where models lie; no NoNewPrivileges, nor what implies",
        "# it: the driver's library calls nvidia-modprobe, which makes the GPUs' devices after a start.",
        "ProtectSystem=strict",
        f"ReadWritePaths={_quoted('-' + service.home)}",
        "ProtectControlGroups=yes",
    ]


def _command_line(service: Service) -> str:
    words = (service.python, *_COMMAND, service.env_file)
    return " ".join(_quoted(word).replace("$", "$$") if word not in _COMMAND else word for word in words)


def _quoted(text: str) -> str:
    """A word as systemd reads it. Raises ValueError for what cannot stand in a unit."""
    if not text.isprintable():
        raise ValueError(f"a path with such characters cannot be written into a service's file: {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


# launchd


def plist(service: Service) -> str:
    """The text of a launchd daemon's property list."""
    log = f"{service.home}/agent.log"
    content = {
        "Label": LABEL,
        "ProgramArguments": [service.python, *_COMMAND, service.env_file],
        "EnvironmentVariables": {"DAGI_HOME": service.home},
        "WorkingDirectory": _folder_of(service.env_file),
        **({"UserName": service.user} if service.user else {}),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 30,
        "ExitTimeOut": 20,
        "Umask": 0o077,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    return plistlib.dumps(content, sort_keys=False).decode()


def text_of(service: Service, manager: Manager) -> str:
    """What the manager's file is to say. Raises ValueError for paths that cannot stand there."""
    return plist(service) if manager.kind == "launchd" else unit(service, own=manager.own)


def written(text: str, manager: Manager) -> Service | None:
    """The service that a file tells of, if `text_of` wrote it."""
    try:
        return _of_plist(text) if manager.kind == "launchd" else _of_unit(text)
    except (ValueError, KeyError, TypeError, AttributeError, plistlib.InvalidFileException):
        return None


def _of_unit(text: str) -> Service | None:
    if not text.startswith(_MARK):
        return None
    values = dict(re.findall(r"^(ExecStart|Environment|User)=(.*)$", text, re.MULTILINE))
    words = shlex.split(values["ExecStart"].replace("$$", "$").replace("%%", "%"))
    (home,) = shlex.split(values["Environment"].replace("%%", "%"))
    if tuple(words[1:-1]) != _COMMAND:
        return None
    return Service(words[0], words[-1], home.removeprefix("DAGI_HOME="), values.get("User"))


def _of_plist(text: str) -> Service | None:
    content = plistlib.loads(text.encode())
    words = content["ProgramArguments"]
    if content["Label"] != LABEL or tuple(words[1:-1]) != _COMMAND:
        return None
    return Service(words[0], words[-1], content["EnvironmentVariables"]["DAGI_HOME"], content.get("UserName"))


def may_read(mode: int, owner: tuple[int, int], user: int, groups: Collection[int]) -> bool:
    """Whether a user may read a file of that mode, `owner` being its user and group."""
    if user == 0:
        return True
    bit = 0o400 if owner[0] == user else 0o040 if owner[1] in groups else 0o004
    return bool(mode & bit)


# what is to be called, and what the answers mean


def to_start(manager: Manager) -> list[list[str]]:
    """The commands after the file was written. launchd's first may fail: nothing is loaded yet."""
    if manager.kind == "launchd":
        target = f"system/{LABEL}"
        calls = (["bootout", target], ["enable", target], ["bootstrap", "system", manager.path])
    else:
        calls = (["daemon-reload"], ["enable", UNIT], ["restart", "--no-block", UNIT])
    return [manager.call(*call) for call in calls]


def to_stop(manager: Manager) -> list[list[str]]:
    """The commands before the file is removed."""
    call = ["bootout", f"system/{LABEL}"] if manager.kind == "launchd" else ["disable", "--now", UNIT]
    return [manager.call(*call)]


def to_see(manager: Manager) -> list[str]:
    """The command whose answer `found` reads."""
    if manager.kind == "launchd":
        return manager.call("print", f"system/{LABEL}")
    return manager.call("show", UNIT, f"--property={','.join(_PROPERTIES)}")


_PROPERTIES = ("ActiveState", "SubState", "StatusText", "Result", "NRestarts", "ExecMainStatus")
_STATES: Mapping[str, State] = {
    "active": "running", "reloading": "running", "activating": "starting", "failed": "failed",
}  # fmt: skip


def found(manager: Manager, answer: str) -> Found:
    """How the service fares, of what its manager answered."""
    return _found_launchd(answer) if manager.kind == "launchd" else _found_systemd(answer)


def _found_systemd(answer: str) -> Found:
    values = dict(line.partition("=")[::2] for line in answer.splitlines())
    state = _STATES.get(values.get("ActiveState", ""), "stopped")
    why = f"{values.get('Result')}, exit status {values.get('ExecMainStatus')}" if state == "failed" else ""
    if values.get("SubState") == "auto-restart":
        state, why = "failed", f"about to be started again: {values.get('Result')}"
    restarts = values.get("NRestarts", "0")
    told = [why, values.get("StatusText", ""), f"restarted {restarts} times" if restarts not in ("", "0") else ""]
    return Found(state, "; ".join(filter(None, told)))


def _found_launchd(answer: str) -> Found:
    values = dict(re.findall(r"^\t(state|pid|runs|last exit code) = (.+)$", answer, re.MULTILINE))
    if values.get("state") == "running":
        return Found("running", f"pid {values['pid']}" if "pid" in values else "")
    code = values.get("last exit code", "")
    failed = bool(code) and code.split(":")[0] not in ("0", "(never exited)")
    return Found("failed", f"last exit status {code}") if failed else Found("stopped")
