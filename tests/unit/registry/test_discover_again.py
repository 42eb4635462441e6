"""A repeated question: the same bytes again while nothing of its nodes has changed, others as soon as anything has."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from federation.signed import incarnation_of
from registry.directory import Directory
from registry.discovery import Finder
from registry.http.nodes import NodeHandlers
from registry.keys import Principal
from registry.lifecycle import Windows
from registry.node import Intent, Record, Word, registered
from registry.signing import parse_registration, proven
from tests.support.clock import ManualClock
from tests.support.records import ALIASES, HOME, NOW_MS, at_home, origin, record, versioned
from tests.support.signing import body, signing_key

WINDOWS = Windows(30, 90, 300)
THERE = "there"
ALL = "sort=node_id&status=any"
SIGNED_BY = incarnation_of(signing_key(1).public)
IN_TIME, LATER_MS = 10.0, NOW_MS + 5_000


def signed(node_id: str, by: str) -> Record:
    """As a peer would have it: nobody has looked yet whether it signed that."""
    request = parse_registration(body(by, key=1), ALIASES)
    proven(request)
    found = Record.of(versioned(replace(registered(None, node_id, request, origin()), incarnation=SIGNED_BY)))
    assert found is not None
    return found


OURS = record("ours")
THEIRS = at_home(record("theirs"), THERE)
SIGNED, FORGED = signed("signed", "signed"), signed("forged", "signed")


class Asked:
    """A registry that has the four nodes, and is asked one question again and again."""

    def __init__(self) -> None:
        self.directory = Directory(WINDOWS, 0.0, HOME)
        self.version = 0
        for node in (OURS, THEIRS, SIGNED, FORGED):
            self.put(node)
        self.hear(age_s=1.0)
        place = SimpleNamespace(region="eu", aliases=ALIASES)
        who = Principal("node", "ours")
        callers = SimpleNamespace(require_read=lambda request: who, narrowed=lambda who, query, aliases: query)
        self.handlers = NodeHandlers(
            SimpleNamespace(directory=self.directory, place=place),  # type: ignore[arg-type]  # all that is asked of it
            Finder(self.directory, ALIASES),
            callers,  # type: ignore[arg-type]  # the same
            ManualClock(NOW_MS),
            None,  # type: ignore[arg-type]  # the same
            SimpleNamespace(expire=lambda: None),  # type: ignore[arg-type]  # the same
        )
        self.handlers._dice = SimpleNamespace(random=lambda: 0.5)  # type: ignore[assignment]  # one order, not sixteen

    def put(self, node: Record) -> None:
        self.version += 1
        self.directory.put(node, self.version, 1.0, NOW_MS)

    def hear(self, *, age_s: float | None, reachable: bool = True, generation: int = 1) -> None:
        self.directory.hear(
            THERE, reachable=reachable, age_s=age_s, now_ms=NOW_MS, generation=generation, known=((1, 0),)
        )

    def answer(self) -> bytes:
        rel_url = SimpleNamespace(raw_query_string=ALL)
        request: Any = SimpleNamespace(method="GET", rel_url=rel_url)
        answered = asyncio.run(self.handlers.discover(request))
        assert isinstance(answered.body, bytes)
        return answered.body

    def fragments(self) -> list[Any]:
        return [orjson.loads(entry.fragment() + b"}") for entry in self.directory.entries()]


def nodes_of(answer: bytes) -> list[Any]:
    return [
        {name: value for name, value in node.items() if not name.startswith("latency_")}
        for node in orjson.loads(answer)["nodes"]
    ]


def judged(node: Record, liveness: str) -> Record:
    return replace(node, word=Word(liveness, why="silent"))  # type: ignore[arg-type]  # one of them


CHANGES: dict[str, Callable[[Asked], object]] = {
    "it registers again": lambda here: here.put(record("ours", labels=["new"])),
    "another one registers": lambda here: here.put(record("another")),
    "it is deleted": lambda here: here.directory.delete("ours", 99),
    "its home says another word on it": lambda here: here.put(judged(OURS, "degraded")),
    "its agent says something": lambda here: here.put(replace(OURS, word=Word(reported="draining"))),
    "an operator sets its status": lambda here: here.put(replace(OURS, intent=Intent("maintenance"))),
    "an operator gives it a label": lambda here: here.put(replace(OURS, intent=Intent(None, ("new",)))),
    "it moves to another registry": lambda here: here.put(at_home(OURS, THERE)),
    "it moves here": lambda here: here.put(record("theirs")),
    "it beats": lambda here: here.directory.beat("ours", b'{"cpu_percent":7}', NOW_MS, IN_TIME),
    "it beats with nothing but the time": lambda here: here.directory.beat("ours", None, NOW_MS, IN_TIME),
    "it beats elsewhere": lambda here: here.directory.beat("theirs", b'{"cpu_percent":7}', LATER_MS, IN_TIME),
    "the store knows of a heartbeat": lambda here: here.directory.restore("ours", NOW_MS, 1.0, b'{"x":1}', IN_TIME),
    "the store knows of a heartbeat's time": lambda here: here.directory.restore("ours", NOW_MS, None, None, IN_TIME),
    "slots of it are held": lambda here: here.directory.reserve("ours", 2),
    "its signature is found good": lambda here: here.directory.check("signed"),
    "the next signature is looked at": lambda here: here.directory.check_next(),
    "its home's word is older": lambda here: here.hear(age_s=2.0),
    "its home's word was never current": lambda here: here.hear(age_s=None),
    "its home cannot be heard of": lambda here: here.hear(age_s=1.0, reachable=False),
    "its home has started again": lambda here: here.hear(age_s=1.0, generation=2),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_changes_of_a_node_is_shown_at_once(change: Callable[[Asked], object]) -> None:
    here = Asked()
    before = [here.answer() for _ in range(4)]
    assert before[-1] is before[-2], "it is kept"
    change(here)
    answer = here.answer()
    assert answer != before[-1]
    assert nodes_of(answer) == [shown for shown in here.fragments() if shown["signature"] != "invalid"]
    again = [here.answer() for _ in range(3)]
    assert set(again) == {answer}


def test_what_is_found_forged_is_shown_no_more() -> None:
    here = Asked()
    before = [here.answer() for _ in range(4)][-1]
    assert b'"node_id":"forged"' in before
    here.directory.check("forged")
    assert b'"node_id":"forged"' not in here.answer()


def test_what_changes_of_others_leaves_an_answer_as_it_is() -> None:
    here = Asked()
    before = [here.answer() for _ in range(4)][-1]
    here.hear(age_s=1.0)
    here.directory.beat("nobody", b"{}", NOW_MS, IN_TIME)
    assert here.answer() is before
