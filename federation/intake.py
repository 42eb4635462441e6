"""Items and claims from other registries become state here, and nowhere else."""

from collections.abc import Callable, Iterable

from federation.clock import MAX_CHAINS, Chain, Now, Vector, raise_to
from federation.core import Core, Link
from federation.guard import Guard, Holds, Verdict
from federation.messages import Segment
from federation.record import MAX_LIFE_FLOOR, Item, Record

MAX_PENDING = 32  # a chain; what is forgotten is pulled
MAX_PENDING_CHAINS = 1_024  # ten times the registries planned for
HOLD_RETRIES = 4  # without an offer of what is held, until it is held no more
OWN_CHAINS = 64  # places in the vector that nobody else's chains take


class Intake:
    """Joins items, and advances positions over what is complete."""

    def __init__(self, core: Core, guard: Guard) -> None:
        self._core = core
        self._guard = guard
        self.holds = Holds()
        self.caught_up = False  # whether we have had everything that some peer had
        self.on_advanced: Callable[[Chain], None] = lambda chain: None
        self.on_claimed: Callable[[], None] = lambda: None
        self._pending: dict[Chain, list[tuple[int, int]]] = {}  # complete intervals that begin beyond our position

    def items(self, items: Iterable[Item], now: Now, *, peer: str, repairing: bool = False) -> bool:
        """Join items that `peer` handed to us; whether none was held. What a held one stood in place of nobody
        can tell: a claim that goes with it is not to be believed."""
        limits = self._guard.limits(now)
        changed: list[Record] = []
        whole = True
        for item in items:
            verdict = self._guard.judge(item, limits, now, peer)
            if verdict is Verdict.HELD:
                section, whole = item.section, False
                self.holds.hold((section.origin, section.generation), section.seq, now.mono_s)
            elif verdict is Verdict.ADMITTED:
                record = self._core.replica.apply(item, repairing=repairing)
                if record is not None:
                    changed.append(record)
        self._core.stored(changed)
        return whole

    def may_bury(self, peer: str, now: Now) -> bool:
        """Whether one more record may go because `peer` has it no more."""
        return self._guard.may_bury(peer, now)

    def segment(self, segment: Segment, now: Now, *, peer: str, believed: bool) -> None:
        """Join the entries of one chain, and advance over the interval. What came early and was refused may hold by
        what comes before it, an entry of the roster: so it is asked for again once that is here."""
        replica, chain = self._core.replica, segment.chain
        if chain == replica.chain:
            return  # nobody tells us what we wrote
        is_early = replica.vector.get(chain, 0) < segment.after
        limits = self._guard.limits(now)
        changed: list[Record] = []
        upto = segment.upto
        for seq, item in segment.entries:
            verdict = self._guard.judge(item, limits, now, peer)
            if verdict is Verdict.HELD:
                self.holds.hold(chain, seq, now.mono_s)
                upto = min(upto, seq - 1)
            elif verdict is Verdict.REFUSED and is_early:
                upto = min(upto, seq - 1)
            elif verdict is Verdict.ADMITTED:
                record = replica.apply(item)
                if record is not None:
                    changed.append(record)
                self._note_position(chain, seq, item, record)
        self._core.stored(changed)
        if believed:
            self._advance(chain, segment.after, upto)

    def claim(self, vector: Vector) -> None:
        """Everything up to `vector` has been given to us, in one unbroken piece, and nothing of it held."""
        replica = self._core.replica
        self.holds.given(vector)
        self.caught_up = self.caught_up or bool(vector)
        news = [(c, seq) for c, seq in vector.items() if seq > replica.vector.get(c, 0) and c != replica.chain]
        for chain, seq in news:
            if not self._has_room(chain):
                continue
            replica.vector[chain] = seq
            log = replica.log(chain)
            log.whole_after = max(log.whole_after, seq)
            self._connect(chain)
            self.on_advanced(chain)
        if news:
            self._core.stored_meta()
            self.on_claimed()

    def adopt_floor(self, floor: Vector, life_floor: int) -> None:
        """What somebody else collected is gone here too."""
        replica = self._core.replica
        raise_to(replica.floor, floor)
        replica.life_floor = max(replica.life_floor, min(life_floor, MAX_LIFE_FLOOR))
        self._core.stored_meta()

    def holding(self, now: Now) -> bool:
        """Whether something is held that is still being offered."""
        self.holds.expire(now.mono_s - HOLD_RETRIES * self._core.config.hold_retry_s)
        return len(self.holds) > 0

    def lacking(self, link: Link) -> Vector:
        """What it has announced and we have not."""
        vector, own = self._core.replica.vector, self._core.replica.chain
        return {chain: seq for chain, seq in link.vector.items() if seq > vector.get(chain, 0) and chain != own}

    def _note_position(self, chain: Chain, seq: int, item: Item, record: Record | None) -> None:
        """Whoever hears this chain from us must hear of every position, or of what stands in its place."""
        section = item.section
        if record is not None and section.seq == seq and (section.origin, section.generation) == chain:
            return  # it stands in the log by its own dot
        held = self._core.replica.get(item.key)
        if held is not None:
            log = self._core.replica.log(chain)
            log.add(seq, held, item.kind)
            log.replaced += 1

    def _advance(self, chain: Chain, after: int, upto: int) -> None:
        replica = self._core.replica
        if upto <= after or not self._has_room(chain):
            return
        if replica.vector.get(chain, 0) < after:
            if len(self._pending) >= MAX_PENDING_CHAINS:
                self._pending.clear()
            pending = self._pending.setdefault(chain, [])
            if pending and pending[-1][1] == after:
                after = pending.pop()[0]
            pending.append((after, upto))
            del pending[:-MAX_PENDING]
            return
        limited = self.holds.limit(chain, upto)
        if limited > replica.vector.get(chain, 0):
            replica.vector[chain] = limited
            self._connect(chain)
            self.on_advanced(chain)
            self._core.stored_meta()

    def _has_room(self, chain: Chain) -> bool:
        """A vector that fits no frame could be told to nobody: chains that a peer invents are not believed
        without end."""
        vector = self._core.replica.vector
        return chain in vector or len(vector) < MAX_CHAINS - OWN_CHAINS

    def _connect(self, chain: Chain) -> None:
        """Intervals that came early may follow on now."""
        vector, early = self._core.replica.vector, self._pending.pop(chain, [])
        for after, upto in sorted(early):
            if after <= vector[chain]:
                vector[chain] = max(vector[chain], self.holds.limit(chain, upto))
            else:
                self._pending.setdefault(chain, []).append((after, upto))
