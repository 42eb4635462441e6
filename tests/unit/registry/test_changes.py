"""Changes and audiences against a naive watcher that compares all nodes before and after."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import changes as changes_module
from registry.changes import SNAPSHOT_BYTES, Audience, Changes, snapshots
from registry.directory import Directory
from registry.discovery import filters_of
from registry.lifecycle import Windows
from registry.model import WatchQuery, parse
from registry.scopes import Scope
from tests.support.records import ALIASES, HOME, record

IDS, LABELS = ["a", "b", "c"], ["x", "y"]
STEP = st.tuples(st.sampled_from(IDS), st.none() | st.sampled_from(LABELS))


def rig() -> tuple[Directory, Changes]:
    directory, changes = Directory(Windows(30, 90, 300), 0.0, HOME), Changes("e")
    directory.on_change = changes.note
    return directory, changes


def audience(directory: Directory, **fields: Any) -> Audience:
    return Audience(directory, filters_of(parse(WatchQuery, fields), "any", ALIASES))


def step(directory: Directory, version: int, node_id: str, label: str | None) -> None:
    if label is None:
        directory.delete(node_id, version)
    else:
        directory.put(record(node_id, labels=[label]), version, 0.0)


def applied(seen: dict[str, Any], events: bytes) -> dict[str, Any]:
    """What a watcher knows after these events."""
    seen = dict(seen)
    for event in events.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in event.split("\n"))
        data = orjson.loads(fields["data"])
        if fields["event"] == "upsert":
            seen[data["node_id"]] = data["labels"]
        else:
            assert seen.pop(data["node_id"], None) is not None, "it was never shown"
    return seen


def matching(directory: Directory) -> dict[str, Any]:
    shown = [orjson.loads(entry.fragment() + b"}") for entry in directory.entries()]
    return {node["node_id"]: node["labels"] for node in shown if "x" in node["labels"]}


@given(st.lists(STEP, max_size=5), st.lists(st.lists(STEP, max_size=4), max_size=5))
def test_a_watcher_knows_what_a_look_at_everything_would_tell(
    before: list[tuple[str, str | None]], batches: list[list[tuple[str, str | None]]]
) -> None:
    directory, changes = rig()
    version = 0
    for node_id, label in before:
        step(directory, version := version + 1, node_id, label)
    watched = audience(directory, label="x")
    seen = {entry.node_id: ["x"] for entry in watched.snapshot(changes.number)}
    changes.batch()
    start = changes.number
    known = dict(seen)
    for batch in batches:
        for node_id, label in batch:
            step(directory, version := version + 1, node_id, label)
        seen = applied(seen, watched.told(changes.batch(), changes, {}))
        assert seen == matching(directory)
    standing, gone = watched.split(changes.after(start))
    for node_id in gone:
        known.pop(node_id, None)
    known |= {entry.node_id: ["x"] for entry in standing}
    assert known == matching(directory), "who comes back late knows the same"
    assert watched.total() == len(known)


def test_what_is_shown_is_taken_back_when_it_goes() -> None:
    """Whether it was shown in a snapshot of somebody who came in between, or to somebody who came back."""
    directory, changes = rig()
    watched = audience(directory, label="x")
    watched.snapshot(changes.number)
    changes.batch()
    step(directory, 1, "a", "x")
    assert [entry.node_id for entry in watched.snapshot(changes.number)] == ["a"]
    step(directory, 2, "a", None)
    assert applied({"a": ["x"]}, watched.told(changes.batch(), changes, {})) == {}

    step(directory, 3, "b", "x")
    number = changes.number
    changes.batch()
    back = audience(directory, label="x")
    assert list(back.missed(changes.after(number), changes)) == []
    step(directory, 4, "b", None)
    assert applied({"b": ["x"]}, back.told(changes.batch(), changes, {})) == {}


def test_who_is_cut_off_in_the_middle_of_a_batch_lacks_just_the_rest_of_it() -> None:
    directory, changes = rig()
    for version, node_id in enumerate("aba", 1):
        step(directory, version, node_id, "x")
    events = audience(directory).told(changes.after(0), changes, {}).decode().split("\n\n")[:-1]
    cursors = [dict(line.split(": ", 1) for line in event.split("\n"))["id"] for event in events]
    assert cursors == ["e-2", "e-3"]
    place = changes.place(cursors[0])
    assert place is not None
    assert list(changes.after(place).numbers) == ["a"]


def test_a_snapshot_that_goes_by_numbers_is_not_of_a_while_ago() -> None:
    directory, changes = rig()
    step(directory, 1, "a", "x")
    watched = audience(directory, max_load=0.5)
    for at_ms, (cpu, ids) in enumerate(((10, ["a"]), (95, []), (20, ["a"]))):
        directory.beat("a", b'{"cpu_percent":%d}' % cpu, at_ms, 0.0)
        assert [entry.node_id for entry in watched.snapshot(changes.number)] == ids


def test_snapshots_are_no_larger_than_they_may_be() -> None:
    directory, _ = rig()
    for index in range(7):
        directory.put(record(f"n{index}", capabilities={"note": "x" * 60_000}), index + 1, 0.0)
    events = list(snapshots(list(directory.entries()), "e-7"))
    assert all(len(event) <= SNAPSHOT_BYTES + 1_000 for event in events)
    assert [b'"more":true' in event for event in events] == [True] * (len(events) - 1) + [False]
    assert len(events) > 2
    assert sum(event.count(b'"node_id":') for event in events) == 7


def test_what_is_no_longer_kept_is_not_pretended_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "KEPT", 3)
    changes = Changes("e")
    places = [changes.cursor(changes.number)]
    for _ in range(5):
        changes.note("n", None)
        places.append(changes.cursor(changes.number))
    assert [changes.place(cursor) for cursor in places] == [None, None, 2, 3, 4, 5]
    assert [len(changes.after(number).numbers) for number in (2, 5)] == [1, 0]
    assert [changes.place(strange) for strange in ("e-6", "f-5", "e-", "5", "", "e--1", "e-٣", "e-" + "9" * 40)] == [
        None
    ] * 8


def test_a_change_is_encoded_once_for_everybody() -> None:
    directory, changes = rig()
    audiences = [audience(directory), audience(directory, label="x")]
    directory.put(record("a", labels=["x"]), 1, 0.0)
    encoded: dict[str, bytes] = {}
    batch = changes.batch()
    told = [each.told(batch, changes, encoded) for each in audiences]
    assert told[0] == told[1] == encoded["a"]
    assert len(encoded) == 1


def test_who_sees_one_role_does_not_hear_of_nodes_of_others() -> None:
    directory, changes = rig()
    watched = Audience(
        directory, filters_of(parse(WatchQuery, {"role": "gpu"}), "any", ALIASES), Scope(roles=frozenset({"gpu"}))
    )
    for version, (node_id, role) in enumerate([("a", "gpu"), ("b", "gpu"), ("hidden", "vault"), ("c", "gpu")], 1):
        directory.put(record(node_id, role=role), version, 0.0)
    start = changes.number
    directory.put(record("a", role="vault"), 5, 0.0)  # it was among them
    directory.delete("b", 6)
    directory.delete("hidden", 7)
    directory.put(record("new", role="vault"), 8, 0.0)
    directory.put(record("c", role="gpu"), 9, 0.0)
    standing, gone = watched.split(changes.after(start))
    assert ([entry.node_id for entry in standing], sorted(gone)) == (["c"], ["a", "b"])
    told = b"".join(watched.missed(changes.after(start), changes))
    assert (b'"hidden"' in told, b'"new"' in told, told.count(b"event: remove")) == (False, False, 2)
