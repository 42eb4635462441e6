"""Fresh writes, pushed: in frames that are acknowledged, to whom they are new, over the shortest way."""

from random import Random

import pytest

from federation.effects import Effect, Send
from federation.engine import Engine
from federation.messages import Ack, Entry, Graft, Hello, Message, Prune, Push, Segment
from federation.record import Item, SectionKind
from federation.wire import encode
from tests.support.fabric import Fabric
from tests.unit.federation.states import section

SPEC = SectionKind.SPEC


def with_peers(*peers: str, **config: int) -> tuple[Fabric, Engine]:
    """A registry, and peers that say only what they are told to."""
    fabric = Fabric()
    engine = fabric.add("eu", **config)
    for peer in peers:
        engine.connected(peer, fabric.now())
        engine.receive(peer, Hello(peer, 1, dict(engine.replica.vector), {}, 0, (), 0), fabric.now())
    return fabric, engine


def pushes(effects: list[Effect], peer: str) -> list[Push]:
    return [e.message for e in effects if isinstance(e, Send) and e.peer == peer and isinstance(e.message, Push)]


def register(fabric: Fabric, engine: Engine, key: str) -> list[Effect]:
    return engine.register(key, b"x", fabric.now(), incarnation=1, judgement=b"online")[1]


def push_of(chain: tuple[str, int], after: int, upto: int, hops: int = 0) -> Push:
    entries = [
        Entry(seq, Item(f"n:{seq}", 1, 0, SPEC, section(5, chain[0], generation=chain[1], seq=seq)))
        for seq in range(after + 1, upto + 1)
    ]
    return Push(1, (Segment(chain, after, upto, tuple(entries), hops),))


def test_a_write_is_pushed_at_once_and_once() -> None:
    fabric, engine = with_peers("us")
    (push,) = pushes(register(fabric, engine, "n:a"), "us")
    (segment,) = push.segments
    assert segment.chain == engine.replica.chain
    assert segment.upto == engine.replica.next_seq - 1
    assert {entry.item.key for entry in segment.entries} == {"n:a"}
    assert pushes(engine.tick(fabric.now()), "us") == []


def test_links_at_one_place_get_one_push_that_is_put_together_and_encoded_once() -> None:
    fabric, engine = with_peers("us", "asia", "late")
    engine.disconnected("late", fabric.now())
    register(fabric, engine, "n:a")
    engine.connected("late", fabric.now())
    engine.receive("late", Hello("late", 1, {engine.replica.chain: 1}, {}, 0, (), 0), fabric.now())
    effects = register(fabric, engine, "n:b")
    (us,), (asia,) = pushes(effects, "us"), pushes(effects, "asia")
    assert us is asia
    assert encode(us) is encode(asia)
    (late,) = pushes(effects, "late")
    assert late.segments[0].entries == us.segments[0].entries


def test_what_was_written_twice_while_the_link_was_full_goes_once() -> None:
    fabric, engine = with_peers("us", window_frames=1)
    register(fabric, engine, "n:a")
    for _ in range(5):
        assert pushes(register(fabric, engine, "n:b"), "us") == []
    (push,) = pushes(engine.receive("us", Ack(1), fabric.now()), "us")
    (segment,) = push.segments
    assert sorted(entry.item.kind for entry in segment.entries) == [SPEC, SectionKind.JUDGEMENT]
    assert segment.upto == engine.replica.next_seq - 1


@pytest.mark.parametrize("seed", range(5))
def test_on_each_link_the_numbers_of_frames_grow(seed: int) -> None:
    """Whichever links get the same push, and whatever they have had before: an acknowledgement is of all up to its
    number."""
    rng = Random(seed)
    fabric, engine = with_peers("us", "asia", window_frames=4, frame_items=2, push_when_asked=True)
    sent: dict[str, list[int]] = {"us": [], "asia": []}
    for _ in range(200):
        engine.put(f"k:{rng.choice('abcd')}", rng.randbytes(4), fabric.now())
        effects = engine.push(fabric.now()) if rng.random() < 0.3 else []
        peer = rng.choice(["us", "asia"])
        if sent[peer] and rng.random() < 0.3:
            effects += engine.receive(peer, Ack(sent[peer][-1]), fabric.now())
        for name, frames in sent.items():
            frames += [push.frame for push in pushes(effects, name)]
    for frames in sent.values():
        assert len(frames) > 20
        assert frames == sorted(set(frames))
    assert set(sent["us"]) & set(sent["asia"]), "none was shared"


def test_a_push_takes_room_on_each_link_that_gets_it() -> None:
    fabric, engine = with_peers("us", "asia", window_frames=1)
    effects = register(fabric, engine, "n:a")
    (us,), (asia,) = pushes(effects, "us"), pushes(effects, "asia")
    assert us is asia
    later = register(fabric, engine, "n:b")
    assert pushes(later, "us") == pushes(later, "asia") == []
    assert len(pushes(engine.receive("asia", Ack(asia.frame), fabric.now()), "asia")) == 1


def test_frames_that_are_never_acknowledged_make_room_after_a_while() -> None:
    fabric, engine = with_peers("us", window_frames=1)
    register(fabric, engine, "n:a")
    assert pushes(register(fabric, engine, "n:b"), "us") == []
    fabric.now_s += engine.config.frame_lost_s + 1
    assert len(pushes(engine.tick(fabric.now()), "us")) == 1


def test_what_one_tells_us_is_relayed_to_who_does_not_hear_it() -> None:
    fabric, engine = with_peers("us", "as")
    effects = engine.receive("us", push_of(("x", 1), 0, 2), fabric.now())
    (push,) = pushes(effects, "as")
    assert (push.segments[0].chain, push.segments[0].upto, push.segments[0].hops) == (("x", 1), 2, 1)
    assert pushes(effects, "us") == [], "it has what it gave us"


def test_a_relay_that_tells_later_over_no_fewer_hops_is_asked_to_stop() -> None:
    fabric, engine = with_peers("us", "as")
    engine.receive("us", push_of(("x", 1), 0, 1, hops=1), fabric.now())
    assert prunes(engine.receive("as", push_of(("x", 1), 0, 1, hops=1), fabric.now())) == [Prune(("x",))]
    assert grafts(engine.disconnected("us", fabric.now())) == [Graft(("x",))], "and asked again, when the other is gone"


def test_a_relay_over_fewer_hops_is_not_asked_to_stop() -> None:
    fabric, engine = with_peers("us", "as")
    engine.receive("us", push_of(("x", 1), 0, 1, hops=2), fabric.now())
    assert prunes(engine.receive("as", push_of(("x", 1), 0, 1, hops=1), fabric.now())) == []


def test_nor_is_the_only_one_that_was_not_asked_yet() -> None:
    """What the other had under way when it was asked to stop came first: no more of it will come."""
    fabric, engine = with_peers("us", "as")
    engine.receive("us", push_of(("x", 1), 0, 1), fabric.now())
    assert prunes(engine.receive("as", push_of(("x", 1), 0, 1), fabric.now())) == [Prune(("x",))]
    engine.receive("as", push_of(("x", 1), 1, 2), fabric.now())
    assert prunes(engine.receive("us", push_of(("x", 1), 1, 2), fabric.now())) == []


def test_nor_when_the_chain_came_last_from_who_was_asked_for_another_of_that_origin() -> None:
    fabric, engine = with_peers("us", "as")
    engine.receive("as", push_of(("x", 2), 0, 1), fabric.now())
    engine.receive("us", push_of(("x", 1), 0, 1), fabric.now())
    assert prunes(engine.receive("as", push_of(("x", 1), 0, 1), fabric.now())) == [Prune(("x",))]
    assert prunes(engine.receive("us", push_of(("x", 2), 0, 1), fabric.now())) == []


def test_nor_is_an_origin_itself() -> None:
    fabric, engine = with_peers("us", "as")
    engine.receive("as", push_of(("us", 1), 0, 1, hops=0), fabric.now())
    assert prunes(engine.receive("us", push_of(("us", 1), 0, 1), fabric.now())) == []


def prunes(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Prune)]


def grafts(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Graft)]


def test_who_asks_us_to_stop_still_gets_what_we_write_ourselves() -> None:
    fabric, engine = with_peers("us", "as")
    engine.receive("as", push_of(("x", 1), 0, 1), fabric.now())
    engine.receive("us", Prune(("x", "eu")), fabric.now())
    assert pushes(engine.receive("as", push_of(("x", 1), 1, 2), fabric.now()), "us") == []
    assert len(pushes(register(fabric, engine, "n:a"), "us")) == 1
    engine.receive("us", Graft(("x",)), fabric.now())
    (push,) = pushes(engine.receive("as", push_of(("x", 1), 2, 3), fabric.now()), "us")
    assert (push.segments[0].after, push.segments[0].upto) == (2, 3), "from now on; before that it pulls"


def test_names_that_a_peer_invents_are_not_kept() -> None:
    fabric, engine = with_peers("us")
    engine.receive("us", Prune(tuple(f"x{number}" for number in range(100))), fabric.now())
    engine.receive("us", Push(1, tuple(Segment(("x", n), 5, 6, ()) for n in range(100))), fabric.now())
    link = engine.links["us"]
    assert link.pruned == set()
    assert len(link.cursor) <= len(engine.replica.vector)
