"""Positions advance over what is complete, and no further."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import intake as intake_module
from federation.clock import Now
from federation.config import Config
from federation.core import Core
from federation.effects import Send
from federation.engine import Engine
from federation.guard import Guard
from federation.intake import MAX_PENDING, Intake
from federation.messages import Announce, DigestRequest, Drain, Entry, Hello, Pull, Push, Segment
from federation.record import Item, SectionKind
from federation.replica import Replica
from tests.unit.federation.states import section

CHAIN = ("a", 1)
NOW = Now(1000.0, 1_764_000_000_000)
LENGTH = 12
SPEC, _, JUDGEMENT, END = SectionKind


def taking(*, burst: int = 100) -> Intake:
    replica = Replica("me")
    replica.begin_generation(1, 0)
    core = Core(Config("me", deletion_burst=burst), replica, Random(1))
    return Intake(core, Guard(core))


def item(seq: int) -> Item:
    return Item(f"n:{seq}", 1, 0, SPEC, section(seq=seq))


def segment(after: int, upto: int, *items: Item) -> Segment:
    entries = items or tuple(item(seq) for seq in range(after + 1, upto + 1))
    return Segment(CHAIN, after, upto, tuple(Entry(one.section.seq, one) for one in entries))


def position(intake: Intake) -> int:
    return intake._core.replica.vector.get(CHAIN, 0)


def complete(given: set[int]) -> int:
    """The naive model: the end of what was given without a gap."""
    return next(seq for seq in range(LENGTH + 1) if seq + 1 not in given)


ENDS = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted)
INTERVALS = st.lists(ENDS.filter(lambda ends: ends[0] < ends[1]), max_size=10)


@given(INTERVALS)
def test_a_position_is_never_beyond_what_is_complete(intervals: list[list[int]]) -> None:
    intake, given_ = taking(), set[int]()
    for after, upto in intervals:
        intake.segment(segment(after, upto), NOW, peer="p", believed=True)
        given_ |= set(range(after + 1, upto + 1))
        assert position(intake) <= complete(given_)
        assert all(intake._core.replica.get(f"n:{seq}") for seq in range(1, position(intake) + 1))


@given(INTERVALS, st.data())
def test_what_is_complete_is_reached_in_any_order(intervals: list[list[int]], data: st.DataObject) -> None:
    reached = set()
    for order in (intervals, data.draw(st.permutations(intervals))):
        intake = taking()
        for after, upto in order:
            intake.segment(segment(after, upto), NOW, peer="p", believed=True)
        reached.add(position(intake))
    assert reached == {complete({seq for after, upto in intervals for seq in range(after + 1, upto + 1)})}


def test_several_that_came_early_follow_on_at_once() -> None:
    intake = taking()
    for after, upto in ((7, 9), (5, 7), (3, 5), (0, 3)):
        intake.segment(segment(after, upto), NOW, peer="p", believed=True)
    assert position(intake) == 9


def test_what_is_held_is_not_passed_by_what_came_early_either() -> None:
    intake = taking()
    intake.segment(segment(5, 8), NOW, peer="p", believed=True)
    intake.holds.hold(CHAIN, 7, NOW.mono_s)
    intake.segment(segment(0, 5), NOW, peer="p", believed=True)
    assert position(intake) == 6


@given(INTERVALS, st.sets(st.integers(1, LENGTH), min_size=1, max_size=3))
def test_no_order_passes_what_is_held(intervals: list[list[int]], held: set[int]) -> None:
    """Deletions beyond the origin's share: joined later, and until then no position passes them."""
    intake = taking(burst=0)
    replica = intake._core.replica
    for seq in held:
        replica.apply(Item(f"n:{seq}", 1, 0, SPEC, section(origin="b", seq=seq)))
    given_: set[int] = set()
    for after, upto in intervals:
        entries = [
            item(seq) if seq not in held else Item(f"n:{seq}", 2, 0, END, section(seq=seq))
            for seq in range(after + 1, upto + 1)
        ]
        intake.segment(segment(after, upto, *entries), NOW, peer="p", believed=True)
        given_ |= set(range(after + 1, upto + 1))
        assert position(intake) == complete(given_ - held)


def test_an_interval_that_is_not_believed_moves_nothing() -> None:
    intake = taking()
    intake.segment(segment(0, 3), NOW, peer="p", believed=False)
    assert position(intake) == 0
    assert intake._core.replica.get("n:3") is not None


def test_nobody_tells_us_what_we_wrote() -> None:
    intake = taking()
    chain = intake._core.replica.chain
    forged = Item("n:1", 1, 0, SPEC, section(origin="me", generation=chain[1], seq=1))
    intake.segment(Segment(chain, 0, 1, (Entry(1, forged),)), NOW, peer="p", believed=True)
    intake.claim({chain: 5})
    assert intake._core.replica.vector == {}
    assert intake._core.replica.get("n:1") is None


def test_a_claim_joins_what_came_early_and_is_told_on() -> None:
    intake, advanced, claimed = taking(), list[object](), list[bool]()
    intake.on_advanced, intake.on_claimed = advanced.append, lambda: claimed.append(True)
    intake.segment(segment(5, 8), NOW, peer="p", believed=True)
    intake.claim({CHAIN: 5})
    assert position(intake) == 8
    assert (advanced, claimed) == ([CHAIN], [True])
    assert intake._core.replica.log(CHAIN).whole_after == 5, "of what was claimed not every position has an entry"
    intake.claim({CHAIN: 5})
    assert claimed == [True], "nothing new"


def test_who_was_given_everything_that_somebody_had_has_caught_up() -> None:
    intake = taking()
    intake.claim({})
    assert not intake.caught_up, "a drain that stands for nothing"
    intake.claim({CHAIN: 5})
    assert intake.caught_up


def test_a_claim_that_gives_what_was_held_ends_the_hold() -> None:
    intake = taking()
    intake.holds.hold(CHAIN, 3, NOW.mono_s)
    intake.segment(segment(0, 5), NOW, peer="p", believed=True)
    assert position(intake) == 2
    intake.claim({CHAIN: 5})
    assert position(intake) == 5


def test_what_nobody_offers_any_more_is_not_held_for_ever() -> None:
    """A peer that invented it has gone. While something is held, drains are not asked for."""
    intake = taking(burst=0)
    intake._core.replica.apply(Item("n:1", 1, 0, SPEC, section(origin="b")))
    offered = [Item("n:1", 2, 0, END, section(generation=generation)) for generation in (7, 8)]
    later = [NOW._replace(mono_s=NOW.mono_s + seconds) for seconds in (0, 60, 150, 210)]
    assert not intake.items(offered, later[0], peer="p")
    assert intake.holding(later[1])
    assert not intake.items(offered[1:], later[1], peer="p")
    assert intake.holding(later[2])
    assert len(intake.holds) == 1
    assert not intake.holding(later[3])


def test_while_something_is_held_walks_ask_for_it_and_drains_once_for_the_rest() -> None:
    config = Config("me", deletion_burst=0, digest_interval_s=1e6)
    engine = Engine(config, Replica("me"), Random(1), NOW)
    engine.register("n:1", b"x", NOW, incarnation=1, judgement=b"online")
    engine.connected("a", NOW)
    engine.receive("a", Hello("a", 1, {}, {}, 0, (), NOW.wall_ms), NOW)
    deletion = Entry(1, Item("n:1", 2, 1, END, section()))
    engine.receive("a", Push(1, (Segment(CHAIN, 0, 1, (deletion,)),)), NOW)
    engine.receive("a", Announce({CHAIN: 1}, {}, 0, ()), NOW)
    asked: dict[type[object], list[int]] = {Pull: [], DigestRequest: []}
    for second in range(1, 200):
        now = NOW._replace(mono_s=NOW.mono_s + second)
        for effect in engine.tick(now):
            if isinstance(effect, Send) and type(effect.message) in asked:
                asked[type(effect.message)].append(second)
            if isinstance(effect, Send) and isinstance(effect.message, Pull) and len(asked[Pull]) == 1:
                engine.receive("a", Drain(second, effect.message.pull_id, 0, (deletion.item,), {CHAIN: 1}), now)
    assert len(asked[DigestRequest]) >= 3
    ended = asked[Pull][0] + intake_module.HOLD_RETRIES * config.hold_retry_s
    assert asked[Pull][0] < asked[DigestRequest][-1] <= ended < asked[Pull][1], "no claim of it would be believed"


def test_every_position_has_an_entry_also_where_something_else_stands() -> None:
    """Whoever hears this chain from us hears of every position."""
    intake = taking()
    newer = Item("n:1", 1, 0, SPEC, section(9, "b"))
    intake.segment(Segment(CHAIN, 0, 2, (Entry(1, newer), Entry(2, item(2)))), NOW, peer="p", believed=True)
    intake.segment(Segment(CHAIN, 2, 3, (Entry(3, newer),)), NOW, peer="p", believed=True)
    log = intake._core.replica.log(CHAIN)
    assert [(seq, record.key) for seq, record, _ in log.after(0, 9)] == [(1, "n:1"), (2, "n:2"), (3, "n:1")]
    assert log.replaced == 2, "they are not its own writes, and go when it is compacted"


def test_whether_a_claim_may_be_believed_is_told() -> None:
    intake = taking(burst=0)
    intake._core.replica.apply(Item("n:1", 1, 0, SPEC, section(origin="b")))
    assert intake.items([item(2)], NOW, peer="p")
    assert not intake.items([item(3), Item("n:1", 2, 0, END, section(seq=4)), item(5)], NOW, peer="p")
    assert intake._core.replica.get("n:5") is not None, "the others are joined"
    assert intake.holds.limit(CHAIN, 9) == 3


# Bounds on what a peer can make us keep


def test_intervals_that_wait_are_few() -> None:
    intake = taking()
    for after in range(2, 2_000, 2):
        intake.segment(Segment(CHAIN, after, after + 1, ()), NOW, peer="p", believed=True)
    assert len(intake._pending[CHAIN]) == MAX_PENDING


def test_chains_that_wait_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MAX_PENDING_CHAINS", 8)
    intake = taking()
    for generation in range(100):
        intake.segment(Segment(("a", generation), 5, 6, ()), NOW, peer="p", believed=True)
        assert len(intake._pending) <= 8


def test_a_vector_never_outgrows_what_a_frame_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MAX_CHAINS", 100)
    intake = taking()
    intake.claim({("a", generation): 1 for generation in range(200)})
    for generation in range(200, 300):
        intake.segment(Segment(("a", generation), 0, 1, ()), NOW, peer="p", believed=True)
    vector = intake._core.replica.vector
    assert len(vector) == 100 - intake_module.OWN_CHAINS
    intake.segment(Segment(("a", 0), 1, 2, ()), NOW, peer="p", believed=True)
    assert vector["a", 0] == 2, "those that are known go on"
