"""One registry's part as a whole: greetings, starts, its own entry, and what peers cannot make of it."""

from random import Random

import pytest

from federation import engine as engine_module
from federation.clock import MAX_GENERATION, Now, Vector, hlc_of
from federation.columns import NUMBER_MAX
from federation.config import Config
from federation.effects import Alert, Close, Effect, Send, Store, StoreMeta
from federation.engine import Engine
from federation.messages import PROTOCOL_VERSION, Announce, Hello, Message, Pull, Watermark, Watermarks
from federation.record import MAX_LIFE, Item, SectionKind
from federation.replica import Replica
from federation.wire import encode
from tests.support.fabric import START_MS, Fabric
from tests.unit.federation.states import section


def now(second: float = 0) -> Now:
    return Now(1000 + second, START_MS + int(second * 1000))


def started(*held: Item, **config: float) -> Engine:
    replica = Replica("me")
    for item in held:
        replica.apply(item)
    return Engine(Config("me", b"me", **config), replica, Random(1), now())


def hello(peer: str = "p", generation: int = 7, vector: Vector | None = None, wall_ms: int = START_MS) -> Hello:
    return Hello(peer, generation, vector or {}, {}, 0, (), wall_ms)


def greeted(engine: Engine, *peers: str) -> None:
    for peer in peers:
        engine.connected(peer, now())
        engine.receive(peer, hello(peer), now())


def sent(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


# Greetings


def test_a_link_begins_with_a_hello_from_both_sides() -> None:
    engine = started()
    (ours,) = sent(engine.connected("p", now()))
    assert isinstance(ours, Hello)
    assert (ours.registry_id, ours.generation, ours.vector) == ("me", *engine.replica.meta()[:2])
    mark, pull = sent(engine.receive("p", hello(vector={("p", 7): 3}), now()))
    assert isinstance(mark, Watermarks), "whose nodes it has, it vouches for at once"
    assert isinstance(pull, Pull), "what it has and we lack is asked for at once"
    assert engine.links["p"].greeted


def test_who_speaks_before_its_hello_is_greeted_again_and_not_listened_to() -> None:
    engine = started()
    engine.connected("p", now())
    mark = Watermarks(START_MS, 0, (Watermark("p", 7, (), 0),))
    assert sent(engine.receive("p", mark, now(1))) == [], "not at every message"
    (again,) = sent(engine.receive("p", mark, now(3)))
    assert isinstance(again, Hello)
    assert not engine.reachable("p", now(3))
    assert not engine.links["p"].greeted


def test_a_hello_that_is_lost_is_said_again() -> None:
    fabric = Fabric()
    engines = [fabric.add(name) for name in ("eu", "us")]
    lost: list[Message] = []

    def drop(src: str, dst: str, message: Message) -> bool:
        lose = isinstance(message, Hello) and len(lost) < 4
        lost.extend([message] if lose else [])
        return lose

    fabric.drop = drop
    fabric.link("eu", "us")
    assert fabric.run(20, until=lambda: all(e.links[p].greeted for e, p in zip(engines, ("us", "eu"), strict=True)))
    assert fabric.run(5, until=fabric.equal)


@pytest.mark.parametrize(
    "greeting",
    [
        Hello("p", 7, {}, {}, 0, (), START_MS, PROTOCOL_VERSION + 1),
        Hello("q", 7, {}, {}, 0, (), START_MS),  # the link was authenticated as another's
    ],
)
def test_a_hello_that_cannot_be_ends_the_link(greeting: Hello) -> None:
    engine = started()
    engine.connected("p", now())
    (close,) = engine.receive("p", greeting, now())
    assert isinstance(close, Close)
    assert close.peer == "p"
    assert not engine.links["p"].greeted


def test_a_hello_of_a_start_that_is_over_changes_nothing() -> None:
    engine = started()
    greeted(engine, "p")
    engine.receive("p", hello(generation=6, vector={("p", 6): 1}), now(1))
    assert (engine.links["p"].generation, engine.links["p"].vector) == (7, {})


def test_who_has_no_link_is_not_listened_to() -> None:
    engine = started()
    greeted(engine, "p")
    assert engine.receive("x", hello("x"), now()) == []
    engine.disconnected("p", now())
    assert engine.receive("p", hello(), now()) == []
    assert dict(engine.links) == {}


# Starts


def test_two_starts_in_one_moment_have_two_names() -> None:
    generations = {Engine(Config("me"), Replica("me"), Random(seed), now()).replica.generation for seed in range(20)}
    assert len(generations) == 20


@pytest.mark.parametrize("way", ["hello", "announce"])
def test_a_later_start_of_ours_that_a_peer_knows_is_not_written_to_again(way: str) -> None:
    """The store is lost and the clock went back: our generation is below one that we had."""
    engine = started()
    greeted(engine, "p")
    later = ("me", engine.replica.generation + 1_000_000_000)
    message = hello(vector={later: 5}) if way == "hello" else Announce({later: 5}, {}, 0, ())
    effects = engine.receive("p", message, now(1))
    assert engine.replica.generation > later[1]
    assert StoreMeta() in effects
    engine.register("n:a", b"x", now(1), incarnation=1, judgement=b"online")
    record = engine.replica.get("n:a")
    assert record is not None
    assert record.spec is not None
    assert record.spec.dot[:2] == engine.replica.chain
    assert record.spec.seq == 1


@pytest.mark.parametrize("generation", [MAX_GENERATION + 1, NUMBER_MAX])
def test_a_start_that_nobody_can_have_had_is_not_believed(generation: int) -> None:
    engine = started()
    greeted(engine, "p")
    before = engine.replica.generation
    engine.receive("p", hello(vector={("me", generation): 5}), now(1))
    engine.receive("p", Announce({("me", generation): 5}, {}, 0, ()), now(1))
    assert engine.replica.generation == before
    engine.replica.vector["me", generation] = 5
    again = Engine(engine.config, engine.replica, Random(2), now(2))
    assert encode(sent(again.connected("p", now(2)))[0])


# Its own entry


def entry_of(engine: Engine) -> bytes | None:
    record = engine.replica.get("r:me")
    return record.spec.payload if record is not None and record.exists and record.spec is not None else None


def test_it_enrols_once_and_again_when_it_says_something_else() -> None:
    engine = started()
    assert entry_of(engine) == b"me"
    seq = engine.replica.next_seq
    again = Engine(engine.config, engine.replica, Random(1), now(1))
    assert again.replica.next_seq == 1, "nothing was written"
    assert seq == 2
    moved = Engine(Config("me", advert=b"elsewhere"), engine.replica, Random(1), now(2))
    assert entry_of(moved) == b"elsewhere"


def test_who_is_deleted_from_the_roster_and_is_there_enrols_again() -> None:
    engine = started()
    for second in (1, 3, 5):
        engine.delete("r:me", b"by an operator", now(second))
        assert entry_of(engine) is None
        engine.tick(now(second))
        assert entry_of(engine) == b"me"
        engine.delete("r:me", b"by an operator", now(second))
        engine.tick(now(second + 0.9))
        assert entry_of(engine) is None, "at most once a second"
        engine.tick(now(second + 1))
        assert entry_of(engine) == b"me"


@pytest.mark.parametrize(
    "written",
    [
        Item("r:me", 3, 0, SectionKind.INTENT, section(9, "p")),
        Item("r:me", 3, 0, SectionKind.JUDGEMENT, section(9, "p")),
        Item("r:me", 2, 0, SectionKind.END, section(9, "p")),
    ],
)
def test_what_others_write_into_its_entry_does_not_stop_it(written: Item) -> None:
    engine = started(tombstone_min_age_s=30)
    engine.register("n:a", b"x", now(), incarnation=1, judgement=b"online")
    engine.tick(now(4))
    engine.delete("n:a", b"gone", now(4))
    engine.replica.apply(written)
    for second in range(5, 65):
        engine.tick(now(second))
    assert entry_of(engine) == b"me"


def test_a_name_that_is_used_up_is_told_of_and_the_registry_serves() -> None:
    engine = started(Item("r:me", MAX_LIFE, 0, SectionKind.END, section(9, "p")))
    effects = engine.tick(now(1))
    assert "not_enrolled" in {effect.code for effect in effects if isinstance(effect, Alert)}
    engine.register("n:a", b"x", now(1), incarnation=1, judgement=b"online")
    assert engine.owns("n:a")


# What peers cannot make of it


def test_who_tells_of_more_chains_than_there_can_be_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_CHAINS", 10)
    engine = started()
    greeted(engine, "p")
    told = [Announce({("x", number): 1}, {("x", number): 1}, 0, ()) for number in range(11)]
    closed = [[e for e in engine.receive("p", message, now(1)) if isinstance(e, Close)] for message in told]
    assert not any(closed[:10])
    assert len(closed[10]) == 1


def test_when_most_clocks_lie_what_is_written_can_still_be_written_over() -> None:
    engine = started()
    for peer in ("p", "q", "r"):
        engine.connected(peer, now())
        engine.receive(peer, hello(peer, wall_ms=2**62), now())
    for second in (3, 2, 1):
        engine.register("n:a", b"%d" % second, now(second), incarnation=1, judgement=b"online")
        record = engine.replica.get("n:a")
        assert record is not None
        assert record.spec is not None
        assert record.spec.payload == b"%d" % second
        assert record.spec.major > hlc_of(START_MS)


# What the shell is asked for


def test_positions_are_kept_after_the_records_that_they_speak_of() -> None:
    engine = started()
    _, effects = engine.register("n:a", b"x", now(), incarnation=1, judgement=b"online")
    kept = [effect for effect in effects if isinstance(effect, Store | StoreMeta)]
    assert kept[-1] == StoreMeta()
    assert Store("n:a") in kept


def test_what_is_kept_is_asked_for_before_it_is_sent() -> None:
    engine = started()
    greeted(engine, "p")
    _, effects = engine.register("n:a", b"x", now(), incarnation=1, judgement=b"online")
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Send) > max(index for index, kind in enumerate(kinds) if kind is not Send)


def test_it_owns_whom_it_judges() -> None:
    engine = started(
        Item("n:b", 1, 0, SectionKind.SPEC, section(1, "p", seq=1)),
        Item("n:b", 1, 0, SectionKind.JUDGEMENT, section(1, "p", seq=2)),
    )
    engine.register("n:a", b"x", now(), incarnation=1, judgement=b"online")
    engine.put("k:a", b"key", now())
    assert [key for key in ("n:a", "n:b", "k:a", "n:x") if engine.owns(key)] == ["n:a"]
    assert engine.standing("k:a", now()) is None
    assert engine.standing("n:x", now()) is None
    engine.delete("n:a", b"gone", now())
    assert not engine.owns("n:a")
