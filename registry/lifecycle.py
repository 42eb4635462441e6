"""Liveness: a node's status from the age of its heartbeat, and the deadlines that change it."""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

Liveness = Literal["online", "degraded", "offline"]
LIVENESSES: tuple[Liveness, ...] = ("online", "degraded", "offline")


@dataclass(frozen=True, slots=True)
class Windows:
    """How long a silence may last, in seconds."""

    heartbeat_interval_s: float
    degraded_after_s: float
    offline_after_s: float


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of a node's liveness, as the internal feed carries it. `at_ms` is wall-clock time."""

    node_id: str
    before: Liveness
    after: Liveness
    reason: str
    at_ms: int


def shown_status(liveness: Liveness, reported: str | None, intent: str | None) -> str:
    """The one status that callers see.

    Offline stands over everything: nobody should be sent there. Then the operator's intent,
    then the agent's own word that it is leaving, then degraded by silence or by its own report.
    """
    if liveness == "offline":
        return "offline"
    if intent is not None:
        return intent
    if reported in ("leaving", "draining"):
        return "draining"
    if reported == "maintenance":
        return "maintenance"
    if liveness == "degraded" or reported == "degraded":
        return "degraded"
    return "online"


def next_liveness(silence_s: float, held_s: float, current: Liveness, windows: Windows) -> Liveness:
    """Where silence leads. `held_s` is the time since silence began to count (a restart, a store
    outage or a stall of ours): a node is never blamed for what we could not have heard."""
    counted = min(silence_s, held_s)
    if counted >= windows.offline_after_s or current == "offline":
        return "offline"
    if counted >= windows.degraded_after_s or current == "degraded":
        return "degraded"
    return "online"


class ExpiryGuard:
    """Holds back when many nodes fall silent at once: then it is more likely our own network than they.

    A hold begins when the first is due to be called offline and more than `SHARE` of the nodes that should be
    there (and at least `LEAST`) are silent: heartbeats are spread over their interval, so those that fell silent
    together do not come due together. It ends by itself: when they are heard again, or after one more offline
    window, in which a network that was cut had time to come back. (Eureka's self-preservation never ends;
    others have none, and empty a whole region in one sweep.)
    """

    SHARE = 0.3
    LEAST = 20

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._until_s: float | None = None
        self._spent = False  # this silence has had its hold

    def holds(self, silent: int, alive: int, now: float) -> bool:
        """Whether nobody is to be called offline now. `silent`: nodes that are late; `alive`: nodes not offline
        yet, the silent among them; `now` is monotonic."""
        many = silent >= self.LEAST and silent > self.SHARE * alive
        if not many:
            self._until_s, self._spent = None, False
            return False
        if self._until_s is None and not self._spent:
            self._until_s = now + self._hold_s
        if self._until_s is not None and now >= self._until_s:
            self._until_s, self._spent = None, True
        return self._until_s is not None

    def left_s(self, now: float) -> float | None:
        """How long the hold lasts at most; None: nothing is held."""
        return None if self._until_s is None else max(0.0, self._until_s - now)


class Deadlines:
    """When to look at which node again: a heap with one entry a node, renewed lazily.

    A heartbeat touches nothing here; only when an entry comes due does the caller say whether
    the node was heard since, and when to look next. A sweep costs what is due, not what is there.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def add(self, node_id: str, at: float) -> None:
        """Look at the node at time `at` (seconds, monotonic)."""
        heappush(self._heap, (at, node_id))

    def due(self, now: float, limit: int) -> list[tuple[float, str]]:
        """Take out at most `limit` entries (time, node) whose time has come."""
        found: list[tuple[float, str]] = []
        while self._heap and self._heap[0][0] <= now and len(found) < limit:
            found.append(heappop(self._heap))
        return found

    def __len__(self) -> int:
        return len(self._heap)
