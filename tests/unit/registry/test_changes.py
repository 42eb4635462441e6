"""Changes and audiences against a naive watcher that compares all nodes before and after."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import changes as changes_module
from registry.changes import Audience, Changes
from registry.directory import Directory
from registry.discovery import filters_of
from registry.lifecycle import Windows
from registry.model import WatchQuery, parse
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


def test_what_is_no_longer_kept_is_not_pretended_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "KEPT", 3)
    changes = Changes("e")
    places = [changes.cursor(changes.number)]
    for _ in range(5):
        changes.note("n")
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
