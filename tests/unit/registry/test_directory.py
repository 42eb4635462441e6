"""The directory against a naive model: a dictionary, and a look at every node for what is due."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from registry.directory import Directory, Due, Entry, Owner
from registry.lifecycle import Liveness, Transition, Windows, next_liveness, shown_status
from registry.node import Intent, Record, Word, iso
from tests.support.records import HOME, NOW_MS, at_home, record, unread_of

WINDOWS = Windows(30, 90, 300)
IDS = ["a", "b", "c", "d", "e"]
BASE = {node_id: record(node_id, labels=[node_id]) for node_id in IDS}
THERE = "there"  # another registry


def empty(now: float = 0.0) -> Directory:
    return Directory(WINDOWS, now, HOME)


def made(
    node_id: str, reported: str | None = None, intent: str | None = None, key: str | None = None, *,
    liveness: Liveness = "online", home: str = HOME,
) -> Record:  # fmt: skip
    why = None if liveness == "online" else "silent"
    node = replace(BASE[node_id], word=Word(liveness, reported, why), intent=Intent(intent), key_hash=key)
    return at_home(node, home)


@dataclass
class Naive:
    version: int
    record: Record
    heard_s: float
    beat_at_ms: int | None = None
    metrics: bytes = b"{}"
    offered_s: float = float("-inf")  # when it was last said that it is degraded

    @property
    def liveness(self) -> Liveness:
        return self.record.word.liveness

    @property
    def status(self) -> str:
        return shown_status(self.liveness, self.record.reported, self.record.intent.status)

    @property
    def is_ours(self) -> bool:
        return self.record.home_registry == HOME


class AgainstNaive(RuleBasedStateMachine):
    """Puts, deletions, heartbeats, silence and restarts in any order, old news and other registries among them."""

    changed = Bundle("changed")

    def __init__(self) -> None:
        super().__init__()
        self.now, self.since = 0.0, 0.0
        self.directory = empty()
        self.directory.on_transition = lambda transition: self.told.append(transition)
        self.told: list[Transition] = []
        self.nodes: dict[str, Naive] = {}
        self.deleted: dict[str, int] = {}
        self.seen: dict[tuple[int, int], dict[str, bytes]] = {}

    def newest(self, node_id: str) -> int:
        known = self.nodes.get(node_id)
        return max(known.version if known else 0, self.deleted.get(node_id, 0))

    @rule(
        node_id=st.sampled_from(IDS),
        age=st.integers(-3, 1),
        reported=st.sampled_from([None, "leaving", "degraded"]),
        intent=st.sampled_from([None, "maintenance"]),
        key=st.booleans(),
        liveness=st.sampled_from(["online", "online", "degraded", "offline"]),
        home=st.sampled_from([HOME, HOME, THERE]),
    )
    def put(
        self, node_id: str, age: int, reported: str | None, intent: str | None, key: bool, liveness: Liveness, home: str
    ) -> None:
        version = max(1, self.newest(node_id) + age)
        key_hash = node_id.encode().hex() if key else None
        self.put_record(node_id, version, made(node_id, reported, intent, key_hash, liveness=liveness, home=home))

    def put_record(self, node_id: str, version: int, stored: Record) -> None:
        known = self.nodes.get(node_id)
        newer = version > self.newest(node_id)
        self.told.clear()
        assert (self.directory.put(stored, version, self.now, NOW_MS) is not None) == newer
        before = known.liveness if known is not None else stored.word.liveness
        assert [(t.before, t.after) for t in self.told] == (
            [(before, stored.word.liveness)] if newer and before != stored.word.liveness else []
        )
        if not newer:
            return
        if known is None:
            known = self.nodes[node_id] = Naive(version, stored, self.now)
        elif known.record.home_registry != stored.home_registry:
            known.heard_s, known.offered_s = self.now, float("-inf")
        if known.liveness != stored.word.liveness:
            known.offered_s = float("-inf")
            if stored.word.liveness == "online":  # as it was heard
                known.heard_s = self.now
        known.version, known.record = version, stored
        if not known.is_ours:  # what its home registry says of it is all we know
            known.beat_at_ms = max(known.beat_at_ms or 0, stored.last_registration_ms)

    @rule(node_id=st.sampled_from(IDS), age=st.integers(-3, 1))
    def delete(self, node_id: str, age: int) -> None:
        version = max(1, self.newest(node_id) + age)
        known = self.nodes.get(node_id)
        stands = known is not None and known.version > version
        assert self.directory.delete(node_id, version) == (known is not None and not stands)
        if not stands:
            self.nodes.pop(node_id, None)
            self.deleted[node_id] = max(version, self.deleted.get(node_id, 0))

    @rule(node_id=st.sampled_from(IDS), late_ms=st.sampled_from([0, 0, 0, 5_000, 60_000]), cpu=st.integers(0, 100))
    def beat(self, node_id: str, late_ms: int, cpu: int) -> None:
        """However late it comes in, it says nothing of how the node fares: that is its home registry's to say."""
        at_ms = NOW_MS + int(self.now * 1000) - late_ms
        metrics = orjson.dumps({"cpu_percent": cpu})
        self.directory.beat(node_id, metrics, at_ms, self.now)
        known = self.nodes.get(node_id)
        if known is not None and not (known.beat_at_ms is not None and at_ms < known.beat_at_ms):
            known.beat_at_ms, known.heard_s, known.metrics = at_ms, self.now, metrics

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.5, 60.0, 90.0, 300.0, 1000.0]), said=st.booleans())
    def wait_and_judge(self, seconds: float, said: bool) -> None:
        """`said`: else the store was away, and the same is due again."""
        self.now += seconds
        found = {due.node_id: due.word for due in self.directory.due(self.now)}
        expected: dict[str, Liveness] = {}
        for node_id, node in self.nodes.items():
            after = next_liveness(self.now - node.heard_s, self.now - self.since, node.liveness, WINDOWS)
            if not node.is_ours or after == node.liveness:
                continue
            if after == "offline" or self.now - node.offered_s >= 1.0:
                expected[node_id] = after
                node.offered_s = self.now
        assert {node_id: word.liveness for node_id, word in found.items()} == expected
        for node_id, word in found.items():
            node = self.nodes[node_id]
            assert (word.reported, word.heard_at_ms) == (node.record.reported, node.beat_at_ms)
            assert word.why is not None
            if said:
                self.put_record(node_id, node.version + 1, replace(node.record, word=word))

    @rule()
    def come_back_from_an_outage(self) -> None:
        self.since = self.now
        self.directory.restart_counting(self.now)

    @invariant()
    def every_node_is_there_once_in_order(self) -> None:
        assert [e.node_id for e in self.directory.entries()] == sorted(self.nodes)
        assert len(self.directory) == len(self.nodes)
        for node_id in ("", "b", "bb", "z"):
            assert [e.node_id for e in self.directory.after(node_id)] == [n for n in sorted(self.nodes) if n > node_id]

    @invariant()
    def counts_equal_a_recount(self) -> None:
        counts = self.directory.counts()
        statuses = [node.status for node in self.nodes.values()]
        assert counts.total == len(statuses)
        assert {k: n for k, n in counts.by_status.items() if n} == {s: statuses.count(s) for s in set(statuses)}

    @invariant()
    def what_is_shown_changes_with_a_number(self) -> None:
        revisions = self.directory.revision, self.directory.retold
        shown = {entry.node_id: entry.fragment() for entry in self.directory.entries()}
        assert self.seen.setdefault(revisions, shown) == shown

    @invariant()
    def every_answer_is_the_models(self) -> None:
        for node_id, node in self.nodes.items():
            entry = self.directory.get(node_id)
            assert entry is not None
            view = orjson.loads(entry.fragment() + b"}")
            assert (view["status"], entry.version, view["metrics"]) == (
                node.status,
                node.version,
                orjson.loads(node.metrics),
            )
            assert view["last_heartbeat"] == (None if node.beat_at_ms is None else iso(node.beat_at_ms))
            key = node_id.encode()
            assert self.directory.owner_of(key) == (node_id if node.record.key_hash else None)
            quiet = node.record.word.why is None and node.record.reported is None and node.record.intent.status is None
            assert (view["status_reason"] is None) == (quiet and node.is_ours)
            assert (view["home_registry"], view["status_age_s"]) == ((HOME, 0) if node.is_ours else (THERE, None))


AgainstNaive.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestAgainstNaive = AgainstNaive.TestCase

CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from(IDS[:2])), min_size=1, max_size=5
).flatmap(lambda made: st.tuples(st.just(list(enumerate(made, 1))), st.permutations(list(enumerate(made, 1)))))


@given(CHANGES)
def test_workers_that_hear_of_changes_in_different_orders_agree(
    orders: tuple[list[tuple[int, tuple[str, str]]], list[tuple[int, tuple[str, str]]]],
) -> None:
    ends = []
    for order in orders:
        directory = empty()
        for version, (kind, node_id) in order:
            if kind == "put":
                directory.put(made(node_id), version, 0.0)
            else:
                directory.delete(node_id, version)
        ends.append([(e.node_id, e.version) for e in directory.entries()])
    assert ends[0] == ends[1]


def say(directory: Directory, now: float, limit: int = 5_000) -> list[tuple[str, Liveness]]:
    """What the writer does with what is due: it says so."""
    due = directory.due(now, limit)
    for item in due:
        said(directory, item, now)
    return [(item.node_id, item.word.liveness) for item in due]


def said(directory: Directory, item: Due, now: float) -> None:
    entry = directory.get(item.node_id)
    assert entry is not None
    stored = replace(BASE["a"], node_id=item.node_id, word=item.word)
    assert directory.put(stored, entry.version + 1, now) is not None


def say_all(directory: Directory, now: float, limit: int = 5_000) -> list[tuple[str, Liveness]]:
    found: list[tuple[str, Liveness]] = []
    while some := say(directory, now, limit):
        found += some
    return found


def heard_again(directory: Directory, node_id: str, now: float) -> None:
    """A late node beats: the word on it is another one, first."""
    said(directory, Due(node_id, Word()), now)
    directory.beat(node_id, b"{}", NOW_MS, now)


def crowd(count: int, now: float = 0.0) -> Directory:
    directory = empty(now)
    for index in range(count):
        directory.put(replace(BASE["a"], node_id=f"n{index:03}"), 1, now)
    return directory


def test_a_look_at_the_silent_does_a_bounded_piece_of_the_work() -> None:
    directory = crowd(95)
    assert directory.due(89.9, 10) == []
    assert len(say(directory, 90.0, 10)) == 10
    assert {status: n for status, n in directory.counts().by_status.items() if n} == {"online": 85, "degraded": 10}
    assert len(say_all(directory, 90.0, 10)) == 85
    for index in range(25, 95):
        heard_again(directory, f"n{index:03}", 290.0)
    assert [found for _ in range(20) for found in say(directory, 299.9, 10)] == []
    rounds = [say(directory, 300.0, 10) for _ in range(20)]
    assert max(map(len, rounds)) <= 10
    assert [found for some in rounds for found in some] == [(f"n{index:03}", "offline") for index in range(25)]


def test_what_was_due_and_not_said_comes_up_again() -> None:
    directory = crowd(2)
    assert len(directory.due(90.0)) == 2
    assert directory.due(90.5) == []
    assert len(directory.due(91.0)) == 2
    assert [item.word.liveness for item in directory.due(300.0)] == ["offline"] * 2
    assert [item.word.liveness for item in directory.due(300.0)] == ["offline"] * 2
    directory.beat("n000", b"{}", NOW_MS, 300.0)
    assert [item.node_id for item in directory.due(300.1)] == ["n001"]


def test_when_many_fall_silent_at_once_they_are_degraded_and_no_more_for_one_window() -> None:
    directory = crowd(100)
    for index in range(50):
        directory.beat(f"n{index:03}", b"{}", NOW_MS, 299.0)
    silent = {f"n{index:03}" for index in range(50, 100)}
    assert {node_id for node_id, _ in say_all(directory, 90.0)} == {f"n{i:03}" for i in range(100)} - (
        {f"n{i:03}" for i in range(50)}
    )
    assert directory.hold_left_s(299.9) is None
    assert say_all(directory, 300.0) == []
    assert directory.hold_left_s(300.0) == 300.0
    assert directory.hold_left_s(310.0) == 290.0
    for index in range(50):
        directory.beat(f"n{index:03}", b"{}", NOW_MS + 1, 590.0)
    assert say_all(directory, 599.9) == []
    assert {(node_id, liveness) for node_id, liveness in say_all(directory, 600.0)} == {(n, "offline") for n in silent}
    assert directory.hold_left_s(600.0) is None


def test_it_does_not_matter_that_heartbeats_are_spread_over_their_interval() -> None:
    """Of a hundred that fall silent together, three or four come due each second."""
    directory = crowd(100)
    for index in range(100):
        directory.beat(f"n{index:03}", b"{}", NOW_MS, index * 0.3)
    found = [said for second in range(600) for said in say(directory, float(second))]
    assert {liveness for _, liveness in found} == {"degraded"}
    held_s = directory.hold_left_s(600.0)
    assert held_s is not None
    ends_s = 600.0 + held_s
    assert 600 <= ends_s <= 601
    assert {liveness for _, liveness in say(directory, ends_s)} == {"offline"}
    assert len([said for second in range(601, 640) for said in say(directory, float(second))]) < 100
    assert directory.counts().by_status["offline"] == 100


def test_a_hold_ends_when_they_are_heard_again() -> None:
    directory = crowd(100)
    say_all(directory, 300.0)
    assert directory.hold_left_s(300.0) == 300.0
    for index in range(90):
        heard_again(directory, f"n{index:03}", 301.0)
    assert say_all(directory, 302.0) == [(f"n{index:03}", "offline") for index in range(90, 100)]
    assert directory.hold_left_s(302.0) is None


def test_where_nobody_was_called_degraded_yet_a_hold_says_that_much() -> None:
    directory = crowd(30)
    assert set(say_all(directory, 1_000.0)) == {(f"n{index:03}", "degraded") for index in range(30)}
    assert directory.counts().by_status["degraded"] == 30


def test_a_few_nodes_are_called_offline_at_once() -> None:
    directory = crowd(19)
    assert {liveness for _, liveness in say_all(directory, 300.0)} == {"offline"}


def test_nodes_of_other_registries_neither_expire_here_nor_count_as_ours() -> None:
    directory = empty()
    for index in range(100):
        directory.put(replace(at_home(BASE["a"], THERE), node_id=f"t{index:03}"), 1, 0.0)
    for index in range(20):
        directory.put(replace(BASE["a"], node_id=f"n{index:03}"), 1, 0.0)
    assert directory.due(1e9) != []
    assert directory.hold_left_s(1e9) is not None  # twenty of twenty are many, whatever others have
    assert {item.node_id[0] for item in directory.due(1e9)} <= {"n"}


def test_heartbeats_leave_nothing_behind_to_look_at() -> None:
    directory = empty()
    directory.put(made("a"), 1, 0.0)
    for second in range(1_000):
        directory.beat("a", b"{}", NOW_MS + second, float(second))
        directory.due(float(second))
    assert len(directory._deadlines) == 1


def test_a_node_that_comes_and_goes_leaves_nothing_behind_either() -> None:
    directory = empty()
    directory.put(made("a"), 1, 0.0)
    for times in range(1, 51):
        assert say(directory, times * 100.0) == [("a", "degraded")]
        directory.put(made("a"), times * 2 + 1, times * 100.0)
        directory.beat("a", b"{}", NOW_MS + times, times * 100.0)
    assert len(directory._deadlines) <= 4  # its own, and those of the silences within one window


@given(st.floats(0, 1e9), st.floats(0.001, 1e4), st.floats(1, 10))
def test_a_deadline_is_kept_however_floats_round(now: float, degraded: float, times: float) -> None:
    windows = Windows(degraded / 3, degraded, degraded * (1 + times))
    directory = Directory(windows, now, HOME)
    directory.put(made("a"), 1, now)
    found = [said for at in (degraded, degraded * 1.01, degraded * 1.02) for said in say(directory, now + at + 1e-6)]
    assert found == [("a", "degraded")]


@given(
    st.lists(st.tuples(st.sampled_from(["online", "degraded", "offline"]), st.none() | st.floats(0, 400)), max_size=5)
)
def test_nobody_expires_before_one_full_window_after_a_restart(nodes: list[tuple[Liveness, float | None]]) -> None:
    start = 1_000.0
    directory = empty(start)
    for index, (liveness, age_s) in enumerate(nodes):
        directory.put(made(IDS[index], liveness=liveness), index + 1, start)
        directory.restore(IDS[index], NOW_MS, age_s, None, start)
    directory.restart_counting(start)
    before = directory.counts()
    assert before.by_status.get("offline", 0) == sum(liveness == "offline" for liveness, _ in nodes)
    assert say_all(directory, start + 89.9) == []
    assert directory.counts() == before
    degraded = {IDS[i] for i, (liveness, _) in enumerate(nodes) if liveness == "online"}
    assert set(say_all(directory, start + 90.1)) == {(node_id, "degraded") for node_id in degraded}
    gone = {IDS[i] for i, (liveness, _) in enumerate(nodes) if liveness != "offline"}
    assert set(say_all(directory, start + 300.1)) == {(node_id, "offline") for node_id in gone}


@pytest.mark.parametrize("heard_again", [True, False])
def test_who_was_overdue_and_is_no_more_is_late_on_time_the_next_time(heard_again: bool) -> None:
    start = 1_000.0
    directory = empty(start)
    directory.put(made("a"), 1, start)
    assert [each.word.liveness for each in directory.due(start + 300)] == ["offline"]  # which nobody could write down
    if heard_again:
        directory.beat("a", b"{}", NOW_MS, start + 300)
    else:
        directory.restart_counting(start + 300)
    assert [(each.node_id, each.word.liveness) for each in directory.due(start + 390)] == [("a", "degraded")]


def test_what_the_store_knows_of_a_heartbeat_is_taken_unless_more_is_known_here() -> None:
    directory = empty()
    directory.put(made("a"), 1, 0.0)
    directory.restore("a", NOW_MS, 5.0, b'{"cpu_percent":1}', 100.0)
    entry = directory.get("a")
    assert entry is not None
    assert (entry.beat_at_ms, entry.heard_s, entry.metrics) == (NOW_MS, 95.0, b'{"cpu_percent":1}')
    directory.beat("a", b'{"cpu_percent":2}', NOW_MS + 9, 101.0)
    directory.restore("a", NOW_MS, 5.0, b'{"cpu_percent":1}', 102.0)
    assert (entry.beat_at_ms, entry.heard_s, entry.metrics) == (NOW_MS + 9, 101.0, b'{"cpu_percent":2}')
    directory.restore("nobody", NOW_MS, None, None, 102.0)
    directory.put(made("b", home=THERE), 1, 0.0)
    directory.restore("b", NOW_MS + 9_999, 1.0, b'{"cpu_percent":3}', 102.0)
    other = directory.get("b")
    assert other is not None
    assert (other.beat_at_ms, other.metrics) == (NOW_MS, b"{}")  # not ours to keep


@pytest.mark.parametrize("wrong", ["another registry's clock was ahead", "our own was set back"])
def test_no_wall_clock_silences_a_node_that_is_heard(wrong: str) -> None:
    directory = empty()
    if wrong == "our own was set back":
        directory.put(made("a"), 1, 0.0)
        directory.beat("a", b"{}", NOW_MS + 600_000, 0.0, now_ms=NOW_MS + 600_000)
    else:
        ahead = replace(made("a", home=THERE), last_registration_ms=NOW_MS + 600_000)
        directory.put(ahead, 1, 0.0)
        directory.put(replace(ahead, home_registry=HOME), 2, 0.0)
    for now in range(1, 400, 30):
        at_ms = NOW_MS + now * 1000
        directory.beat("a", b'{"cpu_percent":%d}' % now, at_ms, float(now), now_ms=at_ms)
        assert directory.due(float(now)) == []
    entry = directory.get("a")
    assert entry is not None
    assert (entry.heard_s, entry.beat_at_ms, entry.metrics) == (391.0, NOW_MS + 391_000, b'{"cpu_percent":391}')
    directory.beat("a", b"{}", NOW_MS + 390_000, 392.0, now_ms=NOW_MS + 392_000)  # another worker's, told late
    assert entry.beat_at_ms == NOW_MS + 391_000


def test_a_node_that_is_online_again_was_heard() -> None:
    directory = empty()
    directory.put(made("a"), 1, 0.0)
    say_all(directory, 200.0)
    directory.put(made("a"), 9, 200.5)  # its heartbeat is kept a moment later
    assert directory.due(201.0) == []


# other registries' nodes


def shown(entry: Entry | None) -> dict[str, Any]:
    assert entry is not None
    view: dict[str, Any] = orjson.loads(entry.fragment() + b"}")
    return view


def hear(directory: Directory, age_s: float | None = 0.0, *, reachable: bool = True, **more: Any) -> None:
    usual: dict[str, Any] = {"now_ms": NOW_MS, "generation": 7, "known": ((7, 10),)}
    directory.hear(THERE, reachable=reachable, age_s=age_s, **{**usual, **more})


UNHEARD = (
    "its home registry there has not been heard of since 2023-11-14T22:12:40.000Z: this is the last known status, "
    "the node may well be alive"
)
NEVER = UNHEARD.replace(" since 2023-11-14T22:12:40.000Z", "")
UNCONFIRMED = "there, its home registry, has not confirmed this since it started again"
# the word's position, how its home registry stands (None: it never was heard of), the doubt
VOUCHED: dict[str, tuple[tuple[int, int], dict[str, Any] | None, str | None]] = {
    "never heard of": ((7, 1), None, NEVER),
    "of this start": ((7, 1), {}, None),
    "of this start, newer than the mark": ((7, 11), {}, None),
    "of a later start": ((8, 1), {}, None),
    "of an earlier start, known to it": ((5, 3), {"known": ((5, 3), (7, 10))}, None),
    "of an earlier start, beyond what it knows": ((5, 4), {"known": ((5, 3), (7, 10))}, UNCONFIRMED),
    "of an earlier start that it does not know": ((5, 1), {}, UNCONFIRMED),
    "not reachable": ((7, 1), {"reachable": False, "age_s": 40.0}, UNHEARD),
    "not reachable, and of an earlier start": ((5, 1), {"reachable": False, "age_s": 40.0}, UNHEARD),
}


@pytest.mark.parametrize("case", VOUCHED)
def test_whether_a_word_stands_and_why_not(case: str) -> None:
    said_at, stands, doubt = VOUCHED[case]
    directory = empty()
    entry = directory.put(replace(made("a", home=THERE, liveness="degraded"), said=said_at), 1, 0.0)
    if stands is not None:
        hear(directory, **stands)
    assert entry is not None
    assert entry.reachable == (doubt is None)
    view = shown(entry)
    assert view["status"] == "degraded"  # the last known, whatever happened to its home registry
    assert view["status_reason"] == ("silent" if doubt is None else f"{doubt}; silent")
    assert view["status_age_s"] == (None if stands is None else int(stands.get("age_s", 0.0)))


def test_our_own_word_always_stands() -> None:
    directory = empty()
    entry = directory.put(replace(made("a"), said=(1, 1)), 1, 0.0)
    directory.hear(HOME, reachable=False, age_s=99.0, now_ms=NOW_MS, generation=9, known=())
    assert entry is not None
    assert entry.reachable
    assert (shown(entry)["status_reason"], shown(entry)["status_age_s"]) == (None, 0)


def test_how_old_a_word_is_shows_at_once_and_makes_nobody_look_again() -> None:
    directory = empty()
    entry = directory.put(at_home(made("a"), THERE, (7, 1)), 1, 0.0)
    hear(directory, 1.0)
    revision = directory.revision
    for age_s in (2.0, 9.9, 0.3):
        hear(directory, age_s)
        assert shown(entry)["status_age_s"] == int(age_s)
    assert directory.revision == revision
    hear(directory, 11.0, reachable=False)
    assert directory.revision == revision + 1
    assert "has not been heard of since" in shown(entry)["status_reason"]
    reason = shown(entry)["status_reason"]
    hear(directory, 12.0, reachable=False, now_ms=NOW_MS + 1_000)
    assert (directory.revision, shown(entry)["status_reason"]) == (revision + 1, reason)
    hear(directory, 0.0, now_ms=NOW_MS + 2_000)
    assert (directory.revision, shown(entry)["status_reason"]) == (revision + 2, None)


def test_a_registry_that_started_again_has_to_confirm_its_words() -> None:
    directory = empty()
    entry = directory.put(at_home(made("a"), THERE, (7, 4)), 1, 0.0)
    hear(directory)
    assert shown(entry)["status_reason"] is None
    hear(directory, generation=8, known=((7, 3), (8, 1)))  # it lost that word with its store
    assert shown(entry)["status_reason"] == UNCONFIRMED
    directory.put(at_home(made("a"), THERE, (8, 2)), 2, 0.0)
    assert shown(entry)["status_reason"] is None


def test_a_node_that_moves_is_its_new_home_s_at_once() -> None:
    directory = empty()
    entry = directory.put(made("a", home=THERE, liveness="offline"), 1, 0.0)
    assert entry is not None
    assert directory.due(1e6) == []
    directory.put(made("a"), 2, 1e6)
    assert (entry.reachable, shown(entry)["home_registry"], shown(entry)["status"]) == (True, HOME, "online")
    assert [item.word.liveness for item in directory.due(1e6 + 90)] == ["degraded"]
    directory.put(made("a", home=THERE), 3, 1e6 + 91)
    assert directory.due(1e9) == []
    assert directory.counts().by_status["online"] == 1


def test_of_others_nodes_the_last_heartbeat_is_what_their_home_said_or_measured() -> None:
    directory = empty()
    node = made("a", home=THERE)
    entry = directory.put(node, 1, 0.0)
    assert shown(entry)["last_heartbeat"] == iso(NOW_MS)  # it registered then
    directory.put(replace(node, word=Word("degraded", heard_at_ms=NOW_MS + 5_000)), 2, 0.0)
    assert shown(entry)["last_heartbeat"] == iso(NOW_MS + 5_000)
    directory.beat("a", b'{"cpu_percent":4}', NOW_MS + 9_000, 0.0)
    assert (shown(entry)["last_heartbeat"], shown(entry)["metrics"]) == (iso(NOW_MS + 9_000), {"cpu_percent": 4})
    directory.put(replace(node, word=Word("degraded", heard_at_ms=NOW_MS + 6_000)), 3, 0.0)
    assert shown(entry)["last_heartbeat"] == iso(NOW_MS + 9_000)


@given(st.floats(0, 1e6), st.integers(0, 9), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4))
def test_the_age_is_always_json(age_s: float, generation: int, known: list[tuple[int, int]]) -> None:
    owner = Owner(THERE, is_us=False)
    owner.hear(True, age_s, NOW_MS, generation, known)
    assert orjson.loads(b'{"x":0' + owner.piece + b"}")["status_age_s"] == int(age_s)


def test_reasons_say_what_a_person_can_act_on() -> None:
    directory = empty()
    entry = directory.put(made("a", intent="maintenance"), 1, 0.0)
    assert entry is not None
    directory.beat("a", b"{}", NOW_MS, 0.0)
    (due,) = directory.due(90.0)
    assert due.word == Word("degraded", None, due.word.why, NOW_MS)
    directory.put(replace(made("a", intent="maintenance"), word=due.word), 2, 90.0)
    reason = shown(entry)["status_reason"]
    assert reason == (
        "no heartbeat since 2023-11-14T22:13:20.000Z (limit 90 s): check the machine, its agent and its network; "
        "set to maintenance by an operator"
    )


def column(directory: Directory, name: str) -> float | None:
    entry = directory.get("a")
    assert entry is not None
    value = float(directory.columns.numbers[name][entry.row])
    return None if math.isnan(value) else value


def free_gb(directory: Directory) -> float | None:
    return column(directory, "free_vram_gb")


def test_free_vram_is_the_newest_that_was_measured_through_every_change_of_the_record() -> None:
    directory = empty()
    stored = record("a", capabilities={"gpus": [{"name": "L4", "vram_gb": 24, "vram_free_gb": 24}]})
    directory.put(stored, 1, 0.0)
    assert free_gb(directory) == 24
    directory.beat("a", b'{"gpus":[{"vram_free_gb":5}]}', NOW_MS, 0.0)
    assert free_gb(directory) == 5
    directory.put(replace(stored, intent=Intent("draining")), 2, 0.0)
    assert free_gb(directory) == 5
    directory.beat("a", b'{"cpu_percent":1}', NOW_MS + 1, 0.0)
    assert free_gb(directory) == 24  # no longer measured: what the registration said


REGISTERED = [
    made("a"),
    replace(record("a", labels=["x"], capabilities={"models": ["m"], "gpus": [{"vram_gb": 24}]}), key_hash="0a"),
    replace(record("a", region="us", role="router", ram_gb=64.0), key_hash="0b"),
]
LABELS = st.sampled_from([(), ("x",), ("y", "Z")])


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0, 1, 2]),  # which registration stands: mostly the same
            st.sampled_from(["online", "degraded", "offline"]),
            st.builds(Intent, st.sampled_from([None, "draining"]), LABELS, LABELS, st.sampled_from([0, NOW_MS])),
            st.sampled_from([(HOME, (1, 1)), (THERE, (1, 2)), (THERE, (2, 3))]),
            st.sampled_from([0, 7]),  # incarnation
            st.sampled_from([None, b"{}", b'{"cpu_percent":90,"gpus":[{"vram_free_gb":5}]}']),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_changes_beside_a_registration_that_stands_is_as_if_all_had_been_told_again(changes: list[Any]) -> None:
    payloads = [each.encode_spec() for each in REGISTERED]
    beside, told_again = empty(), empty()
    for version, (which, liveness, intent, (home, said_at), incarnation, metrics) in enumerate(changes, 1):
        told = at_home(replace(REGISTERED[which], word=Word(liveness, None, "silent"), intent=intent), home, said_at)
        told = replace(told, incarnation=incarnation, kept=payloads[which])
        beside.show(unread_of(told, payloads[which]), version, version, NOW_MS)
        told_again.put(told, version, version, NOW_MS)
        for directory in (beside, told_again):
            if metrics is not None:
                directory.beat("a", metrics, NOW_MS + version, version)
    one, other = beside.get("a"), told_again.get("a")
    assert one is not None
    assert other is not None
    assert one.fragment() == other.fragment()
    for name in ("region", "status", "key_hash", "heard_s", "beat_at_ms", "token", "must_register"):
        assert getattr(one, name) == getattr(other, name)
    kinds = [each.columns.kind(int(each.columns.class_of[1])) for each in (beside, told_again)]
    assert kinds[0] == kinds[1]
    for name, numbers in beside.columns.numbers.items():
        np.testing.assert_array_equal(numbers, told_again.columns.numbers[name])
    assert beside.counts() == told_again.counts()
    assert [each.owner_of(bytes.fromhex("0a")) for each in (beside, told_again)].count("a") in (0, 2)


def test_a_key_that_another_node_was_given_is_its_own_nodes_again_with_the_next_word_on_it() -> None:
    here, own, other = empty(), *(replace(record(name), key_hash="0a") for name in ("own", "other"))
    kept, key = own.encode_spec(), bytes.fromhex("0a")
    here.show(unread_of(own, kept), 1, 0.0)
    here.put(other, 2, 0.0)
    assert here.owner_of(key) == "other"
    here.show(unread_of(replace(own, word=Word("degraded")), kept), 3, 0.0)
    assert here.owner_of(key) == "own"
    here.delete("other", 4)
    assert here.owner_of(key) == "own"
    here.put(replace(own, key_hash="0b"), 5, 0.0)
    assert (here.owner_of(key), here.owner_of(bytes.fromhex("0b"))) == (None, "own")


def test_load_is_that_of_the_busier_of_processor_and_gpu() -> None:
    directory = empty()
    entry = directory.put(made("a"), 1, 0.0)
    assert entry is not None
    cases = [(b"{}", None), (b'{"cpu_percent":20}', 0.2), (b'{"cpu_percent":20,"gpu_percent":90}', 0.9)]
    cases += [(b'{"gpu_percent":50,"cpu_percent":null}', 0.5), (b'{"cpu_percent":"9","gpu_percent":true}', None)]
    for metrics, load in cases:
        directory.beat("a", metrics, NOW_MS, 0.0)
        assert column(directory, "load") == (None if load is None else pytest.approx(load))


def test_nodes_that_are_alike_share_their_sets() -> None:
    directory = empty()
    one, two = (
        directory.put(record(node_id, labels=["x"], capabilities={"models": ["m"], "gpu": "L4"}), 1, 0.0)
        for node_id in ("a", "b")
    )
    assert one is not None
    assert two is not None
    assert directory.columns.class_of[one.row] == directory.columns.class_of[two.row]


def test_the_revision_grows_when_membership_can_change_and_not_with_each_heartbeat() -> None:
    directory = empty()
    seen = [directory.revision]
    directory.put(made("a"), 1, 0.0)
    seen.append(directory.revision)
    say(directory, 90.0)
    seen.append(directory.revision)
    directory.put(made("a"), 3, 91.0)
    seen.append(directory.revision)
    directory.delete("a", 4)
    assert sorted({*seen, directory.revision}) == [*seen, directory.revision]
    directory.put(made("a"), 5, 91.0)
    before = directory.revision
    directory.beat("a", b'{"cpu_percent":1}', NOW_MS, 92.0)
    assert directory.revision == before
