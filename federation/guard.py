"""What is asked of an item before it is joined: a stamp that is not from the future, and an origin
that does not delete or take over the world at once.

An item that fails is held: not joined, not buffered, and no position beyond it is believed, so that
it is asked for again later. Never dropped: a clock decides, and clocks differ between registries.
"""

from collections.abc import Callable

from federation.clock import Chain, Now, hlc_of, wall_ms_of
from federation.core import Core
from federation.record import Item, SectionKind

_END, _JUDGEMENT = SectionKind.END, SectionKind.JUDGEMENT


class Allowance:
    """A token bucket: `capacity` at once, and as much again each minute."""

    def __init__(self, capacity: float, now_s: float) -> None:
        self._left = capacity
        self._at_s = now_s

    def take(self, capacity: float, now_s: float) -> bool:
        """Take one, if one is left."""
        self._left = min(capacity, self._left + capacity * (now_s - self._at_s) / 60)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Guard:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._allowances: dict[str, Allowance] = {}
        self.reachable: Callable[[str, Now], bool] = lambda owner, now: False

    def stamp_limit(self, now: Now) -> int:
        """Stamps above this are from the future."""
        core = self._core
        return hlc_of(core.wall_ms(now) + core.config.clock_tolerance_ms)

    def held_for_s(self, item: Item, limit: int, now: Now) -> float | None:
        """None to let the item in, else when to ask for it again.

        Revocations and deletions are never held by a clock; that is what they are there for.
        """
        section = item.section
        stamp = max(section.major, section.minor)
        retry_s = self._core.config.hold_retry_s
        if stamp > limit and item.kind != _END:
            ahead_s = (wall_ms_of(stamp) - wall_ms_of(limit)) / 1000
            self._core.alert("clock_ahead", f"{section.origin} wrote {ahead_s:.0f} s ahead of the tolerance")
            return min(max(ahead_s, 1.0), retry_s)
        if item.kind in (_END, _JUDGEMENT) and self._is_destructive(item, now) and not self._allowed(item, now):
            self._core.alert("quarantined", f"{section.origin} deletes or takes over more than its share a minute")
            return retry_s
        return None

    def _is_destructive(self, item: Item, now: Now) -> bool:
        """A deletion of what exists here, or a node taken from an owner that is still there."""
        record = self._core.replica.get(item.key)
        if record is None or record.life % 2 == 0 or item.life < record.life:
            return False
        if item.kind == _END:
            return item.life % 2 == 0
        held = record.judgement
        if held is None or held.origin == item.section.origin or item.section <= held:
            return False
        return held.origin == self._core.me or self.reachable(held.origin, now)

    def _allowed(self, item: Item, now: Now) -> bool:
        origin = item.section.origin
        config = self._core.config
        capacity = max(config.destructive_burst, config.destructive_share * len(self._core.replica))
        allowance = self._allowances.setdefault(origin, Allowance(capacity, now.mono_s))
        return allowance.take(capacity, now.mono_s)


class Holds:
    """Where positions must not pass: chain -> (position held, when to ask again).

    A hold ends only when the item is asked for again (`release`), never by time alone: a claim that
    was under way when its time came must not pass it.
    """

    def __init__(self) -> None:
        self._held: dict[Chain, tuple[int, float]] = {}
        self.releases = 0

    def hold(self, chain: Chain, seq: int, until_s: float) -> None:
        """Stop the chain before this position."""
        held = self._held.get(chain)
        if held is None or seq < held[0]:
            self._held[chain] = seq, until_s

    def limit(self, chain: Chain, seq: int) -> int:
        """How far a claim of `seq` may be believed."""
        held = self._held.get(chain)
        return seq if held is None else min(seq, held[0] - 1)

    def holding(self, chain: Chain, now_s: float) -> bool:
        """Whether it is too early to ask for the chain's next item."""
        held = self._held.get(chain)
        return held is not None and held[1] > now_s

    def __len__(self) -> int:
        return len(self._held)

    def release(self, now_s: float) -> None:
        """Let go of what is being asked for again."""
        for chain in [chain for chain, (_, until_s) in self._held.items() if until_s <= now_s]:
            del self._held[chain]
            self.releases += 1
