"""The core with one mechanism broken at a time, and a seed that shows it. `python -m tests.simulation
--mutants` looks for seeds anew: what the scenarios do may change, that each mechanism is needed may not.

Mechanisms whose absence only a hostile peer shows, a lost chunk, or a clock days ahead, are broken in
tests/unit/federation/test_mutants.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from federation import guard
from federation.clock import HLC_MAX, HybridClock, Now, hlc_of
from federation.core import Core, Link
from federation.drains import Drains
from federation.intake import Intake
from federation.liveness import Liveness
from federation.record import SECTION_NAMES, Item, Record, SectionKind, section_of
from federation.replica import Replica
from federation.seals import Seal
from federation.succession import Succession
from federation.tombstones import Collector
from federation.walks import Walks
from federation.writes import Writes
from tests.simulation.world import run

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """What is broken, how, and seeds of which one at least breaks a promise with it, and none without."""

    name: str
    mutate: Callable[[Patch], None]
    seeds: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name


def _naive_last_writer_wins(patch: Patch) -> None:
    def absorb(record: Record, item: Item) -> bool:
        newest = max((s.major for get in section_of if (s := get(record)) is not None), default=-1)
        if item.section.major <= newest:
            return False
        record.life, record.incarnation = item.life, item.incarnation
        if item.life % 2 == 0:
            record.spec = record.intent = record.judgement = None
        setattr(record, SECTION_NAMES[item.kind], item.section)
        return True

    patch.setattr("federation.replica.absorb", absorb)


def _lives_do_not_count(patch: Patch) -> None:
    def absorb(record: Record, item: Item) -> bool:
        held = section_of[item.kind](record)
        if held is not None and held >= item.section:
            return False
        record.life, record.incarnation = item.life, item.incarnation
        setattr(record, SECTION_NAMES[item.kind], item.section)
        return True

    patch.setattr("federation.replica.absorb", absorb)


def _collected_by_age(patch: Patch) -> None:
    """Naively: nobody is asked, and nothing remembers what was collected."""
    patch.setattr(Collector, "_acks", lambda self, now: [self._core.replica.vector])
    patch.setattr(Replica, "collect", lambda self, tombstone: self.remove(tombstone))


def _no_floor(patch: Patch) -> None:
    patch.setattr(Core, "is_stale", lambda self, link: False)
    patch.setattr(Core, "am_stale", lambda self, link: False)


def _walks_without_context(patch: Patch) -> None:
    patch.setattr(Walks, "_bury", lambda self, missing, walk: None)
    patch.setattr(Walks, "_not_collected", lambda self, items, walk: list(items))


def _no_life_floor(patch: Patch) -> None:
    def collect(self: Replica, tombstone: Record) -> None:
        floor = self.life_floor
        original(self, tombstone)
        self.life_floor = floor

    original = Replica.collect
    patch.setattr(Replica, "collect", collect)


def _no_generations(patch: Patch) -> None:
    patch.setattr(Replica, "begin_generation", lambda self, at_least, salt: setattr(self, "generation", 1))


def _no_tokens(patch: Patch) -> None:
    def register(self: Writes, key: str, payload: bytes, now: Now, **rest: Any) -> Any:
        return original_register(self, key, payload, now, **{**rest, "token": None})

    def heartbeat(self: Writes, key: str, judgement: bytes, now: Now, token: Any) -> Any:
        return original_heartbeat(self, key, judgement, now, None)

    original_register, original_heartbeat = Writes.register, Writes.heartbeat
    patch.setattr(Writes, "register", register)
    patch.setattr(Writes, "heartbeat", heartbeat)


def _stamps_ignore_what_they_replace(patch: Patch) -> None:
    def mint(self: HybridClock, wall_ms: int, *above: int) -> int:
        return min(hlc_of(wall_ms), HLC_MAX)

    patch.setattr(HybridClock, "mint", mint)


def _positions_pass_gaps(patch: Patch) -> None:
    def advance(self: Intake, chain: Any, after: int, upto: int) -> None:
        original(self, chain, min(after, self._core.replica.vector.get(chain, 0)), upto)

    original = Intake._advance
    patch.setattr(Intake, "_advance", advance)


def _drains_end_at_the_position(patch: Patch) -> None:
    def asked(self: Drains, link: Link, pull: Any) -> None:
        original(self, link, pull)
        drain = self._outgoing[link.peer]
        drain.upto = {chain: min(seq, drain.claim.get(chain, 0)) for chain, seq in drain.upto.items()}

    original = Drains.asked
    patch.setattr(Drains, "asked", asked)


def _no_repair(patch: Patch) -> None:
    original = Walks.begin

    def begin(self: Walks, link: Link, now: Now, *, bounded: bool) -> None:
        if not bounded:
            original(self, link, now, bounded=bounded)

    patch.setattr(Walks, "begin", begin)


def _no_release(patch: Patch) -> None:
    patch.setattr(Replica, "_release", lambda self, record: None)


def _marks_count_at_once(patch: Patch) -> None:
    patch.setattr(Liveness, "settle", lambda self: self._counting.update(self._latest))


def _relays_do_not_relay(patch: Patch) -> None:
    patch.setattr(Core, "needs_relay", lambda self, link, origin: False)


def _heartbeats_do_not_adopt(patch: Patch) -> None:
    patch.setattr(Writes, "_adopt", _adopt_unowned)


_adopt = Writes._adopt


def _adopt_unowned(self: Writes, record: Record, judgement: bytes, now: Now, above: int) -> None:
    if record.judgement is None:
        _adopt(self, record, judgement, now, above)


def _epochs_do_not_grow(patch: Patch) -> None:
    def adopt(self: Writes, record: Record, judgement: bytes, now: Now, above: int) -> None:
        held = record.judgement
        epoch = held.major if held is not None else self._mint(now)
        self._write(record, SectionKind.JUDGEMENT, epoch, self._mint(now), judgement)

    patch.setattr(Writes, "_adopt", adopt)


def _nobody_says_it_anew(patch: Patch) -> None:
    patch.setattr(Succession, "tick", lambda self, now: None)


def _a_later_life_brings_no_identity(patch: Patch) -> None:
    def seal_of(item: Item, roster: Mapping[str, Record]) -> Seal:
        entry = roster.get(item.key)
        is_later = entry is not None and entry.spec is not None and item.life > entry.life
        return Seal.BROKEN if is_later and item.kind == SectionKind.SPEC else original(item, roster)

    original = guard.seal_of
    patch.setattr(guard, "seal_of", seal_of)


MUTANTS = (
    Mutant("naive last writer wins", _naive_last_writer_wins, (0, 1)),
    Mutant("lives do not count", _lives_do_not_count, (1, 2)),
    Mutant("tombstones collected by age", _collected_by_age, (12, 27)),
    Mutant("no floor", _no_floor, (12, 44)),
    Mutant("walks without context", _walks_without_context, (12, 16)),
    Mutant("no life floor", _no_life_floor, (3360,)),
    Mutant("no generations", _no_generations, (0, 9)),
    Mutant("no tokens", _no_tokens, (20, 89)),
    Mutant("stamps ignore what they replace", _stamps_ignore_what_they_replace, (0, 11)),
    Mutant("positions pass gaps", _positions_pass_gaps, (0, 1)),
    Mutant("drains end at the position", _drains_end_at_the_position, (116, 211)),
    Mutant("no repair", _no_repair, (19, 76)),
    Mutant("no release", _no_release, (11, 317)),
    Mutant("marks count at once", _marks_count_at_once, (12, 16)),
    Mutant("relays do not relay", _relays_do_not_relay, (5, 20)),
    Mutant("heartbeats do not adopt", _heartbeats_do_not_adopt, (0, 1)),
    Mutant("epochs do not grow", _epochs_do_not_grow, (0, 1)),
    Mutant("nobody says it anew", _nobody_says_it_anew, (540, 684)),
    Mutant("a later life brings no identity", _a_later_life_brings_no_identity, (9, 37)),
)


def shows(name: str) -> bool:
    """Whether one of the mutant's seeds breaks a promise."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    return any(run(seed, mutate=mutant.mutate).violation for seed in mutant.seeds)
