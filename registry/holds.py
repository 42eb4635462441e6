"""Holds: slots of nodes that callers have reserved for a moment, so that the herd does not land on one of them. Pure.

A registry writes the holds it took into records of its own, a fixed number of them (`v:<registry_id>/<bucket>`, by a
checksum of the node's id), so that two never overwrite each other's, and that nothing of them has to be deleted:
a bucket that is written again has no more of what is over. To release a hold that another registry took is to write
a mark with its id and no slots.

When a hold ends is told as its taker's wall clock has it. Whoever hears of it counts from then on by its own clock,
and for no longer than a hold may last: a clock that is wrong holds no node.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import orjson

from federation.record import Record

HOLDS_PREFIX = "v:"
BUCKETS = 256  # records a registry: few to keep, and a hundred holds in each are still small
MOST_A_BUCKET = 512  # 160 KB with the longest ids: a record takes 256
MOST_HERE = 16_384  # that one registry takes; more at a time is no traffic that a moment's hold would help
MOST_A_NODE = 128
MOST_A_CALLER = 1_024
MOST_SLOTS = 1_024  # of one hold
LEAST_TTL_S, USUAL_TTL_S, LONGEST_TTL_S = 1.0, 10.0, 300.0
_MARK_LONGER_MS = 5_000  # a mark outlives what it ends, however the two are counted
_LONGEST_TEXT = 64
_MOST_STALE = 4_096


class Hold(NamedTuple):
    """`slots` of a node until a moment (wall-clock milliseconds of who took it); none: the hold of that id is
    released. `by`: the caller, see reservations.py."""

    hold_id: str
    node_id: str
    slots: int
    until_ms: int
    by: str

    def stands(self, now_ms: int) -> bool:
        """Whether it is not over, by the clock that it was taken by; one that was set back makes none last."""
        return now_ms < self.until_ms <= now_ms + LONGEST_TTL_S * 1000 + _MARK_LONGER_MS

    def released(self) -> "Hold":
        """The mark that ends it."""
        return self._replace(slots=0, until_ms=self.until_ms + _MARK_LONGER_MS)


Bucket = tuple[Hold, ...]


class Standing(NamedTuple):
    """A hold as it stands here: until when (monotonic seconds), and in which bucket."""

    hold: Hold
    bucket: str
    until_s: float

    @property
    def registry_id(self) -> str:
        """Who took it."""
        return self.bucket.rpartition("/")[0]


def bucket_of(registry_id: str, node_id: str) -> str:
    """Where a registry keeps its holds of that node: the record's key without its prefix."""
    return f"{registry_id}/{zlib.crc32(node_id.encode()) % BUCKETS:02x}"


def packed(holds: Iterable[Hold]) -> bytes:
    """The payload of a bucket: of each node its holds."""
    by_node: dict[str, list[tuple[str, int, int, str]]] = {}
    for hold in holds:
        by_node.setdefault(hold.node_id, []).append((hold.hold_id, hold.slots, hold.until_ms, hold.by))
    return bytes(memoryview(orjson.dumps(by_node)))


def read(record: Record) -> Bucket | None:
    """What a record of holds says; None where it is none, or is not its writer's: each speaks for itself."""
    name, spec = record.key[len(HOLDS_PREFIX) :], record.spec
    registry_id, _, bucket = name.rpartition("/")
    known = len(bucket) == 2 and all(digit in "0123456789abcdef" for digit in bucket)
    if not record.exists or spec is None or spec.origin != registry_id or not known:
        return None
    try:
        return tuple(_holds(orjson.loads(spec.payload)))
    except (TypeError, ValueError, AttributeError):
        return None


def _holds(by_node: Any) -> Iterator[Hold]:
    left = MOST_A_BUCKET
    for node_id, holds in by_node.items():
        for hold_id, slots, until_ms, by in holds:
            fine = type(slots) is int and 0 <= slots <= MOST_SLOTS and type(until_ms) is int and len(node_id) <= 255
            left -= 1
            if not (fine and _is_text(hold_id) and _is_text(by) and left >= 0):
                raise ValueError("no holds")
            yield Hold(hold_id, node_id, slots, until_ms, by)


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= _LONGEST_TEXT


class Holds:
    """All registries' holds. `on_change(node_id, slots)` hears how many slots of a node are held from now on."""

    def __init__(self, on_change: Callable[[str, int], None]) -> None:
        self._on_change = on_change
        self._buckets: dict[str, dict[str, Standing]] = {}  # also what is over: it would be counted anew
        self._nodes: dict[str, dict[tuple[str, str], Standing]] = {}
        self._slots: dict[str, int] = {}
        self._taken: Counter[str] = Counter()
        self._taken_for: Counter[tuple[str, str]] = Counter()
        self._ends: list[tuple[float, str, str, str]] = []

    def take(self, bucket: str, holds: Bucket | None, now_s: float, now_ms: int) -> None:
        """A bucket is like this now."""
        before, after = self._buckets.get(bucket, {}), dict[str, Standing]()
        for hold in holds or ():
            known = before.get(hold.hold_id)
            after[hold.hold_id] = (
                known if known is not None and known.hold == hold else _standing(hold, bucket, now_s, now_ms, known)
            )
        touched = dict[str, None]()
        for hold_id, standing in before.items():
            if after.get(hold_id) is not standing:
                self._drop(standing)
                touched[standing.hold.node_id] = None
        for hold_id, standing in after.items():
            if before.get(hold_id) is not standing and standing.until_s > now_s:
                self._add(standing)
                touched[standing.hold.node_id] = None
        self._buckets[bucket] = after
        if not after:
            del self._buckets[bucket]
        for node_id in touched:
            self._count(node_id)

    def expire(self, now_s: float) -> None:
        """End what is over."""
        while self._ends and self._ends[0][0] <= now_s:
            until_s, node_id, bucket, hold_id = heappop(self._ends)
            standing = self._nodes.get(node_id, {}).get((bucket, hold_id))
            if standing is not None and standing.until_s <= until_s:
                self._drop(standing)
                self._count(node_id)

    def of(self, node_id: str) -> list[Standing]:
        """What is held of a node, the first to end first."""
        standing = self._nodes.get(node_id, {}).values()
        released = {each.hold.hold_id for each in standing if not each.hold.slots}
        return sorted(
            (each for each in standing if each.hold.hold_id not in released),
            key=lambda each: (each.until_s, each.hold.hold_id),
        )

    def slots(self, node_id: str) -> int:
        """How many slots of a node are held."""
        return self._slots.get(node_id, 0)

    def held(self) -> tuple[int, int]:
        """Of how many nodes slots are held, and how many slots."""
        return len(self._slots), sum(self._slots.values())

    def taken(self, registry_id: str, by: str | None = None) -> int:
        """How many holds of a registry stand, of all callers or of one."""
        return self._taken[registry_id] if by is None else self._taken_for[registry_id, by]

    def _add(self, standing: Standing) -> None:
        hold = standing.hold
        self._nodes.setdefault(hold.node_id, {})[standing.bucket, hold.hold_id] = standing
        self._taken[standing.registry_id] += 1
        self._taken_for[standing.registry_id, hold.by] += 1
        heappush(self._ends, (standing.until_s, hold.node_id, standing.bucket, hold.hold_id))
        if len(self._ends) > _MOST_STALE + 2 * self._taken.total():  # mostly of what was released early
            self._ends = [
                (each.until_s, each.hold.node_id, each.bucket, each.hold.hold_id)
                for holds in self._nodes.values()
                for each in holds.values()
            ]
            heapify(self._ends)

    def _drop(self, standing: Standing) -> None:
        hold = standing.hold
        holds = self._nodes.get(hold.node_id, {})
        if holds.get((standing.bucket, hold.hold_id)) is not standing:
            return  # it was over
        del holds[standing.bucket, hold.hold_id]
        if not holds:
            del self._nodes[hold.node_id]
        self._taken[standing.registry_id] -= 1
        self._taken_for[standing.registry_id, hold.by] -= 1
        if not self._taken_for[standing.registry_id, hold.by]:
            del self._taken_for[standing.registry_id, hold.by]

    def _count(self, node_id: str) -> None:
        slots = sum(each.hold.slots for each in self.of(node_id))
        if slots == self._slots.get(node_id, 0):
            return
        if slots:
            self._slots[node_id] = slots
        else:
            del self._slots[node_id]
        self._on_change(node_id, slots)


def _standing(hold: Hold, bucket: str, now_s: float, now_ms: int, known: Standing | None) -> Standing:
    left_s = min(max(0.0, (hold.until_ms - now_ms) / 1000), LONGEST_TTL_S + _MARK_LONGER_MS / 1000)
    until_s = now_s + left_s
    return Standing(hold, bucket, until_s if known is None else min(until_s, known.until_s))
