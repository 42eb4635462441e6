"""The command line of `dagi-agent`."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from agent.command_line import flag, or_explain
from agent.config import load, misspelled, written
from agent.detect_cli import detect
from agent.discover_cli import discover, nodes
from agent.node import Agent
from agent.service_cli import install, status, uninstall

# Without rich: its boxes cut off long options' names on a terminal of 80 columns.
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Joins this machine to the network of nodes."""


@app.command()
def bootstrap(
    registry_url: Annotated[list[str] | None, flag("Registry; repeat, or separate by commas.")] = None,
    role: Annotated[str | None, flag("This node's role (worker).")] = None,
    labels: Annotated[str | None, flag("Labels, separated by commas.")] = None,
    node_name: Annotated[str | None, flag("A name for people (the host's).")] = None,
    region: Annotated[str | None, flag("Where this node is.")] = None,
    advertise_addr: Annotated[str | None, flag("Address that others should use.")] = None,
    join_token: Annotated[str | None, flag("Token that lets this node register.")] = None,
    env_file: Annotated[Path | None, flag("File of NODE_... settings (.env).")] = None,
    auto: Annotated[bool, flag("Ask nothing: everything from environment and env file.", "--auto")] = False,
    once: Annotated[bool, flag("Register, heartbeat once, exit.", "--once")] = False,
    forget: Annotated[bool, flag("Deregister, remove the identity, exit.", "--forget")] = False,
) -> None:
    """Detect what this machine has, register it, and keep it alive."""
    del auto  # nothing is ever asked; the documented flag stays understood
    flags = {
        "node_registry_url": registry_url, "node_role": role, "node_labels": labels, "node_name": node_name,
        "node_region": region, "node_advertise_addr": advertise_addr, "node_join_token": join_token,
    }  # fmt: skip
    settings = or_explain(lambda: load(flags, env_file))
    for warning in misspelled({*os.environ, *written(env_file)}):
        typer.echo(f"warning: {warning}", err=True)
    agent = or_explain(lambda: Agent(settings))
    raise typer.Exit(_forget(agent) if forget else asyncio.run(agent.run(once=once)))


@app.command("rotate-key")
def rotate_key(
    registry_url: Annotated[list[str] | None, flag("Registry; repeat, or separate by commas.")] = None,
    overlap_s: Annotated[int, flag("How long the old key stays good, in seconds (600).", "--overlap-s")] = 600,
    env_file: Annotated[Path | None, flag("File of NODE_... settings (.env).")] = None,
) -> None:
    """Replace this node's key. An agent that runs takes up the new one by itself."""
    settings = or_explain(lambda: load({"node_registry_url": registry_url}, env_file))
    agent = or_explain(lambda: Agent(settings))
    raise typer.Exit(_rotate_key(agent, overlap_s))


app.command()(detect)
app.command()(discover)
app.command()(nodes)
app.command()(install)
app.command()(uninstall)
app.command()(status)


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


def _rotate_key(agent: Agent, overlap_s: int) -> int:
    async def once() -> str | None:
        try:
            if agent.home.peek_id() is None or agent.home.credentials() is None:
                return "no node is registered from here"
            if not os.access(agent.home.folder, os.W_OK):
                return f"{agent.home.folder} cannot be written, and the new key would be lost"
            if agent.settings.node_api_key is not None:
                return "NODE_API_KEY is set: an operator makes another with `dagi-registry keys rotate --node`"
            outcome = await agent.rotate_key(overlap_s)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        finally:
            await agent.client.close()
        return None if outcome.status == 200 else outcome.detail

    failure = asyncio.run(once())
    typer.echo(
        f"the key stays as it is: {failure}" if failure else f"there is a new key; the old one ends in {overlap_s} s"
    )
    return 1 if failure else 0
