"""The machine itself: host, operating system, processor, memory, disk."""

import os
import platform
import socket
import time
from typing import Any

import psutil

GB = 2**30
FIRST_READING_S = 0.2  # 20 ticks of the kernel's clock a processor


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


class CpuMeter:
    """How busy the processors were since the last reading, from whatever thread it is taken.

    psutil keeps its own last reading per thread, and gives 0 for the first one of each.
    """

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def percent(self) -> float | None:
        """0..100; the first reading waits a moment to have something to compare."""
        before = self._before
        if before is None:
            before = _cpu_times()
            time.sleep(FIRST_READING_S)
        self._before = _cpu_times()
        return busy_percent(before, self._before)


def busy_percent(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """The busy share between two readings of (busy, total) CPU seconds; None when no time has passed."""
    busy, total = after[0] - before[0], after[1] - before[1]
    return round(100 * min(max(busy / total, 0.0), 1.0), 1) if total > 0 else None


def _cpu_times() -> tuple[float, float]:
    times = psutil.cpu_times()._asdict()
    # Linux counts guests' time a second time under these names.
    total = sum(seconds for name, seconds in times.items() if name not in ("guest", "guest_nice"))
    return total - times["idle"] - times.get("iowait", 0.0), total


def measure_system(meter: CpuMeter) -> dict[str, float | None]:
    """How busy the machine is now; CPU since the meter's last reading."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return {
        "cpu_percent": meter.percent(),
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
