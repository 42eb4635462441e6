"""`dagi-agent install`, `uninstall` and `status`: the agent as a service of this machine, and how it fares."""

import asyncio
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.command_line import flag, or_explain
from agent.config import DEFAULT_ENV_FILE, AgentSettings, ConfigurationError, at_home, load, written
from agent.identity import Home
from agent.node import Agent
from agent.service import (
    Found,
    Machine,
    Manager,
    Service,
    found,
    manager_of,
    managers_of,
    may_read,
    text_of,
    to_see,
    to_start,
    to_stop,
)
from agent.service import written as service_of
from agent.session import Outcome
from agent.wire import printable

Json = Any
EnvFile = Annotated[Path | None, flag("File of NODE_... settings (.env).")]
Own = Annotated[bool, flag("For this user alone: systemd's user units.", "--user")]
NOT_ONLINE, NOT_RUNNING = 1, 3  # exit statuses of `status`
CALL_LIMIT_S = 60


def install(
    env_file: EnvFile = None,
    user: Own = False,
    only_print: Annotated[bool, flag("Show what would be written; write nothing.", "--print")] = False,
) -> None:
    """Let this machine keep the agent alive: a service of systemd or launchd."""
    path = or_explain(lambda: _env_file(env_file))
    settings = or_explain(lambda: load({}, path))
    manager = _manager(own=user)
    service = _service(path, manager)
    try:
        text = text_of(service, manager)
    except ValueError as error:
        raise _failed(str(error)) from None
    if only_print:
        typer.echo(f"# {manager.path}\n{text}", nl=False)
        return
    for line in (*_unseen(path), *_unreadable(path, service)):
        typer.echo(f"warning: {line}", err=True)
    _install(manager, service, text)
    at = at_home(settings, Home(Path(service.home)).registries())
    typer.echo(f"It registers with {', '.join(at.node_registry_url)}, as {path} says.")
    typer.echo("How it fares: dagi-agent status" + (_lingering() if manager.own else ""))


def uninstall(user: Own = False) -> None:
    """Remove the service; the node's identity stays."""
    manager = _manager(own=user)
    text = _read(manager)
    if text is None:
        others = [each.path for each in managers_of(_machine(), own=user) if each != manager and _read(each)]
        typer.echo(f"nothing to remove: there is no {manager.path}" + "".join(f"; there is {path}" for path in others))
        return
    if service_of(text, manager) is None:
        raise _failed(f"{manager.path} was not written by `dagi-agent install`: it is left as it is")
    for command in to_stop(manager):
        _call(command)
    try:
        os.unlink(manager.path)
    except OSError as error:
        raise _failed(f"{manager.path} cannot be removed: {error.strerror}") from None
    if manager.kind == "systemd":
        _call(manager.call("daemon-reload"))
    typer.echo(f"removed {manager.path}; the node's identity stays (dagi-agent bootstrap --forget removes it)")


def status(
    env_file: EnvFile = None,
    user: Own = False,
    as_json: Annotated[bool, flag("For programs.", "--json")] = False,
) -> None:
    """Show the service, the node's identity, and what the registry says of it.

    Exit status: 0 the node is online; 1 it is not, or no registry says; 2 a wrong setting; 3 the service is installed
    and does not run.
    """
    manager, service = _installed(own=user)
    state = found(manager, _call(to_see(manager)).stdout) if manager else Found("not installed")
    home = Home(Path(service.home)) if service else Home()
    settings = or_explain(lambda: load({}, env_file or (Path(service.env_file) if service else None)))
    agent = or_explain(lambda: Agent(settings, home))
    identity = _identity(home)
    registry = asyncio.run(_ask(agent, identity["node_id"]))
    document = {
        "service": {**asdict(state), "file": manager.path if service and isinstance(manager, Manager) else None}
    }
    document |= {"identity": identity, "registry": registry}
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else _table(document))
    if manager and state.state not in ("running", "starting"):
        raise typer.Exit(NOT_RUNNING)
    raise typer.Exit(0 if registry["status"] == "online" else NOT_ONLINE)


# install


def _env_file(given: Path | None) -> Path:
    path = given or DEFAULT_ENV_FILE
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: there is no such file. A service reads its settings from one: copy config/agent.env to .env, "
            "set NODE_REGISTRY_URL there, or name a file with --env-file"
        )
    return Path(os.path.abspath(path))


def _unseen(path: Path) -> list[str]:
    """What is set here and will not be there."""
    names = sorted({name.upper() for name in AgentSettings.model_fields} & os.environ.keys() - written(path))
    return [f"{', '.join(names)}: set here, but the service reads {path} alone; write it there"] if names else []


def _unreadable(path: Path, service: Service) -> list[str]:
    """What the service's user may not read."""
    if service.user is None:
        return []
    account, file = pwd.getpwnam(service.user), path.stat()
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    if may_read(file.st_mode, (file.st_uid, file.st_gid), account.pw_uid, groups):
        return []
    return [f"{service.user}, as whom the service runs, may not read {path}: sudo chown {service.user} {path}"]


def _service(path: Path, manager: Manager) -> Service:
    """What is to run, and as whom: the user who called sudo, with that user's home."""
    name = os.environ.get("SUDO_USER") if os.geteuid() == 0 and not manager.own else None
    try:
        account = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
        home = Path(account.pw_dir, ".dagi") if name and "DAGI_HOME" not in os.environ else Home().folder
    except (KeyError, OSError) as error:
        raise _failed(f"the home of {name or 'this user'} cannot be found: {error}") from None
    return Service(sys.executable, str(path), os.path.abspath(home), None if manager.own else account.pw_name)


def _install(manager: Manager, service: Service, text: str) -> None:
    before = _read(manager)
    if before is not None and service_of(before, manager) is None:
        raise _failed(f"{manager.path} is there and was not written by `dagi-agent install`: move it away first")
    if before == text and found(manager, _call(to_see(manager)).stdout).state in ("running", "starting"):
        typer.echo(f"nothing to do: {manager.path} is as it should be, and runs")
        return
    try:
        _make_home(service)
        Path(manager.path).parent.mkdir(parents=True, exist_ok=True)
        _write(Path(manager.path), text)
    except OSError as error:
        raise _failed(f"{error.filename or manager.path} cannot be written: {error.strerror}") from None
    results = [_call(command) for command in to_start(manager)]
    if results[-1].returncode != 0:
        raise _failed(f"{manager.path} is written, but: {_said(results[-1])}")
    typer.echo(f"installed {manager.path}; it runs" + (f" as {service.user}" if service.user else ""))


def _make_home(service: Service) -> None:
    """Made here, as the service may not write beside it; it belongs to whom the service runs as."""
    home = Path(service.home)
    if home.is_dir():
        return
    home.mkdir(parents=True, mode=0o700)
    if service.user and os.geteuid() == 0:
        account = pwd.getpwnam(service.user)
        os.chown(home, account.pw_uid, account.pw_gid)


def _write(path: Path, text: str) -> None:
    """All of it or nothing; managers read such files as anybody."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _lingering() -> str:
    name = pwd.getpwuid(os.geteuid()).pw_name
    shown = _call(["loginctl", "show-user", name, "--property=Linger"]).stdout
    if shown.strip() == "Linger=yes":
        return ""
    return f"\nIt stops when you log out, unless you say once: sudo loginctl enable-linger {name}"


# the machine and its manager


def _manager(*, own: bool) -> Manager:
    manager = manager_of(_machine(), own=own, command=_called())
    if isinstance(manager, str):
        raise _failed(manager)
    return manager


def _machine() -> Machine:
    own = ["systemctl", "--user", "show", "--property=Version"]
    return Machine(
        platform=sys.platform,
        is_root=os.geteuid() == 0,
        systemd=os.path.isdir("/run/systemd/system"),  # as sd_booted(3) looks
        own_systemd=sys.platform == "linux" and _call(own).returncode == 0,
        container=any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv", "/run/systemd/container"))),
        config_home=os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"),
    )


def _called() -> str:
    """How this program can be called again, from anywhere."""
    return shlex.quote(os.path.abspath(sys.argv[0])) if sys.argv[0].endswith("dagi-agent") else "dagi-agent"


def _read(manager: Manager) -> str | None:
    try:
        return Path(manager.path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _failed(f"{manager.path} cannot be read: {error}") from None


def _call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a manager's tool; one that is missing or hangs is one that failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=CALL_LIMIT_S)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _said(result: subprocess.CompletedProcess[str]) -> str:
    lines = (result.stderr or result.stdout).strip().splitlines()
    return f"{' '.join(result.args)}: {printable(lines[-1]) if lines else f'exit status {result.returncode}'}"


def _failed(sentence: str) -> typer.Exit:
    typer.echo(f"dagi-agent: {sentence}", err=True)
    return typer.Exit(1)


# status


def _installed(*, own: bool) -> tuple[Manager | None, Service | None]:
    """The service that is there, with who keeps it alive: the machine's, or this user's own."""
    for manager in managers_of(_machine(), own=own):
        service = service_of(_read(manager) or "", manager)
        if service is not None:
            return manager, service
    return None, None


def _identity(home: Home) -> dict[str, Json]:
    identity: dict[str, Json] = {"node_id": None, "home": None, "has_key": False, "problem": None}
    try:
        identity["home"] = str(home.folder)
        identity["node_id"] = home.peek_id()
    except OSError as error:
        identity["problem"] = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return identity
    kept = home.credentials()
    identity["has_key"] = kept is not None and kept.node_id == identity["node_id"] and kept.api_key is not None
    return identity


_SHOWN = ("status", "status_reason", "last_heartbeat", "node_name", "region", "home_registry")


async def _ask(agent: Agent, node_id: str | None) -> dict[str, Json]:
    """What a registry says of the node; `problem`: why none does."""
    empty: dict[str, Json] = dict.fromkeys(_SHOWN)
    if node_id is None:
        return {"url": None, **empty, "problem": "this machine has not registered"}
    try:
        await agent.client.look_around()
        outcome, node = await agent.client.call("GET", f"/api/v1/nodes/{node_id}", key=_key(agent, node_id))
    finally:
        await agent.client.close()
    if outcome.status != 200:
        return {"url": agent.client.url, **empty, "problem": _why(outcome, node_id)}
    told = {name: node.get(name) for name in _SHOWN}
    return {"url": agent.client.url, **told, "problem": None}


def _key(agent: Agent, node_id: str) -> str | None:
    given, kept = agent.settings.node_api_key, agent.home.credentials()
    if given:
        return given.get_secret_value()
    return kept.api_key if kept and kept.node_id == node_id else None


def _why(outcome: Outcome, node_id: str) -> str:
    if outcome.status == 404:
        return f"{node_id} is not registered there; an agent that runs registers it"
    return outcome.detail


def _table(document: dict[str, Json]) -> str:
    service, identity, registry = document["service"], document["identity"], document["registry"]
    key = "with a key of its own" if identity["has_key"] else "without a key of its own"
    node = f"{identity['node_id']}, {key}" if identity["node_id"] else "none yet"
    seen = registry["status"] and f"{registry['status']}, last heard {registry['last_heartbeat']}"
    reason = registry["status_reason"]
    rows = [
        ("Service", ": ".join(filter(None, (service["state"], service["detail"])))),
        ("", service["file"]),
        ("Node", identity["problem"] or node),
        ("", identity["home"] and f"kept in {identity['home']}"),
        ("Registry", registry["url"]),
        ("", registry["problem"] or f"{seen}" + (f": {reason}" if reason else "")),
    ]
    columns, indent = max(shutil.get_terminal_size().columns, 40), " " * 11
    lines: list[str] = []
    for subject, value in rows:
        words = printable(value or "")
        lines += textwrap.wrap(words, columns, initial_indent=f"{subject:<11}", subsequent_indent=indent)
    return "\n".join(lines)
