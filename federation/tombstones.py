"""When a deletion may be forgotten.

Not by age: a registry that was away would bring the record back. A tombstone is collected once every
registry of the roster has acknowledged a position past the deletion and past the birth of what it
ended, and it is older than any message can be. What was collected stands in the replica's floor: whoever's
position is below it has missed a deletion, and becomes current through a walk before anything else.
`life_floor` keeps the lives of what was collected from being used again.

Acknowledgements are the judgement of a registry's own roster record, written only while there is
something to collect.
"""

from federation.clock import Now, Vector, covers, pack_vector, reaches, unpack_vector
from federation.core import Core
from federation.liveness import Liveness
from federation.record import REGISTRY_PREFIX, Record
from federation.writes import Writes


class Collector:
    """See the module."""

    def __init__(self, core: Core, writes: Writes, liveness: Liveness, now: Now) -> None:
        self._core = core
        self._writes = writes
        self._liveness = liveness
        self._started_s = now.mono_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._every_s = min(60.0, core.config.tombstone_min_age_s / 10)
        self._next_s = now.mono_s + self._every_s

    def tick(self, now: Now) -> None:
        """Collect what may be collected, and acknowledge what others wait for."""
        if now.mono_s < self._next_s:
            return
        self._next_s = now.mono_s + self._every_s
        tombstones = self._core.replica.tombstones
        self._seen = {
            key: seen if (seen := self._seen.get(key)) and seen[0] == record.life else (record.life, now.mono_s)
            for key, record in tombstones.items()
        }
        old = [
            r for r in tombstones.values() if now.mono_s - self._seen[r.key][1] >= self._core.config.tombstone_min_age_s
        ]
        self._acknowledge(old, now)
        acks = self._acks(now)
        collected = [record for record in old if all(_is_past(ack, record) for ack in acks)]
        for record in collected:
            key = record.key
            self._core.replica.collect(record)
            self._core.stored_key(key)
        if collected:
            self._core.stored_meta()

    def _acknowledge(self, old: list[Record], now: Now) -> None:
        """Write down our position, if somebody may wait for it: for what we hold, for what we collected,
        and for what we were offered and had collected or lost before."""
        replica = self._core.replica
        key = REGISTRY_PREFIX + self._core.me
        own = replica.roster.get(key)
        if own is None or not own.exists:
            return  # somebody else wrote or deleted it: it is enrolled again first
        told = unpack_vector(own.judgement.payload) if own.judgement is not None else {}
        waited_for = any(_is_past(replica.vector, record) and not _is_past(told, record) for record in old)
        collected = reaches(replica.vector, replica.floor) and not reaches(told, replica.floor)
        if waited_for or collected or not reaches(told, replica.declined):
            self._writes.judge_own(key, pack_vector(replica.vector), now)

    def _acks(self, now: Now) -> list[Vector]:
        """The acknowledged position of every registry that counts, ours as it is. One that is known
        only by its writes, its link or its watermark counts too: its entry is on its way."""
        replica = self._core.replica
        names = {key.removeprefix(REGISTRY_PREFIX) for key in replica.roster}
        names |= {origin for origin, _ in replica.vector} | set(self._core.links) | set(self._liveness.owners())
        acks: list[Vector] = [replica.vector]
        for name in names - {self._core.me}:
            heard_s = self._liveness.last_heard_s(name)
            away_s = now.mono_s - (heard_s if heard_s is not None else self._started_s)
            if away_s < self._core.config.eviction_s:
                entry = replica.roster.get(REGISTRY_PREFIX + name)
                word = entry.judgement if entry is not None else None
                acks.append(unpack_vector(word.payload) if word is not None else {})
        return acks


def _is_past(position: Vector, tombstone: Record) -> bool:
    """Whether a registry at this position has seen the deletion, and the birth of what it ended."""
    end, birth = tombstone.end, tombstone.birth
    return end is not None and covers(position, end.dot) and (birth is None or covers(position, birth))
