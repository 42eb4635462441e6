"""The machine itself: host, operating system, processor, memory, disk; a container's share of them."""

import os
import platform
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

import psutil

from agent.detect.limits import Limits, read_limits
from agent.detect.machine import Machine, ThisMachine

GB = 2**30
FIRST_READING_S = 0.2  # 20 ticks of the kernel's clock a processor
# Arm's /proc/cpuinfo has numbers where others have a name; those of servers and boards that run models.
_ARM = {
    ("0x41", "0xd08"): "Arm Cortex-A72", ("0x41", "0xd0b"): "Arm Cortex-A76", ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1", ("0x41", "0xd42"): "Arm Cortex-A78AE", ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2", ("0x41", "0xd85"): "Arm Cortex-X925", ("0x41", "0xd87"): "Arm Cortex-A725",
    ("0xc0", "0xac3"): "Ampere-1", ("0xc0", "0xac4"): "Ampere-1A", ("0x48", "0xd01"): "HiSilicon Kunpeng 920",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Host:
    """What Python itself tells of the host. Cores are logical ones."""

    hostname: str
    os_version: str
    architecture: str
    processor: str
    cores: int | None
    physical_cores: int | None
    ram_bytes: int


def this_host() -> Host:
    """The host that this program runs on."""
    return Host(
        socket.gethostname(),
        platform.release(),
        platform.machine(),
        platform.processor(),
        os.cpu_count(),
        psutil.cpu_count(logical=False),
        psutil.virtual_memory().total,
    )


def detect_system() -> dict[str, Any]:
    """What does not change while the machine runs. Sizes in GB (2^30 bytes)."""
    return system_facts(ThisMachine(), this_host())


def system_facts(machine: Machine, host: Host) -> dict[str, Any]:
    """The facts of a machine or of a container on it; `reason` says why one of them is null."""
    limits = read_limits(machine)
    cores, ram_bytes = bounded(host, limits)
    facts: dict[str, Any] = {
        "hostname": host.hostname,
        "os": machine.platform,
        "os_version": host.os_version,
        "architecture": host.architecture,
        "cpu_model": _cpu_model(machine) or host.processor or None,
        "cpu_cores": cores,
        "cpu_physical_cores": host.physical_cores,
        "ram_gb": round(ram_bytes / GB, 2),
    }
    if cores != host.cores or ram_bytes != host.ram_bytes:
        whole_machine = {"cpu_cores": host.cores, "ram_gb": round(host.ram_bytes / GB, 2)}
        facts["container"] = {"limited_by": limits.source, "host": whole_machine}
    unknown = {
        "cpu_model": "the system names no processor",
        "cpu_cores": "the system does not tell",
        "cpu_physical_cores": "the system does not tell",
    }
    facts["reason"] = "; ".join(f"{name}: {why}" for name, why in unknown.items() if facts[name] is None) or None
    return facts


def bounded(host: Host, limits: Limits) -> tuple[float | None, int]:
    """(cores, bytes of memory) that can be used here: the host's, or less where a container is bounded."""
    told = [n for n in (host.cores, limits.cpu_cores) if n]
    cores = min(told, default=None)
    ram_bytes = min(host.ram_bytes, limits.ram_bytes) if limits.ram_bytes is not None else host.ram_bytes
    return (int(cores) if cores is not None and cores == int(cores) else cores), ram_bytes


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
    used, total = memory_used(memory.total - memory.available, memory.total, read_limits(ThisMachine()))
    return {
        "cpu_percent": meter.percent(),
        "memory_percent": round(100 * used / total, 1) if total else None,
        "ram_used_gb": round(used / GB, 2),
        "disk_percent": disk.percent,
        "disk_used_gb": round(disk.used / GB, 2),
    }


def memory_used(used_bytes: int, total_bytes: int, limits: Limits) -> tuple[int, int]:
    """(used, total) bytes: the host's, or a bounded container's own."""
    if limits.ram_bytes is None or limits.ram_used_bytes is None or limits.ram_bytes >= total_bytes:
        return used_bytes, total_bytes
    return min(limits.ram_used_bytes, limits.ram_bytes), limits.ram_bytes


def parse_cpu_model(cpuinfo: str) -> str | None:
    """The processor's name in the text of Linux's /proc/cpuinfo."""
    numbers: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        subject, name = key.strip().casefold(), value.strip()
        if subject in ("model name", "hardware", "model") and name and not name.isdigit():
            return re.sub(r"\s+", " ", name)[:255]
        numbers.setdefault(subject, name.casefold())
    return _ARM.get((numbers.get("cpu implementer", ""), numbers.get("cpu part", "")))


def _cpu_model(machine: Machine) -> str | None:
    if machine.platform == "Darwin":
        return (machine.run("sysctl", "-n", "machdep.cpu.brand_string") or "").strip() or None
    if machine.platform == "Linux":
        # Two processors of each kind are in the first pages; the rest of a big server repeats them.
        named = parse_cpu_model(machine.read("/proc/cpuinfo", 16_384) or "")
        return named or (machine.read("/proc/device-tree/model") or "").strip("\0 \n") or None
    return None
