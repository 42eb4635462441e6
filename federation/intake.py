"""Items and claims from other registries become state here, and nowhere else."""

from collections.abc import Callable, Iterable

from federation.clock import Chain, Now, Vector, raise_to
from federation.core import Core, Link
from federation.guard import Guard, Holds
from federation.messages import Segment
from federation.record import MAX_LIFE_FLOOR, Item, Record, Section


class Intake:
    """Joins items, and advances positions over what is complete."""

    def __init__(self, core: Core, guard: Guard) -> None:
        self._core = core
        self._guard = guard
        self.holds = Holds()
        self.on_advanced: Callable[[Chain], None] = lambda chain: None
        self._pending: dict[Chain, tuple[int, int]] = {}  # complete intervals that begin beyond our position

    def items(self, items: Iterable[Item], now: Now, *, repairing: bool = False) -> None:
        """Join items; ask for what changed to be kept."""
        limit = self._guard.stamp_limit(now)
        changed = [record for item in items if (record := self._take(item, limit, now, repairing)) is not None]
        self._core.stored(changed)

    def segment(self, segment: Segment, now: Now, *, believed: bool) -> None:
        """Join the entries of one chain, and advance over the interval."""
        replica, chain = self._core.replica, segment.chain
        if chain == replica.chain:
            return  # nobody tells us what we wrote
        limit = self._guard.stamp_limit(now)
        changed: list[Record] = []
        upto = segment.upto
        for seq, item in segment.entries:
            record = self._take(item, limit, now, False, chain, seq)
            if record is not None:
                changed.append(record)
            elif self.holds.limit(chain, seq) < seq:
                upto = min(upto, seq - 1)
                continue
            section = item.section
            if record is None or section.seq != seq or (section.origin, section.generation) != chain:
                # Not ours to keep by its own dot, but whoever hears this chain from us must hear of it.
                held = replica.get(item.key)
                if held is not None:
                    log = replica.log(chain)
                    log.add(seq, held, item.kind)
                    log.replaced += 1
        self._core.stored(changed)
        if believed:
            self._advance(chain, segment.after, upto)

    def claim(self, vector: Vector) -> None:
        """Everything up to `vector` has been given to us, in one unbroken piece."""
        replica = self._core.replica
        advanced = False
        for chain, seq in vector.items():
            limited = self.holds.limit(chain, seq) if chain != replica.chain else 0
            if limited > replica.vector.get(chain, 0):
                replica.vector[chain] = limited
                log = replica.log(chain)
                log.whole_after = max(log.whole_after, limited)
                self._connect(chain)
                self.on_advanced(chain)
                advanced = True
        if advanced:
            self._core.stored_meta()

    def adopt_floor(self, floor: Vector, life_floor: int) -> None:
        """What somebody else collected is gone here too."""
        replica = self._core.replica
        raise_to(replica.floor, floor)
        replica.life_floor = max(replica.life_floor, min(life_floor, MAX_LIFE_FLOOR))
        self._core.stored_meta()

    def lacking(self, link: Link, now: Now) -> Vector:
        """What it has announced and we have not, but for what is held."""
        vector, own = self._core.replica.vector, self._core.replica.chain
        return {
            chain: seq
            for chain, seq in link.vector.items()
            if seq > vector.get(chain, 0) and chain != own and not self.holds.holding(chain, now.mono_s)
        }

    def _take(
        self, item: Item, limit: int, now: Now, repairing: bool, chain: Chain | None = None, seq: int = 0
    ) -> Record | None:
        wait_s = self._guard.held_for_s(item, limit, now)
        section = item.section
        if section.origin == self._core.me and self._is_forged(section):
            self._core.alert("forged", f"{item.key}: somebody speaks in our name")
            return None
        if wait_s is not None:
            self.holds.hold((section.origin, section.generation), section.seq, now.mono_s + wait_s)
            if chain is not None:
                self.holds.hold(chain, seq, now.mono_s + wait_s)
            return None
        return self._core.replica.apply(item, repairing=repairing)

    def _is_forged(self, section: Section) -> bool:
        replica = self._core.replica
        return section.generation == replica.generation and section.seq >= replica.next_seq

    def _advance(self, chain: Chain, after: int, upto: int) -> None:
        replica = self._core.replica
        if upto <= after:
            return
        if replica.vector.get(chain, 0) < after:
            lo, hi = self._pending.get(chain, (after, after))
            self._pending[chain] = (lo, upto) if lo <= after <= hi else (after, upto)
            return
        limited = self.holds.limit(chain, upto)
        if limited > replica.vector.get(chain, 0):
            replica.vector[chain] = limited
            self._connect(chain)
            self.on_advanced(chain)
            self._core.stored_meta()

    def _connect(self, chain: Chain) -> None:
        """An interval that came early may follow on now."""
        pending = self._pending.get(chain)
        vector = self._core.replica.vector
        if pending is not None and pending[0] <= vector[chain]:
            del self._pending[chain]
            vector[chain] = max(vector[chain], self.holds.limit(chain, pending[1]))
