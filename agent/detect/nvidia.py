"""NVIDIA's GPUs through NVML. What the driver does not tell is null; why there is none is said, never guessed."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from agent.detect.gpu import GB, SystemMemory, absent, entry, troubled

_WHY = {
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not loaded",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA driver and its library differ in version; reboot after the update",
    "NVMLError_NoPermission": "this user may not use the NVIDIA driver",
}
_FIELDS = {  # of a GPU, and what NVML's call for it is named
    "name": "Name",
    "uuid": "UUID",
    "utilization_percent": "UtilizationRates",
    "compute_capability": "CudaComputeCapability",
    "temperature_c": "Temperature",
    "power_w": "PowerUsage",
    "power_limit_w": "EnforcedPowerLimit",
}
_NVML_TEMPERATURE_GPU = 0


def _load() -> Any:
    import pynvml  # loads no library until nvmlInit; imported late, as most machines have no such GPU

    return pynvml


class Nvidia:
    """NVML, kept open between readings: to open it costs more than to read. Given up and opened anew when it fails,
    as after an update of the driver."""

    def __init__(self, load: Callable[[], Any] = _load) -> None:
        self._load = load
        self._open: Any = None
        self._lock = threading.Lock()

    def read(self, memory: SystemMemory) -> dict[str, Any]:
        """`{available, gpus, count, reason}` of NVIDIA's GPUs."""
        with self._lock:
            nvml = self._open or self._load()
            if self._open is None:
                try:
                    nvml.nvmlInit()
                except nvml.NVMLError as error:
                    return _no_driver(error)
                self._open = nvml
            try:
                return _read(nvml, memory)
            except nvml.NVMLError as error:
                self._close()
                return troubled(_WHY.get(type(error).__name__, f"NVML fails: {error}"))

    def _close(self) -> None:
        nvml, self._open = self._open, None
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _no_driver(error: Exception) -> dict[str, Any]:
    if type(error).__name__ == "NVMLError_LibraryNotFound":
        return absent("no NVIDIA driver is installed")
    return troubled(_WHY.get(type(error).__name__, f"NVML does not start: {error}"))


def _read(nvml: Any, memory: SystemMemory) -> dict[str, Any]:
    gpus: list[dict[str, Any]] = []
    lost: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:  # fallen off the bus; the others work on
            lost.append(f"GPU {index} cannot be read: {error}")
            continue
        instances = _mig_instances(nvml, device)
        whole = _gpu(nvml, device, memory)
        gpus += [{**_gpu(nvml, part, memory), "parent_uuid": whole["uuid"]} for part in instances] or [whole]
    if not gpus and not lost:
        return absent("the NVIDIA driver sees no GPU")
    found = {"available": bool(gpus), "gpus": gpus, "count": len(gpus), "reason": "; ".join(lost) or None}
    try:
        found["driver_version"] = _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        found["driver_version"] = None
    return found


def _mig_instances(nvml: Any, device: Any) -> list[Any]:
    """The instances that a GPU is divided into: they can be given work, the whole no longer can."""
    try:
        if nvml.nvmlDeviceGetMigMode(device)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(device)
    except nvml.NVMLError:
        return []
    found = []
    for index in range(most):
        with contextlib.suppress(nvml.NVMLError):  # a place without an instance
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index))
    return found


def _gpu(nvml: Any, device: Any, memory: SystemMemory) -> dict[str, Any]:
    told: dict[str, Any] = {}
    why: dict[str, str] = {}
    for field, call in _FIELDS.items():
        arguments = (_NVML_TEMPERATURE_GPU,) if field == "temperature_c" else ()
        try:
            told[field] = getattr(nvml, f"nvmlDeviceGet{call}")(device, *arguments)
        except nvml.NVMLError as error:  # this field alone is not told here
            told[field], why[field] = None, _reason(error)
    own, unified, unknown = _memory(nvml, device)
    if unknown:
        why["vram_gb"] = unknown
    total = own.total / GB if own else memory.total_gb if unified else None
    free = own.free / GB if own else memory.available_gb if unified else None
    load, capability = told["utilization_percent"], told["compute_capability"]
    return entry(
        vendor="nvidia",
        name=_text(told["name"]),
        uuid=_text(told["uuid"]),
        vram_gb=total,
        vram_free_gb=free,
        utilization_percent=load.gpu if load else None,
        unified=unified,
        why=why,
        compute_capability="{}.{}".format(*capability) if capability else None,
        temperature_c=told["temperature_c"],
        power_w=_watts(told["power_w"]),
        power_limit_w=_watts(told["power_limit_w"]),
    )


def _memory(nvml: Any, device: Any) -> tuple[Any, bool | None, str | None]:
    """(memory, unified, why it is unknown): a GPU that shares the system's memory does not support telling its own."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(device), False, None
    except nvml.NVMLError as error:
        if type(error).__name__ == "NVMLError_NotSupported":
            return None, True, None
        return None, None, _reason(error)


def _reason(error: Exception) -> str:
    supported = type(error).__name__ != "NVMLError_NotSupported"
    return str(error) if supported else "not supported by this GPU"


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)


def _text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
