"""One registry's copy of everything: records, logs, position, sums, tombstones. No protocol here.

Its promise: for every write at or before `vector`, the record holds that write or something greater,
unless it was collected (tombstones.py says when).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from federation.clock import MAX_GENERATION, Chain, Vector, covers, raise_to
from federation.digest import BUCKETS, DigestTree, bucket_of
from federation.log import Log
from federation.merge import absorb
from federation.record import (
    KEY_PREFIX,
    MAX_LIFE_FLOOR,
    REGISTRY_PREFIX,
    Item,
    Record,
    Section,
    SectionKind,
    section_of,
)

_JUDGEMENT = SectionKind.JUDGEMENT
MAX_SEQ = 2**63


class Meta(NamedTuple):
    """What is kept beside the records. Written after the records that it speaks of."""

    generation: int
    vector: Vector
    floor: Vector
    life_floor: int


class Replica:
    """See the module. `on_replaced` hears of every record whose sections were replaced (drains)."""

    def __init__(self, registry_id: str, digest_key: bytes = b"") -> None:
        self.registry_id = registry_id
        self.generation = 0
        self.vector: Vector = {}
        self.floor: Vector = {}
        self.life_floor = 0
        self.inherited: Vector | None = None  # our own chains, as far as this start found them in its store
        self.declined: Vector = {}  # tombstones that were offered and seen before: somebody still holds them
        self.tombstones: dict[str, Record] = {}
        self.roster: dict[str, Record] = {}
        self.touched_entries: set[str] = set()  # of the roster, until somebody has looked at what became of them
        self.logs: dict[Chain, Log] = {}
        self.digest = DigestTree(digest_key)
        self.on_replaced: Callable[[Record], None] | None = None
        self.conflicts = 0  # writes that were replaced by others which did not know of them
        self.seen_by: Callable[[str], int] = lambda origin: MAX_SEQ  # our chain, as far as that registry has it
        self._buckets: list[dict[str, Record]] = [{} for _ in range(BUCKETS)]
        self._count = 0

    # reading

    def __len__(self) -> int:
        return self._count

    def get(self, key: str) -> Record | None:
        """The record, tombstones included."""
        return self._buckets[bucket_of(key)].get(key)

    def records(self) -> Iterator[Record]:
        """Every record, tombstones included."""
        for bucket in self._buckets:
            yield from bucket.values()

    def bucket(self, number: int) -> dict[str, Record]:
        """The records of one digest bucket, by key."""
        return self._buckets[number]

    def meta(self) -> Meta:
        """What `restore` wants back."""
        return Meta(self.generation, dict(self.vector), dict(self.floor), self.life_floor)

    @property
    def chain(self) -> Chain:
        """The chain of this start's own writes."""
        return self.registry_id, self.generation

    # starting

    @classmethod
    def restore(
        cls, registry_id: str, records: Iterable[Record], meta: Meta | None, digest_key: bytes = b""
    ) -> "Replica":
        """A replica of what a store kept: records, which are the replica's from now on, and the newest meta."""
        replica = cls(registry_id, digest_key)
        if meta is not None:
            replica.generation, replica.life_floor = meta.generation, meta.life_floor
            replica.vector, replica.floor = dict(meta.vector), dict(meta.floor)
        standing: dict[Chain, dict[int, tuple[Record, int]]] = {}
        for record in records:
            replica._insert(record)
            replica._note_kind(record)
            replica.digest.touch(record)
            for kind, get in enumerate(section_of):
                section = get(record)
                if section is not None:
                    standing.setdefault((section[1], section[4]), {})[section[5]] = record, kind
        for chain in sorted(standing):
            log = replica.log(chain)
            log.fill(standing[chain])
            log.whole_after = max(replica.vector.get(chain, 0), log.whole_after)
        return replica

    def begin_generation(self, at_least: int, salt: int) -> None:
        """Take a new generation, greater than any of ours that is known here. `salt` is random: a store
        that is lost, or restored, twice leads here twice, and the names must differ."""
        if self.inherited is None:
            self.inherited = {c: seq for c, seq in self.vector.items() if c[0] == self.registry_id}
        else:
            self.inherited[self.chain] = self.vector.get(self.chain, 0)
        known = [*self.starts_known(self.vector), *self.starts_known(self.logs)]
        self.generation = max(at_least, self.generation + 1, *(generation + 1 for generation in known)) + salt

    def starts_known(self, chains: Iterable[Chain]) -> list[int]:
        """Our own generations among these; what no start can have had is somebody's invention."""
        return [
            generation for origin, generation in chains if origin == self.registry_id and generation <= MAX_GENERATION
        ]

    def restate_early(self) -> None:
        """Give what stands beyond our position a position in our own chain: a store that was killed
        between two writes may hold the only copy, and nobody would ask for what no position tells of."""
        early = [
            (record, kind)
            for chain, log in self.logs.items()
            for seq, record, kind in log.after(self.vector.get(chain, 0), log.last)
            if log.is_live(seq, record, kind)
        ]
        for record, kind in early:
            self._restate(record, kind)

    # writing

    def log(self, chain: Chain) -> Log:
        """The chain's log."""
        log = self.logs.get(chain)
        if log is None:
            log = self.logs[chain] = Log(chain, 0 if chain == self.chain else self.vector.get(chain, 0))
        return log

    def apply(self, item: Item, *, repairing: bool = False) -> Record | None:
        """Join an item; the record when that was something new.

        A living item that was seen before and whose record is gone was collected here: it is news only
        to a repair, which has made sure that the other side knows of every collection of ours.
        A tombstone of something that is not here is news only if it was never seen.
        """
        key, life, incarnation, kind, section = item
        bucket = self._buckets[bucket_of(key)]
        record = bucket.get(key)
        chain = (section[1], section[4])
        if record is None:
            if self.vector.get(chain, 0) >= section[5] and (life % 2 == 0 or not repairing):
                if life % 2 == 0:
                    raise_to(self.declined, {chain: section[5]})
                return None
            record = Record(key)
            absorb(record, item)
            bucket[key] = record
            self._count += 1
        elif record.life == life and record.incarnation == incarnation:
            old = section_of[kind](record)
            if not absorb(record, item):
                return None
            if old is not None:
                self._replaced(record, old)
                self._note_conflict(old, section, kind)
                if kind == _JUDGEMENT and old[1] == self.registry_id != section[1]:
                    self._release(record)
        else:
            olds = [old for get in section_of if (old := get(record)) is not None]
            owner = record.judgement[1] if record.judgement is not None else None
            before = record.life
            if not absorb(record, item):
                return None
            for old in olds:
                self._replaced(record, old)
            self.conflicts += life == before  # two first registrations of one id
            if owner == self.registry_id != section[1]:
                self._release(record)
        log = self.logs.get(chain)
        if log is None:
            log = self.log(chain)
        log.add(section[5], record, kind)
        self.digest.touch(record)
        if life % 2 == 0 or key in self.tombstones or key.startswith(REGISTRY_PREFIX):
            self._note_kind(record)
        return record

    def write(self, item: Item) -> Record:
        """Our own write: its section carries the next dot of our chain (`next_seq`)."""
        self.vector[self.chain] = item.section.seq - 1  # the chain is ours from its first write on
        record = self.apply(item)
        assert record is not None, "a minted stamp is greater than what stands"
        # Losing a node by our own write takes no release: the write itself tells.
        self.vector[self.chain] = max(item.section.seq, self.vector[self.chain])
        return record

    @property
    def next_seq(self) -> int:
        """The position of our next own write."""
        return self.vector.get(self.chain, 0) + 1

    def remove(self, record: Record) -> None:
        """Take a record out, leaving nothing."""
        del self._buckets[bucket_of(record.key)][record.key]
        self._count -= 1
        self.digest.remove(record)
        self.tombstones.pop(record.key, None)
        if self.roster.pop(record.key, None) is not None:
            self.touched_entries.add(record.key)
        if self.on_replaced is not None:
            self.on_replaced(record)
        record.clear()

    def collect(self, tombstone: Record) -> None:
        """Remove a tombstone for good: from now on `floor` tells who may have missed it."""
        end = tombstone.end
        assert end is not None, "tombstones carry their end"
        raise_to(self.floor, {(end.origin, end.generation): end.seq})
        self.life_floor = max(self.life_floor, min(tombstone.life, MAX_LIFE_FLOOR))
        self.remove(tombstone)

    def own_words(self) -> Vector:
        """Our own chains, as far as we vouch for what they say: what this start wrote or found in its
        store. What only others still have of us we may not have meant to say for long."""
        return {**(self.inherited or {}), self.chain: self.vector.get(self.chain, 0)}

    def vouches_for(self, section: Section) -> bool:
        """Whether a judgement of ours is one of `own_words`."""
        if section.generation == self.generation:
            return True
        return covers(self.inherited or {}, section.dot)

    # parts

    def _insert(self, record: Record) -> None:
        self._buckets[bucket_of(record.key)][record.key] = record
        self._count += 1

    def _note_kind(self, record: Record) -> None:
        if record.deleted and not record.key.startswith(KEY_PREFIX):  # what is known of a key is kept for ever
            self.tombstones[record.key] = record
        else:
            self.tombstones.pop(record.key, None)
        if record.key.startswith(REGISTRY_PREFIX):
            self.touched_entries.add(record.key)
            if record.deleted:
                self.roster.pop(record.key, None)
            else:
                self.roster[record.key] = record

    def _replaced(self, record: Record, old: Section) -> None:
        log = self.logs.get((old[1], old[4]))
        if log is not None:
            log.replaced += 1
        if self.on_replaced is not None:
            self.on_replaced(record)

    def _note_conflict(self, old: Section, new: Section, kind: int) -> None:
        """Count a write of this start that lost to one made without knowing it. Taking a node over is none."""
        ours = old.origin == self.registry_id and old.generation == self.generation
        if ours and kind != _JUDGEMENT and new.origin != self.registry_id and self.seen_by(new.origin) < old.seq:
            self.conflicts += 1

    def _release(self, record: Record) -> None:
        """We lost a node to another registry, or to a deletion there: a position of our chain that stands
        for what replaced our judgement. Whoever our later watermarks count for has heard of it."""
        self._restate(record, _JUDGEMENT)

    def _restate(self, record: Record, kind: int) -> None:
        seq = self.next_seq
        log = self.log(self.chain)
        log.add(seq, record, kind)
        log.replaced += 1
        self.vector[self.chain] = seq
