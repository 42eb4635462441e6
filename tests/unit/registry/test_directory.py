"""The directory against a naive model: a dictionary, and a scan of all nodes for every sweep."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from registry.directory import Directory
from registry.lifecycle import Liveness, Transition, Windows, next_liveness, shown_status
from registry.node import Intent, Record, iso
from tests.support.records import NOW_MS, record

WINDOWS = Windows(30, 90, 300)
IDS = ["a", "b", "c", "d", "e"]
BASE = {node_id: record(node_id, labels=[node_id]) for node_id in IDS}


def made(node_id: str, reported: str | None = None, intent: str | None = None, key: str | None = None) -> Record:
    return replace(BASE[node_id], reported=reported, intent=Intent(intent), key_hash=key)


@dataclass
class Naive:
    version: int
    record: Record
    heard_s: float
    liveness: Liveness = "online"
    beat_at_ms: int | None = None
    metrics: bytes = b"{}"

    @property
    def status(self) -> str:
        return shown_status(self.liveness, self.record.reported, self.record.intent.status)


class AgainstNaive(RuleBasedStateMachine):
    """Puts, deletions, heartbeats, sweeps and restarts in any order, old news among them."""

    changed = Bundle("changed")

    def __init__(self) -> None:
        super().__init__()
        self.now, self.since = 0.0, 0.0
        self.directory = Directory(WINDOWS, self.now)
        self.nodes: dict[str, Naive] = {}
        self.deleted: dict[str, int] = {}

    @rule(
        node_id=st.sampled_from(IDS),
        version=st.integers(1, 12),
        reported=st.sampled_from([None, "leaving", "degraded"]),
        intent=st.sampled_from([None, "maintenance"]),
        key=st.booleans(),
    )
    def put(self, node_id: str, version: int, reported: str | None, intent: str | None, key: bool) -> None:
        stored = made(node_id, reported, intent, node_id.encode().hex() if key else None)
        known = self.nodes.get(node_id)
        newer = version > self.deleted.get(node_id, 0) and (known is None or version > known.version)
        assert (self.directory.put(stored, version, self.now) is not None) == newer
        if newer and known is not None:
            known.version, known.record = version, stored
        elif newer:
            self.nodes[node_id] = Naive(version, stored, self.now)

    @rule(node_id=st.sampled_from(IDS), version=st.integers(1, 12))
    def delete(self, node_id: str, version: int) -> None:
        known = self.nodes.get(node_id)
        stands = known is not None and known.version > version
        assert self.directory.delete(node_id, version) == (known is not None and not stands)
        if not stands:
            self.nodes.pop(node_id, None)
            self.deleted[node_id] = max(version, self.deleted.get(node_id, 0))

    @rule(node_id=st.sampled_from(IDS), late_ms=st.sampled_from([0, 0, 0, 5_000, 60_000]), cpu=st.integers(0, 100))
    def beat(self, node_id: str, late_ms: int, cpu: int) -> None:
        at_ms = NOW_MS + int(self.now * 1000) - late_ms
        metrics = orjson.dumps({"cpu_percent": cpu})
        transition = self.directory.beat(node_id, metrics, at_ms, self.now)
        known = self.nodes.get(node_id)
        if known is None or (known.beat_at_ms is not None and at_ms < known.beat_at_ms):
            assert transition is None
            return
        assert (transition is not None) == (known.liveness != "online")
        if transition is not None:
            assert (transition.before, transition.after) == (known.liveness, "online")
        known.beat_at_ms, known.heard_s, known.liveness, known.metrics = at_ms, self.now, "online", metrics

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.5, 60.0, 90.0, 300.0, 1000.0]))
    def wait_and_sweep(self, seconds: float) -> None:
        self.now += seconds
        found = {t.node_id: (t.before, t.after) for t in self.directory.sweep(self.now, NOW_MS)}
        expected = {}
        for node_id, node in self.nodes.items():
            after = next_liveness(self.now - node.heard_s, self.now - self.since, node.liveness, WINDOWS)
            if after != node.liveness:
                expected[node_id] = (node.liveness, after)
                node.liveness = after
        assert found == expected

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
            assert (view["status_reason"] is None) == (
                node.liveness == "online" and node.record.reported is None and node.record.intent.status is None
            )


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
        directory = Directory(WINDOWS, 0.0)
        for version, (kind, node_id) in order:
            if kind == "put":
                directory.put(made(node_id), version, 0.0)
            else:
                directory.delete(node_id, version)
        ends.append([(e.node_id, e.version) for e in directory.entries()])
    assert ends[0] == ends[1]


def sweep_all(directory: Directory, now: float) -> list[Transition]:
    return list(itertools.chain.from_iterable(iter(lambda: directory.sweep(now, NOW_MS, 10), [])))


def test_a_sweep_does_a_bounded_piece_of_the_work() -> None:
    directory = Directory(WINDOWS, 0.0)
    for index in range(95):
        directory.put(replace(BASE["a"], node_id=f"n{index:03}"), index + 1, 0.0)
    assert directory.sweep(89.9, NOW_MS, 10) == []
    assert len(directory.sweep(90.0, NOW_MS, 10)) == 10
    assert directory.counts().by_status == {"online": 85, "degraded": 10}
    assert len(sweep_all(directory, 90.0)) == 85
    assert directory.sweep(299.9, NOW_MS) == []
    assert {t.after for t in sweep_all(directory, 300.0)} == {"offline"}
    assert directory.sweep(1e9, NOW_MS) == []


def test_heartbeats_leave_nothing_behind_to_sweep() -> None:
    directory = Directory(WINDOWS, 0.0)
    directory.put(made("a"), 1, 0.0)
    for second in range(1_000):
        directory.beat("a", b"{}", NOW_MS + second, float(second))
        directory.sweep(float(second), NOW_MS)
    assert len(directory._deadlines) == 1


def test_a_node_that_comes_and_goes_leaves_nothing_behind_either() -> None:
    directory = Directory(WINDOWS, 0.0)
    directory.put(made("a"), 1, 0.0)
    for times in range(1, 51):
        assert [t.after for t in directory.sweep(times * 100.0, NOW_MS)] == ["degraded"]
        assert directory.beat("a", b"{}", NOW_MS + times, times * 100.0) is not None
    assert len(directory._deadlines) <= 4  # its own, and those of the silences within one window


@given(st.floats(0, 1e9), st.floats(0.001, 1e4), st.floats(1, 10))
def test_a_deadline_is_kept_however_floats_round(now: float, degraded: float, times: float) -> None:
    windows = Windows(degraded / 3, degraded, degraded * (1 + times))
    directory = Directory(windows, now)
    directory.put(made("a"), 1, now)
    found = [t.after for at in (degraded, degraded * 1.01) for t in directory.sweep(now + at + 1e-6, NOW_MS)]
    assert found == ["degraded"]


@given(
    st.lists(st.tuples(st.sampled_from(["online", "degraded", "offline"]), st.none() | st.floats(0, 400)), max_size=5)
)
def test_nobody_expires_before_one_full_window_after_a_restart(nodes: list[tuple[Liveness, float | None]]) -> None:
    start = 1_000.0
    directory = Directory(WINDOWS, start)
    for index, (liveness, age_s) in enumerate(nodes):
        entry = directory.put(made(IDS[index]), index + 1, start)
        assert entry is not None
        directory.restore(entry, liveness, NOW_MS, age_s, start)
    directory.restart_counting(start)
    before = directory.counts()
    assert before.by_status.get("offline", 0) == sum(liveness == "offline" for liveness, _ in nodes)
    assert sweep_all(directory, start + 89.9) == []
    assert directory.counts() == before
    after = {t.node_id: t.after for t in sweep_all(directory, start + 90.1)}
    assert after == {IDS[i]: "degraded" for i, (liveness, _) in enumerate(nodes) if liveness == "online"}
    gone = {t.node_id for t in sweep_all(directory, start + 300.1)}
    assert gone == {IDS[i] for i, (liveness, _) in enumerate(nodes) if liveness != "offline"}


def test_reasons_say_what_a_person_can_act_on() -> None:
    directory = Directory(WINDOWS, 0.0)
    entry = directory.put(made("a", intent="maintenance"), 1, 0.0)
    assert entry is not None
    directory.beat("a", b"{}", NOW_MS, 0.0)
    directory.sweep(90.0, NOW_MS)
    reason = orjson.loads(entry.fragment() + b"}")["status_reason"]
    assert reason == (
        "no heartbeat since 2023-11-14T22:13:20.000Z (limit 90 s): check the machine, its agent and its network; "
        "set to maintenance by an operator"
    )


def free_gb(directory: Directory) -> Any:
    entry = directory.get("a")
    assert entry is not None
    return entry.free_vram_gb


def test_free_vram_is_the_newest_that_was_measured_through_every_change_of_the_record() -> None:
    directory = Directory(WINDOWS, 0.0)
    stored = record("a", capabilities={"gpus": [{"name": "L4", "vram_gb": 24, "vram_free_gb": 24}]})
    directory.put(stored, 1, 0.0)
    assert free_gb(directory) == 24
    directory.beat("a", b'{"gpus":[{"vram_free_gb":5}]}', NOW_MS, 0.0)
    assert free_gb(directory) == 5
    directory.put(replace(stored, intent=Intent("draining")), 2, 0.0)
    assert free_gb(directory) == 5
    directory.beat("a", b'{"cpu_percent":1}', NOW_MS + 1, 0.0)
    assert free_gb(directory) == 24  # no longer measured: what the registration said


def test_load_is_that_of_the_busier_of_processor_and_gpu() -> None:
    directory = Directory(WINDOWS, 0.0)
    entry = directory.put(made("a"), 1, 0.0)
    assert entry is not None
    cases = [(b"{}", None), (b'{"cpu_percent":20}', 0.2), (b'{"cpu_percent":20,"gpu_percent":90}', 0.9)]
    cases += [(b'{"gpu_percent":50,"cpu_percent":null}', 0.5), (b'{"cpu_percent":"9","gpu_percent":true}', None)]
    for metrics, load in cases:
        entry.take_metrics(metrics)
        assert entry.load == load


def test_nodes_that_are_alike_share_their_sets() -> None:
    directory = Directory(WINDOWS, 0.0)
    one, two = (
        directory.put(record(node_id, labels=["x"], capabilities={"models": ["m"], "gpu": "L4"}), 1, 0.0)
        for node_id in ("a", "b")
    )
    assert one is not None
    assert two is not None
    assert one.labels is two.labels
    assert one.models is two.models
    assert one.capabilities is two.capabilities


def test_the_revision_grows_when_membership_can_change_and_not_with_each_heartbeat() -> None:
    directory = Directory(WINDOWS, 0.0)
    seen = [directory.revision]
    directory.put(made("a"), 1, 0.0)
    seen.append(directory.revision)
    directory.sweep(90.0, NOW_MS)
    seen.append(directory.revision)
    directory.beat("a", b"{}", NOW_MS, 91.0)
    seen.append(directory.revision)
    directory.delete("a", 2)
    assert sorted({*seen, directory.revision}) == [*seen, directory.revision]
    directory.put(made("a"), 3, 91.0)
    before = directory.revision
    directory.beat("a", b'{"cpu_percent":1}', NOW_MS, 92.0)
    assert directory.revision == before
