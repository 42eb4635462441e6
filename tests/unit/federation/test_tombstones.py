"""A deletion is forgotten once nobody can bring the record back, and not before."""

import pytest

from federation.clock import Vector, pack_vector, unpack_vector
from federation.config import Config
from federation.engine import Engine
from federation.messages import Entry, Hello, Push, Segment, Watermark, Watermarks
from federation.record import Item, SectionKind
from tests.support.fabric import Fabric
from tests.unit.federation.states import section

SPEC, INTENT, JUDGEMENT, END = SectionKind
NODE = "n:a"
AGE_S, EVICTION_S = 30.0, 300.0


def fabric_of(*names: str) -> tuple[Fabric, list[Engine]]:
    fabric = Fabric(wire=False)
    engines = [fabric.add(name, tombstone_min_age_s=AGE_S, eviction_s=EVICTION_S) for name in names]
    fabric.mesh()
    return fabric, engines


def register(fabric: Fabric, name: str, key: str = NODE) -> None:
    _, effects = fabric.engines[name].register(key, b"x", fabric.now(), incarnation=1, judgement=b"online")
    fabric.perform(name, effects)


def delete(fabric: Fabric, name: str, key: str = NODE) -> None:
    fabric.perform(name, fabric.engines[name].delete(key, b"gone", fabric.now()))


def lives(fabric: Fabric, key: str = NODE) -> list[int]:
    """0: nothing is held."""
    records = [engine.replica.get(key) for engine in fabric.engines.values()]
    return [record.life if record is not None else 0 for record in records]


def test_it_is_collected_everywhere_once_everybody_has_acknowledged_it() -> None:
    fabric, engines = fabric_of("eu", "us", "as")
    register(fabric, "eu")
    fabric.run(5)
    delete(fabric, "us")
    fabric.run(AGE_S - 5)
    assert lives(fabric) == [2, 2, 2], "a message may live so long"
    assert fabric.run(120, until=lambda: lives(fabric) == [0, 0, 0])
    fabric.run(60)
    assert fabric.equal()
    assert all(engine.replica.life_floor == 2 for engine in engines)
    assert all(engine.replica.floor[engines[1].replica.chain] > 0 for engine in engines)


def test_who_registers_after_that_lives_above_what_was_collected() -> None:
    fabric, _ = fabric_of("eu", "us")
    register(fabric, "eu")
    delete(fabric, "eu")
    assert fabric.run(120, until=lambda: lives(fabric) == [0, 0])
    register(fabric, "us")
    fabric.run(5)
    assert lives(fabric) == [3, 3], "a tombstone still held anywhere is of life 2"


def test_it_waits_for_who_is_away_and_comes_back_in_time() -> None:
    fabric, _ = fabric_of("eu", "us", "as")
    register(fabric, "as")
    fabric.run(5)
    for other in ("eu", "us"):
        fabric.unlink("as", other)
    delete(fabric, "eu")
    fabric.run(EVICTION_S - 50)
    assert lives(fabric) == [2, 2, 1]
    fabric.link("as", "eu")
    assert fabric.run(120, until=lambda: lives(fabric) == [0, 0, 0])


def test_it_does_not_wait_for_who_is_away_for_too_long_and_that_one_brings_nothing_back() -> None:
    fabric, _ = fabric_of("eu", "us", "as")
    register(fabric, "as")
    fabric.run(5)
    for other in ("eu", "us"):
        fabric.unlink("as", other)
    delete(fabric, "eu")
    register(fabric, "as", "n:own")
    assert fabric.run(EVICTION_S + 120, until=lambda: lives(fabric) == [0, 0, 1])
    fabric.link("as", "eu")
    fabric.run(60)
    assert lives(fabric) == [0, 0, 0], "it learns what was deleted meanwhile"
    assert lives(fabric, "n:own") == [1, 1, 1], "and keeps what only it has"


# Whoever is known in any way is waited for


def known_by_entry(engine: Engine, fabric: Fabric) -> None:
    took(engine, fabric, Item("r:x", 1, 0, SPEC, section(1, "x")))


def known_by_writes(engine: Engine, fabric: Fabric) -> None:
    took(engine, fabric, Item("n:x", 1, 0, SPEC, section(1, "x")))


def known_by_link(engine: Engine, fabric: Fabric) -> None:
    engine.connected("x", fabric.now())


def known_by_mark(engine: Engine, fabric: Fabric) -> None:
    engine.connected("p", fabric.now())
    engine.receive("p", Hello("p", 1, {}, {}, 0, (), 0), fabric.now())
    engine.receive("p", Watermarks(0, 0, (Watermark("p", 1, (), 0), Watermark("x", 1, (), 0))), fabric.now())
    engine.disconnected("p", fabric.now())
    engine._liveness._latest.pop("p")


def took(engine: Engine, fabric: Fabric, item: Item) -> None:
    """A peer that told it of somebody's write, and went."""
    engine.connected("x", fabric.now())
    engine.receive("x", Hello("x", 1, {}, {}, 0, (), 0), fabric.now())
    engine.receive("x", Push(1, (Segment(("x", 1), 0, 1, (Entry(1, item),)),)), fabric.now())
    engine.disconnected("x", fabric.now())


WAYS = {"its entry": known_by_entry, "its writes": known_by_writes, "its link": known_by_link, "a mark": known_by_mark}


@pytest.mark.parametrize("way", [None, *WAYS])
def test_it_waits_for_whoever_is_known_by(way: str | None) -> None:
    fabric, (eu,) = fabric_of("eu")
    register(fabric, "eu")
    delete(fabric, "eu")
    if way is not None:
        WAYS[way](eu, fabric)
    fabric.run(EVICTION_S - 20)
    assert lives(fabric) == [0 if way is None else 2]
    fabric.run(100)
    assert lives(fabric) == [0], "and not for ever"


# What an acknowledgement has to be past

END_AT, BIRTH_AT = ("eu", 3), ("b", 7)


@pytest.mark.parametrize(
    ("acknowledged", "collected"),
    [
        ({"end": 0, "birth": 0}, True),
        ({"end": -1, "birth": 0}, False),  # it has not seen the deletion
        ({"end": 0, "birth": -1}, False),  # it may still be given what was deleted
        ({"end": 9, "birth": 9}, True),
        (None, False),  # it has never said anything
    ],
)
def test_what_an_acknowledgement_has_to_be_past(acknowledged: dict[str, int] | None, collected: bool) -> None:
    fabric, (eu,) = fabric_of("eu")
    replica = eu.replica
    replica.apply(Item(NODE, 1, 0, SPEC, section(1, "b", seq=7)))
    replica.vector["b", 1] = 7
    delete(fabric, "eu")
    record = replica.get(NODE)
    assert record is not None
    assert record.end is not None
    ack: Vector = {}
    if acknowledged is not None:
        ack = {
            record.end.dot.chain: record.end.seq + acknowledged["end"],
            ("b", 1): 7 + acknowledged["birth"],
        }
        replica.apply(Item("r:b", 1, 0, JUDGEMENT, section(1, "b", payload=pack_vector(ack), seq=9)))
    replica.apply(Item("r:b", 1, 0, SPEC, section(1, "b", seq=8)))
    fabric.run(EVICTION_S - 50)
    assert lives(fabric) == [0 if collected else 2]


def test_a_later_deletion_begins_to_age_anew() -> None:
    fabric, _ = fabric_of("eu")
    register(fabric, "eu")
    delete(fabric, "eu")
    fabric.run(AGE_S - 10)
    register(fabric, "eu")
    delete(fabric, "eu")
    fabric.run(20)
    assert lives(fabric) == [4]
    fabric.run(AGE_S)
    assert lives(fabric) == [0]


def test_nothing_is_acknowledged_where_there_is_nothing_to_collect() -> None:
    fabric, (eu, us) = fabric_of("eu", "us")
    register(fabric, "eu")
    fabric.run(200)
    for engine in (eu, us):
        record = engine.replica.get(f"r:{engine.config.registry_id}")
        assert record is not None
        assert record.judgement is None, "a quiet federation writes nothing"


def test_acknowledging_ends_once_it_is_collected() -> None:
    fabric, (eu, us) = fabric_of("eu", "us")
    register(fabric, "eu")
    delete(fabric, "eu")
    fabric.run(200)
    before = eu.replica.vector, us.replica.vector
    seqs = eu.replica.next_seq, us.replica.next_seq
    assert lives(fabric) == [0, 0]
    fabric.run(300)
    assert (eu.replica.next_seq, us.replica.next_seq) == seqs, before


def test_what_was_collected_elsewhere_is_acknowledged_for_who_still_waits() -> None:
    """It became current by a walk, and has never held the tombstone."""
    fabric, (eu,) = fabric_of("eu")
    eu.replica.vector["x", 1], eu.replica.floor["x", 1] = 5, 4
    fabric.run(10)
    record = eu.replica.get("r:eu")
    assert record is not None
    assert record.judgement is not None
    assert unpack_vector(record.judgement.payload)["x", 1] == 5


def test_what_is_collected_is_kept_in_no_store() -> None:
    fabric, _ = fabric_of("eu")
    register(fabric, "eu")
    delete(fabric, "eu")
    stored: list[tuple[str, str]] = []
    fabric.on_store = lambda name, key: stored.append((name, key))
    assert fabric.run(120, until=lambda: lives(fabric) == [0])
    assert ("eu", NODE) in stored


def test_it_is_collected_no_faster_than_asked_for() -> None:
    assert Config("eu").tombstone_min_age_s == 3_600
    assert Config("eu").eviction_s == 7 * 86_400


def test_of_a_key_it_is_never_forgotten_that_it_ended() -> None:
    """Else whoever deletes a revoked key's record brings the key back, once the deletion is forgotten."""
    fabric, engines = fabric_of("eu", "us")
    fabric.perform("eu", engines[0].put("k:a", b"key", fabric.now()))
    fabric.perform("eu", engines[0].revoke("k:a", b"leaked", fabric.now()))
    fabric.run(5)
    delete(fabric, "us", "k:a")
    fabric.run(150)
    assert lives(fabric, "k:a") == [2, 2]
