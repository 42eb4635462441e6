"""What a node measures, as it crosses the federation: few bytes, and only as fine as decisions need.

    4 bytes   cpu, memory, disk, gpu in steps of 2 %, 255: unknown
    2 bytes   number of agents, 65535: unknown
    3 bytes   of each GPU: utilisation as above, free memory in steps of 1/4 GB (65535: unknown)

Coarse on purpose: a node whose numbers only tremble has nothing new to say.
"""

import struct
from collections.abc import Mapping
from typing import Any

from registry.capabilities import number

MAX_GPUS = 18  # what the federation's limit of 64 bytes leaves room for
_PERCENTS = ("cpu_percent", "memory_percent", "disk_percent", "gpu_percent")
_PERCENT_STEP = 2
_VRAM_STEPS_A_GB = 4
_HEAD = struct.Struct("<4BH")
_GPU = struct.Struct("<BH")
_NO_BYTE, _NO_SHORT = 0xFF, 0xFFFF


def pack(metrics: Mapping[str, Any]) -> bytes:
    """The bytes of a heartbeat's metrics; empty when none of them is among those that travel."""
    percents = [_percent(metrics.get(name)) for name in _PERCENTS]
    gpus = metrics.get("gpus")
    listed = [gpu for gpu in gpus if isinstance(gpu, dict)][:MAX_GPUS] if isinstance(gpus, list) else []
    agents = _NO_SHORT if (count := number(metrics.get("agent_count"))) is None else _within(count, _NO_SHORT)
    if not listed and agents == _NO_SHORT and set(percents) == {_NO_BYTE}:
        return b""
    packed = _HEAD.pack(*percents, agents)
    for gpu in listed:
        free_gb = number(gpu.get("vram_free_gb"))
        free = _NO_SHORT if free_gb is None else _within(free_gb * _VRAM_STEPS_A_GB, _NO_SHORT)
        packed += _GPU.pack(_percent(gpu.get("utilization_percent")), free)
    return packed


def unpack(packed: bytes) -> dict[str, Any]:
    """Metrics as a heartbeat brings them, as far as they travelled. Nothing for bytes that are none: a peer
    made them."""
    if len(packed) < _HEAD.size or (len(packed) - _HEAD.size) % _GPU.size:
        return {}
    *percents, agents = _HEAD.unpack_from(packed)
    found: dict[str, Any] = {
        name: value * _PERCENT_STEP
        for name, value in zip(_PERCENTS, percents, strict=True)
        if value * _PERCENT_STEP <= 100
    }
    if agents != _NO_SHORT:
        found["agent_count"] = agents
    gpus = [
        {
            "utilization_percent": used * _PERCENT_STEP if used != _NO_BYTE else None,
            "vram_free_gb": free / _VRAM_STEPS_A_GB if free != _NO_SHORT else None,
        }
        for used, free in _GPU.iter_unpack(packed[_HEAD.size :])
    ]
    if gpus:
        found["gpus"] = gpus
    return found


def _percent(value: Any) -> int:
    known = number(value)
    return _NO_BYTE if known is None else round(min(max(known, 0), 100) / _PERCENT_STEP)


def _within(value: float, beyond: int) -> int:
    return min(max(round(value), 0), beyond - 1)
