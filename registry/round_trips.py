"""A node's round trips to registries, as they cross the federation: seldom, and three bytes each. Pure.

They follow a heartbeat's numbers (measurements.py), which come in groups of three bytes:

    3 bytes   of each registry, the nearest first: a checksum of its id, and the round trip in steps of 5 %
    1 byte    4 bits version, 4 bits how many registries

So the length tells whether there are any, and a peer that does not know them leaves that one message out. They go
when they have changed enough to matter, and now and then, as this lane may lose what it carries.
"""

import math
import struct
import zlib
from collections.abc import Iterable, Mapping

from registry.names import LONGEST_RTT_MS

MOST_REGISTRIES = 8  # as many are compared (latency.py)
LEAST_MS = 0.05
CHANGED_STEPS, CHANGED_MS = 4, 2.0  # a fifth, and more than the network's trembling
AGAIN_BEATS = 120  # an hour of heartbeats
_VERSION = 1
_EACH = struct.Struct("<HB")
_SPAN = math.log(LONGEST_RTT_MS / LEAST_MS)
_STEPS = 255


def step_of(rtt_ms: float) -> int:
    """The step that a round trip is in."""
    return round(_STEPS * math.log(min(max(rtt_ms, LEAST_MS), LONGEST_RTT_MS) / LEAST_MS) / _SPAN)


def ms_of(step: int) -> float:
    """The round trip of a step."""
    return round(LEAST_MS * math.exp(_SPAN * step / _STEPS), 2)


def packed(vector: Mapping[str, float], room: int) -> bytes:
    """A vector's bytes, of the nearest registries for which there is room; none of an empty one."""
    most = min(MOST_REGISTRIES, (room - 1) // _EACH.size)
    nearest = sorted(vector, key=vector.__getitem__)[: max(0, most)]
    if not nearest:
        return b""
    parts = [_EACH.pack(_checksum(name), step_of(vector[name])) for name in nearest]
    return b"".join([*parts, bytes([_VERSION << 4 | len(nearest)])])


def split(packed_beat: bytes) -> tuple[bytes, bytes]:
    """(a heartbeat's numbers, the round trips behind them). Bytes that are neither stay as they are."""
    if len(packed_beat) % _EACH.size != 1:
        return packed_beat, b""
    version, count = packed_beat[-1] >> 4, packed_beat[-1] & 0xF
    size = count * _EACH.size + 1
    if version != _VERSION or not 0 < count <= MOST_REGISTRIES or size > len(packed_beat):
        return packed_beat, b""
    return packed_beat[:-size], packed_beat[-size:]


def unpacked(round_trips: bytes, registries: Iterable[str]) -> dict[str, float]:
    """The vector, as far as its registries are known here. Two of one checksum are told apart by nobody: neither
    counts."""
    names: dict[int, str | None] = {}
    for name in registries:
        checksum = _checksum(name)
        names[checksum] = None if checksum in names else name
    found: dict[str, float] = {}
    for checksum, step in _EACH.iter_unpack(round_trips[:-1]):
        named = names.get(checksum)
        if named is not None:
            found[named] = ms_of(step)
    return found


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode()) & 0xFFFF


class News:
    """What was told of each node, so that only news are."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[bytes, int]] = {}

    def beat(self, node_id: str, numbers: bytes, vector: Mapping[str, float], most: int) -> bytes:
        """What a heartbeat sends: its numbers, with the round trips behind them when they are to be told. `most`: the
        bytes that it may take."""
        told, beats = self._told.get(node_id, (b"", 0))
        now = packed(vector, most - len(numbers))
        if not now:
            return numbers
        if told and beats < AGAIN_BEATS and not _changed(told, now):
            self._told[node_id] = told, beats + 1
            return numbers
        self._told[node_id] = now, 0
        return numbers + now

    def again(self) -> None:
        """Somebody is there who was told of nothing."""
        self._told.clear()


def _changed(told: bytes, now: bytes) -> bool:
    before, after = dict(_EACH.iter_unpack(told[:-1])), dict(_EACH.iter_unpack(now[:-1]))
    if before.keys() != after.keys():
        return True
    return any(
        abs(step - after[name]) >= CHANGED_STEPS and abs(ms_of(step) - ms_of(after[name])) > CHANGED_MS
        for name, step in before.items()
    )
