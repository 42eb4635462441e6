"""What becomes of what a registry has sealed once the roster does not know it by that identity any more.

Nobody can tell such a write from one that was made up, so whoever comes later takes none. Who took the registry out
has said again, as its own, what it had (`Engine.taking_over`). What only others had, they say: not at once, as one
that is alive comes back with the identity that it had, and each at a moment of its own, so that mostly one says it.
"""

from collections.abc import Callable, Iterator

from federation.clock import Now
from federation.core import Core
from federation.record import REGISTRY_PREFIX, Section
from federation.roster import unpack_advert
from federation.writes import Writes

_ITEMS_A_TICK = 100  # 60 us each to check

_Pin = tuple[bytes, bool]
"""An identity, and whether the entry is sealed: one that is not a version wrote that sealed nothing."""


class Succession:
    """See the module. It begins with origins that are in no roster: of a version that sealed nothing, or of a start
    that ended before it had said what it had."""

    def __init__(self, core: Core, writes: Writes, now: Now) -> None:
        self._core = core
        self._writes = writes
        self._pins: dict[str, _Pin] = {}  # the last of each
        self._due_s: dict[str, float] = {}
        self._under_way: Iterator[None] = iter(())
        self.on_enrolled: Callable[[str, bool], None] = lambda origin, is_another: None
        core.replica.touched_entries.update(core.replica.roster)
        self._note_changes(now)
        for origin in sorted({origin for origin, _ in core.replica.logs} - {core.me}):
            if REGISTRY_PREFIX + origin not in core.replica.roster:
                self._wait(origin, now)

    def tick(self, now: Now) -> None:
        """See who is another now, and say some of what is due."""
        self._note_changes(now)
        for _, _ in zip(range(_ITEMS_A_TICK), self._under_way, strict=False):
            pass
        due = [origin for origin, due_s in self._due_s.items() if now.mono_s >= due_s]
        if due and next(self._under_way, self) is self:  # nothing is
            del self._due_s[due[0]]
            self._under_way = self._writes.restating_unvouched(due[0])

    def _note_changes(self, now: Now) -> None:
        replica = self._core.replica
        for key in sorted(replica.touched_entries):
            entry = replica.roster.get(key)
            self._changed(key, _pin(entry.spec) if entry is not None else None, now)
        replica.touched_entries.clear()

    def _changed(self, key: str, pin: _Pin | None, now: Now) -> None:
        origin, record = key.removeprefix(REGISTRY_PREFIX), self._core.replica.get(key)
        before, end = self._pins.get(origin), record.end if record is not None else None
        if pin is not None:
            self._pins[origin] = pin
            self.on_enrolled(origin, before is not None and pin[0] != before[0])
        elif end is None:
            return  # of its next life another part came first
        if before is None or pin == before or origin == self._core.me:
            return
        self._wait(origin, now)
        if pin is None and end is not None:
            self._core.alert("member_removed", f"{origin} was taken out of the roster by {end.origin}", end.origin)
        elif pin is not None and pin[0] != before[0]:
            self._core.alert("identity_replaced", f"{origin} has another identity now", origin)

    def _wait(self, origin: str, now: Now) -> None:
        wait_s = self._core.config.succession_s * (1 + 2 * self._core.rng.random())
        self._due_s.setdefault(origin, now.mono_s + wait_s)


def _pin(entry: Section | None) -> _Pin | None:
    advert = unpack_advert(entry.payload) if entry is not None else None
    return (advert.identity, bool(entry.seal)) if entry is not None and advert is not None else None
