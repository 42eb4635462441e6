"""Server-sent events: what bytes mean, however they are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import sse
from agent.sse import Event, EventParser, EventTooLarge

STREAM = (
    b": alive\n\n"
    b'event: snapshot\nid: e-1\ndata: {"nodes":[]}\n\n'
    b"event: upsert\r\nid:e-2\r\ndata: one\r\ndata: two\r\n\r\n"
    b"retry: 5\nunknown\ndata:\n\n"
    b"event: nothing\n\n"
    b"data: unfinished\n"
)
EVENTS = [Event("snapshot", b'{"nodes":[]}', "e-1"), Event("upsert", b"one\ntwo", "e-2"), Event("message", b"")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_however_a_stream_is_cut_it_says_the_same(cuts: list[int]) -> None:
    parser, places = EventParser(), [0, *sorted(cuts), len(STREAM)]
    found = [event for a, b in pairwise(places) for event in parser.feed(STREAM[a:b])]
    assert found == EVENTS


@pytest.mark.parametrize("line", [b"x" * 60, b"data: " + b"x" * 30 + b"\n"])
def test_an_event_without_an_end_is_given_up(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = EventParser()
    parser.feed(line)
    with pytest.raises(EventTooLarge):
        parser.feed(3 * line)
