"""Round trips between registries, as their links measure them: what is known of the way to a place that nobody here
has measured. Pure.

Each registry tells where it is and how far it is from the others, in one record (`d:<registry_id>`), written again
when that has changed enough to matter. What two registries say of each other is one number, the greater: a registry
that lies about how near it is moves no other.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from federation.record import Record
from registry.latency import believed

BACKBONE_PREFIX = "d:"
MOST_PEERS = 256
NEAREST = 8  # of the registries that were measured: a way by a farther one is hardly the shortest
CHANGED_SHARE, CHANGED_MS = 0.25, 2.0  # by both: less is the network's trembling
_LONGEST_REGION = 255


class Told(NamedTuple):
    """What a registry says of itself: its region, and its round trips to others in milliseconds."""

    region: str
    rtts_ms: dict[str, float]


def packed(told: Told) -> bytes:
    """The payload of a registry's record."""
    return bytes(memoryview(orjson.dumps([told.region, told.rtts_ms])))


def read(record: Record) -> Told | None:
    """What a registry's record says; None where it is none, or is not its own: each speaks for itself."""
    spec = record.spec
    if not record.exists or spec is None or spec.origin != record.key[len(BACKBONE_PREFIX) :]:
        return None
    try:
        region, rtts_ms = orjson.loads(spec.payload)
    except (TypeError, ValueError):
        return None
    if type(region) is not str or len(region) > _LONGEST_REGION:
        return None
    return Told(region, believed(rtts_ms, MOST_PEERS)[0])


def news(told: Told | None, region: str, measured: Mapping[str, float | None]) -> Told | None:
    """What is to be told now; None where nothing has changed enough. `measured`: by every registry that there is,
    None where there is no link just now: then what was told of it stands."""
    before = told.rtts_ms if told is not None else {}
    now = {
        name: round(ms, 2) if ms is not None else before[name]
        for name, ms in sorted(measured.items())
        if ms is not None or name in before
    }
    now = dict(list(now.items())[:MOST_PEERS])
    same = told is not None and told.region == region and before.keys() == now.keys()
    return None if same and not any(_changed(before[name], ms) for name, ms in now.items()) else Told(region, now)


def _changed(before_ms: float, now_ms: float) -> bool:
    apart_ms = abs(now_ms - before_ms)
    return apart_ms > CHANGED_MS and apart_ms > CHANGED_SHARE * max(before_ms, now_ms)


class Backbone:
    """What all registries tell."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}
        self._of_region: dict[str, dict[str, float]] = {}
        self.revision = 0  # grows with everything that is heard

    def hear(self, registry_id: str, told: Told | None) -> None:
        """A registry says that now; None: nothing any more."""
        self._of_region.clear()
        self.revision += 1
        if told is None:
            self._told.pop(registry_id, None)
        else:
            self._told[registry_id] = told

    def between(self, one: str, other: str) -> float:
        """The round trip between two registries in milliseconds; NaN: nobody knows."""
        if one == other:
            return 0.0
        said = [
            ms for a, b in ((one, other), (other, one))
            if a in self._told and (ms := self._told[a].rtts_ms.get(b)) is not None
        ]  # fmt: skip
        return max(said, default=math.nan)

    def of_region(self, region: str) -> Mapping[str, float]:
        """How far each registry is from a region: from the nearest of that region's registries."""
        found = self._of_region.get(region)
        if found is None:
            within = [name for name, told in self._told.items() if told.region == region]
            at = dict.fromkeys(within, 0.0)
            found = self._of_region[region] = self.beyond(at) | at
        return found

    def beyond(self, measured: Mapping[str, float]) -> dict[str, float]:
        """The ways to registries that were not measured, by those that were: the shortest of each."""
        found: dict[str, float] = {}
        nearest = sorted(measured, key=measured.__getitem__)[:NEAREST]
        for name in self._names():
            if name not in measured:
                ways = [measured[by] + self.between(by, name) for by in nearest]
                least = min((way for way in ways if way == way), default=None)
                if least is not None:
                    found[name] = least
        return found

    def _names(self) -> set[str]:
        return {*self._told, *(name for told in self._told.values() for name in told.rtts_ms)}
