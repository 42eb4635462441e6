"""GPUs through a recorded NVML: what each driver answers, field by field."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from agent.detect.gpu import SystemMemory, read_nvml

GB = 2**30
RAM = SystemMemory(128.0, 96.5)
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
L4 = {
    "Name": b"NVIDIA L4",
    "UUID": "GPU-1",
    "MemoryInfo": SimpleNamespace(total=24 * GB, free=20 * GB, used=4 * GB),
    "UtilizationRates": SimpleNamespace(gpu=37, memory=12),
    "MigMode": NOT_SUPPORTED,
}


class Recorded:
    """NVML that plays back: an exception in the place of an answer is raised."""

    NVMLError = pynvml.NVMLError
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, *devices: Any, init: Exception | None = None, shutdown: Exception | None = None) -> None:
        self._devices, self._init, self._shutdown = devices, init, shutdown
        self.opened = 0

    def nvmlInit(self) -> None:
        self._play(self._init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1
        self._play(self._shutdown)

    def nvmlDeviceGetCount(self) -> int:
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._play(self._devices[index])

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int:
        return len(device["parts"])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any:
        return self._play(device["parts"][index])

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return lambda device: self._play(device[name.removeprefix("nvmlDeviceGet")])

    @staticmethod
    def _play(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_gpu_tells_everything() -> None:
    nvml = Recorded(L4)
    assert read_nvml(nvml, RAM) == {
        "available": True,
        "count": 1,
        "reason": None,
        "gpus": [
            {
                "name": "NVIDIA L4",
                "vendor": "nvidia",
                "uuid": "GPU-1",
                "vram_gb": 24.0,
                "vram_free_gb": 20.0,
                "utilization_percent": 37,
                "unified": False,
            }
        ],
    }
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("field", "nulls"),
    [("Name", ["name"]), ("UUID", ["uuid"]), ("UtilizationRates", ["utilization_percent"])],
)
def test_a_field_that_is_not_supported_is_null_alone(field: str, nulls: list[str]) -> None:
    gpu = read_nvml(Recorded({**L4, field: NOT_SUPPORTED}), RAM)["gpus"][0]
    assert [name for name, value in gpu.items() if value is None] == nulls


def test_unified_memory_is_the_systems() -> None:
    gpu = read_nvml(Recorded({**L4, "MemoryInfo": NOT_SUPPORTED}), RAM)["gpus"][0]
    assert (gpu["unified"], gpu["vram_gb"], gpu["vram_free_gb"]) == (True, 128.0, 96.5)


def test_memory_that_cannot_be_read_for_another_reason_is_unknown_not_unified() -> None:
    gpu = read_nvml(Recorded({**L4, "MemoryInfo": LOST}), RAM)["gpus"][0]
    assert (gpu["unified"], gpu["vram_gb"], gpu["vram_free_gb"]) == (None, None, None)


def test_a_divided_gpu_is_shown_as_its_instances() -> None:
    part = {**L4, "Name": "NVIDIA A100 MIG 3g.20gb", "UtilizationRates": NOT_SUPPORTED}
    whole = {
        **L4,
        "MigMode": [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE],
        "parts": [{**part, "UUID": "MIG-1"}, pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND), {**part, "UUID": "MIG-2"}],
    }
    found = read_nvml(Recorded(whole, L4), RAM)
    assert [gpu["uuid"] for gpu in found["gpus"]] == ["MIG-1", "MIG-2", "GPU-1"]
    assert found["gpus"][0]["utilization_percent"] is None


@pytest.mark.parametrize("parts", [[], [pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)]])
def test_a_gpu_that_will_be_divided_later_is_shown_whole(parts: list[Any]) -> None:
    whole = {**L4, "MigMode": [pynvml.NVML_DEVICE_MIG_ENABLE, 0], "parts": parts}
    assert [gpu["uuid"] for gpu in read_nvml(Recorded(whole), RAM)["gpus"]] == ["GPU-1"]


def test_a_lost_gpu_does_not_hide_the_others() -> None:
    found = read_nvml(Recorded(LOST, L4), RAM)
    assert [gpu["uuid"] for gpu in found["gpus"]] == ["GPU-1"]
    assert found["available"]
    assert "GPU 0 cannot be read" in found["reason"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver is installed"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "may not use"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML does not start"),
    ],
)
def test_no_usable_driver_and_why(code: int, words: str) -> None:
    found = read_nvml(Recorded(init=pynvml.NVMLError(code)), RAM)
    assert (found["available"], found["gpus"], found["count"]) == (False, [], 0)
    assert words in found["reason"]


def test_a_driver_without_gpus_says_so() -> None:
    found = read_nvml(Recorded(), RAM)
    assert (found["available"], found["reason"]) == (False, "the NVIDIA driver sees no GPU")


def test_a_shutdown_that_fails_loses_nothing() -> None:
    assert read_nvml(Recorded(L4, shutdown=LOST), RAM)["count"] == 1
