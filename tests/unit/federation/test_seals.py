"""What registries sign: nobody who passes it on makes it up or changes it, and what is signed outlives its signer."""

from dataclasses import replace
from typing import Any

import pytest

from federation.clock import HLC_MAX, hlc_of
from federation.ed25519 import PrivateKey
from federation.messages import Drain, Entry, Hello, Message, Push, Repair, Segment
from federation.record import Item, Record, SectionKind
from federation.replica import Replica
from federation.seals import Seal, is_sealed, is_sealed_by, seal_of, sealed
from tests.support.fabric import Fabric
from tests.support.rosters import advert, registry_key
from tests.unit.federation.states import joined, section

SPEC, INTENT, JUDGEMENT, END = SectionKind
HOLDS, BROKEN, FORMER, UNKNOWN = Seal
KEY = registry_key("a")
OTHER = PrivateKey(b"another key of a's".ljust(32, b"."))


def entry(name: str, key: PrivateKey | None = None) -> Item:
    return Item(f"r:{name}", 1, 0, SPEC, section(1, name, payload=advert(name, key)))


ROSTER: dict[str, Record] = {f"r:{name}": joined([entry(name)], key=f"r:{name}") for name in ("a", "b")}
WRITE = sealed(Item("k:1", 1, 0, SPEC, section(5, "a", payload=b"grant", seq=3, birth=("a", 1, 2))), KEY)


@pytest.mark.parametrize(
    ("key", "kind", "expected"),
    [
        ("k:1", SPEC, True), ("k:1", END, True), ("a:1", SPEC, True), ("r:a", SPEC, True), ("r:a", JUDGEMENT, True),
        ("n:1", SPEC, False), ("n:1", JUDGEMENT, False), ("n:1", INTENT, True), ("n:1", END, True),
        ("v:a", SPEC, False),
    ],
)  # fmt: skip
def test_what_gives_power_or_takes_it_is_sealed(key: str, kind: SectionKind, *, expected: bool) -> None:
    item = Item(key, 2 if kind is END else 1, 0, kind, section(5, "a"))
    assert is_sealed(item) is expected
    assert bool(sealed(item, KEY).section.seal) is expected
    assert is_sealed_by(sealed(item, KEY), KEY.public) is expected


def test_its_origin_s_is_believed() -> None:
    assert is_sealed_by(WRITE, KEY.public)
    assert seal_of(WRITE, ROSTER) is HOLDS


@pytest.mark.parametrize(
    "change",
    [
        {"major": 6}, {"origin": "b"}, {"minor": 1}, {"payload": b"granT"}, {"generation": 2}, {"seq": 4},
        {"birth": ()}, {"birth": ("a", 1, 3)}, {"seal": b""}, {"seal": bytes(64)},
    ],
)  # fmt: skip
def test_nothing_of_a_write_can_be_changed(change: dict[str, Any]) -> None:
    assert seal_of(WRITE._replace(section=WRITE.section._replace(**change)), ROSTER) is BROKEN


@pytest.mark.parametrize("change", [{"key": "k:2"}, {"life": 2}, {"incarnation": 1}, {"kind": INTENT}])
def test_nor_what_it_belongs_to(change: dict[str, Any]) -> None:
    assert seal_of(WRITE._replace(**change), ROSTER) is BROKEN


def test_two_writes_that_read_alike_are_not_one() -> None:
    """Fields that follow each other cannot trade characters."""
    one = sealed(Item("k:1", 1, 0, SPEC, section(5, "a", payload=b"2\nx", seq=1)), KEY)
    other = one._replace(section=one.section._replace(payload=b"x"))
    assert seal_of(other, ROSTER) is BROKEN


def living(life: int, key: PrivateKey = KEY) -> Item:
    """The entry of a, in that life."""
    return sealed(entry("a", key)._replace(life=life), key)


UNREADABLE = {"r:a": joined([Item("r:a", 1, 0, SPEC, section(1, "a", payload=b"?"))], key="r:a")}
BARE = {"r:a": joined([Item("r:a", 3, 0, END, section(9, "b"))], key="r:a")}  # an END of a life that goes on
ENTRIES: dict[str, tuple[Item, dict[str, Record], Seal]] = {
    "one that is in no roster": (sealed(Item("k:1", 1, 0, SPEC, section(5, "c")), KEY), ROSTER, UNKNOWN),
    "one that was taken out": (WRITE, {}, UNKNOWN),
    "one that b writes for c": (sealed(entry("c"), registry_key("b")), ROSTER, BROKEN),
    "one that b writes for a": (sealed(Item("r:a", 1, 0, SPEC, section(9, "b")), registry_key("b")), ROSTER, BROKEN),
    "what b acknowledges for a": (sealed(Item("r:a", 1, 0, JUDGEMENT, section(9, "b")), registry_key("b")), {}, BROKEN),
    "an operator at b takes a out": (sealed(Item("r:a", 2, 0, END, section(9, "b")), registry_key("b")), ROSTER, HOLDS),
    "somebody in b's name does": (sealed(Item("r:a", 2, 0, END, section(9, "b")), OTHER), ROSTER, BROKEN),
    "whoever comes first is pinned": (living(1, OTHER), {}, HOLDS),
    "not with another's seal": (sealed(entry("a"), OTHER), {}, BROKEN),
    "nor without one": (entry("a"), {}, BROKEN),
    "another identity in this life": (living(1, OTHER), ROSTER, BROKEN),
    "another identity in the next": (living(3, OTHER), ROSTER, HOLDS),
    "this one in the next": (living(3), ROSTER, HOLDS),
    "the next life with the seal of this": (sealed(entry("a", OTHER)._replace(life=3), KEY), ROSTER, BROKEN),
    "into a life that has no entry yet": (living(3), BARE, HOLDS),
    "the first entry that can be read": (living(1), UNREADABLE, HOLDS),
    "nor without a seal": (entry("a"), UNREADABLE, BROKEN),
    "what nobody can tell until then": (WRITE, UNREADABLE, UNKNOWN),
    "one that cannot be read": (sealed(Item("r:a", 1, 0, SPEC, section(1, "a", payload=b"?")), KEY), {}, BROKEN),
}


@pytest.mark.parametrize(("item", "roster", "expected"), ENTRIES.values(), ids=ENTRIES)
def test_who_may_say_what_of_whom(item: Item, roster: dict[str, Record], expected: Seal) -> None:
    assert seal_of(item, roster) is expected


# in the federation


def fabric_of(*names: str) -> Fabric:
    fabric = Fabric()
    for name in names:
        fabric.add(name, key=registry_key(name))
    return fabric


def written(fabric: Fabric, name: str) -> None:
    """One write of every sort that is sealed."""
    engine, now = fabric.engines[name], fabric.now()
    for node in ("kept", "gone"):
        _, effects = engine.register(f"n:{node}", b"spec", now, incarnation=1, judgement=b"online")
        fabric.perform(name, effects)
    for effects in (
        engine.put("k:1", b"grant", now),
        engine.revoke("k:2", b"lost", now),
        engine.put("a:1", b"listed", now),
        engine.amend("n:kept", b"drain", now),
        engine.delete("n:gone", b"removed", now),
    ):
        fabric.perform(name, effects)


def forged(fabric: Fabric) -> list[tuple[str, str | None]]:
    """Who told of forged writes, and from whom."""
    return [(name, alert.peer) for name, alert in fabric.alerts if alert.code == "forged"]


def held(replica: Replica, *keys: str) -> list[Item]:
    """Its items of these keys, or of what `written` wrote."""
    records = [replica.get(key) for key in keys or ("k:1", "k:2", "a:1", "n:kept", "n:gone")]
    return [item for record in records if record is not None for item in record.items()]


def payloads(fabric: Fabric, name: str) -> dict[tuple[str, int], bytes]:
    return {(item.key, item.kind): item.section.payload for item in held(fabric.engines[name].replica)}


def with_items(message: Message, change: Any) -> Message:
    if isinstance(message, Push):
        segments = tuple(
            replace(segment, entries=tuple(Entry(seq, change(item)) for seq, item in segment.entries))
            for segment in message.segments
        )
        return replace(message, segments=segments)
    if isinstance(message, Drain | Repair):
        return replace(message, items=tuple(map(change, message.items)))
    return message


def test_what_is_passed_on_as_it_is_is_believed() -> None:
    fabric = fabric_of("a", "b", "c", "d")
    fabric.link("a", "b")
    fabric.link("b", "c")
    fabric.run(2)
    written(fabric, "a")
    fabric.run(2)
    fabric.link("c", "d")  # it begins with a drain
    assert fabric.run(20, until=fabric.equal)
    assert payloads(fabric, "d") == payloads(fabric, "a")
    assert not forged(fabric)


def test_what_a_relay_changes_is_refused_told_of_and_had_from_the_next_one() -> None:
    fabric = fabric_of("a", "b", "c")
    fabric.link("a", "b")
    fabric.link("b", "c")
    fabric.run(2)

    def widened(item: Item) -> Item:
        return item._replace(section=item.section._replace(payload=b"more")) if item.key == "k:1" else item

    fabric.alter = lambda src, dst, message: with_items(message, widened) if (src, dst) == ("b", "c") else message
    written(fabric, "a")
    fabric.run(3)
    assert {("c", "b")} == set(forged(fabric))
    assert ("k:1", SPEC) not in payloads(fabric, "c")
    assert payloads(fabric, "c")["n:kept", INTENT] == b"drain"
    fabric.link("a", "c")
    assert fabric.run(120, until=lambda: payloads(fabric, "c") == payloads(fabric, "a"))


def told(fabric: Fabric, src: str, dst: str, *items: Item) -> None:
    """`src` hands these to `dst`, whatever it holds itself."""
    fabric.perform(dst, fabric.engines[dst].receive(src, Drain(1, 1, 0, items), fabric.now()))


def test_what_a_relay_makes_up_stands_nowhere() -> None:
    fabric = fabric_of("a", "b", "c")
    fabric.mesh()
    fabric.run(2)
    generation = fabric.engines["a"].replica.generation
    made_up = Item(
        "k:mine",
        1,
        0,
        SPEC,
        section(hlc_of(fabric.now().wall_ms), "a", payload=b"admin", generation=generation - 1, seq=9),
    )
    for item in (made_up, sealed(made_up, registry_key("b"))):
        told(fabric, "b", "c", item)
        told(fabric, "b", "a", item)
    assert forged(fabric) == [("c", "b"), ("a", "b")] * 2
    assert all(engine.replica.get("k:mine") is None for engine in fabric.engines.values())


def test_where_no_link_tells_that_one_lost_its_identity_its_entry_does() -> None:
    fabric = fabric_of("a", "b", "c")
    fabric.link("a", "b")
    fabric.link("b", "c")
    fabric.run(2)
    fabric.unlink("a", "b")
    for name, key in (("a", OTHER), ("b", registry_key("b"))):  # both lost their stores, and c has not
        del fabric.engines[name]
        fabric.add(name, key=key)
    fabric.link("a", "b")
    fabric.run(1)
    fabric.unlink("b", "c")
    fabric.link("b", "c")
    fabric.run(5)
    details = {alert.detail for name, alert in fabric.alerts if (name, alert.code, alert.peer) == ("c", "forged", "b")}
    assert any(detail.startswith("r:a: ") and detail.endswith("members --forget a here") for detail in details)
    fabric.perform("c", fabric.engines["c"].forget("a", b"it lost its disk", fabric.now()))
    assert fabric.run(120, until=fabric.equal)
    entries = [held(engine.replica, "r:a")[0] for engine in fabric.engines.values()]
    assert [entry.section.payload for entry in entries] == [advert("a", OTHER)] * 3


def test_what_a_forgotten_registry_sealed_is_taken_over_and_it_may_come_back_with_another_key() -> None:
    fabric = fabric_of("a", "b", "c")
    fabric.mesh()
    fabric.run(2)
    written(fabric, "a")
    assert fabric.run(5, until=fabric.equal)
    told = payloads(fabric, "b")
    fabric.unlink("a", "b")
    fabric.unlink("a", "c")
    del fabric.engines["a"]
    fabric.perform("b", fabric.engines["b"].forget("a", b"its disk is gone", fabric.now()))
    assert fabric.run(5, until=fabric.equal)
    fabric.add("a", key=OTHER)
    fabric.add("d", key=registry_key("d"))
    for one, other in (("a", "b"), ("a", "c"), ("c", "d")):
        fabric.link(one, other)
    fabric.run(70)  # a minute until it enrols again: the tombstone of its entry comes after its first one
    assert fabric.equal()
    assert [payloads(fabric, name) for name in "abcd"] == [told] * 4
    assert not forged(fabric)
    record = fabric.engines["d"].replica.get("r:a")
    assert record is not None
    assert record.spec is not None
    assert record.spec.payload == advert("a", OTHER)
    assert {item.section.origin for item in held(fabric.engines["d"].replica) if is_sealed(item)} == {"b"}


def test_what_is_sealed_with_an_identity_that_comes_later_is_not_passed() -> None:
    """Two relays bring its pushes, the later one first: with the entry that stands its seal does not hold."""
    fabric = fabric_of("b")
    fabric.perform("b", fabric.engines["b"].connected("p", fabric.now()))
    chain, reader = ("a", 9), fabric.engines["b"]
    hello = Hello("p", 1, {}, {}, 0, (), fabric.now().wall_ms)
    anew = sealed(Item("r:a", 3, 0, SPEC, section(7, "a", payload=advert("a", OTHER), generation=9, seq=1)), OTHER)
    grant = sealed(Item("k:1", 1, 0, SPEC, section(8, "a", generation=9, seq=2)), OTHER)
    first = Push(1, (Segment(chain, 1, 2, (Entry(2, grant),)),))
    second = Push(2, (Segment(chain, 0, 1, (Entry(1, anew),)),))
    for message in (hello, Drain(1, 1, 0, (living(1),)), first, second):
        fabric.perform("b", reader.receive("p", message, fabric.now()))
    assert reader.replica.vector[chain] == 1
    fabric.perform("b", reader.receive("p", replace(first, frame=3), fabric.now()))
    assert reader.replica.vector[chain] == 2
    assert payloads(fabric, "b")["k:1", SPEC] == b"p"


def test_a_walk_brings_the_roster_first() -> None:
    """Else what is sealed with an identity that comes later would be refused, and its position claimed."""
    chain, fabric = ("a", 9), Fabric()
    spec = section(2, "a", payload=advert("a", OTHER), generation=9, seq=99)
    held_by_b = [sealed(Item("r:a", 3, 0, SPEC, spec), OTHER)]
    held_by_b += [
        sealed(Item(f"k:{seq}", 1, 0, SPEC, section(2, "a", generation=9, seq=seq)), OTHER) for seq in range(1, 99)
    ]
    for name, items in (("b", held_by_b), ("c", [living(1)])):
        replica = Replica(name)
        for item in items:
            replica.apply(item)
        replica.vector = {("a", 1): 1, chain: 99} if name == "b" else {("a", 1): 1}
        fabric.add(name, replica, key=registry_key(name), digest_interval_s=5, walk_buckets=4096)
    fabric.drop = lambda src, dst, message: isinstance(message, Push | Drain)
    fabric.link("b", "c")
    reader = fabric.engines["c"].replica
    assert fabric.run(30, until=lambda: chain in reader.vector)
    assert all(reader.get(item.key) is not None for item in held_by_b)
    assert not forged(fabric)


def test_a_start_leaves_what_it_has_sealed_and_seals_what_it_had_not() -> None:
    fabric = Fabric()
    fabric.add("a", advert=advert("a"))  # a version that did not seal
    fabric.run(1)
    written(fabric, "a")
    before = payloads(fabric, "a")
    replica = fabric.engines["a"].replica
    for seals_anew in (True, False):
        dots = {item.section.dot for item in held(replica) if is_sealed(item)}
        fabric.add("a", replica, key=registry_key("a"))
        now_held = [item for item in held(replica) if is_sealed(item)]
        assert all(item.section.seal for item in [*now_held, *held(replica, "r:a")[:1]])
        assert dots.isdisjoint(item.section.dot for item in now_held) is seals_anew
        assert payloads(fabric, "a") == before
    fabric.add("b", key=registry_key("b"))
    fabric.link("a", "b")
    assert fabric.run(20, until=fabric.equal)
    assert not forged(fabric)


def test_what_is_sealed_again_gives_way_to_what_was_written_since() -> None:
    fabric = fabric_of("a", "b")
    fabric.link("a", "b")
    fabric.run(2)
    written(fabric, "a")
    assert fabric.run(5, until=fabric.equal)
    fabric.unlink("a", "b")
    fabric.run(1)
    fabric.perform("b", fabric.engines["b"].amend("n:kept", b"later", fabric.now()))
    fabric.run(1)
    for _ in fabric.engines["a"]._writes.restating("a"):
        pass
    fabric.link("a", "b")
    assert fabric.run(20, until=fabric.equal)
    assert payloads(fabric, "a")["n:kept", INTENT] == b"later"


def test_what_nothing_can_stand_above_is_left() -> None:
    fabric = fabric_of("a")
    engine = fabric.engines["a"]
    engine.replica.apply(Item("k:9", 1, 0, END, section(HLC_MAX, "z", generation=7)))
    fabric.perform("a", engine.put("r:z", b"", fabric.now()))
    fabric.perform("a", engine.forget("z", b"", fabric.now()))
    assert [item.section.origin for item in held(engine.replica, "k:9")] == ["z"]
