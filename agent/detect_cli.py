"""`dagi-agent detect`: what would be reported of this machine, for people and for programs."""

import asyncio
import json
import shutil
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.command_line import flag, or_explain
from agent.config import load
from agent.detect.inventory import detect_capabilities

MAX_MODELS_SHOWN = 20
_ENGINES = {
    "ollama": "Ollama", "llamacpp": "llama.cpp", "lmstudio": "LM Studio", "vllm": "vLLM", "sglang": "SGLang",
    "tgi": "TGI", "localai": "LocalAI", "exo": "exo", "mlx": "mlx-lm", "comfyui": "ComfyUI",
}  # fmt: skip


def detect(
    as_json: Annotated[bool, flag("For programs.", "--json")] = False,
    env_file: Annotated[Path | None, flag("File of NODE_... settings (.env).")] = None,
) -> None:
    """Print what would be reported of this machine."""
    settings = or_explain(lambda: load({}, env_file))
    found = asyncio.run(detect_capabilities(settings.ollama_url, settings.node_engine_urls))
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    typer.echo(table(found, shutil.get_terminal_size().columns))


def table(found: dict[str, Any], columns: int) -> str:
    """What was found as lines of two columns, the second one wrapped."""
    lines = []
    for subject, value in summary(found):
        indent = " " * (11 + len(value) - len(value.lstrip()))  # a long model's line goes on under its name
        wrapped = textwrap.wrap(value, max(columns, 40), initial_indent=f"{subject:<11}", subsequent_indent=indent)
        lines += wrapped or [subject]
    return "\n".join(lines)


def summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, in words: (subject, what); a subject of several lines is named once."""
    system = found["system"]
    return [
        ("Host", f"{system.get('hostname')} ({system.get('os')} {system.get('os_version')})"),
        ("CPU", f"{system.get('cpu_model') or 'unknown'}, {_number(system.get('cpu_cores'))} cores"),
        ("RAM", _size(system.get("ram_gb"))),
        *_container(system.get("container")),
        *_named("Disk", [_disk(disk) for disk in system.get("disks", ())] or [_size(system.get("disk_gb"))]),
        *_named("GPU", [_gpu(gpu) for gpu in found["gpu"]["gpus"]] or [f"none: {found['gpu'].get('reason')}"]),
        *(line for name, title in _ENGINES.items() if name in found for line in _engine(title, found[name])),
        *([("Unknown", system["reason"])] if system.get("reason") else []),
    ]


def _named(subject: str, values: list[str]) -> list[tuple[str, str]]:
    return [(subject if number == 0 else "", value) for number, value in enumerate(values)]


def _container(container: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not container:
        return []
    host = container["host"]
    whole = f"{_number(host['cpu_cores'])} cores, {_size(host['ram_gb'])}"
    return [("Container", f"limited by {container['limited_by']}; the machine has {whole}")]


def _disk(disk: dict[str, Any]) -> str:
    models = f", models of {', '.join(disk['models_of'])}" if disk.get("models_of") else ""
    return (
        f"{disk['mount'] or '(mounted elsewhere)'}: {_size(disk['free_gb'])} free of {_size(disk['total_gb'])}{models}"
    )


def _gpu(gpu: dict[str, Any]) -> str:
    shared = ", shared with the system" if gpu.get("unified") else ""
    free = f", {_size(gpu['vram_free_gb'])} free" if gpu.get("vram_free_gb") is not None else ""
    busy = f", {gpu['utilization_percent']} % busy" if gpu.get("utilization_percent") is not None else ""
    return f"{gpu['name'] or 'unnamed'}: {_size(gpu['vram_gb'])}{shared}{free}{busy}"


def _engine(title: str, engine: dict[str, Any]) -> list[tuple[str, str]]:
    if not engine["available"]:
        return [(title, f"none: {engine.get('reason')}")]
    models, version = engine["models"], engine.get("version")
    total = len(models) + engine.get("models_left_out", 0)
    head = f"{f'version {version}, ' if version else ''}{total or 'no'} model{'' if total == 1 else 's'}"
    shown = [_model(model) for model in models[:MAX_MODELS_SHOWN]]
    more = [f"and {total - len(shown)} more"] if total > len(shown) else []
    return _named(title, [head, *(f"  {line}" for line in (*shown, *more))])


def _model(model: Any) -> str:
    if isinstance(model, str):
        return model
    known = [
        {True: "loaded", False: "", None: ""}[model["loaded"]],
        f"{_size(model['vram_gb'])} VRAM" if model.get("vram_gb") else "",
        _context(model.get("context_length"), model.get("max_context_length")),
        model.get("quantization") or "",
        model.get("parameter_size") or "",
        f"{_size(model['size_gb'])} on disk" if model.get("size_gb") else "",
    ]
    told = ", ".join(word for word in known if word)
    return f"{model['name']}{f' ({told})' if told else ''}"


def _context(now: int | None, most: int | None) -> str:
    if now and most:
        return f"context {now} of {most}"
    return f"context {now}" if now else f"context up to {most}" if most else ""


def _size(size_gb: float | None) -> str:
    return "unknown" if size_gb is None else f"{size_gb:g} GB"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
