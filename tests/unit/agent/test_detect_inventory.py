"""All detectors together: one that hangs or fails costs its own field and no more."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.detect import engines, inventory
from agent.detect.inventory import detect_capabilities, in_thread, measure
from registry.model import Capabilities, parse
from tests.support.ollama import serving

GPU_DETECTORS = inventory.gpu_detectors
SYSTEM = {"hostname": "box", "os": "Linux", "cpu_cores": 8, "ram_gb": 64.0, "reason": None}
DISK = {"disk_gb": 900.0, "disks": [{"mount": "/", "total_gb": 900.0, "free_gb": 1.0}], "reason": None}
BUSY = {"cpu_percent": 12.5, "memory_percent": 40.0}
POWER = {"battery_percent": 80, "on_battery": True}
GPU = {"name": "L4", "vendor": "nvidia", "utilization_percent": 7}
GPUS = {"available": True, "count": 1, "reason": None, "gpus": [GPU]}
NO_AMD = {"available": False, "count": 0, "reason": "no AMD GPU", "gpus": [], "absent": True}
NOWHERE = "http://127.0.0.1:1"
DETECTORS = {
    "detect_system": SYSTEM, "detect_disks": DISK, "measure_system": BUSY, "measure_models_disk": 250.0,
    "measure_power": POWER,
}  # fmt: skip


@pytest.fixture(autouse=True)
def detectors(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Detectors that answer at once; the event ends those that a test makes hang."""
    release = threading.Event()
    monkeypatch.setattr(inventory, "LIMIT_S", 0.3)
    monkeypatch.setattr(engines, "PORTS", {})
    monkeypatch.setattr(inventory, "_engines", {})
    for name, told in DETECTORS.items():
        monkeypatch.setattr(inventory, name, lambda *_, told=told: told)
    gpus = [("NVIDIA", lambda: GPUS), ("AMD", lambda: NO_AMD)]
    monkeypatch.setattr(inventory, "gpu_detectors", lambda: gpus)
    yield release
    release.set()


async def test_everything_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "LIMIT_S", 10)
    async with serving() as ollama:
        found, metrics = await detect_capabilities(ollama.url), await measure(ollama.url, "50")
    assert found["system"] == {**SYSTEM, **DISK}
    assert found["gpu"] == GPUS
    assert (found["services"], found["features"]) == (["ollama"], ["cuda"])
    models = found["ollama"]["models"]
    assert [model["name"] for model in models] == ["qwen3:8b", "nomic-embed-text:latest"]
    assert metrics == {
        **BUSY,
        **POWER,
        "models_disk_free_gb": 250.0,
        "gpu_percent": 7,
        "gpus": [GPU],
        "services": ["ollama"],
        "engines": {"ollama": {"state": "up", "model_set": found["ollama"]["model_set"]}},
        "models": [
            {
                "name": "qwen3:8b",
                "engine": "ollama",
                "loaded": True,
                "vram_gb": 4.97,
                "context_length": 4096,
                "expires_at": "2025-10-04T00:33:52.83753-07:00",
            },
            {"name": "nomic-embed-text:latest", "engine": "ollama", "loaded": False},
        ],
        "agent_count": 50,
    }


@pytest.mark.parametrize("name", [*DETECTORS, "NVIDIA", "AMD"])
@pytest.mark.parametrize("how", ["hangs", "raises"])
async def test_one_bad_detector_costs_its_own_field(
    detectors: threading.Event, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    def bad(*_: Any) -> Any:
        if how == "raises":
            raise RuntimeError("the driver fell over")
        detectors.wait(10)

    if name in DETECTORS:
        monkeypatch.setattr(inventory, name, bad)
    else:
        gpus = [("NVIDIA", lambda: GPUS), ("AMD", lambda: NO_AMD)]
        replaced = [(vendor, bad if vendor == name else detector) for vendor, detector in gpus]
        monkeypatch.setattr(inventory, "gpu_detectors", lambda: replaced)
    found, metrics = await detect_capabilities(NOWHERE), await measure(NOWHERE, None)
    parse(Capabilities, found)
    words = "took over" if how == "hangs" else "fell over"
    system, gpu = found["system"], found["gpu"]
    assert system.get("cpu_cores") == (None if name == "detect_system" else 8)
    assert system["disk_gb"] == (None if name == "detect_disks" else 900.0)
    assert (words in str(system["reason"])) == name.startswith("detect_")
    assert gpu["count"] == (0 if name == "NVIDIA" else 1)
    assert gpu["reason"] is None or (gpu["reason"].startswith(f"{name}: detection ") and words in gpu["reason"])
    assert metrics.get("cpu_percent") == (None if name == "measure_system" else 12.5)
    assert metrics.get("battery_percent") == (None if name == "measure_power" else 80)
    assert metrics["models_disk_free_gb"] == (None if name == "measure_models_disk" else 250.0)
    assert metrics["gpu_percent"] == (None if name == "NVIDIA" else 7)
    assert "reason" not in metrics


async def test_an_engine_that_hangs_costs_its_own_block() -> None:
    async with serving() as ollama:
        ollama.answers["/api/tags"] = None
        found, metrics = await detect_capabilities(ollama.url), await measure(ollama.url, None)
    assert (found["ollama"]["available"], found["ollama"]["reason"]) == (False, "it has not answered yet")
    assert found["system"]["cpu_cores"] == 8
    assert (metrics["services"], metrics["models"], metrics["cpu_percent"]) == ([], [], 12.5)


async def test_detectors_that_hang_do_not_pile_up(detectors: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def hang() -> dict[str, Any]:
        started.append(1)
        detectors.wait(10)
        return GPUS

    monkeypatch.setattr(inventory, "gpu_detectors", lambda: [("NVIDIA", hang)])
    for _ in range(3):
        assert "took over" in (await detect_capabilities(NOWHERE))["gpu"]["reason"]
    assert len(started) == 1


@pytest.mark.parametrize(
    ("platform", "vendors"),
    [("Linux", ["NVIDIA", "AMD"]), ("Darwin", ["Apple"]), ("Windows", ["NVIDIA"])],
)
def test_what_a_platform_can_have_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, platform: str, vendors: list[str]
) -> None:
    monkeypatch.setattr("platform.system", lambda: platform)
    assert [vendor for vendor, _ in GPU_DETECTORS()] == vendors


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
    assert (await measure(NOWHERE, source))["agent_count"] == count


@pytest.mark.parametrize(("text", "count"), [('["a","b"]', 2), ("[]", 0), ('{"a":1}', None), ("no", None)])
async def test_agents_listed_in_a_file(tmp_path: Path, text: str, count: int | None) -> None:
    (tmp_path / "agents.json").write_text(text)
    assert (await measure(NOWHERE, str(tmp_path / "agents.json")))["agent_count"] == count
