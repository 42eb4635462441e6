"""One registry's copy: what was kept comes back, what was collected stays gone, and what is told of what."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.clock import Vector
from federation.record import MAX_LIFE, MAX_LIFE_FLOOR, Item, Record, SectionKind
from federation.replica import Replica
from tests.support.states import record_of
from tests.unit.federation.states import items, section

SPEC, INTENT, JUDGEMENT, END = SectionKind
ITEMS = st.lists(items(), max_size=12, unique_by=lambda item: item.section.dot)
"""Of writers that name each write once; of two writes with one name a log can only tell one."""


def logged(replica: Replica) -> dict[tuple[str, int], list[tuple[int, str, int]]]:
    """What each log can send: entries whose write stands."""
    return {
        chain: live
        for chain, log in replica.logs.items()
        if (live := [(entry[0], entry[1].key, entry[2]) for entry in log.after(0, log.last) if log.is_live(*entry)])
    }


@given(ITEMS, st.integers(1, 5), st.integers(0, MAX_LIFE_FLOOR))
def test_what_a_store_kept_comes_back(written: list[Item], position: int, life_floor: int) -> None:
    replica = Replica("z", b"key")
    for item in written:
        replica.apply(item)
    replica.generation, replica.life_floor = position, life_floor
    replica.vector, replica.floor = {("a", 1): position}, {("b", 2): position}
    again = Replica.restore("z", [record_of(record.state()) for record in replica.records()], replica.meta(), b"key")
    assert again.meta() == replica.meta()
    assert sorted(record.state() for record in again.records()) == sorted(
        record.state() for record in replica.records()
    )
    assert len(again) == len(replica)
    assert again.digest.groups() == replica.digest.groups()
    assert again.tombstones.keys() == replica.tombstones.keys()
    assert again.roster.keys() == replica.roster.keys()
    assert logged(again) == logged(replica)


@given(ITEMS)
def test_everything_that_stands_is_in_the_log_of_its_chain(written: list[Item]) -> None:
    replica = Replica("z")
    for item in written:
        replica.apply(item)
    standing = sorted(
        (item.section.seq, item.key, item.kind) for record in replica.records() for item in record.items()
    )
    assert sorted(entry for entries in logged(replica).values() for entry in entries) == standing


@given(ITEMS)
def test_tombstones_and_roster_are_what_the_records_say(written: list[Item]) -> None:
    replica = Replica("z")
    for item in written:
        replica.apply(item)
    records = {record.key: record for record in replica.records()}
    deleted = {key: record for key, record in records.items() if record.deleted}
    assert replica.tombstones == {key: record for key, record in deleted.items() if not key.startswith("k:")}
    assert replica.roster == {
        key: record for key, record in records.items() if key.startswith("r:") and not record.deleted
    }


@pytest.mark.parametrize("origin", ["a", "z"], ids=["another's", "our own, of the start before"])
def test_a_restored_log_is_whole_from_its_position_on(origin: str) -> None:
    replica = Replica("z")
    replica.generation = 1
    for seq in (1, 3):
        replica.apply(Item(f"n:{seq}", 1, 0, SPEC, section(origin=origin, seq=seq)))
    replica.vector = {(origin, 1): 2}
    again = Replica.restore("z", [record_of(record.state()) for record in replica.records()], replica.meta())
    assert again.log((origin, 1)).whole_after == 2, "what the store had of it before may have been replaced"


def test_a_log_that_begins_later_is_whole_from_there() -> None:
    """A walk made the position without a single record of the chain: what was before stands elsewhere, or is gone."""
    replica = Replica("z")
    replica.vector = {("a", 1): 2}
    assert replica.log(("a", 1)).whole_after == 2


# A generation a start


@pytest.mark.parametrize(
    ("restored", "at_least", "expected"),
    [({}, 100, 100), ({("z", 500): 1}, 100, 501), ({("z", 50): 1}, 100, 100), ({("a", 500): 1}, 100, 100)],
)
def test_a_start_takes_a_generation_above_all_that_are_known(restored: Vector, at_least: int, expected: int) -> None:
    replica = Replica("z")
    replica.vector = dict(restored)
    replica.begin_generation(at_least, 0)
    assert replica.generation == expected
    replica.begin_generation(at_least, 7)
    assert replica.generation == expected + 8, "salted: two starts after one loss differ"


def test_a_write_that_only_its_log_knows_of_counts_too() -> None:
    replica = Replica("z")
    replica.apply(Item("n:a", 1, 0, SPEC, section(origin="z", generation=900)))
    replica.begin_generation(100, 0)
    assert replica.generation == 901


def test_what_stands_beyond_the_position_gets_one_of_our_own() -> None:
    """The store was killed after the record, before the meta: perhaps nobody else has it."""
    replica = Replica.restore("z", [record_of((*Record("n:a").state()[:3], section(seq=5), None, None, None))], None)
    replica.begin_generation(1, 0)
    replica.restate_early()
    entry = replica.log(replica.chain).at(1)
    assert replica.vector[replica.chain] == 1
    assert entry is not None
    assert (entry[0].key, entry[1]) == ("n:a", SPEC)


# What was collected


def deleted(seq: int = 2, life: int = 2) -> Item:
    return Item("n:a", life, 0, END, section(3, seq=seq, birth=("a", 1, 1)))


def collected(life: int = 2) -> Replica:
    replica = Replica("z")
    replica.apply(deleted(life=life))
    replica.vector = {("a", 1): 2}
    replica.collect(replica.tombstones["n:a"])
    return replica


def test_a_collection_leaves_a_floor_and_nothing_else() -> None:
    replica = collected()
    assert (len(replica), replica.get("n:a"), replica.tombstones) == (0, None, {})
    assert (replica.floor, replica.life_floor) == ({("a", 1): 2}, 2)
    assert replica.digest.groups() == Replica("z").digest.groups()
    assert logged(replica) == {}


def test_what_was_collected_stays_gone() -> None:
    replica = collected()
    assert replica.apply(Item("n:a", 1, 0, SPEC, section(seq=1))) is None
    assert replica.apply(Item("n:a", 1, 0, SPEC, section(seq=1)), repairing=True) is not None, "a repair knows better"


def test_a_tombstone_that_was_seen_before_is_declined_even_in_repair_and_remembered() -> None:
    replica = collected()
    for repairing in (False, True):
        assert replica.apply(deleted(), repairing=repairing) is None
    assert replica.declined == {("a", 1): 2}, "somebody waits for us to acknowledge it"


def test_what_was_never_seen_is_joined_whatever_was_collected() -> None:
    replica = collected()
    assert replica.apply(Item("n:a", 3, 0, SPEC, section(seq=3))) is not None


def test_a_claimed_life_leaves_room_above() -> None:
    assert collected(life=MAX_LIFE).life_floor == MAX_LIFE_FLOOR < MAX_LIFE


# Whom we lost is released: a position of ours stands for it


def owned(origin: str = "z") -> Replica:
    replica = Replica("z")
    replica.begin_generation(1, 0)
    for kind in (SPEC, JUDGEMENT):
        replica.write(Item("n:a", 1, 0, kind, section(5, origin, generation=1, seq=replica.next_seq)))
    return replica


TAKEN: dict[str, tuple[Item, bool]] = {
    "to another owner": (Item("n:a", 1, 0, JUDGEMENT, section(9, "a")), True),
    "to a deletion": (Item("n:a", 2, 0, END, section(9, "a")), True),
    "to a later life": (Item("n:a", 3, 0, SPEC, section(9, "a")), True),
    "to another incarnation": (Item("n:a", 1, 1, JUDGEMENT, section(9, "a")), True),
    "not by an older word": (Item("n:a", 1, 0, JUDGEMENT, section(4, "a")), False),
    "not by a registration": (Item("n:a", 1, 0, SPEC, section(9, "a")), False),
    "not by an intent": (Item("n:a", 1, 0, INTENT, section(9, "a")), False),
    "not to an earlier life": (Item("n:a", 0, 0, END, section(9, "a")), False),
}


@pytest.mark.parametrize("how", TAKEN)
def test_a_node_that_is_lost_takes_a_position_of_ours(how: str) -> None:
    taken, released = TAKEN[how]
    replica = owned()
    before = replica.vector[replica.chain]
    replica.apply(taken)
    assert replica.vector[replica.chain] == before + released
    if released:
        entry = replica.log(replica.chain).at(before + 1)
        assert entry is not None
        item = entry[0].resolve(entry[1])
        assert item is not None
        assert item.section == taken.section, "who asks for the position is given what took it"


def test_who_was_never_ours_is_not_released() -> None:
    replica = Replica("z")
    replica.begin_generation(1, 0)
    replica.apply(Item("n:a", 1, 0, JUDGEMENT, section(5, "b")))
    replica.apply(Item("n:a", 1, 0, JUDGEMENT, section(9, "a")))
    assert replica.vector == {}


def test_a_position_resolves_to_what_stands_there_now() -> None:
    replica = Replica("z")
    replica.apply(Item("n:a", 1, 0, INTENT, section(seq=1)))
    record = replica.apply(Item("n:a", 2, 0, END, section(seq=2)))
    assert record is not None
    resolved: Any = record.resolve(INTENT)
    assert (resolved.life, resolved.kind, resolved.section.seq) == (2, END, 2)
    replica.remove(record)
    assert record.resolve(INTENT) is None
