"""GPUs through a recorded NVML: what each driver answers, field by field."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from agent.detect.gpu import SystemMemory
from agent.detect.nvidia import Nvidia

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
    "CudaComputeCapability": (8, 9),
    "Temperature": 41,
    "PowerUsage": 16_250,
    "EnforcedPowerLimit": 72_000,
}


def read(nvml: Any) -> dict[str, Any]:
    return Nvidia(lambda: nvml).read(RAM)


class Recorded:
    """NVML that plays back: an exception in the place of an answer is raised."""

    NVMLError = pynvml.NVMLError
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, *devices: Any, init: Exception | None = None, shutdown: Exception | None = None) -> None:
        self._devices, self._init, self._shutdown = devices, init, shutdown
        self.opened = 0
        self.broken: Exception | None = None
        self.driver: Any = b"580.95.05"

    def nvmlInit(self) -> None:
        self._play(self._init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1
        self._play(self._shutdown)

    def nvmlDeviceGetCount(self) -> int:
        self._play(self.broken)
        return len(self._devices)

    def nvmlSystemGetDriverVersion(self) -> Any:
        return self._play(self.driver)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._play(self._devices[index])

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int:
        return len(device["parts"])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any:
        return self._play(device["parts"][index])

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return lambda device, *_: self._play(device[name.removeprefix("nvmlDeviceGet")])

    @staticmethod
    def _play(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_gpu_tells_everything() -> None:
    nvml = Recorded(L4)
    assert read(nvml) == {
        "available": True,
        "count": 1,
        "reason": None,
        "driver_version": "580.95.05",
        "gpus": [
            {
                "name": "NVIDIA L4",
                "vendor": "nvidia",
                "uuid": "GPU-1",
                "vram_gb": 24.0,
                "vram_free_gb": 20.0,
                "utilization_percent": 37,
                "unified": False,
                "compute_capability": "8.9",
                "temperature_c": 41,
                "power_w": 16.2,
                "power_limit_w": 72.0,
            }
        ],
    }


@pytest.mark.parametrize(
    ("field", "nulls"),
    [("Name", ["name"]), ("UUID", ["uuid"]), ("UtilizationRates", ["utilization_percent"])],
)
def test_a_field_that_is_not_supported_is_null_alone(field: str, nulls: list[str]) -> None:
    gpu = read(Recorded({**L4, field: NOT_SUPPORTED}))["gpus"][0]
    assert [name for name, value in gpu.items() if value is None] == nulls
    assert gpu["reason"] == f"{nulls[0]}: not supported by this GPU"


@pytest.mark.parametrize("field", ["CudaComputeCapability", "Temperature", "PowerUsage", "EnforcedPowerLimit"])
def test_what_only_some_gpus_tell_is_absent_with_a_reason(field: str) -> None:
    gpu = read(Recorded({**L4, field: NOT_SUPPORTED}))["gpus"][0]
    assert len(gpu) == 11  # of eleven fields one is missing, and a reason there
    assert "not supported" in gpu["reason"]


def test_unified_memory_is_the_systems() -> None:
    gpu = read(Recorded({**L4, "MemoryInfo": NOT_SUPPORTED}))["gpus"][0]
    assert (gpu["unified"], gpu["vram_gb"], gpu["vram_free_gb"]) == (True, 128.0, 96.5)


def test_memory_that_cannot_be_read_for_another_reason_is_unknown_not_unified() -> None:
    gpu = read(Recorded({**L4, "MemoryInfo": LOST}))["gpus"][0]
    assert (gpu["unified"], gpu["vram_gb"], gpu["vram_free_gb"]) == (None, None, None)
    assert "vram_gb: GPU is lost" in gpu["reason"]


def test_a_divided_gpu_is_shown_as_its_instances() -> None:
    part = {**L4, "Name": "NVIDIA A100 MIG 3g.20gb", "UtilizationRates": NOT_SUPPORTED}
    whole = {
        **L4,
        "MigMode": [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE],
        "parts": [{**part, "UUID": "MIG-1"}, pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND), {**part, "UUID": "MIG-2"}],
    }
    found = read(Recorded(whole, L4))
    assert [gpu["uuid"] for gpu in found["gpus"]] == ["MIG-1", "MIG-2", "GPU-1"]
    assert found["gpus"][0]["utilization_percent"] is None
    assert [gpu.get("parent_uuid") for gpu in found["gpus"]] == ["GPU-1", "GPU-1", None]


@pytest.mark.parametrize("parts", [[], [pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)]])
def test_a_gpu_that_will_be_divided_later_is_shown_whole(parts: list[Any]) -> None:
    whole = {**L4, "MigMode": [pynvml.NVML_DEVICE_MIG_ENABLE, 0], "parts": parts}
    assert [gpu["uuid"] for gpu in read(Recorded(whole))["gpus"]] == ["GPU-1"]


def test_a_lost_gpu_does_not_hide_the_others() -> None:
    found = read(Recorded(LOST, L4))
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
    found = read(Recorded(init=pynvml.NVMLError(code)))
    assert (found["available"], found["gpus"], found["count"]) == (False, [], 0)
    assert words in found["reason"]


def test_a_driver_without_gpus_says_so() -> None:
    found = read(Recorded())
    assert (found["available"], found["reason"]) == (False, "the NVIDIA driver sees no GPU")


def test_it_stays_open_between_readings() -> None:
    nvml = Recorded(L4)
    nvidia = Nvidia(lambda: nvml)
    assert [nvidia.read(RAM)["count"] for _ in range(3)] == [1, 1, 1]
    assert nvml.opened == 1


@pytest.mark.parametrize("shutdown", [None, LOST])
def test_a_driver_that_is_updated_meanwhile_says_so_and_is_opened_anew(shutdown: Exception | None) -> None:
    nvml = Recorded(L4, shutdown=shutdown)
    nvidia = Nvidia(lambda: nvml)
    assert nvidia.read(RAM)["available"]
    nvml.broken = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    assert "reboot" in nvidia.read(RAM)["reason"]
    assert nvml.opened == 0
    nvml.broken = None
    assert nvidia.read(RAM)["available"]


def test_a_driver_that_does_not_tell_its_version_costs_that_alone() -> None:
    nvml = Recorded(L4)
    nvml.driver = NOT_SUPPORTED
    found = read(nvml)
    assert (found["driver_version"], found["count"]) == (None, 1)
