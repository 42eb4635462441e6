"""Catching up by position, where something goes on meanwhile or a chunk is lost."""

import pytest

from federation.engine import Engine
from federation.messages import DigestRequest, Drain, Hello, Message, Pull, Push
from federation.record import Item, Section, SectionKind
from tests.support.fabric import Fabric
from tests.support.rosters import registry_key

NODES = 12


def apart(**config: int) -> tuple[Fabric, Engine, Engine]:
    """`eu` holds nodes that `us` has never heard of; every frame takes one item."""
    fabric = Fabric(delay_s=0.3)
    eu, us = (fabric.add(name, frame_items=1, window_frames=4, **config) for name in ("eu", "us"))
    for index in range(NODES):
        _, effects = eu.register(f"n:{index}", b"old", fabric.now(), incarnation=1, judgement=b"online")
        fabric.perform("eu", effects)
    return fabric, eu, us


def held(engine: Engine) -> int:
    return sum(record.key.startswith("n:") and record.exists for record in engine.replica.records())


def test_what_is_replaced_under_way_travels_as_its_replacement() -> None:
    fabric, eu, us = apart()
    fabric.drop = lambda src, dst, message: isinstance(message, Push)  # only the drain may bring it
    fabric.link("eu", "us")
    fabric.run(30, until=lambda: held(us) > 0)
    assert held(us) < NODES, "the drain is under way"
    last = f"n:{NODES - 1}"
    _, effects = eu.register(last, b"new", fabric.now(), incarnation=1, judgement=b"online")
    fabric.perform("eu", effects)
    claimed = eu.replica.next_seq - 2  # before the replacement
    assert fabric.run(60, until=lambda: us.replica.vector.get(eu.replica.chain, 0) >= claimed)
    record = us.replica.get(last)
    assert record is not None
    assert record.spec is not None
    assert record.spec.payload == b"new"


def test_a_missing_chunk_makes_the_claim_void_and_it_is_asked_for_again() -> None:
    fabric, eu, us = apart()
    lost: list[Message] = []

    def drop(src: str, dst: str, message: Message) -> bool:
        if isinstance(message, Drain) and message.index == 4 and not lost:  # a registration
            lost.append(message)
            return True
        return False

    fabric.drop = drop
    fabric.link("eu", "us")
    done = fabric.run(30, until=lambda: us.replica.vector.get(eu.replica.chain, 0) > 0 and bool(lost))
    assert done
    assert held(us) == NODES, "no position without what it stands for"


def test_what_is_held_makes_the_claim_void() -> None:
    """The sender deleted more than its share a minute; what is not joined is not passed."""
    fabric, eu, us = apart(deletion_burst=2)
    fabric.link("eu", "us")
    assert fabric.run(60, until=fabric.equal)
    fabric.unlink("eu", "us")
    for index in range(NODES):
        fabric.perform("eu", eu.delete(f"n:{index}", b"gone", fabric.now()))
    end, seen = eu.replica.vector[eu.replica.chain], set()
    fabric.link("eu", "us")
    for _ in range(420):
        fabric.run(1)
        seen.add(held(us))
        assert us.replica.vector[eu.replica.chain] < end or held(us) == 0
    assert held(us) == 0
    assert len(seen) > 3, "a few a minute"


@pytest.mark.parametrize("way", ["a chunk is lost", "the link is lost"])
def test_a_drain_that_broke_is_asked_for_again_although_something_is_held(way: str) -> None:
    """No claim would be believed, but what it brings is needed; once it has brought everything, walks are cheaper."""
    fabric, _, us = apart()
    us._intake.holds.hold(("x", 1), 5, fabric.now_s)
    broken: list[Message] = []
    pulls: list[Message] = []

    def drop(src: str, dst: str, message: Message) -> bool:
        if isinstance(message, Pull) and src == "us":
            pulls.append(message)
        if isinstance(message, Drain) and message.index == 3 and not broken:
            broken.append(message)
            return True
        return isinstance(message, Push | DigestRequest)

    fabric.drop = drop
    fabric.link("eu", "us")
    assert fabric.run(30, until=lambda: bool(broken))
    if way == "the link is lost":
        fabric.unlink("eu", "us")
        fabric.link("eu", "us")
    assert fabric.run(30, until=lambda: held(us) == NODES)
    asked = len(pulls)
    fabric.run(30)
    assert len(pulls) == asked


def test_a_newer_request_ends_the_older_drain() -> None:
    fabric, _, us = apart()
    fabric.link("eu", "us")
    fabric.run(30, until=lambda: held(us) > 2)
    fabric.unlink("eu", "us")
    fabric.link("eu", "us")
    assert fabric.run(60, until=fabric.equal)
    assert held(us) == NODES


def test_who_never_answers_does_not_keep_us_from_asking_others() -> None:
    """It says that it has most of all, and is frozen, or lies."""
    fabric, eu, us = apart()
    us.connected("as", fabric.now())
    boast = Hello("as", 1, {("x", 1): 10**9}, {}, 0, (), 0)
    us.receive("as", boast, fabric.now())
    fabric.run(3)
    fabric.drop = lambda src, dst, message: isinstance(message, Push)
    fabric.link("eu", "us")
    assert fabric.run(30, until=lambda: us.replica.vector.get(eu.replica.chain, 0) > 0)
    assert held(us) == NODES


@pytest.mark.parametrize("way", ["drain", "walk", "nothing lacking"])
def test_it_has_caught_up_once_it_had_what_some_peer_had(way: str) -> None:
    fabric, eu, us = apart()
    if way == "walk":  # something was collected: a newcomer begins with a walk
        eu.replica.floor = {eu.replica.chain: 1}
    if way == "nothing lacking":
        us.replica.vector.update(eu.replica.vector)
    fabric.run(1)
    assert not us.caught_up, "it has heard nobody"
    fabric.link("eu", "us")
    assert not us.caught_up
    assert fabric.run(30, until=lambda: us.caught_up)
    assert way == "nothing lacking" or held(us) == NODES


def test_what_one_link_has_held_does_not_keep_us_from_the_others() -> None:
    fabric = Fabric()
    for name in ("a", "c"):
        fabric.add(name, key=registry_key(name))
    engine, now = fabric.engines["c"], fabric.now
    fabric.drop = lambda src, dst, message: isinstance(message, Push)
    fabric.link("a", "c")
    fabric.perform("c", engine.connected("z", now()))
    fabric.perform("c", engine.receive("z", Hello("z", 1, {}, {}, 0, (), now().wall_ms), now()))
    nobody_s = Item("k:x", 1, 0, SectionKind.SPEC, Section(1, "nobody", 0, b"", 1, 1))
    for index in range(5):
        fabric.perform("c", engine.receive("z", Drain(1, 1, 0, (nobody_s,)), now()))
        fabric.perform("a", fabric.engines["a"].put(f"k:{index}", b"", now()))
        assert fabric.run(5, until=lambda key=f"k:{index}": engine.replica.get(key) is not None), index
