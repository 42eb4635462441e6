"""The GPU of a Mac, without sudo: system_profiler once, ioreg at each measurement."""

import json
import re
from typing import Any

from agent.detect.gpu import GB, SystemMemory, absent, entry, system_memory, troubled
from agent.detect.machine import Machine, ThisMachine

_MB = 2**20
_VENDORS = {"sppci_vendor_Apple": "apple", "sppci_vendor_amd": "amd", "sppci_vendor_intel": "intel"}


class Apple:
    """A Mac's GPUs. What does not change is asked once: system_profiler takes a fifth of a second."""

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine or ThisMachine()
        self._displays: list[dict[str, Any]] | None = None
        self._wired_mb: int | None = None

    def read(self, memory: SystemMemory | None = None) -> dict[str, Any]:
        """`{available, gpus, count, reason}`."""
        if self._displays is None:
            told = self._machine.run("system_profiler", "SPDisplaysDataType", "-json")
            if told is None:
                return troubled("system_profiler does not answer")
            self._displays = parse_displays(told)
            self._wired_mb = parse_wired_limit(self._machine.run("sysctl", "iogpu.wired_limit_mb") or "")
        busy = parse_ioreg(self._machine.run("ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator") or "")
        memory = memory or system_memory()
        gpus = [_gpu(display, busy, memory, self._wired_mb) for display in self._displays]
        if not gpus:
            return absent("system_profiler lists no GPU")
        return {"available": True, "gpus": gpus, "count": len(gpus), "reason": None}


def parse_displays(text: str) -> list[dict[str, Any]]:
    """`{name, vendor, cores, vram_gb}` of each GPU in `system_profiler SPDisplaysDataType -json`."""
    try:
        listed = json.loads(text).get("SPDisplaysDataType")
    except (ValueError, AttributeError, RecursionError):
        return []
    found = []
    for item in listed if isinstance(listed, list) else ():
        name = item.get("sppci_model") or item.get("_name") if isinstance(item, dict) else None
        if isinstance(name, str) and name:
            cores = str(item.get("sppci_cores", ""))
            vendor = _VENDORS.get(str(item.get("spdisplays_vendor")))
            found.append(
                {
                    "name": name[:255],
                    "vendor": vendor or ("apple" if name.startswith("Apple") else "unknown"),
                    "cores": int(cores) if cores.isdecimal() else None,
                    "vram_gb": _size_gb(item.get("spdisplays_vram")),
                }
            )
    return found


def parse_wired_limit(text: str) -> int | None:
    """MB that the GPU may hold, where somebody set it (`iogpu.wired_limit_mb`); 0 is the system's own choice."""
    found = re.search(r"iogpu\.wired_limit_mb:\s*(\d{1,9})", text)
    return (int(found[1]) or None) if found else None


def parse_ioreg(text: str) -> dict[str, dict[str, int]]:
    """`{model: {utilization_percent, used_bytes}}` of the text of ioreg's IOAccelerator nodes."""
    found: dict[str, dict[str, int]] = {}
    for node in re.split(r"^\+-o ", text, flags=re.MULTILINE):
        model = re.search(r'"model" = <?"([^"]{1,255})"', node)
        use = re.search(r'"Device Utilization %"=(\d{1,3})\b', node) or re.search(
            r'"GPU Activity\(%\)"=(\d{1,3})', node
        )
        used = re.search(r'"In use system memory"=(\d{1,15})\b', node) or re.search(r'"vramUsedBytes"=(\d{1,15})', node)
        told = {}
        if use:
            told["utilization_percent"] = min(int(use[1]), 100)
        if used:
            told["used_bytes"] = int(used[1])
        if model and told:
            found[model[1]] = told
    return found


def _gpu(
    display: dict[str, Any], busy: dict[str, dict[str, int]], memory: SystemMemory, wired_mb: int | None
) -> dict[str, Any]:
    told = busy.get(display["name"], {})
    unified = display["vendor"] == "apple"
    total = display["vram_gb"]
    if unified:
        total = wired_mb * _MB / GB if wired_mb else memory.total_gb
    used = told.get("used_bytes")
    free = total - used / GB if total is not None and used is not None else None
    if unified and memory.available_gb is not None:  # other programs use the same memory
        free = memory.available_gb if free is None else min(free, memory.available_gb)
    return entry(
        vendor=display["vendor"],
        name=display["name"],
        uuid=None,
        vram_gb=total,
        vram_free_gb=free,
        utilization_percent=told.get("utilization_percent"),
        unified=unified,
        why={
            "uuid": "a Mac's GPU has none",
            "vram_gb": "system_profiler does not tell",
            "vram_free_gb": "ioreg does not tell",
            "utilization_percent": "ioreg does not tell",
        },
        cores=display["cores"],
        wired_limit_gb=round(wired_mb * _MB / GB, 2) if unified and wired_mb else None,
    )


def _size_gb(text: Any) -> float | None:
    found = re.fullmatch(r"(\d{1,6}) (MB|GB)", text) if isinstance(text, str) else None
    if not found:
        return None
    return int(found[1]) / 1024 if found[2] == "MB" else float(found[1])
