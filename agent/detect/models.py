"""One shape for the models of all engines, and how many of them a report can carry."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GB = 2**30
MAX_DETAILED = 200  # models with all that is known of them; more of them are given by name
MAX_MEASURED = 128  # models in a heartbeat, the loaded first
# A registry takes 256 KiB in all. 10,000 names of models are more than that with anything beside them.
MAX_REPORT_BYTES = 160 * 1024
Json = Any
_PATH = re.compile(
    r"^(?:[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\])|[/\\][^/\\]*\.(?:gguf|safetensors|ckpt|bin)$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Found:
    """An engine that answers: what it calls itself, its models, and how busy it is, as far as it tells."""

    engine: str
    version: str | None
    models: list[dict[str, Json]]
    load: dict[str, float | None] = field(default_factory=dict)


def text(value: Json) -> str | None:
    """A short printable text, else None."""
    return value if isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable() else None


def count(value: Json) -> int | None:
    """A plausible whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else None


def gb(size_bytes: Json) -> float | None:
    """Bytes as GB (2^30), else None."""
    known = isinstance(size_bytes, int) and not isinstance(size_bytes, bool) and 0 <= size_bytes < 2**60
    return round(size_bytes / GB, 2) if known else None


def parameters(number: Json) -> str | None:
    """A number of parameters as people write it: 8.0B, 270M."""
    known = count(number) if not isinstance(number, int) or number < 2**40 else None
    if not known:
        return None
    return f"{known / 1e9:.1f}B" if known >= 1e9 else f"{known / 1e6:.0f}M"


def base_name(name: str) -> str:
    """A model's name; of a file's path only the file, as folders tell of their owner."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if _PATH.search(name) else name


def entry(name: Json, loaded: bool | None, **told: Json) -> dict[str, Json] | None:
    """One model that an engine has: `{name, installed, loaded, ...}`, with what is known of it. None without a name.

    `loaded` is null where the engine does not tell. `context_length` is what is set aside for it now,
    `max_context_length` what it was trained for. Values of a kind that the engine does not document are left out:
    one odd model must not make the registry refuse the whole node.
    """
    shown = text(name)
    if shown is None or not base_name(shown):
        return None
    known = {name: value for name, value in told.items() if value is not None}
    return {"name": base_name(shown), "installed": True, "loaded": loaded, **known}


def found(entries: Iterable[dict[str, Json] | None]) -> list[dict[str, Json]]:
    """The models that have a name."""
    return [model for model in entries if model is not None]


def model_set(models: Iterable[Mapping[str, Json]]) -> str:
    """Equal for equal sets of models, whatever their order and whether they are loaded."""
    told = sorted(repr((m["name"], m.get("digest"), m.get("max_context_length"))) for m in models)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _loaded_first(models: Sequence[dict[str, Json]]) -> list[dict[str, Json]]:
    return sorted(models, key=lambda model: model["loaded"] is not True)


def fitted(models: Sequence[dict[str, Json]], most_bytes: int) -> tuple[list[Json], int]:
    """(what a registration can carry of them, how many are left out): the loaded first, then in the engine's order;
    with everything, then by name alone."""
    fit: list[Json] = []
    size = 0
    for model in _loaded_first(models):
        whole = len(json.dumps(model)) + 2
        detailed = len(fit) < MAX_DETAILED and size + whole <= most_bytes // 2
        size += whole if detailed else len(json.dumps(model["name"])) + 2
        if size > most_bytes:
            break
        fit.append(model if detailed else model["name"])
    return fit, len(models) - len(fit)


def states(engine: str, models: Sequence[dict[str, Json]], most: int = MAX_MEASURED) -> list[dict[str, Json]]:
    """What a heartbeat tells of them: which are loaded, and what those take."""
    changing = ("vram_gb", "context_length", "expires_at")
    return [
        {
            "name": model["name"],
            "engine": engine,
            "loaded": model["loaded"],
            **({name: model[name] for name in changing if name in model} if model["loaded"] else {}),
        }
        for model in _loaded_first(models)[: max(most, 0)]
    ]
