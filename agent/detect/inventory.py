"""Runs every detector, each with a time limit of its own: one that hangs or fails costs its field."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from agent.detect.engines import OLLAMA_URL, detect_ollama
from agent.detect.gpu import detect_gpus
from agent.detect.system import CpuMeter, detect_system, measure_system

LIMIT_S = 3.0
Json = Any


_meter = CpuMeter()
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
        threading.Thread(target=_settle, args=(future, what), daemon=True, name=call.__name__).start()
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


async def detect_capabilities(ollama_url: str | None = None) -> dict[str, Json]:
    """What this machine has, in the nested shape; unknown is null, with a reason."""
    system, gpu, ollama = await asyncio.gather(
        _limited(in_thread(detect_system), {}),
        _limited(in_thread(detect_gpus), {"available": False, "gpus": [], "count": 0}),
        _limited(detect_ollama(ollama_url or OLLAMA_URL), {"available": False, "models": []}),
    )
    services = ["ollama"] if ollama.get("available") else []
    return {"system": system, "gpu": gpu, "ollama": ollama, "services": services, "features": []}


async def measure(ollama_url: str | None, agents: str | None) -> dict[str, Json]:
    """Metrics for a heartbeat. What cannot be measured is null."""
    system, gpu, ollama = await asyncio.gather(
        _limited(in_thread(measure_system, _meter), {}),
        _limited(in_thread(detect_gpus), {"gpus": []}),
        _limited(detect_ollama(ollama_url or OLLAMA_URL), {"available": False, "models": []}),
    )
    loads = [g["utilization_percent"] for g in gpu["gpus"] if g["utilization_percent"] is not None]
    return {
        **{key: value for key, value in system.items() if key != "reason"},
        "gpu_percent": max(loads) if loads else None,
        "gpus": gpu["gpus"],
        "services": ["ollama"] if ollama.get("available") else [],
        "models": [{"name": m["name"], "loaded": m["loaded"]} for m in ollama["models"]],
        "agent_count": await _limited_count(agents),
    }


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
