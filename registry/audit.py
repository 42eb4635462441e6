"""Who did what, noted where it is done: `note` costs a few microseconds and no wait.

What was done waits here for the commit that does it, and is kept by it or not at all (audit_log.py). What was
refused is counted by address and minute, one entry each: nobody fills the disk by being turned away.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from registry import audit_chain
from registry.clock import Clock
from registry.keys import Principal
from registry.node import iso

MAX_WAITING = 20_000  # entries; the store is away then, and takes no writes either
MAX_REFUSALS = 100  # counted apart each minute: 40 KB of log, however many addresses there are
MAX_TARGETS = 5  # that a count names
_MINUTE_MS = 60_000
_OTHERS = ("*", "*", "*", "*", "*")

# The address that the request came from which is being answered: commands need not hand it on.
caller_address: ContextVar[Callable[[], str] | None] = ContextVar("caller_address", default=None)


@dataclass(slots=True)
class _Refusals:
    """Of one kind, from one address, in one minute."""

    by: Mapping[str, Any]
    first_ms: int
    last_ms: int
    count: int = 0
    targets: list[str] = field(default_factory=list)
    detail: Mapping[str, Any] = field(default_factory=dict)


class Audit:
    """One worker's notes, until they are in the region's log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[bytes] = []
        self._refusals: dict[tuple[str, str, str, str, str], _Refusals] = {}
        self._lost = 0

    def note(
        self,
        action: str,
        who: Principal | None,
        target: str = "",
        address: str = "",
        outcome: str = "ok",
        **detail: Any,
    ) -> bytes | None:
        """Note what is done: right before the write, with no `await` between, so that one commit keeps both.

        `action`: noun and verb (`key.revoked`). `who`: None is the registry itself. `target`: the id of what it is
        done to. `address`: by default that of the request. `outcome`: anything but `ok` is a refusal, which is
        counted by address and minute. `detail`: JSON values; never a key. Gives what `withdraw` takes.
        """
        at_ms = self._clock.wall_ms()
        came_from = address or _address()
        if outcome != "ok":
            self._count(action, who, target, came_from, outcome, detail, at_ms)
            return None
        entry = audit_chain.body(
            at=iso(at_ms), action=action, by=actor(who), target=target, address=came_from, detail=detail
        )
        self._keep(entry)
        return entry

    def withdraw(self, entry: bytes | None) -> None:
        """It could not be done after all: in the same turn of the event loop, nothing has come to the log yet."""
        if entry is not None and self._waiting and self._waiting[-1] is entry:
            self._waiting.pop()

    def tick(self, *, all_of_it: bool = False) -> None:
        """Refusals of minutes that are over become entries."""
        minute = self._clock.wall_ms() // _MINUTE_MS
        for key, found in list(self._refusals.items()):
            if all_of_it or found.first_ms // _MINUTE_MS != minute:
                del self._refusals[key]
                self._keep(_entry(key, found))

    def take(self) -> list[bytes]:
        """What was noted since the last time, in order."""
        taken, self._waiting = self._waiting, []
        if self._lost:
            lost, self._lost = self._lost, 0
            detail = {"count": lost, "why": "more was noted than could be kept while the store was away"}
            taken.append(
                audit_chain.body(at=iso(self._clock.wall_ms()), action="audit.lost", by=actor(None), detail=detail)
            )
        return taken

    def give_back(self, entries: list[bytes]) -> None:
        """These could not be kept yet."""
        self._waiting[:0] = entries

    @property
    def now(self) -> str:
        """ISO 8601."""
        return iso(self._clock.wall_ms())

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return bool(self._waiting or self._lost)

    def _keep(self, entry: bytes) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
        else:
            self._waiting.append(entry)

    def _count(
        self,
        action: str,
        who: Principal | None,
        target: str,
        address: str,
        outcome: str,
        detail: Mapping[str, Any],
        at_ms: int,
    ) -> None:
        by = actor(who)
        key = (action, address, outcome, str(by["kind"]), str(by.get("key_id", "")))
        if key not in self._refusals and len(self._refusals) >= MAX_REFUSALS:
            key, by, target, detail = _OTHERS, {"kind": "*"}, "", {}
        found = self._refusals.setdefault(key, _Refusals(by, at_ms, at_ms, detail=detail))
        found.count += 1
        found.last_ms = at_ms
        if target and len(found.targets) < MAX_TARGETS and target not in found.targets:
            found.targets.append(target[: audit_chain.MAX_TEXT])


def _entry(key: tuple[str, str, str, str, str], found: _Refusals) -> bytes:
    action, address, outcome, *_ = key
    detail = {**found.detail, "count": found.count, "last": iso(found.last_ms)}
    if len(found.targets) > 1:
        detail["targets"] = found.targets
    return audit_chain.body(
        at=iso(found.first_ms),
        action="refusals" if action == "*" else action,
        by=found.by,
        target=found.targets[0] if found.targets else "",
        address=address,
        outcome="refused" if outcome == "*" else outcome,
        detail=detail,
    )


def actor(who: Principal | None) -> dict[str, Any]:
    """Who, with which kind of key and its id: never the key."""
    if who is None:
        return {"kind": "registry"}
    found: dict[str, Any] = {"kind": who.kind}
    if who.key_id is not None:
        found["key_id"] = who.key_id
    if who.node_id is not None:
        found["node_id"] = who.node_id
    return found


def _address() -> str:
    find = caller_address.get()
    return find() if find is not None else ""
