"""Liveness: a node's status from the age of its heartbeat, and the deadlines that change it."""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

Liveness = Literal["online", "degraded", "offline"]


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


def liveness_at_start(age_s: float | None, downtime_s: float, was_offline: bool, windows: Windows) -> Liveness:
    """A node's liveness when a registry starts: what it was when the last one stopped.

    `age_s` is the heartbeat's age (None: nothing is known); `downtime_s` is how long nobody was
    there to hear it. Offline stands only where a worker had seen it: we might not have heard.
    """
    if was_offline and age_s is None:
        return "offline"
    silent = age_s is not None and age_s - downtime_s >= windows.degraded_after_s
    return "degraded" if silent else "online"


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
