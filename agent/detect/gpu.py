"""GPUs. What the driver does not tell is null; why there is none is said, never guessed."""

from collections.abc import Callable
from typing import Any

GB = 2**30
_WHY = {
    "NVMLError_LibraryNotFound": "no NVIDIA driver is installed",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is not loaded",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA driver and its library differ in version; reboot after the update",
    "NVMLError_NoPermission": "this user may not use the NVIDIA driver",
}


def detect_gpus(system_ram_gb: float | None = None) -> dict[str, Any]:
    """`{available, gpus, count, reason}` of this machine."""
    import pynvml  # loads no library until nvmlInit

    return read_nvml(pynvml, system_ram_gb)


def read_nvml(nvml: Any, system_ram_gb: float | None) -> dict[str, Any]:
    """Read all GPUs through an NVML module, ours or a recorded one."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        reason = _WHY.get(type(error).__name__, f"NVML does not start: {error}")
        return {"available": False, "gpus": [], "count": 0, "reason": reason}
    try:
        gpus = [_gpu(nvml, index, system_ram_gb) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return {"available": False, "gpus": [], "count": 0, "reason": f"NVML fails: {error}"}
    finally:
        nvml.nvmlShutdown()
    found: str | None = None if gpus else "the NVIDIA driver sees no GPU"
    return {"available": bool(gpus), "gpus": gpus, "count": len(gpus), "reason": found}


def _gpu(nvml: Any, index: int, system_ram_gb: float | None) -> dict[str, Any]:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(call: Callable[..., Any]) -> Any:
        try:
            return call(device)
        except nvml.NVMLError:  # this field alone is not supported here
            return None

    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    load = ask(nvml.nvmlDeviceGetUtilizationRates)
    return {
        "name": _text(ask(nvml.nvmlDeviceGetName)),
        "vendor": "nvidia",
        "uuid": _text(ask(nvml.nvmlDeviceGetUUID)),
        "vram_gb": round(memory.total / GB, 2) if memory else system_ram_gb,
        "vram_free_gb": round(memory.free / GB, 2) if memory else None,
        "utilization_percent": load.gpu if load else None,
        # Machines whose GPU shares the system's memory have no memory of its own to tell of.
        "unified": memory is None,
    }


def _text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
