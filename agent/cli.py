"""The command line of `dagi-agent`."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from agent.config import ConfigurationError, load, misspelled, written
from agent.detect.inventory import detect_capabilities
from agent.node import Agent

T = TypeVar("T")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _flag(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


@app.callback()
def _root() -> None:
    """Joins this machine to the network of nodes."""


@app.command()
def bootstrap(
    registry_url: Annotated[list[str] | None, _flag("Registry; repeat, or separate by commas.")] = None,
    role: Annotated[str | None, _flag("This node's role (worker).")] = None,
    labels: Annotated[str | None, _flag("Labels, separated by commas.")] = None,
    node_name: Annotated[str | None, _flag("A name for people (the host's).")] = None,
    region: Annotated[str | None, _flag("Where this node is.")] = None,
    advertise_addr: Annotated[str | None, _flag("Address that others should use.")] = None,
    join_token: Annotated[str | None, _flag("Token that lets this node register.")] = None,
    env_file: Annotated[Path | None, _flag("File of NODE_... settings (.env).")] = None,
    auto: Annotated[bool, _flag("Ask nothing: everything from environment and env file.", "--auto")] = False,
    once: Annotated[bool, _flag("Register, heartbeat once, exit.", "--once")] = False,
    forget: Annotated[bool, _flag("Deregister, remove the identity, exit.", "--forget")] = False,
) -> None:
    """Detect what this machine has, register it, and keep it alive."""
    del auto  # nothing is ever asked; the documented flag stays understood
    flags = {
        "node_registry_url": registry_url, "node_role": role, "node_labels": labels, "node_name": node_name,
        "node_region": region, "node_advertise_addr": advertise_addr, "node_join_token": join_token,
    }  # fmt: skip
    settings = _or_explain(lambda: load(flags, env_file))
    for warning in misspelled({*os.environ, *written(env_file)}):
        typer.echo(f"warning: {warning}", err=True)
    agent = _or_explain(lambda: Agent(settings))
    raise typer.Exit(_forget(agent) if forget else asyncio.run(agent.run(once=once)))


@app.command()
def detect(
    as_json: Annotated[bool, _flag("For programs.", "--json")] = False,
    env_file: Annotated[Path | None, _flag("File of NODE_... settings (.env).")] = None,
) -> None:
    """Print what would be reported of this machine."""
    settings = _or_explain(lambda: load({}, env_file))
    found = asyncio.run(detect_capabilities(settings.ollama_url))
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, value in summary(found):
        typer.echo(f"{name:<8}{value}")


def summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, in words: (subject, what)."""
    system, gpu, ollama = found["system"], found["gpu"], found["ollama"]
    gpus = ", ".join(f"{g['name']} ({_size(g['vram_gb'])})" for g in gpu["gpus"])
    models = ", ".join(m["name"] for m in ollama["models"]) or "no models"
    return [
        ("Host", f"{system.get('hostname')} ({system.get('os')} {system.get('os_version')})"),
        ("CPU", f"{system.get('cpu_model') or 'unknown'}, {system.get('cpu_cores')} cores"),
        ("RAM", _size(system.get("ram_gb"))),
        ("Disk", _size(system.get("disk_gb"))),
        ("GPU", gpus or f"none: {gpu.get('reason')}"),
        ("Ollama", models if ollama["available"] else f"none: {ollama.get('reason')}"),
    ]


def _size(size_gb: float | None) -> str:
    return "unknown" if size_gb is None else f"{size_gb:g} GB"


def _or_explain(make: Callable[[], T]) -> T:
    """Make something of the settings; where they are wrong, say which and exit 2."""
    try:
        return make()
    except ConfigurationError as error:
        typer.echo(f"dagi-agent: {error}", err=True)
        raise typer.Exit(2) from None


def _forget(agent: Agent) -> int:
    async def once() -> str | None:
        try:
            if agent.home.kept_id() is None:
                return None
            outcome = await agent.forget()
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        finally:
            await agent.client.close()
        return None if outcome.status in (200, 404) else outcome.detail

    failure = asyncio.run(once())
    typer.echo(
        f"not deregistered; the identity stays: {failure}" if failure else "deregistered; no identity is left here"
    )
    return 1 if failure else 0
