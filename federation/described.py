"""A node's capabilities in one flat shape, whichever of two its agent tells them in: flat, or nested by subject.

What a node has signed is compared with what is shown of it, in registries and in clients. Both need this shape,
so it is here, where both can have it. A document says by its `format` which shape its signer had in mind: whoever
changes what comes out here makes that another one (signed.FORMAT), or honest nodes pass for forged elsewhere.
"""

from collections.abc import Mapping
from typing import Any

Json = Any

# Old callers' spellings of the system's facts, and ours.
_SYSTEM_ALIASES = {
    "cpu_count": "cpu_cores",
    "memory_gb": "ram_gb",
    "memory_total_gb": "ram_gb",
    "ram_total_gb": "ram_gb",
    "disk_total_gb": "disk_gb",
    "platform": "os",
}


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


def is_on(value: Json) -> bool:
    """Whether a switch or capability of this value is there."""
    if isinstance(value, dict):  # not Mapping: an abstract class is slow to ask, and JSON has only this one
        return bool(value) and value.get("available") is not False
    return bool(value) or type(value) in (int, float)  # a boolean is an int by class


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
        return [key for key, item in value.items() if is_on(item)]
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
