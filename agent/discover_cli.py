"""`dagi-agent discover` and `dagi-agent nodes`: which nodes there are, for people and for programs."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.command_line import flag, or_explain
from agent.config import AgentSettings, at_home, load
from agent.discovery import AsyncNodeDiscovery, RegistryUnreachable, RequestRefused
from agent.identity import Home
from agent.nodes import Node, Nodes
from agent.wire import printable

Urls = Annotated[list[str] | None, flag("Registry; repeat, or separate by commas.")]
EnvFile = Annotated[Path | None, flag("File of NODE_... settings (.env).")]
AsJson = Annotated[bool, flag("For programs.", "--json")]
Some = list[str] | None


def discover(
    model: Annotated[Some, flag("Has this model, such as qwen3:8b; repeat: has all.")] = None,
    match: Annotated[str | None, flag("exact, or family: qwen3 then means every qwen3.")] = None,
    capability: Annotated[Some, flag("Has this, such as gpu; repeat: has all.")] = None,
    label: Annotated[Some, flag("Has this label; repeat: has all.")] = None,
    role: Annotated[Some, flag("Has this role; repeat: any of them.")] = None,
    node_type: Annotated[Some, flag("Is of this type; repeat: any of them.", "--type")] = None,
    region: Annotated[Some, flag("Is in this region; repeat: any of them.")] = None,
    status: Annotated[Some, flag("Has this status (online); repeat, or any.")] = None,
    min_vram_gb: Annotated[float | None, flag("Has GPU memory of so many GB.")] = None,
    min_free_vram_gb: Annotated[float | None, flag("Has free GPU memory of so many GB.")] = None,
    min_ram_gb: Annotated[float | None, flag("Has memory of so many GB.")] = None,
    min_cpu_cores: Annotated[float | None, flag("Has so many cores.")] = None,
    max_latency_ms: Annotated[float | None, flag("Is no farther than so many milliseconds.")] = None,
    max_load: Annotated[float | None, flag("Is no busier than this, 0 to 1.")] = None,
    near: Annotated[str | None, flag("Nearest first: auto (to here), a node id, or a region.")] = None,
    prefer_region: Annotated[str | None, flag("This region first.")] = None,
    sort: Annotated[str | None, flag("latency, load, free_vram, vram, ram or node_id.")] = None,
    limit: Annotated[int, flag("At most so many (20).")] = 20,
    explain: Annotated[bool, flag("Count why nodes were left out.", "--explain")] = False,
    as_json: AsJson = False,
    registry_url: Urls = None,
    env_file: EnvFile = None,
) -> None:
    """Find nodes, best first."""
    asked = {
        "model": model, "match": match, "capability": capability, "label": label, "role": role, "type": node_type,
        "region": region, "status": status, "min_vram_gb": min_vram_gb, "min_free_vram_gb": min_free_vram_gb,
        "min_ram_gb": min_ram_gb, "min_cpu_cores": min_cpu_cores, "max_latency_ms": max_latency_ms,
        "max_load": max_load, "nearest": near, "prefer_region": prefer_region, "sort": sort, "limit": limit,
        "explain": explain or None,
    }  # fmt: skip
    filters = {name: _written(value) for name, value in asked.items() if value not in (None, [])}
    settings = or_explain(lambda: load({"node_registry_url": registry_url}, env_file))
    filters.setdefault("status", "online")
    _show(settings, lambda discovery: discovery.find_nodes(**filters), as_json)


def nodes(
    status: Annotated[Some, flag("Has this status; repeat: any of them.")] = None,
    role: Annotated[Some, flag("Has this role; repeat: any of them.")] = None,
    node_type: Annotated[Some, flag("Is of this type; repeat: any of them.", "--type")] = None,
    region: Annotated[Some, flag("Is in this region; repeat: any of them.")] = None,
    label: Annotated[Some, flag("Has this label; repeat: has all.")] = None,
    capability: Annotated[Some, flag("Has this, such as gpu; repeat: has all.")] = None,
    as_json: AsJson = False,
    registry_url: Urls = None,
    env_file: EnvFile = None,
) -> None:
    """List all nodes, whatever their status."""
    asked = {
        "status": status, "role": role, "type": node_type, "region": region, "label": label, "capability": capability,
    }  # fmt: skip
    filters = {name: value for name, value in asked.items() if value}
    settings = or_explain(lambda: load({"node_registry_url": registry_url}, env_file))
    _show(settings, lambda discovery: discovery.list_nodes(**filters), as_json)


def _show(settings: AgentSettings, ask: Callable[[AsyncNodeDiscovery], Awaitable[Nodes]], as_json: bool) -> None:
    settings = at_home(settings, Home().registries())
    key = settings.node_api_key
    discovery = or_explain(
        lambda: AsyncNodeDiscovery(
            settings.node_registry_url,
            key.get_secret_value() if key else None,
            ca_cert=settings.ca_cert,
            cert=settings.node_cert,
            cert_key=settings.node_key,
        )
    )

    async def once() -> Nodes:
        async with discovery:
            return await ask(discovery)

    try:
        found = asyncio.run(once())
    except (RegistryUnreachable, RequestRefused) as error:
        typer.echo(f"dagi-agent: {error}{_advice(error)}", err=True)
        raise typer.Exit(2 if isinstance(error, RequestRefused) and error.status == 422 else 1) from None
    if as_json:
        document = {"nodes": found, "total": found.total, "as_of": found.as_of, **found.more}
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        typer.echo(table(found, shutil.get_terminal_size().columns))


def _advice(error: Exception) -> str:
    if isinstance(error, RequestRefused) and error.code == "not_allowlisted":
        return ""  # no other key helps, and what to do is said
    if isinstance(error, RequestRefused) and error.status in (401, 403):
        return " Set NODE_API_KEY to a key that may read, or run this where a node is registered."
    return ""


Column = tuple[str, Callable[[Node], str]]
_COLUMNS: list[Column] = [
    ("NODE", lambda node: printable(node.node_name)),
    ("STATUS", lambda node: printable(node.status)),
    ("REGION", lambda node: printable(node.region or "-")),
    ("GPU", lambda node: _gpu(node)),
    ("FREE", lambda node: "-" if node.free_vram_gb is None else f"{node.free_vram_gb:.0f} GB"),
    ("LOAD", lambda node: "-" if node.load is None else f"{node.load:.0%}"),
    ("AWAY", lambda node: "-" if node.latency_ms is None else f"{node.latency_ms:.0f} ms"),
]
_WIDEST = {"NODE": 20, "GPU": 14, "REGION": 8}
_RIGHT = {"FREE", "LOAD", "AWAY"}
_GAP = "  "
_LEAST_MISSED = ("REGION", "LOAD", "FREE", "GPU", "AWAY", "STATUS")  # where lines are short
LEAST_ROOM = 16  # a model's name


def table(found: Nodes, columns: int) -> str:
    """The nodes as lines no longer than the terminal. Columns of which nothing is known are left out; the models,
    those in memory first, take the room that is left."""
    if not found:
        return "\n".join(["no such node is there", *_left_out(found)])
    shown = {title: [title, *map(value, found)] for title, value in _COLUMNS}
    shown = {title: values for title, values in shown.items() if title == "NODE" or {*values[1:]} != {"-"}}
    for title in _LEAST_MISSED:
        if sum(_width(*column) + len(_GAP) for column in shown.items()) > columns - LEAST_ROOM:
            shown.pop(title, None)
    lines = ["" for _ in range(len(found) + 1)]
    for title, values in shown.items():
        width, just = _width(title, values), str.rjust if title in _RIGHT else str.ljust
        lines = [line + just(_short(value, width), width) + _GAP for line, value in zip(lines, values, strict=True)]
    room = columns - len(lines[0])
    models = ["MODELS", *(_models(node, room) for node in found)]
    lines = [_short((line + last).rstrip(), columns) for line, last in zip(lines, models, strict=True)]
    more = [f"{len(found)} of {found.total} nodes"] if found.total > len(found) else []
    return "\n".join([*lines, *more, *_left_out(found)])


def _left_out(found: Nodes) -> list[str]:
    told = found.more.get("explain")
    counted = told.get("left_out") if isinstance(told, dict) else None
    if not isinstance(counted, dict) or not counted:
        return []
    return ["left out: " + ", ".join(f"{number} by {printable(str(why))}" for why, number in counted.items())]


def _width(title: str, values: list[str]) -> int:
    return min(max(map(len, values)), _WIDEST.get(title, 1000))


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _gpu(node: Node) -> str:
    name = str((node.get("capabilities") or {}).get("gpu") or "-")
    return printable(name).removeprefix("NVIDIA ").removeprefix("GeForce ")


def _models(node: Node, room: int) -> str:
    """As many names as there is room for, and how many more there are."""
    names = sorted(map(printable, node.models), key=lambda name: not node.has_loaded(name))
    for count in range(len(names), 0, -1):
        text = ", ".join(names[:count]) + (f" +{len(names) - count}" if count < len(names) else "")
        if len(text) <= room or count == 1:
            return text
    return "-"


def _written(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value
