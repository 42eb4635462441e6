"""Runs every detector, each with a time limit of its own: one that hangs or fails costs its field."""

import asyncio
import json
import platform
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from agent.detect import gpu
from agent.detect.amd import detect_amd
from agent.detect.apple import Apple
from agent.detect.disks import detect_disks, measure_models_disk
from agent.detect.engines import Engine, Engines
from agent.detect.models import MAX_MEASURED, MAX_REPORT_BYTES, fitted, model_set, states
from agent.detect.nvidia import Nvidia
from agent.detect.power import measure_power
from agent.detect.system import CpuMeter, detect_system, measure_system

LIMIT_S = 3.0
Json = Any

_meter = CpuMeter()
_nvidia = Nvidia()
_apple = Apple()
_engines: dict[tuple[str | None, tuple[str, ...]], Engines] = {}
_running: dict[tuple[Any, ...], Future[Json]] = {}


async def in_thread(call: Callable[..., Json], *arguments: Json) -> Json:
    """Run a blocking detector in a daemon thread, which cannot keep the agent from ending.

    Who asks while one is under way waits for that one: threads that hang do not pile up.
    """
    what = (call, *arguments)
    future = _running.get(what)
    if future is None:
        future = _running[what] = Future()
        future.set_running_or_notify_cancel()
        name = getattr(call, "__name__", "detector")
        threading.Thread(target=_settle, args=(future, what), daemon=True, name=name).start()
    return await asyncio.wrap_future(future)


def _settle(future: Future[Json], what: tuple[Any, ...]) -> None:
    call, *arguments = what
    try:
        result = call(*arguments)
    except Exception as error:
        del _running[what]
        future.set_exception(error)
    else:
        del _running[what]
        future.set_result(result)


async def _limited(detector: Awaitable[Json], fallback: dict[str, Json]) -> Json:
    try:
        async with asyncio.timeout(LIMIT_S):
            return await detector
    except TimeoutError:
        return {**fallback, "reason": f"detection took over {LIMIT_S:g} s"}
    except Exception as error:
        return {**fallback, "reason": f"detection failed: {error}"}


def detect_nvidia() -> dict[str, Json]:
    """NVIDIA's GPUs of this machine."""
    return _nvidia.read(gpu.system_memory())


def detect_apple() -> dict[str, Json]:
    """The GPUs of this Mac."""
    return _apple.read(gpu.system_memory())


def gpu_detectors() -> list[tuple[str, Callable[[], dict[str, Json]]]]:
    """(vendor, detector) of those that this platform can have."""
    if platform.system() == "Darwin":
        return [("Apple", detect_apple)]
    nvidia = [("NVIDIA", detect_nvidia)]
    return [*nvidia, ("AMD", detect_amd)] if platform.system() == "Linux" else nvidia


async def _gpus() -> dict[str, Json]:
    async def one(vendor: str, detector: Callable[[], dict[str, Json]]) -> dict[str, Json]:
        block = await _limited(in_thread(detector), {"available": False, "gpus": [], "count": 0})
        late = block.get("reason", "") or ""
        return {**block, "reason": f"{vendor}: {late}"} if late.startswith("detection ") else block

    return gpu.join(await asyncio.gather(*(one(vendor, detector) for vendor, detector in gpu_detectors())))


async def _survey(ollama_url: str | None, engine_urls: Iterable[str]) -> list[Engine]:
    places = (ollama_url, tuple(engine_urls))
    engines = _engines.get(places)
    if engines is None:
        engines = _engines[places] = Engines(*places)
    try:
        async with asyncio.timeout(LIMIT_S):
            return await engines.survey()
    except Exception:  # mostly TimeoutError: those that have answered by now are known
        return engines.known()


async def detect_capabilities(ollama_url: str | None = None, engine_urls: Iterable[str] = ()) -> dict[str, Json]:
    """What this machine has, in the nested shape; unknown is null, with a reason.

    An engine that is silent for a moment is told as it was found last.
    """
    system, disk, gpus, engines = await asyncio.gather(
        _limited(in_thread(detect_system), {}),
        _limited(in_thread(detect_disks), {"disk_gb": None}),
        _gpus(),
        _survey(ollama_url, engine_urls),
    )
    reasons = [reason for block in (system, disk) if (reason := block.get("reason"))]
    return {
        "system": {**system, **disk, "reason": "; ".join(reasons) or None},
        "gpu": gpus,
        **engine_blocks(engines),
        "services": [engine.name for engine in engines if engine.state == "up"],
        "features": features(gpus["gpus"]),
    }


def features(gpus: Iterable[Mapping[str, Json]]) -> list[str]:
    """What can be asked for as a capability beyond what has a field of its own."""
    known = {"nvidia": "cuda", "apple": "metal"}
    return sorted({known[vendor] for each in gpus if (vendor := str(each.get("vendor"))) in known})


def engine_blocks(engines: Iterable[Engine]) -> dict[str, Json]:
    """`{engine: {available, version, models, ...}}` of those that are there, and of Ollama in any case."""
    there = list(engines)
    share = MAX_REPORT_BYTES // max(len(there), 1)
    return {engine.name: _block(engine, share) for engine in there if engine.found or engine.name == "ollama"}


def _block(engine: Engine, most_bytes: int) -> dict[str, Json]:
    if engine.found is None or engine.state == "gone":
        return {"available": False, "models": [], "reason": engine.reason}
    models, left_out = fitted(engine.found.models, most_bytes)
    block = {"available": True, "version": engine.found.version, "models": models}
    more = {"models_left_out": left_out} if left_out else {}
    return {**block, **more, "model_set": model_set(engine.found.models)}


async def measure(ollama_url: str | None, agents: str | None, engine_urls: Iterable[str] = ()) -> dict[str, Json]:
    """Metrics for a heartbeat. What cannot be measured is null, or absent where most machines have none."""
    system, free, power, gpus, engines, agent_count = await asyncio.gather(
        _limited(in_thread(measure_system, _meter), {}),
        _limited(in_thread(_models_disk), {"models_disk_free_gb": None}),
        _limited(in_thread(measure_power), {}),
        _gpus(),
        _survey(ollama_url, engine_urls),
        _limited_count(agents),
    )
    loads = [each["utilization_percent"] for each in gpus["gpus"] if each["utilization_percent"] is not None]
    return {
        **{key: value for block in (system, free, power) for key, value in block.items() if key != "reason"},
        "gpu_percent": max(loads) if loads else None,
        "gpus": gpu.measured(gpus["gpus"]),
        "services": [engine.name for engine in engines if engine.state == "up"],
        "engines": {engine.name: _live(engine) for engine in engines if engine.found},
        "models": live_models(engines),
        "agent_count": agent_count,
    }


def _models_disk() -> dict[str, Json]:
    return {"models_disk_free_gb": measure_models_disk()}


def _live(engine: Engine) -> dict[str, Json]:
    load = engine.found.load if engine.found else {}
    known = {name: value for name, value in load.items() if value is not None} if engine.state == "up" else {}
    return {"state": engine.state, **known, "model_set": model_set(engine.found.models if engine.found else ())}


def live_models(engines: Iterable[Engine]) -> list[dict[str, Json]]:
    """The states of the models of all engines that answer, the loaded first, as many as a heartbeat may carry."""
    told = [states(each.name, each.found.models) for each in engines if each.found and each.state == "up"]
    return sorted((model for models in told for model in models), key=lambda m: m["loaded"] is not True)[:MAX_MEASURED]


def models_changed(capabilities: Mapping[str, Json], metrics: Mapping[str, Json]) -> bool:
    """Whether engines have other models than were registered (`capabilities`), by what was measured last.

    An engine that is silent for a moment changes nothing; one that is gone for minutes does, once.
    """
    for name, live in (metrics.get("engines") or {}).items():
        told = capabilities.get(name) or {}
        if live["state"] == "gone" and told.get("available"):
            return True
        if live["state"] == "up" and (not told.get("available") or told.get("model_set") != live["model_set"]):
            return True
    return False


async def _limited_count(source: str | None) -> int | None:
    """NODE_AGENTS: a number, or a file or URL that holds a JSON list."""
    if source is None or source == "":
        return None
    if source.isascii() and source.isdecimal():
        return int(source)
    try:
        async with asyncio.timeout(LIMIT_S):
            listed = await in_thread(_read_list, source)
    except Exception:
        return None
    return len(listed) if isinstance(listed, list) else None


def _read_list(source: str) -> Json:
    if source.startswith(("http://", "https://")):
        import urllib.request

        with urllib.request.urlopen(source, timeout=LIMIT_S) as answer:  # noqa: S310 - http(s) alone
            return json.loads(answer.read(2**20))
    return json.loads(Path(source).expanduser().read_text(encoding="utf-8"))
