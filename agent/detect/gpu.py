"""GPUs of all vendors as one block. Each vendor is read apart, so that one driver that hangs hides no other GPU."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GB = 2**30


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """The machine's own memory in GB (2^30 bytes): what a GPU without memory of its own uses."""

    total_gb: float | None = None
    available_gb: float | None = None


def system_memory() -> SystemMemory:
    """This machine's memory now."""
    import psutil

    memory = psutil.virtual_memory()
    return SystemMemory(round(memory.total / GB, 2), round(memory.available / GB, 2))


def entry(
    *,
    vendor: str,
    name: str | None,
    uuid: str | None,
    vram_gb: float | None,
    vram_free_gb: float | None,
    utilization_percent: float | None,
    unified: bool | None,
    why: Mapping[str, str],
    **more: Any,
) -> dict[str, Any]:
    """One GPU as a registry takes it; `more` only where it is known. `why` tells of fields that are null."""
    gpu: dict[str, Any] = {
        "name": name,
        "vendor": vendor,
        "uuid": uuid,
        "vram_gb": None if vram_gb is None else round(vram_gb, 2),
        "vram_free_gb": None if vram_free_gb is None else round(max(vram_free_gb, 0.0), 2),
        "utilization_percent": utilization_percent,
        "unified": unified,
        **{field: value for field, value in more.items() if value is not None},
    }
    said = "; ".join(f"{field}: {reason}" for field, reason in why.items() if gpu.get(field) is None)
    return {**gpu, "reason": said} if said else gpu


def absent(reason: str) -> dict[str, Any]:
    """No GPU of this vendor, as on most machines: said only where there is no GPU at all."""
    return {"available": False, "gpus": [], "count": 0, "reason": reason, "absent": True}


def troubled(reason: str) -> dict[str, Any]:
    """A vendor whose GPUs cannot be read: said beside whatever else there is."""
    return {"available": False, "gpus": [], "count": 0, "reason": reason}


def join(blocks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All vendors' blocks as one: `{available, gpus, count, reason}` and what a vendor adds to it."""
    told = list(blocks)
    gpus = [gpu for block in told for gpu in block["gpus"]]
    reasons = [block["reason"] for block in told if block.get("reason") and not (gpus and block.get("absent"))]
    more = {key: value for block in told for key, value in block.items() if key != "absent"}
    return {
        **more,
        "available": bool(gpus),
        "gpus": gpus,
        "count": len(gpus),
        "reason": "; ".join(reasons) or (None if gpus else "no GPU that this agent knows how to look for"),
    }


def measured(gpus: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """GPUs as a heartbeat tells them: without the reasons, which a registration has told."""
    return [{field: value for field, value in gpu.items() if field != "reason"} for gpu in gpus]
