"""What a container may use of the machine that it runs on: cgroup's limits, version 1 and 2.

Only limits of the container count. A service's own limit (systemd's MemoryMax for the agent) bounds the agent, not
the machine: it stands deeper in the tree than the top, which on a host has no limits and in a container has its own.
"""

import re
from dataclasses import dataclass

from agent.detect.machine import Machine, whole

ROOT = "/sys/fs/cgroup"
UNLIMITED = 2**60  # version 1 writes "none" as the largest multiple of a page under 2^63
# A container that sees the host's whole tree stands in it under one of these names.
_CONTAINER = re.compile(r"docker|libpod|kubepods|containerd|crio|lxc|garden|machine\.slice|buildkit")


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds this container; None: nothing does. `ram_used_bytes` only where memory is bounded."""

    cpu_cores: float | None = None
    ram_bytes: int | None = None
    ram_used_bytes: int | None = None
    source: str | None = None


def read_limits(machine: Machine) -> Limits:
    """The limits of the container that this is; none outside containers."""
    if machine.platform != "Linux":
        return Limits()
    if machine.read(f"{ROOT}/cgroup.controllers") is not None:
        return _version_2(machine)
    return _version_1(machine)


def _paths(machine: Machine, controller: str) -> list[str]:
    """Where limits may stand, beside the top: the container's own place and all above it."""
    for line in (machine.read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") and _CONTAINER.search(path):
            parts = [part for part in path.split("/") if part and part != ".."]
            return ["", *("/" + "/".join(parts[:n]) for n in range(1, len(parts) + 1))]
    return [""]


def _version_2(machine: Machine) -> Limits:
    cores = _listed(machine.read(f"{ROOT}/cpuset.cpus.effective"))
    memory: list[tuple[int, str]] = []
    for path in _paths(machine, ""):
        quota, _, period = (machine.read(f"{ROOT}{path}/cpu.max") or "").partition(" ")
        cores += _cores(whole(quota), whole(period))
        most = whole(machine.read(f"{ROOT}{path}/memory.max"))
        if most is not None:
            memory.append((most, f"{ROOT}{path}"))
    if not memory:
        return _limits(cores, None, None, "cgroup v2")
    most, folder = min(memory)
    used = _used(machine.read(f"{folder}/memory.current"), machine.read(f"{folder}/memory.stat"), "inactive_file")
    return _limits(cores, most, used, "cgroup v2")


def _version_1(machine: Machine) -> Limits:
    cores = _listed(machine.read(f"{ROOT}/cpuset/cpuset.cpus"))
    for path in _paths(machine, "cpu"):
        folder = f"{ROOT}/cpu{path}"
        quota = whole(machine.read(f"{folder}/cpu.cfs_quota_us"))
        cores += _cores(quota, whole(machine.read(f"{folder}/cpu.cfs_period_us")))
    memory: list[tuple[int, str]] = []
    for path in _paths(machine, "memory"):
        folder = f"{ROOT}/memory{path}"
        most = whole(machine.read(f"{folder}/memory.limit_in_bytes"))
        if most is not None and most < UNLIMITED:
            memory.append((most, folder))
    if not memory:
        return _limits(cores, None, None, "cgroup v1")
    most, folder = min(memory)
    stat = machine.read(f"{folder}/memory.stat")
    used = _used(machine.read(f"{folder}/memory.usage_in_bytes"), stat, "total_inactive_file")
    return _limits(cores, most, used, "cgroup v1")


def _cores(quota_us: int | None, period_us: int | None) -> list[float]:
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return []
    return [round(quota_us / period_us, 2)]


def _listed(cpus: str | None) -> list[float]:
    """How many processors a list such as `0-3,8` names; nothing for one that names none."""
    count = 0
    for part in (cpus or "").strip().split(","):
        first, _, last = part.partition("-")
        start, end = whole(first), whole(last or first)
        if start is not None and end is not None:
            count += max(end - start + 1, 0)
    return [float(count)] if count else []


def _limits(cores: list[float], ram: int | None, used: int | None, source: str) -> Limits:
    bounded = bool(cores) or ram is not None
    return Limits(min(cores, default=None), ram, used, source if bounded else None)


def _used(current: str | None, stat: str | None, reclaimable: str) -> int | None:
    """Memory in use without the files that the kernel gives back when asked, as `docker stats` counts it."""
    used = whole(current)
    if used is None:
        return None
    for line in (stat or "").splitlines():
        name, _, value = line.partition(" ")
        if name == reclaimable:
            used -= whole(value) or 0
    return max(used, 0)
