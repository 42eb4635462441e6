"""Anti-entropy by content: what was lost comes back, and what was deleted does not."""

from itertools import count, islice
from typing import NamedTuple

import pytest

from federation import walks as walks_module
from federation.clock import Vector
from federation.digest import bucket_of
from federation.effects import Send
from federation.engine import Engine
from federation.messages import (
    Announce,
    DigestRecords,
    DigestRequest,
    DigestSums,
    Drain,
    Hello,
    Message,
    Push,
    Repair,
    Want,
)
from federation.record import Item, SectionKind
from federation.replica import Replica
from tests.support.fabric import Fabric
from tests.support.rosters import registry_key
from tests.unit.federation.states import section

SPEC, INTENT, JUDGEMENT, END = SectionKind
ORIGIN = ("x", 1)
NODE = "n:a"
LIVING = Item(NODE, 1, 0, SPEC, section(5, "x", seq=2))
DELETED = Item(NODE, 2, 0, END, section(6, "x", seq=3, birth=(*ORIGIN, 2)))


def holding(name: str, *items: Item, position: int = 0, floor: int = 0) -> Replica:
    """A copy as some past left it. `position` and `floor`: of the chain that all items are of."""
    replica = Replica(name)
    for item in items:
        replica.apply(item)
    replica.vector = {ORIGIN: position} if position else {}
    replica.floor = {ORIGIN: floor} if floor else {}
    return replica


def by_walks_alone(src: str, dst: str, message: Message) -> bool:
    return isinstance(message, Push | Drain)


def met(us: Replica, eu: Replica, **config: float) -> tuple[Fabric, Engine, Engine]:
    fabric = Fabric()
    engines = [fabric.add(replica.registry_id, replica, digest_interval_s=5, **config) for replica in (us, eu)]
    fabric.drop = by_walks_alone
    fabric.link("us", "eu")
    return fabric, engines[0], engines[1]


def life(engine: Engine) -> int:
    record = engine.replica.get(NODE)
    return record.life if record is not None else 0


# Lost behind everybody's back: the positions are equal


@pytest.mark.parametrize("loser", ["us", "eu"])
def test_a_record_that_one_side_lost_comes_back(loser: str) -> None:
    fabric, us, eu = met(holding("us", LIVING, position=2), holding("eu", LIVING, position=2))
    fabric.run(3)
    replica = fabric.engines[loser].replica
    record = replica.get(NODE)
    assert record is not None
    replica.remove(record)
    assert fabric.run(30, until=lambda: life(us) == life(eu) == 1)


def test_a_write_that_one_side_missed_is_repaired() -> None:
    newer = LIVING._replace(section=section(9, "x", seq=3))
    fabric, us, eu = met(holding("us", LIVING, position=3), holding("eu", newer, position=3))
    assert fabric.run(30, until=lambda: us.replica.digest.groups() == eu.replica.digest.groups())
    record = us.replica.get(NODE)
    assert record is not None
    assert record.spec == newer.section


def test_a_walk_that_is_bounded_repairs_in_several() -> None:
    nodes = [Item(f"n:{number}", 1, 0, SPEC, section(5, "x", seq=number + 1)) for number in range(20)]
    fabric, us, eu = met(holding("us"), holding("eu", *nodes, position=20), walk_buckets=3)
    sizes = set()

    def done() -> bool:
        sizes.add(sum(record.key.startswith("n:") for record in us.replica.records()))
        assert us.replica.vector.get(ORIGIN, 0) == 0 or max(sizes) == 20, "who looked at a part claims nothing"
        return us.replica.digest.groups() == eu.replica.digest.groups()

    assert fabric.run(150, until=done)
    assert len(sizes) > 5


def test_what_a_registry_sealed_comes_with_its_entry_in_one_walk() -> None:
    fabric = Fabric()
    for name in ("x", "eu", "us"):
        fabric.add(name, key=registry_key(name), digest_interval_s=5)
    fabric.link("x", "eu")
    keys = [f"k:{number}" for number in range(10)]
    for key in keys:
        fabric.perform("x", fabric.engines["x"].put(key, b"", fabric.now()))
    fabric.run(2)
    fabric.unlink("x", "eu")
    fabric.drop = by_walks_alone
    fabric.link("eu", "us")
    us = fabric.engines["us"].replica
    assert fabric.run(30, until=lambda: us.get("r:x") is not None)
    assert all(us.get(key) is not None for key in keys)


def test_nothing_more_than_sums_goes_over_where_nothing_differs() -> None:
    fabric, us, eu = met(holding("us", LIVING, position=2), holding("eu", LIVING, position=2))
    assert fabric.run(30, until=lambda: us.replica.digest.groups() == eu.replica.digest.groups())
    fabric.run(10)
    fabric.kinds.clear()
    fabric.run(30)
    assert fabric.kinds["DigestSums"] > 4
    assert fabric.kinds["DigestRecords"] == fabric.kinds["Want"] == fabric.kinds["Repair"] == 0


# "I lack it" and "I collected it" are told apart


class Side(NamedTuple):
    """What a registry holds, its position in the chain of all that, and its floor there."""

    items: tuple[Item, ...]
    position: int
    floor: int = 0


BOTH, NOTHING, TOMB = (LIVING,), (), (DELETED,)
CAUSAL: dict[str, tuple[Side, Side, tuple[int, int]]] = {
    # us, eu -> the life at us and at eu; 0: it is not there
    "lost here, nothing collected": (Side(NOTHING, 2), Side(BOTH, 2), (1, 1)),
    "lost there, nothing collected": (Side(BOTH, 2), Side(NOTHING, 2), (1, 1)),
    "deleted there": (Side(BOTH, 2), Side(TOMB, 3), (2, 2)),
    "deleted here": (Side(TOMB, 3), Side(BOTH, 2), (2, 2)),
    "deleted and collected there": (Side(BOTH, 2), Side(NOTHING, 3, 3), (0, 0)),
    "deleted and collected here": (Side(NOTHING, 3, 3), Side(BOTH, 2), (0, 0)),
    "new here, while there others were collected": (Side(BOTH, 2), Side(NOTHING, 1, 1), (1, 1)),
    "new there, while here others were collected": (Side(NOTHING, 1, 1), Side(BOTH, 2), (1, 1)),
    "a newcomer, where much was collected": (Side(NOTHING, 0), Side(BOTH, 9, 7), (1, 1)),
    "collected there, the tombstone still here": (Side(TOMB, 3), Side(NOTHING, 3, 3), (2, 0)),
}


@pytest.mark.parametrize("turned", [False, True], ids=["us dials", "eu dials"])
@pytest.mark.parametrize("case", CAUSAL)
def test_what_only_one_side_has(case: str, turned: bool) -> None:
    us_side, eu_side, lives = CAUSAL[case]
    if turned:
        us_side, eu_side, lives = eu_side, us_side, lives[::-1]
    us, eu = (
        holding(name, *side.items, position=side.position, floor=side.floor)
        for name, side in (("us", us_side), ("eu", eu_side))
    )
    fabric, *engines = met(us, eu)
    fabric.run(40)
    assert (life(engines[0]), life(engines[1])) == lives


@pytest.mark.parametrize("missing", [1, 3], ids=["we are stale", "they are"])
def test_who_is_stale_becomes_current_at_once_and_keeps_what_only_it_has(missing: int) -> None:
    """It does not wait for the next walk, nor wipe."""
    own = Item("n:own", 1, 0, SPEC, section(5, "us", seq=1))
    us = holding("us", LIVING, own, position=2)
    fabric, engine, eu = met(us, holding("eu", position=3, floor=3))
    assert fabric.run(5, until=lambda: engine.replica.vector[ORIGIN] == 3)
    assert life(engine) == 0
    assert fabric.run(10, until=lambda: eu.replica.get("n:own") is not None)


# Message by message


def walking(us: Replica, theirs: Vector, floor: Vector | None = None) -> tuple[Fabric, Engine, DigestRequest]:
    """A registry that has just begun a walk with a peer that says what it is told to say."""
    fabric = Fabric()
    engine = fabric.add("us", us, digest_interval_s=1)
    engine.connected("eu", fabric.now())
    engine.receive("eu", Hello("eu", 7, theirs, floor or {}, 0, (), 0), fabric.now())
    for _ in range(100):
        fabric.now_s += 0.1
        engine.receive("eu", Announce({}, {}, 0, ()), fabric.now())
        for message in messages(engine.tick(fabric.now())):
            if isinstance(message, DigestRequest):
                return fabric, engine, message
    raise AssertionError("no walk began")


def messages(effects: list[object]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def told(fabric: Fabric, engine: Engine, message: Message) -> list[Message]:
    return messages([*engine.receive("eu", message, fabric.now())])


def sums(request: DigestRequest, *differ: int, top: bool = False, vector: Vector, floor: Vector) -> DigestSums:
    return DigestSums(request.walk_id, dict.fromkeys(differ, 1), top, vector, floor)


def to_the_close(floor: Vector) -> tuple[Fabric, Engine, DigestRequest]:
    """A walk that found no difference and asks once more."""
    us = holding("us", position=1)
    fabric, engine, request = walking(us, {ORIGIN: 4}, floor)
    same = DigestSums(request.walk_id, us.digest.groups(), True, {ORIGIN: 4}, dict(floor))
    (closing,) = (message for message in told(fabric, engine, same) if isinstance(message, DigestRequest))
    return fabric, engine, closing


def test_a_whole_walk_claims_the_position_at_its_beginning() -> None:
    fabric, engine, closing = to_the_close({ORIGIN: 2})
    told(fabric, engine, DigestSums(closing.walk_id, {}, True, {ORIGIN: 9}, {ORIGIN: 2}))
    assert engine.replica.vector[ORIGIN] == 4


def test_what_others_collected_is_known_from_the_beginning_of_a_walk() -> None:
    """Others who missed the same deletions cannot bring back what is buried in it."""
    _, engine, _ = to_the_close({ORIGIN: 2})
    assert engine.replica.floor == {ORIGIN: 2}
    assert engine.replica.vector[ORIGIN] == 1


def test_nothing_is_claimed_where_something_was_collected_meanwhile() -> None:
    fabric, engine, closing = to_the_close({ORIGIN: 2})
    told(fabric, engine, DigestSums(closing.walk_id, {}, True, {ORIGIN: 9}, {ORIGIN: 3}))
    assert engine.replica.vector[ORIGIN] == 1


def test_nor_where_it_was_announced_before_the_end() -> None:
    fabric, engine, closing = to_the_close({ORIGIN: 2})
    told(fabric, engine, Announce({}, {ORIGIN: 3}, 0, ()))
    told(fabric, engine, DigestSums(closing.walk_id, {}, True, {ORIGIN: 9}, {ORIGIN: 3}))
    assert engine.replica.vector[ORIGIN] == 1


def test_what_is_collected_while_a_walk_is_under_way_is_not_brought_back_by_it() -> None:
    """When it began, the other side was not known to have missed anything."""
    fabric, us, eu = met(holding("us", DELETED, position=3), holding("eu", LIVING, position=2))
    collected: list[Message] = []

    def drop(src: str, dst: str, message: Message) -> bool:
        tombstone = us.replica.get(NODE)
        if isinstance(message, Want) and src == "us" and tombstone is not None:
            us.replica.collect(tombstone)
            collected.append(message)
        return by_walks_alone(src, dst, message) or (dst == "eu" and isinstance(message, DigestSums | Announce))

    fabric.drop = drop
    assert fabric.run(30, until=lambda: bool(collected))
    fabric.run(30)
    assert us.replica.get(NODE) is None
    assert life(eu) == 1, "nobody told it"


def in_one_bucket(number: int) -> list[str]:
    bucket = bucket_of(NODE)
    return list(islice((key for n in count() if bucket_of(key := f"n:{n}") == bucket), number))


@pytest.mark.parametrize("lost", [False, True])
def test_a_listing_with_a_part_missing_buries_nothing(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not listed is not known to be absent."""
    monkeypatch.setattr(walks_module, "KEYS_A_LISTING", 2)
    items = [Item(key, 1, 0, SPEC, section(5, "x", seq=seq)) for seq, key in enumerate(in_one_bucket(5), 1)]
    us, eu = holding("us", *items, position=5), holding("eu", *items[:-1], position=6, floor=6)
    fabric, engine, _ = met(us, eu)
    seen: list[Message] = []

    def drop(src: str, dst: str, message: Message) -> bool:
        if isinstance(message, DigestRecords) and src == "eu":
            seen.append(message)
            return lost and message.index == 0
        return by_walks_alone(src, dst, message)

    fabric.drop = drop
    fabric.run(30)
    assert len(seen) >= 2
    held = [item.key for item in items if engine.replica.get(item.key) is not None]
    assert held == [item.key for item in (items if lost else items[:-1])]


def test_a_repair_in_several_frames_brings_back_no_part_of_what_was_collected() -> None:
    """The registration is in one frame, and what was written to it in others."""
    word = Item(NODE, 1, 0, JUDGEMENT, section(5, "x", payload=b"online" * 99, seq=1))
    own = Item("n:own", 1, 0, SPEC, section(5, "y", seq=1))
    stale = holding("eu", LIVING, word, own, position=2)
    fabric, us, eu = met(holding("us", position=3, floor=3), stale, frame_items=1)
    offered: list[Message] = []

    def drop(src: str, dst: str, message: Message) -> bool:
        if isinstance(message, Repair) and src == "eu":
            offered.append(message)
        return by_walks_alone(src, dst, message) or (dst == "eu" and isinstance(message, DigestSums))

    fabric.drop = drop
    us._walks.begin(us.links["eu"], fabric.now(), bounded=False)
    fabric.perform("us", us.tick(fabric.now()))
    assert fabric.run(30, until=lambda: len(offered) >= 3)
    fabric.run(2)
    assert us.replica.get(NODE) is None
    assert us.replica.get("n:own") is not None, "what was never seen here is joined"
    assert life(eu) == 1, "nobody told it"


def test_a_walk_with_a_repair_missing_claims_nothing() -> None:
    """It is begun again until none is."""
    nodes = [Item(f"n:{number}", 1, 0, SPEC, section(5, "x", seq=number + 1)) for number in range(3)]
    fabric, us, _ = met(holding("us"), holding("eu", *nodes, position=9, floor=7), frame_items=1)
    lost: list[Message] = []

    def drop(src: str, dst: str, message: Message) -> bool:
        if isinstance(message, Repair) and message.index == 0 and len(lost) < 2:
            lost.append(message)
            return True
        return by_walks_alone(src, dst, message)

    fabric.drop = drop
    assert fabric.run(60, until=lambda: ORIGIN in us.replica.vector)
    assert all(us.replica.get(item.key) is not None for item in nodes)
    assert len(lost) == 2


# What a peer may ask for and list is bounded


def test_who_asks_for_more_than_we_would_is_not_answered() -> None:
    fabric, engine, _ = walking(holding("us", LIVING, position=2), {})
    assert told(fabric, engine, Want(1, 0, (NODE,) * 3)) != []
    assert told(fabric, engine, Want(1, 0, (NODE,) * (walks_module.KEYS_A_REQUEST + 1))) == []
    assert told(fabric, engine, DigestRequest(1, buckets=(1,) * (walks_module.BUCKETS_A_REQUEST + 1))) == []
    (repair,) = told(fabric, engine, Want(1, 0, (NODE, NODE)))
    assert isinstance(repair, Repair)
    assert len(repair.items) == 1, "once is enough"


def test_a_listing_without_end_ends_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks_module, "MAX_LISTED", 100)
    fabric, engine, request = walking(holding("us", position=2), {ORIGIN: 2})
    vector: Vector = {ORIGIN: 2}
    told(fabric, engine, sums(request, 0, top=True, vector=vector, floor={}))
    told(fabric, engine, sums(request, 0, vector={}, floor={}))
    for index in range(20):
        records = {f"n:{index} {number}": 1 for number in range(10)}
        told(fabric, engine, DigestRecords(request.walk_id, 0, index, records, False))
    walk = engine._walks._walk
    assert walk is None


def test_who_says_that_all_was_deleted_deletes_its_share_and_brings_no_key_back() -> None:
    nodes = [Item(f"n:{number}", 1, 0, SPEC, section(5, "x", seq=number)) for number in range(1, 301)]
    revoked = [Item("k:a", 1, 0, SPEC, section(5, "x", seq=301)), Item("k:a", 1, 0, END, section(6, "x", seq=302))]
    fabric, engine, _ = met(
        holding("us", *nodes, *revoked, position=302), holding("eu", position=303, floor=303), deletion_burst=30
    )
    fabric.run(20)
    deleted = sum(engine.replica.get(node.key) is None for node in nodes)
    assert 30 <= deleted <= 2 * 30 + 30 * 20 / 60  # it has two shares: one before it is in the roster
    key = engine.replica.get("k:a")
    assert key is not None
    assert key.end is not None
    assert fabric.run(900, until=lambda: all(engine.replica.get(node.key) is None for node in nodes)), "if it stays so"
