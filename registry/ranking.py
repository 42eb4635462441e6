"""In what order nodes are offered: one cost, in milliseconds and what is worth as many.

    cost = latency + 100 * (load + held)^2 + 20 * (1 - min(free VRAM, 48 GB) / 48 GB) + silence
    latency: measured or estimated; else 15 ms in the caller's region, and elsewhere what registries measure of each
        other and 10 ms; 120 ms where they tell nothing
    load: 0..1, unknown counts as 0.5; free VRAM unknown counts as none
    held: slots that callers hold, of the slots that the node has; of four where it does not say; at most 4
    silence: 1 ms for each second beyond one and a half heartbeat intervals, of nodes whose heartbeats come here

Why so: a node near by that is fully loaded (100 ms of queue) is worth one across an ocean that is idle; half loaded
it costs a quarter of that, as queues grow late. What is held will be load in a moment, so it counts as load, beyond a
full node too: the second caller goes elsewhere even where all are busy. Free memory decides among equals only. Nodes
that are probably gone but not yet called degraded come later the longer they are silent.

What is worse in kind comes last whatever it costs: the preferred region before all others, then nodes that are not
online (where they were asked for), then those of a registry that cannot be heard of.

Costs that differ by less than 10 ms are equal, and equals are drawn by lot: a thousand callers do not all take the
same node. The lot is a hash of the row and a seed, so a seed gives one answer. Load counts in steps: it has to move
by 0.1 to change a cost, so that answers do not flap with every heartbeat.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.columns import Floats, Mask

LOAD_MS, UNKNOWN_LOAD = 100.0, 0.5
USUAL_SLOTS, MOST_HELD = 4, 4.0  # slots of a node that does not say; what is held, in nodes
MEMORY_MS, MEMORY_GB = 20.0, 48.0
SAME_REGION_MS, ELSEWHERE_MS = 15.0, 120.0
SILENCE_MS_PER_S, SILENT_AFTER_INTERVALS = 1.0, 1.5
EQUAL_MS = 10.0
LOAD_STEP = 0.1
LOAD_SPREAD, MOST_GB = 1e4, 4e4  # of what is sorted by: less than what is worse in kind
# float32 tells 0.03 ms apart at the largest sum of these; no latency that is believed reaches the least of them.
ANOTHER_REGION, NOT_ONLINE, NOT_HEARD_OF = 5e4, 1e5, 2e5
_SAMPLE = 2_048  # values looked at to guess where the best ones end
_MANY, _DRAWN = 4_096, 512  # equals; of more than so many, about so many are looked at
_CHEAPEST = 2_048  # places that are looked at first
_STEPS_DOWN = 3  # from a guess that was too high; from a higher one it is a long way
_LOT = np.uint32(2_654_435_761)  # Knuth's multiplier: neighbouring rows get numbers far apart

Rows = NDArray[np.intp]


def held_share(slots: int, capacity: int | None) -> float:
    """How much of a node that many held slots are; `capacity`: how many it has, None where it does not say."""
    return min(slots / (capacity or USUAL_SLOTS), MOST_HELD)


def base_cost(load: float | None, free_vram_gb: float | None, held: float = 0.0) -> float:
    """What a node's state adds to its latency."""
    used = (UNKNOWN_LOAD if load is None else min(max(load, 0.0), 1.0)) + held
    short = 1.0 - min(max(free_vram_gb or 0.0, 0.0), MEMORY_GB) / MEMORY_GB
    return LOAD_MS * used * used + MEMORY_MS * short


def settled_load(before: float | None, now: float | None) -> float | None:
    """The load to rank by: the one before, until it has really changed."""
    if before is None or now is None:
        return now
    return now if abs(now - before) >= LOAD_STEP else before


def best(
    keys: Floats,
    costs: Floats,
    limit: int,
    seed: int,
    width: float,
    late: Callable[[Rows], Floats],
    holds: Mask | None = None,
    cheapest: "Cheapest | None" = None,
) -> Rows:
    """The places of the least keys, in order. `width`: the keys are the costs, and those of which the same multiple of
    it is the last below are equal; 0: only equal keys are, and then the cost decides. Among equal ones the lot does.
    `late` is what silence adds to some. `holds`: the places that are candidates; keys of infinity are none.
    `cheapest`: of costs that are keys, where it is known."""
    cutoff, places = _least(keys, limit, width, holds, seed, cheapest)
    while True:
        found, extra = keys.take(places), late(places)
        if not width:
            break
        found = np.floor((found + extra) / width)
        last = float(np.partition(found, limit - 1)[limit - 1]) if len(found) >= limit else math.inf
        if (last + 1) * width <= cutoff or math.isinf(cutoff):
            break
        cutoff = (last + 1) * width  # what was left out may not be as late as what was not
        places = np.flatnonzero(_below(keys, cutoff, holds))
    if width:
        order = (found.astype(np.int64) << 32) | lot(places, seed)
        if len(places) > 8 * limit:
            kept = order.argpartition(limit)[:limit]
            places, order = places.take(kept), order.take(kept)
        return places.take(order.argsort()[:limit])
    steps = np.floor((costs.take(places) + extra) / EQUAL_MS).astype(np.int64)
    then = (steps << 32) | lot(places, seed)
    if len(places) > 8 * limit:
        kept = _first(found, then, limit)
        places, found, then = places[kept], found[kept], then[kept]
    return places.take(np.lexsort((then, found))[:limit])


class Cheapest(NamedTuple):
    """The places of all costs below a bound, which is a multiple of `EQUAL_MS`."""

    end: float
    places: Rows


def cheapest_of(costs: Floats) -> Cheapest:
    """Some thousands: among them are the best of most questions, whatever else these ask for. None where more are
    equal."""
    step = len(costs) // _SAMPLE | 1
    sample = costs[::step]
    place = min(_CHEAPEST // step, len(sample) - 1)
    end = _end_of(float(np.partition(sample, place)[place]), EQUAL_MS)
    places = np.flatnonzero(costs < end)
    if len(places) > 4 * _CHEAPEST:
        end -= EQUAL_MS
        places = places.compress(costs.take(places) < end)
    return Cheapest(end, places)


def _first(steps: NDArray[Any], then: NDArray[Any], limit: int) -> Rows:
    """Where the least steps are; of those that are equal to the last of them, the least by the second number. Many
    nodes may be equal, and to sort them all would take long."""
    last = np.partition(steps, limit - 1)[limit - 1]
    sure, tied = np.flatnonzero(steps < last), np.flatnonzero(steps == last)
    room = limit - len(sure)
    if len(tied) > room:
        bound = np.partition(then.take(tied), room - 1)[room - 1]
        tied = tied.compress(then.take(tied) <= bound)
    return np.concatenate((sure, tied))


def silence_cost(silence_s: NDArray[np.float64], interval_s: float, degraded_after_s: float) -> Floats:
    """What a node costs more for having been silent so long. It grows no more once the node is called degraded."""
    borne = borne_s(interval_s)
    beyond_s = (silence_s - borne).clip(0, max(0.0, degraded_after_s - borne))
    return (SILENCE_MS_PER_S * beyond_s).astype(np.float32)


def borne_s(interval_s: float) -> float:
    """So long a silence costs nothing."""
    return SILENT_AFTER_INTERVALS * interval_s


def lot(rows: Rows, seed: int) -> NDArray[np.uint32]:
    """A number for each row that the seed decides."""
    mixed = (rows.astype(np.uint32) ^ np.uint32(seed & 0xFFFFFFFF)) * _LOT
    return mixed ^ (mixed >> np.uint32(15))


def _least(
    keys: Floats, limit: int, width: float, holds: Mask | None, seed: int, cheapest: Cheapest | None
) -> tuple[float, Rows]:
    """A bound, and the places of the keys below it, the `limit` least among them; of very many equals only some."""
    if cheapest is not None:
        places = cheapest.places if holds is None else cheapest.places.compress(holds.take(cheapest.places))
        if len(places) >= limit:
            return _narrowed(keys, limit, width, cheapest.end, places)
    cutoff = _end_of(_guess(keys, limit, holds), width)
    below = _below(keys, cutoff, holds)
    count = int(np.count_nonzero(below))
    if count < limit and cutoff < math.inf:  # the guess was too low
        cutoff = _end_of(_exact(keys if holds is None else keys.compress(holds), limit), width)
        below = _below(keys, cutoff, holds)
        count = int(np.count_nonzero(below))
    for _ in range(_STEPS_DOWN):
        if not width or count <= _MANY or cutoff == math.inf:
            break
        sure = _below(keys, cutoff - width, below)
        sure_count = int(np.count_nonzero(sure))
        if sure_count < limit:
            drawn = _drawn(below & ~sure, count - sure_count, limit, seed)
            if len(drawn) < 2 * limit:  # they stand together, elsewhere
                break
            return cutoff, np.concatenate((np.flatnonzero(sure), drawn))
        cutoff, below, count = cutoff - width, sure, sure_count
    return _narrowed(keys, limit, width, cutoff, np.flatnonzero(below))


def _narrowed(keys: Floats, limit: int, width: float, cutoff: float, places: Rows) -> tuple[float, Rows]:
    """A lower bound, where there are many places."""
    if len(places) > 8 * limit:
        found = keys.take(places)
        bound = _end_of(_exact(found, limit), width)
        if bound < cutoff:
            cutoff, places = bound, places.compress(found < bound)
    return cutoff, places


def _drawn(equals: Mask, count: int, limit: int, seed: int) -> Rows:
    """Some places of equals, which are many: a stretch that the seed decides. To draw from all takes ten times as
    long. More than are wanted, as some may be late."""
    length = min(len(equals), int((_DRAWN + 4 * limit) * len(equals) / count) + 1)
    lot_at = (seed * int(_LOT) & 0xFFFFFFFF) / 2**32  # far apart for neighbouring seeds
    start = int(lot_at * (len(equals) - length + 1))
    return np.flatnonzero(equals[start : start + length]) + start


def _below(keys: Floats, cutoff: float, holds: Mask | None) -> Mask:
    below: Mask = keys < cutoff
    if holds is not None:
        below &= holds
    return below


def _end_of(key: float, width: float) -> float:
    """Where the keys end that are equal to this one."""
    if not math.isfinite(key):
        return math.inf
    return (math.floor(key / width) + 1) * width if width else float(np.nextafter(np.float32(key), np.float32(np.inf)))


def _guess(keys: Floats, limit: int, holds: Mask | None) -> float:
    """A key that about twice as many are not above, from a sample."""
    if len(keys) <= 4 * _SAMPLE:
        return _exact(keys if holds is None else keys.compress(holds), limit)
    step = len(keys) // _SAMPLE | 1  # odd: nodes are often registered in turns
    sample = keys[::step] if holds is None else keys[::step].compress(holds[::step])
    place = 1 + 2 * limit // step
    return float(np.partition(sample, place)[place]) if place < len(sample) else math.inf


def _exact(costs: Floats, limit: int) -> float:
    """The cost of the last of the best; infinity when there are fewer."""
    if len(costs) <= limit:
        return float(np.inf)
    return float(np.partition(costs, limit - 1)[limit - 1])
