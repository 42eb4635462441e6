"""All detectors together: one that hangs or fails costs its own field and no more."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.detect import inventory
from agent.detect.inventory import detect_capabilities, in_thread, measure
from registry.model import Capabilities, parse

SYSTEM = {"hostname": "box", "os": "Linux", "cpu_cores": 8, "ram_gb": 64.0, "disk_gb": 900.0}
BUSY = {"cpu_percent": 12.5, "memory_percent": 40.0}
GPUS = {"available": True, "count": 1, "reason": None, "gpus": [{"name": "L4", "utilization_percent": 7}]}
OLLAMA = {"available": True, "version": "1", "models": [{"name": "m", "loaded": True}]}


@pytest.fixture(autouse=True)
def detectors(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Detectors that answer at once; the event ends those that a test makes hang."""

    async def ollama(_url: str) -> dict[str, Any]:
        return OLLAMA

    release = threading.Event()
    monkeypatch.setattr(inventory, "LIMIT_S", 0.05)
    monkeypatch.setattr(inventory, "detect_system", lambda: SYSTEM)
    monkeypatch.setattr(inventory, "measure_system", lambda _meter: BUSY)
    monkeypatch.setattr(inventory, "detect_gpus", lambda: GPUS)
    monkeypatch.setattr(inventory, "detect_ollama", ollama)
    yield release
    release.set()


async def test_everything_that_was_found() -> None:
    found = await detect_capabilities()
    assert (found["system"], found["gpu"], found["ollama"]) == (SYSTEM, GPUS, OLLAMA)
    assert found["services"] == ["ollama"]
    assert await measure(None, "50") == {
        **BUSY,
        "gpu_percent": 7,
        "gpus": GPUS["gpus"],
        "services": ["ollama"],
        "models": [{"name": "m", "loaded": True}],
        "agent_count": 50,
    }


@pytest.mark.parametrize("field", ["system", "gpu", "ollama"])
@pytest.mark.parametrize("how", ["hangs", "raises"])
async def test_one_bad_detector_costs_its_own_field(
    detectors: threading.Event, monkeypatch: pytest.MonkeyPatch, field: str, how: str
) -> None:
    def bad(*_: Any) -> Any:
        if how == "raises":
            raise RuntimeError("the driver fell over")
        detectors.wait(10)

    async def bad_ollama(_url: str) -> Any:
        if how == "raises":
            raise RuntimeError("the driver fell over")
        await asyncio.Event().wait()

    for name in ("detect_system", "measure_system") if field == "system" else (f"detect_{field}s",):
        if field != "ollama":
            monkeypatch.setattr(inventory, name, bad)
    if field == "ollama":
        monkeypatch.setattr(inventory, "detect_ollama", bad_ollama)
    found, metrics = await detect_capabilities(), await measure(None, None)
    whole = {"system": SYSTEM, "gpu": GPUS, "ollama": OLLAMA}
    assert {name: found[name] for name in whole if name != field} == {n: v for n, v in whole.items() if n != field}
    assert ("took over" if how == "hangs" else "fell over") in found[field]["reason"]
    parse(Capabilities, found)
    assert metrics.get("cpu_percent") == (None if field == "system" else 12.5)
    assert metrics["gpu_percent"] == (None if field == "gpu" else 7)
    assert metrics["services"] == ([] if field == "ollama" else ["ollama"])
    assert "reason" not in metrics


async def test_detectors_that_hang_do_not_pile_up(detectors: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def hang() -> dict[str, Any]:
        started.append(1)
        detectors.wait(10)
        return GPUS

    monkeypatch.setattr(inventory, "detect_gpus", hang)
    for _ in range(3):
        assert "took over" in (await detect_capabilities())["gpu"]["reason"]
    assert len(started) == 1


async def test_two_who_ask_at_once_share_one_answer(detectors: threading.Event) -> None:
    started = []

    def slow() -> int:
        started.append(1)
        detectors.wait(10)
        return 7

    asking = [asyncio.create_task(in_thread(slow)) for _ in range(2)]
    await asyncio.sleep(0)
    detectors.set()
    assert await asyncio.gather(*asking) == [7, 7]
    assert len(started) == 1
    assert await in_thread(slow) == 7
    assert len(started) == 2


@pytest.mark.parametrize(
    ("source", "count"),
    [(None, None), ("", None), ("0", 0), ("50", 50), ("\u00b2", None), ("/no/such/file", None), ("-1", None)],
)
async def test_the_number_of_agents(source: str | None, count: int | None) -> None:
    assert (await measure(None, source))["agent_count"] == count


@pytest.mark.parametrize(("text", "count"), [('["a","b"]', 2), ("[]", 0), ('{"a":1}', None), ("no", None)])
async def test_agents_listed_in_a_file(tmp_path: Path, text: str, count: int | None) -> None:
    (tmp_path / "agents.json").write_text(text)
    assert (await measure(None, str(tmp_path / "agents.json")))["agent_count"] == count
