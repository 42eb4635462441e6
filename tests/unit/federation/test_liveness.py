"""Who is shown as online: only whom its owner vouches for, and only as long as the owner can be heard."""

import pytest

from federation import liveness as liveness_module
from federation.clock import Now
from federation.effects import Send
from federation.engine import Engine
from federation.liveness import Standing
from federation.messages import Beat, Beats, Entry, Hello, Message, Push, Segment, Unchanged, Watermark, Watermarks
from federation.record import Item, Section, SectionKind
from tests.support.fabric import Fabric
from tests.support.states import record_of

NODE = "n:a"


def fabric_of(*names: str) -> tuple[Fabric, list[Engine]]:
    fabric = Fabric()
    return fabric, [fabric.add(name) for name in names]


def beat(fabric: Fabric, name: str, key: str = NODE, *, register: bool = False) -> None:
    engine = fabric.engines[name]
    if register:
        _, effects = engine.register(key, b"x", fabric.now(), incarnation=1, judgement=b"online")
    else:
        token, effects = engine.heartbeat(key, fabric.now(), judgement=b"online", metrics=b"m")
        assert token is not None
    fabric.perform(name, effects)


def judge(fabric: Fabric, name: str, word: bytes) -> None:
    fabric.perform(name, fabric.engines[name].judge(NODE, word, fabric.now()))


def seen(fabric: Fabric, name: str, key: str = NODE) -> Standing:
    standing = fabric.engines[name].standing(key, fabric.now())
    assert standing is not None
    return standing


def shown_online(fabric: Fabric, name: str) -> bool:
    standing = seen(fabric, name)
    return standing.reachable and standing.judgement == b"online"


def but_marks(src: str, dst: str, message: Message) -> bool:
    """What a link loses that brings marks and nothing else."""
    return not isinstance(message, Watermarks)


# The three conditions of a watermark. Drop any one, and the test of it shows a dead or moved node as online


def test_a_mark_counts_once_all_that_its_owner_had_said_is_here() -> None:
    """The owner said that the node is dead; its mark overtakes that word."""
    fabric, _ = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    assert fabric.run(10, until=lambda: fabric.engines["us"].replica.get(NODE) is not None)
    fabric.run(3)
    assert shown_online(fabric, "us")
    fabric.drop = but_marks
    judge(fabric, "eu", b"offline")
    told_s = fabric.now_s
    fabric.run(5)
    age_s = seen(fabric, "us").as_of_s
    assert fabric.now_s - age_s <= told_s + 0.1, "no later than the last moment for which it has all words"
    fabric.run(10)
    assert not shown_online(fabric, "us"), "and so it is not shown as fresh"


def test_a_mark_vouches_only_for_words_that_its_owner_knows_to_have_said() -> None:
    """The owner has lost its store and knows nothing of the node; others still hold its old word."""
    fabric, _ = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    fabric.run(5)
    assert shown_online(fabric, "us")
    fabric.unlink("eu", "us")
    del fabric.engines["eu"]
    fabric.run(1)
    fabric.add("eu")
    fabric.mesh()
    fabric.run(20)
    assert fabric.engines["eu"].reachable("us", fabric.now())
    assert fabric.engines["us"].reachable("eu", fabric.now()), "the owner is there"
    assert not shown_online(fabric, "us"), "but nobody hears the node"
    beat(fabric, "eu")
    assert fabric.run(10, until=lambda: shown_online(fabric, "us")), "until it beats there again"


def test_a_mark_does_not_vouch_for_a_node_that_its_owner_has_lost() -> None:
    """The node moved from eu to as, and died there. us hears eu, and has not heard of the move."""
    fabric, (eu, us, _) = fabric_of("eu", "us", "as")
    fabric.link("eu", "us")
    fabric.link("eu", "as")
    beat(fabric, "eu", register=True)
    fabric.run(5)
    assert shown_online(fabric, "us")
    fabric.drop = lambda src, dst, message: dst == "us" and but_marks(src, dst, message)
    beat(fabric, "as")
    fabric.run(2)
    record = eu.replica.get(NODE)
    assert record is not None
    assert record.judgement is not None
    assert record.judgement.origin == "as"
    fabric.run(10)
    assert us.reachable("eu", fabric.now())
    assert seen(fabric, "us").owner == "eu"
    assert not shown_online(fabric, "us")


def test_a_later_start_of_the_owner_vouches_for_what_an_earlier_one_said() -> None:
    fabric, (eu, _) = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    fabric.run(5)
    held = [record_of(record.state()) for record in eu.replica.records()]
    kept = type(eu.replica).restore("eu", held, eu.replica.meta())
    fabric.unlink("eu", "us")
    fabric.add("eu", kept)
    fabric.mesh()
    fabric.run(5)
    assert kept.generation > eu.replica.generation
    assert shown_online(fabric, "us")


# Owners that can be heard, directly or through anybody


def test_an_owner_that_cannot_be_heard_makes_nobody_offline_nor_online() -> None:
    fabric, _ = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    fabric.run(5)
    fabric.unlink("eu", "us")
    assert fabric.run(15, until=lambda: not seen(fabric, "us").reachable)
    standing = seen(fabric, "us")
    assert standing.judgement == b"online", "its owner's last word, marked as unreachable"
    assert 10 < standing.as_of_s < 12


def test_marks_are_relayed_and_grow_old_on_the_way() -> None:
    fabric, (_, us, _) = fabric_of("eu", "us", "as")
    fabric.link("eu", "as")
    fabric.link("as", "us")
    beat(fabric, "eu", register=True)
    fabric.run(8)
    assert us.reachable("eu", fabric.now())
    assert shown_online(fabric, "us")
    fabric.unlink("eu", "as")
    fabric.run(15)
    assert us.reachable("as", fabric.now())
    assert not us.reachable("eu", fabric.now()), "the relay's own marks are not its"


def test_who_fails_over_is_online_again_everywhere() -> None:
    fabric, _ = fabric_of("eu", "us", "as")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    fabric.run(5)
    for other in ("us", "as"):
        fabric.unlink("eu", other)
    fabric.run(15)
    assert not shown_online(fabric, "as")
    beat(fabric, "us")
    assert fabric.run(5, until=lambda: shown_online(fabric, "as"))
    assert seen(fabric, "as").owner == "us"


# Single messages


def heard(engine: Engine, *marks: Watermark, at_s: float, sent_s: float | None = None) -> None:
    now = Now(at_s, 0)
    engine.receive("us", Watermarks(0, int((sent_s if sent_s is not None else at_s) * 1000), marks), now)


@pytest.fixture
def eu() -> Engine:
    """It knows one peer, whose clock runs with its own."""
    fabric, (engine, _) = fabric_of("eu", "us")
    fabric.link("eu", "us")
    fabric.run(3)
    return engine


def own_start(engine: Engine) -> int:
    return engine.links["us"].generation


@pytest.mark.parametrize(
    ("at_s", "sent_s", "age_ms", "reachable"),
    [
        (100.0, 100.0, 0, True),
        (100.0, 100.0, 9_000, True),
        (100.0, 100.0, 11_000, False),  # it says itself that it is old
        (100.0, 95.0, 0, True),
        (100.0, 88.0, 0, False),  # it waited in a buffer for twelve seconds
        (100.0, 95.0, 6_000, False),  # both
    ],
)
def test_how_old_a_mark_is(eu: Engine, at_s: float, sent_s: float, age_ms: int, reachable: bool) -> None:
    heard(eu, Watermark("us", own_start(eu), (), age_ms), at_s=at_s, sent_s=sent_s)
    assert eu.reachable("us", Now(at_s, 0)) is reachable


def test_a_mark_that_waited_in_a_buffer_is_as_old_as_that() -> None:
    fabric, (eu, _) = fabric_of("eu", "us")
    fabric.link("eu", "us")
    fabric.run(3)
    heard(eu, Watermark("us", own_start(eu), (), 0), at_s=100.0, sent_s=88.0)
    assert not eu.reachable("us", Now(100.0, 0))


def test_an_older_mark_takes_nothing_back(eu: Engine) -> None:
    heard(eu, Watermark("us", own_start(eu), (), 0), at_s=100.0)
    heard(eu, Watermark("us", own_start(eu), (), 50_000), at_s=101.0)
    assert eu.reachable("us", Now(101.0, 0))


def test_a_mark_of_a_start_that_is_over_says_nothing(eu: Engine) -> None:
    clock = eu.links["us"].wall_ms
    heard(eu, Watermark("us", own_start(eu) - 1, (), 0), at_s=100.0)
    assert eu.links["us"].wall_ms == clock != 0, "nor does its clock"
    assert not eu.reachable("us", Now(100.0, 0))


# Relayed marks that say what they said go by their names


def relay() -> Engine:
    """A registry that "us" and "as" have greeted."""
    engine = Fabric().add("eu")
    for peer in ("us", "as"):
        engine.connected(peer, Now(99.0, 0))
        engine.receive(peer, Hello(peer, 1, {}, {}, 0, (), 0), Now(99.0, 0))
    return engine


def told(engine: Engine, mark: Watermark, at_s: float) -> Watermarks:
    """What "us" is told when "as" has told us a mark."""
    engine.receive("as", Watermarks(0, int(at_s * 1000), (Watermark("as", 1, (), 0), mark)), Now(at_s, 0))
    (message,) = [
        e.message
        for e in engine.tick(Now(at_s, 0))
        if isinstance(e, Send) and e.peer == "us" and isinstance(e.message, Watermarks)
    ]
    return message


def test_a_relayed_mark_is_told_whole_when_it_changed_and_now_and_then() -> None:
    engine = relay()
    first = told(engine, relayed(5), 100.0)
    assert [mark.owner for mark in first.marks] == ["eu", "as", "xx"]
    second = told(engine, relayed(5, age_ms=30), 101.0)
    assert [mark.owner for mark in second.marks] == ["eu"], "its own is always whole"
    assert second.unchanged == (
        Unchanged(Watermark("as", 1, (), 0).name, 0),
        Unchanged(relayed(5).name, 30),
    )
    assert relayed(6) in told(engine, relayed(6), 102.0).marks
    again = [told(engine, relayed(6), 103.0 + second) for second in range(16)]
    assert [relayed(6) in message.marks for message in again] == ([False] * 7 + [True]) * 2


def test_of_two_that_tell_each_other_the_same_at_once_the_first_by_name_goes_on() -> None:
    engine = relay()
    told(engine, relayed(5), 100.0)
    for peer in ("us", "as"):
        assert "xx" not in engine.links[peer].marks_left
    both = (Watermark("us", 1, (), 0), relayed(5))
    engine.receive("us", Watermarks(0, 100_000, both), Now(100.0, 0))
    assert engine.links["us"].marks_left == set(), "eu goes on"
    engine.links["us"].marks_left.add("xx")
    assert relayed(5).name not in {name for name, _ in told(engine, relayed(5), 101.0).unchanged}
    assert relayed(5).name in {name for name, _ in told(engine, relayed(5), 102.0).unchanged}, "it has stopped"
    assert engine.links["us"].marks_left == set()


def test_the_second_by_name_leaves_it_to_the_first() -> None:
    engine = relay()
    engine.receive("us", Watermarks(0, 100_000, (Watermark("us", 1, (), 0), relayed(5))), Now(100.0, 0))
    engine.tick(Now(100.0, 0))
    engine.receive("as", Watermarks(0, 100_000, (Watermark("as", 1, (), 0), relayed(5))), Now(100.0, 0))
    assert engine.links["as"].marks_left == {"xx"}


def named(engine: Engine, *marks: Unchanged, at_s: float) -> None:
    own = Watermark("us", own_start(engine), (), 0)
    engine.receive("us", Watermarks(0, int(at_s * 1000), (own,), marks), Now(at_s, 0))


def test_a_mark_is_known_by_its_name_only_as_it_was_told_last_over_that_link(eu: Engine) -> None:
    own = Watermark("us", own_start(eu), (), 0)
    named(eu, Unchanged(relayed(5).name, 0), at_s=100.0)
    assert not eu.reachable("xx", Now(100.0, 0)), "it was never told"
    heard(eu, own, relayed(5), at_s=101.0)
    named(eu, Unchanged(relayed(5).name, 500), at_s=111.0)
    assert eu._liveness._latest["xx"] == liveness_module.Mark(5, ((5, 0),), 110.5)
    heard(eu, own, relayed(6), at_s=112.0)
    named(eu, Unchanged(relayed(5).name, 0), at_s=130.0)
    assert not eu.reachable("xx", Now(130.0, 0)), "it changed since"


def test_of_two_marks_of_one_name_neither_is_known_by_it(eu: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watermark, "name", 7)
    own, other = Watermark("us", own_start(eu), (), 0), Watermark("yy", 1, (), 0)
    heard(eu, own, relayed(5), other, at_s=100.0)
    named(eu, Unchanged(7, 0), at_s=120.0)
    assert not eu.reachable("xx", Now(120.0, 0))
    assert not eu.reachable("yy", Now(120.0, 0))


INVENTED = 2**60


def relayed(generation: int, age_ms: int = 0) -> Watermark:
    return Watermark("xx", generation, ((generation, 0),), age_ms)


def generation_held(engine: Engine) -> int:
    return engine._liveness._latest["xx"].generation


def test_who_hears_an_owner_itself_needs_nobodys_word_for_it(eu: Engine) -> None:
    eu.connected("xx", Now(100.0, 0))
    eu.receive("xx", Hello("xx", 5, {}, {}, 0, (), 0), Now(100.0, 0))
    eu.receive("xx", Watermarks(0, 100_000, (relayed(5),)), Now(100.0, 0))
    first = Watermark("us", own_start(eu), (), 0)
    heard(eu, first, relayed(INVENTED), at_s=101.0)
    assert generation_held(eu) == 5
    eu.tick(Now(101.5, 0))
    assert eu.links["us"].marks_sent["xx"] == 100.0, "who believes it is told better"
    heard(eu, first, relayed(6), at_s=105.0)
    assert generation_held(eu) == 6, "once its own link is silent, others' word counts: it may have started anew"


def test_an_invented_start_does_not_shut_out_the_owner_for_good(eu: Engine) -> None:
    first = Watermark("us", own_start(eu), (), 0)
    heard(eu, first, relayed(INVENTED), at_s=100.0)
    heard(eu, first, relayed(5, age_ms=500), at_s=101.0)
    assert generation_held(eu) == 5
    heard(eu, first, relayed(INVENTED, age_ms=2_000), at_s=102.0)
    assert generation_held(eu) == 5, "nor does it come back from who relays it still"


def test_what_others_say_of_us_is_not_listened_to(eu: Engine) -> None:
    heard(eu, Watermark("us", own_start(eu), (), 0), Watermark("eu", 2**60, (), 0), at_s=100.0)
    assert "eu" not in eu._liveness.owners()


def test_a_mark_too_old_for_anything_is_not_kept_nor_relayed(eu: Engine) -> None:
    week_ms = int(eu.config.eviction_s * 1000)
    heard(eu, Watermark("us", own_start(eu), (), 0), Watermark("xx", 1, (), week_ms + 1_000), at_s=100.0)
    assert "xx" not in eu._liveness.owners()


def test_owners_that_a_peer_invents_are_few(eu: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness_module, "MAX_OWNERS", 10)
    first = Watermark("us", own_start(eu), (), 0)
    heard(eu, first, *(Watermark(f"x{number}", 1, (), 0) for number in range(100)), at_s=100.0)
    assert len(list(eu._liveness.owners())) == 10
    assert len(eu.links["us"].marks_sent) <= 11
    eu.receive("us", first_push_of(eu, "late"), Now(100.0, 0))
    heard(eu, first, Watermark("late", 1, (), 0), at_s=101.0)
    assert eu.reachable("late", Now(101.0, 0)), "who is in the roster has its place"


def first_push_of(engine: Engine, name: str) -> Push:
    item = Item(f"r:{name}", 1, 0, SectionKind.SPEC, Section(1, name, 0, b"", 1, 1))
    return Push(1, (Segment((name, 1), 0, 1, (Entry(1, item),)),))


def test_starts_that_a_relay_invents_take_no_room_of_who_is_heard(eu: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness_module, "MAX_CHAINS", 10)
    many = tuple((generation, 1) for generation in range(8))
    first = Watermark("us", own_start(eu), many, 0)
    heard(eu, first, *(Watermark(f"x{number}", 9, many, 0) for number in range(5)), at_s=100.0)
    assert list(eu._liveness.owners()) == ["us"]
    heard(eu, first, Watermark("x", 9, many[:2], 0), at_s=101.0)
    assert list(eu._liveness.owners()) == ["us", "x"]
    assert eu.reachable("us", Now(101.0, 0))


# Measurements


def test_measurements_travel_and_say_nothing_of_liveness() -> None:
    fabric, (_, us) = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    fabric.run(5)
    fabric.drop = lambda src, dst, message: isinstance(message, Watermarks)
    fabric.run(15)
    beat(fabric, "eu")
    record = us.replica.get(NODE)
    assert record is not None
    assert fabric.run(5, until=lambda: record.metrics == b"m")
    assert not shown_online(fabric, "us")


def test_measurements_older_than_any_use_are_not_taken_in_nor_relayed() -> None:
    fabric, (eu, us) = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    fabric.run(5)
    record = us.replica.get(NODE)
    assert record is not None
    assert record.judgement is not None
    week_ms = int(us.config.eviction_s * 1000)
    us.receive("eu", Beats(eu.replica.chain, (Beat(record.judgement.seq, week_ms + 1, b"old"),)), fabric.now())
    assert record.metrics == b""


def test_what_was_measured_of_a_node_that_was_registered_anew_is_not_told() -> None:
    """It was due, and its record was collected and made again: of that one nothing was measured yet."""
    fabric, (eu, _) = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    fabric.run(5)
    beat(fabric, "eu")
    record = eu.replica.get(NODE)
    assert record is not None
    eu.measured(NODE, b"other", fabric.now())
    record.metrics_at_s = float("-inf")
    fabric.run(5)


def test_measurements_that_say_nothing_new_do_not_travel() -> None:
    fabric, _ = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    for _ in range(10):
        beat(fabric, "eu")
        fabric.run(2)
    assert fabric.kinds["Beats"] == 1


@pytest.mark.parametrize(
    ("metrics", "age_ms", "seq_offset", "kept"),
    [
        (b"new", 0, 0, b"new"),
        (b"old", 50_000, 0, b"m"),  # older than what is held
        (b"ancient", 10**12, 0, b"m"),
        (b"other", 0, 5, b"m"),  # of a judgement that is not known here
    ],
)
def test_the_newest_measurement_stays(metrics: bytes, age_ms: int, seq_offset: int, kept: bytes) -> None:
    fabric, (eu, us) = fabric_of("eu", "us")
    fabric.mesh()
    beat(fabric, "eu", register=True)
    beat(fabric, "eu")
    fabric.run(20)
    record = us.replica.get(NODE)
    assert record is not None
    assert record.judgement is not None
    assert record.metrics == b"m"
    message = Beats(eu.replica.chain, (Beat(record.judgement.seq + seq_offset, age_ms, metrics),))
    us.receive("eu", message, fabric.now())
    assert record.metrics == kept
