"""What a node can do, in the two shapes that callers send: flat, and nested by subject.

`normalise` makes one flat shape of both; `nested` gives the other one back. Nothing is invented:
what was not said stays null or absent, and what is not understood is kept as it came.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from registry.names import folded

Json = Any
MOST_SLOTS = 100_000  # of one node; more is a slip of the keyboard

# Old callers' spellings of the system's facts, and ours.
_SYSTEM_ALIASES = {
    "cpu_count": "cpu_cores",
    "memory_gb": "ram_gb",
    "memory_total_gb": "ram_gb",
    "ram_total_gb": "ram_gb",
    "disk_total_gb": "disk_gb",
    "platform": "os",
}
# `system` itself last: what came under that name and is no block of facts is given back there.
_SYSTEM_FIELDS = ("os", "os_version", "cpu_model", "cpu_cores", "ram_gb", "disk_gb", "hostname", "system")


def normalise(raw: Mapping[str, Json]) -> dict[str, Json]:
    """The flat shape: `models` names, `gpu` a name or null, lists of `gpus` and `model_details`."""
    flat = {key: value for key, value in raw.items() if key not in ("system", "gpu", "gpus", "models")}
    system = raw.get("system")
    if isinstance(system, Mapping):
        for key, value in system.items():
            name = _SYSTEM_ALIASES.get(str(key), str(key))
            if flat.get(name) is None:  # null says nothing, so it hides nothing
                flat[name] = value
    else:
        flat["system"] = system
    if flat.get("system") is None:
        flat.pop("system", None)
    for field in ("cpu_cores", "ram_gb", "disk_gb", "os"):
        flat.setdefault(field, None)
    gpus, present = _gpus(raw)
    flat["gpus"] = gpus
    flat["gpu"] = next((g["name"] for g in gpus if g.get("name")), None)
    flat["services"] = _names(raw.get("services"))
    flat["features"] = _names(raw.get("features"))
    if present and flat["gpu"] is None and "gpu" not in flat["features"]:
        flat["features"].append("gpu")
    details = _model_details(raw)
    flat["models"] = [detail["name"] for detail in details]
    flat["model_details"] = details
    return flat


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
    shown = {*_SYSTEM_FIELDS, "gpu", "gpus", "models", "model_details", "services", "features"}
    shape.update((key, value) for key, value in flat.items() if key not in shown)
    return shape


def capability_names(flat: Mapping[str, Json]) -> frozenset[str]:
    """Every x for which `capability=x` holds, in lower case."""
    own = [key for key, value in flat.items() if (value and type(value) is not dict) or _truthy(value)]
    return folded((*own, *flat["services"], *flat["features"]))


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
    return _truthy(flat.get(name)) or name in flat["features"]


def _truthy(value: Json) -> bool:
    if isinstance(value, dict):  # not Mapping: an abstract class is slow to ask, and JSON has only this one
        return bool(value) and value.get("available") is not False
    return bool(value) or number(value) is not None


def _gpus(raw: Mapping[str, Json]) -> tuple[list[dict[str, Json]], bool]:
    """The GPUs that are described, and whether any is said to be there at all."""
    gpu, listed = raw.get("gpu"), raw.get("gpus")
    present = gpu is True
    if isinstance(gpu, str) and gpu:
        found: list[Json] = listed or [{"name": gpu}]
    elif isinstance(gpu, list):
        found = gpu or listed or []
    elif isinstance(gpu, Mapping):
        present = gpu.get("available") is True
        found = gpu.get("gpus") or listed or ([{"name": gpu["name"]}] if gpu.get("name") else [])
        if gpu.get("available") is False:
            found = []
    else:
        found = listed or []
    gpus = [dict(g) if isinstance(g, Mapping) else {"name": g} for g in found]
    return gpus, present or bool(gpus)


def _names(value: Json) -> list[str]:
    """A list of names; an object of switches gives the names that are on."""
    if isinstance(value, Mapping):
        return [key for key, item in value.items() if _truthy(item)]
    return list(dict.fromkeys(value or []))


def _model_details(raw: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Every model once, with what is known of it, engines' own lists included."""
    sources: list[Json] = [raw.get("models"), raw.get("model_details")]
    sources += [
        engine.get("models")
        for engine in raw.values()
        if isinstance(engine, Mapping) and engine.get("available") is not False
    ]
    details: dict[str, dict[str, Json]] = {}
    for source in sources:
        for item in source if isinstance(source, list) else ():
            detail = dict(item) if isinstance(item, Mapping) else {"name": item}
            name = detail.get("name") or detail.get("model") or detail.get("key")
            if isinstance(name, str) and name:
                known = details.setdefault(name.casefold(), {"name": name})
                loaded = known.get("loaded") is True  # two engines may have it: loaded in one is loaded
                known.update((k, v) for k, v in detail.items() if k != "name" and v is not None)
                if loaded:
                    known["loaded"] = True
    return list(details.values())
