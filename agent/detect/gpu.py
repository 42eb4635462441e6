"""GPUs. What the driver does not tell is null; why there is none is said, never guessed."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GB = 2**30
_WHY = {
    "NVMLError_LibraryNotFound": "no NVIDIA driver is installed",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not loaded",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA driver and its library differ in version; reboot after the update",
    "NVMLError_NoPermission": "this user may not use the NVIDIA driver",
}


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """The machine's own memory in GB (2^30 bytes): what a GPU without memory of its own uses."""

    total_gb: float | None = None
    available_gb: float | None = None


def detect_gpus() -> dict[str, Any]:
    """`{available, gpus, count, reason}` of this machine."""
    import psutil
    import pynvml  # loads no library until nvmlInit

    memory = psutil.virtual_memory()
    return read_nvml(pynvml, SystemMemory(round(memory.total / GB, 2), round(memory.available / GB, 2)))


def read_nvml(nvml: Any, memory: SystemMemory) -> dict[str, Any]:
    """Read all GPUs through an NVML module, ours or a recorded one."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return _none(_WHY.get(type(error).__name__, f"NVML does not start: {error}"))
    try:
        return _read(nvml, memory)
    except nvml.NVMLError as error:
        return _none(f"NVML fails: {error}")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _none(reason: str) -> dict[str, Any]:
    return {"available": False, "gpus": [], "count": 0, "reason": reason}


def _read(nvml: Any, memory: SystemMemory) -> dict[str, Any]:
    gpus: list[dict[str, Any]] = []
    lost: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:  # fallen off the bus; the others work on
            lost.append(f"GPU {index} cannot be read: {error}")
            continue
        gpus += [_gpu(nvml, part, memory) for part in _mig_instances(nvml, device) or [device]]
    reason = "; ".join(lost) or (None if gpus else "the NVIDIA driver sees no GPU")
    return {"available": bool(gpus), "gpus": gpus, "count": len(gpus), "reason": reason}


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
    def ask(call: Callable[..., Any]) -> Any:
        try:
            return call(device)
        except nvml.NVMLError:  # this field alone is not told here
            return None

    own, unified = _memory(nvml, device)
    load = ask(nvml.nvmlDeviceGetUtilizationRates)
    total = own.total / GB if own else memory.total_gb if unified else None
    free = own.free / GB if own else memory.available_gb if unified else None
    return {
        "name": _text(ask(nvml.nvmlDeviceGetName)),
        "vendor": "nvidia",
        "uuid": _text(ask(nvml.nvmlDeviceGetUUID)),
        "vram_gb": None if total is None else round(total, 2),
        "vram_free_gb": None if free is None else round(free, 2),
        "utilization_percent": load.gpu if load else None,
        "unified": unified,
    }


def _memory(nvml: Any, device: Any) -> tuple[Any, bool | None]:
    """(memory, unified): a GPU that shares the system's memory does not support telling its own."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(device), False
    except nvml.NVMLError as error:
        return None, True if type(error).__name__ == "NVMLError_NotSupported" else None


def _text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
