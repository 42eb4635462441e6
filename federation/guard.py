"""What is asked of an item before it is joined: a stamp from this age, an origin that speaks for itself,
and no origin that deletes or takes over the world at once.

Stamps from the future are joined, as long as they are of somebody's clock: whoever writes next mints above
them. To wait until their time has come would let an old write replace the newer ones that were made
meanwhile. Beyond a day they are nobody's clock: refused, so that there is always room above.
"""

from collections.abc import Callable
from enum import Enum

from federation.clock import Chain, Now, Vector, hlc_of, wall_ms_of
from federation.core import Core
from federation.record import KEY_PREFIX, REGISTRY_PREFIX, Item, Record, Section, SectionKind, section_of
from federation.seals import Seal, is_sealed, seal_of

MAX_HELD = 1_024  # chains: ten times the registries planned for
FORGERIES_A_MINUTE = 100  # that one link may have us find: each takes 60 us of a check, and a frame holds thousands
LINK_SHARES = 4  # origins' shares that one link may hand over: a relay passes on others' writes, or makes up others
_SPEC, _JUDGEMENT, _END = SectionKind.SPEC, SectionKind.JUDGEMENT, SectionKind.END
_FORGED = Seal.BROKEN, Seal.FORMER
_ONE_LIFE = 0, 2  # (incarnation, life) that an API key can have: it exists, and is deleted


class Verdict(Enum):
    """What becomes of an item. REFUSED: as if it had never been sent; a walk offers it again, and it is
    joined if it has come into bounds. HELD: not now, and no position passes it."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    HELD = "held"


class Harm(Enum):
    """What an origin may do to others' records only so often. Deleting leaves nothing. What was taken over
    wrongly its own owner has back with the node's next heartbeat; and a whole region's nodes must be able to move
    before anybody calls them offline."""

    DELETION = "deletes"
    TAKEOVER = "takes over"


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
        self._allowances: dict[tuple[Harm, str], Allowance] = {}
        self._link_allowances: dict[tuple[Harm, str], Allowance] = {}
        self._forgeries: dict[str, Allowance] = {}
        self._deaf_until_s: dict[str, float] = {}
        self.is_there: Callable[[str, Now], bool] = lambda owner, now: False
        self.is_heard: Callable[[str], bool] = lambda key: True  # whether a node of ours is heard here

    def limits(self, now: Now) -> tuple[int, int]:
        """Stamps above the first are told of, above the second refused."""
        wall_ms, config = self._core.wall_ms(now), self._core.config
        return hlc_of(wall_ms + config.clock_tolerance_ms), hlc_of(wall_ms + config.clock_horizon_ms)

    def judge(self, item: Item, limits: tuple[int, int], now: Now, peer: str) -> Verdict:
        """Whether to join what `peer` handed to us. Deletions and revocations are never refused for their stamp."""
        section = item.section
        if section.seq < 1:
            self._core.alert("malformed", f"{item.key}: {section.origin} wrote at no position")
            return Verdict.REFUSED  # positions begin at 1: everybody would seem to have seen it
        if item.life % 2 == 0 and item.kind != _END:
            self._core.alert("malformed", f"{item.key}: {section.origin} wrote into a life that is over")
            return Verdict.REFUSED  # it would delete without saying so, and never be collected
        if item.key.startswith(KEY_PREFIX) and (item.incarnation, item.life) > _ONE_LIFE:
            self._core.alert("malformed", f"{item.key}: {section.origin} wrote a second life of a key")
            return Verdict.REFUSED  # it would replace a revocation
        if not _is_key(item.key):
            self._core.alert("malformed", f"{item.key!r} is no key")
            return Verdict.REFUSED  # stores and logs take words, without anything that would end one
        stamp = max(section.major, section.minor)
        if stamp > limits[0] and item.kind != _END:
            ahead_s = (wall_ms_of(stamp) - wall_ms_of(limits[0])) / 1000
            self._core.alert("clock_ahead", f"{section.origin} wrote {ahead_s:.0f} s further ahead than is tolerated")
            if stamp > limits[1]:
                return Verdict.REFUSED
        if section.origin == self._core.me and self._is_forged(section):
            self._core.alert("forged", f"{item.key}: somebody speaks in our name")
            return Verdict.REFUSED
        if self._core.key is not None and is_sealed(item) and self._is_news(item):
            seal = self._seal_of(item, now, peer)
            if seal in _FORGED:
                self._core.alert("forged", _forgery(item), peer)
            if seal is Seal.BROKEN:
                return Verdict.REFUSED
            # Else its entry is on its way, or whoever has it says it anew (succession.py). That we are out anybody may
            # say, as we answer: of two that have taken each other out neither would hear of the other any more.
            if seal is not Seal.HOLDS and not (item.kind == _END and item.key == REGISTRY_PREFIX + self._core.me):
                return Verdict.HELD
        harm = self._harm(item, now)
        if harm is not None and not self._allowed(harm, section.origin, peer, now):
            detail = f"{section.origin} {harm.value} more than its share a minute, or {peer} says so"
            self._core.alert("quarantined", detail, peer)
            return Verdict.HELD
        return Verdict.ADMITTED

    def may_bury(self, peer: str, now: Now) -> bool:
        """Whether `peer` may have collected one more record that exists here: a deletion of its, for all we know."""
        allowed = self._allowed(Harm.DELETION, peer, peer, now)
        if not allowed:
            self._core.alert("quarantined", f"{peer} says that more than its share a minute was deleted", peer)
        return allowed

    def _is_forged(self, section: Section) -> bool:
        replica = self._core.replica
        return section.generation == replica.generation and section.seq >= replica.next_seq

    def _seal_of(self, item: Item, now: Now, peer: str) -> Seal:
        """Whether the seal holds. Of whom forged too often, nothing sealed is looked at for a minute."""
        if now.mono_s < self._deaf_until_s.get(peer, float("-inf")):
            return Seal.BROKEN
        seal = seal_of(item, self._core.replica.roster)
        if seal in _FORGED:
            found = self._forgeries.setdefault(peer, Allowance(FORGERIES_A_MINUTE, now.mono_s))
            if not found.take(FORGERIES_A_MINUTE, now.mono_s):
                self._deaf_until_s[peer] = now.mono_s + 60
        return seal

    def _is_news(self, item: Item) -> bool:
        """Whether it would change what stands; what would not need not be checked."""
        record = self._core.replica.get(item.key)
        if record is None or (item.life, item.incarnation) != (record.life, record.incarnation):
            return record is None or (item.life, item.incarnation) > (record.life, record.incarnation)
        held = section_of[item.kind](record)
        return held is None or item.section > held

    def _harm(self, item: Item, now: Now) -> Harm | None:
        """A deletion of what exists here, or a node taken from an owner that is still there (ours: that is still
        heard here): by a word on it, by another registration, or by anything of a later life or incarnation,
        which leaves nothing of what the owner said. What has no owner is its writer's."""
        record = self._core.replica.get(item.key)
        if record is None or record.deleted:
            return None
        replaces = (item.life, item.incarnation) > (record.life, record.incarnation)
        if replaces and item.life % 2 == 0:
            return Harm.DELETION
        owned = record.judgement or record.spec
        if owned is None or owned.origin == item.section.origin or not (replaces or _overrules(record, item)):
            return None
        there = self.is_heard(item.key) if owned.origin == self._core.me else self.is_there(owned.origin, now)
        return None if not there else Harm.DELETION if replaces else Harm.TAKEOVER

    def _allowed(self, harm: Harm, origin: str, peer: str, now: Now) -> bool:
        config, held = self._core.config, len(self._core.replica)
        if harm is Harm.DELETION:
            share = max(config.deletion_burst, config.deletion_share * held)
        else:
            share = max(config.takeover_burst, config.takeover_share * held)
        if REGISTRY_PREFIX + origin not in self._core.replica.roster:
            origin = ""  # who is not in the roster (yet) shares one: a peer can invent any number
        return _taken(self._allowances, (harm, origin), share, now) and _taken(
            self._link_allowances, (harm, peer), LINK_SHARES * share, now
        )


def _forgery(item: Item) -> str:
    """In words. Where a registry has no link to here, nothing else tells that it came back with another identity."""
    origin = item.section.origin
    detail = f"{item.key}: not as {origin} wrote it, or not written by it"
    if item.kind == _SPEC and item.key == REGISTRY_PREFIX + origin:
        detail += f"; if it has lost its identity: members --forget {origin} here"
    return detail


def _is_key(key: str) -> bool:
    """Visible ASCII."""
    return key.isascii() and key.isprintable() and bool(key) and " " not in key


def _taken(allowances: dict[tuple[Harm, str], Allowance], name: tuple[Harm, str], capacity: float, now: Now) -> bool:
    return allowances.setdefault(name, Allowance(capacity, now.mono_s)).take(capacity, now.mono_s)


def _overrules(record: Record, item: Item) -> bool:
    """Whether it is a registration or a word that wins over the one that stands, in the same life."""
    if item.kind not in (_SPEC, _JUDGEMENT) or (item.life, item.incarnation) != (record.life, record.incarnation):
        return False
    held = section_of[item.kind](record)
    return held is not None and item.section > held


class Holds:
    """Positions that must not be passed. A hold ends when everything up to it has been given again, or when
    nobody has offered again for long what was held: a peer may have invented it, and is gone. What comes
    after all is judged anew."""

    def __init__(self) -> None:
        self._held: dict[Chain, tuple[int, float]] = {}  # the least position, and when it was last offered

    def hold(self, chain: Chain, seq: int, now_s: float) -> None:
        """Stop the chain before this position."""
        held = self._held.pop(chain, None)
        if len(self._held) >= MAX_HELD:
            del self._held[next(iter(self._held))]
        self._held[chain] = min(seq, held[0]) if held is not None else seq, now_s

    def limit(self, chain: Chain, seq: int) -> int:
        """How far a claim of `seq` may be believed."""
        held = self._held.get(chain)
        return seq if held is None else min(seq, held[0] - 1)

    def __len__(self) -> int:
        return len(self._held)

    def of(self, origin: str) -> bool:
        """Whether something of that origin is held."""
        return any(chain[0] == origin for chain in self._held)

    def given(self, vector: Vector) -> None:
        """Everything up to there was given, and nothing of it held."""
        self._held = {chain: held for chain, held in self._held.items() if held[0] > vector.get(chain, 0)}

    def expire(self, before_s: float) -> None:
        """End what was last offered before that moment."""
        self._held = {chain: held for chain, held in self._held.items() if held[1] >= before_s}
