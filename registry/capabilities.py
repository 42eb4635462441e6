"""What a node can do, in the two shapes that callers send: flat, and nested by subject.

`normalise` makes one flat shape of both (federation/described.py); `nested` gives the other one back. Nothing is
invented: what was not said stays null or absent, and what is not understood is kept as it came.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from federation.described import is_on, normalise

__all__ = ["capability_names", "free_vram_gb", "nested", "normalise", "number", "total_vram_gb"]

Json = Any
MOST_SLOTS = 100_000  # of one node; more is a slip of the keyboard

# `system` itself last: what came under that name and is no block of facts is given back there.
_SYSTEM_FIELDS = ("os", "os_version", "cpu_model", "cpu_cores", "ram_gb", "disk_gb", "hostname", "system")
_PLACED = {*_SYSTEM_FIELDS, "gpu", "gpus", "models", "model_details", "services", "features"}  # what `nested` moves


def nested(flat: Mapping[str, Json]) -> dict[str, Json]:
    """The nested shape: `system.*`, `gpu.{available, gpus, count}`, `ollama`, `services`, `features`."""
    gpus = flat["gpus"]
    shape: dict[str, Json] = {
        "system": {field: flat[field] for field in _SYSTEM_FIELDS if field in flat},
        "gpu": {"available": _has(flat, "gpu"), "gpus": gpus, "count": len(gpus)},
        "models": flat["models"],
        "services": flat["services"],
        "features": flat["features"],
    }
    return shape | {key: value for key, value in flat.items() if key not in _PLACED}


def capability_names(flat: Mapping[str, Json]) -> tuple[str, ...]:
    """Every x for which `capability=x` holds, in any case, some twice."""
    own = [key for key, value in flat.items() if (value and type(value) is not dict) or is_on(value)]
    return (*own, *flat["services"], *flat["features"])


def total_vram_gb(flat: Mapping[str, Json]) -> float | None:
    """VRAM of all GPUs together in GB, or None when no GPU tells its size."""
    sizes = [size for g in flat["gpus"] if (size := number(g.get("vram_gb"))) is not None]
    return sum(sizes) if sizes else None


def free_vram_gb(gpus: Iterable[Json]) -> float | None:
    """Free VRAM of all GPUs together in GB, or None when no GPU tells it."""
    sizes = [size for g in gpus if isinstance(g, dict) and (size := number(g.get("vram_free_gb"))) is not None]
    return sum(sizes) if sizes else None


def slots_of(flat: Mapping[str, Json], metrics: Mapping[str, Json]) -> int | None:
    """How many requests a node can work on at once: as it says itself (`slots`, `parallelism`), else as its engines
    do in its heartbeats; None where nobody says."""
    engines = metrics.get("engines")
    listed = engines.values() if isinstance(engines, dict) else ()
    told = [engine.get("slots") for engine in listed if isinstance(engine, dict)]
    counted = [count for each in told if (count := _slots(each)) is not None]
    declared = (flat.get("slots"), flat.get("parallelism"), metrics.get("slots"), sum(counted) if counted else None)
    return next((count for each in declared if (count := _slots(each)) is not None), None)


def _slots(value: Json) -> int | None:
    count = number(value)
    return int(count) if count is not None and 1 <= count <= MOST_SLOTS else None


def number(value: Json) -> float | None:
    """The value if it is a number (a boolean is not), else None."""
    kind = type(value)  # a boolean is an int by class; and this is asked several times a heartbeat
    return value if kind is float or kind is int else None


def _has(flat: Mapping[str, Json], name: str) -> bool:
    return is_on(flat.get(name)) or name in flat["features"]
