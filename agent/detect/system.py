"""The machine itself: host, operating system, processor, memory, disk."""

import os
import platform
import socket
from typing import Any

import psutil

GB = 2**30


def detect_system() -> dict[str, Any]:
    """What does not change while the machine runs. Sizes in GB (2^30 bytes)."""
    return {
        "hostname": socket.gethostname(),
        "os": platform.system(),
        "os_version": platform.release(),
        "architecture": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / GB, 2),
        "disk_gb": round(psutil.disk_usage("/").total / GB, 2),
    }


def measure_system() -> dict[str, float]:
    """How busy the machine is now; CPU since the last call."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return {
        "cpu_percent": psutil.cpu_percent(),
        "memory_percent": memory.percent,
        "ram_used_gb": round((memory.total - memory.available) / GB, 2),
        "disk_percent": disk.percent,
        "disk_used_gb": round(disk.used / GB, 2),
    }


def parse_cpu_model(cpuinfo: str) -> str | None:
    """The processor's name in the text of Linux's /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        name = value.strip()
        if key.strip().casefold() in ("model name", "hardware", "model") and name and not name.isdigit():
            return name
    return None


def _cpu_model() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return parse_cpu_model(file.read(16_384))
    except OSError:
        return platform.processor() or None
