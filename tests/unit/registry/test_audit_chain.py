"""The laws of the chain: whatever is done to a log that is not the end of a kill, it shows."""

from hashlib import sha256

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import audit_chain
from registry.audit_chain import START, BrokenLine, Head

AT = "2026-01-02T03:04:05.000Z"


def chain(count: int, after: Head = START) -> list[bytes]:
    lines = []
    for number in range(count):
        entry = audit_chain.body(at=AT, action="key.created", by={"kind": "admin"}, target=f"k{number}")
        after, line = audit_chain.link(after, entry)
        lines.append(line)
    return lines


def fault(lines: list[bytes], after: Head = START) -> int | None:
    """At which line something is wrong."""
    for number, raw in enumerate(lines):
        try:
            line = audit_chain.read(raw)
        except BrokenLine:
            return number
        if audit_chain.follows(line, after) is not None:
            return number
        after = line.head
    return None


def test_a_line_is_checked_with_nothing_but_sha256() -> None:
    (line,) = chain(1)
    said, _, told = line.rpartition(b',"hash":"')
    assert sha256(said).hexdigest() == told[:-2].decode() == orjson.loads(line)["hash"]
    assert audit_chain.read(line).at == AT


@given(st.data())
def test_any_altered_dropped_swapped_or_inserted_line_is_found(data: st.DataObject) -> None:
    lines = chain(8)
    assert fault(lines) is None
    at = data.draw(st.integers(0, 7))
    kind = data.draw(st.sampled_from(["byte", "drop", "swap", "insert", "remade"]))
    if kind == "byte":
        where = data.draw(st.integers(0, len(lines[at]) - 1))
        other = data.draw(st.integers(0, 255).filter(lambda byte: byte != lines[at][where]))
        lines[at] = lines[at][:where] + bytes([other]) + lines[at][where + 1 :]
    elif kind == "drop":
        at = min(at, 6)  # of the last one nothing follows that could miss it: heads elsewhere do
        del lines[at]
    elif kind == "swap":
        other_at = data.draw(st.integers(0, 7).filter(lambda other: other != at))
        lines[at], lines[other_at] = lines[other_at], lines[at]
        at = min(at, other_at)
    elif kind == "insert":
        lines.insert(at, lines[data.draw(st.integers(0, 7))] if data.draw(st.booleans()) else chain(9)[8])
    else:  # one entry made anew, with a hash that fits it
        at = min(at, 6)
        before = audit_chain.read(lines[at]).prev
        lines[at] = audit_chain.link(Head(at, before), audit_chain.body(at=AT, action="x", by={"kind": "node"}))[1]
        at += 1
    found = fault(lines)
    assert found is not None
    assert found <= at + 1


def test_a_fault_says_what_it_is() -> None:
    one, two, three = (audit_chain.read(line) for line in chain(3))
    assert audit_chain.follows(two, one.head) is None
    assert audit_chain.follows(three, one.head) == "entry 2 is missing before it"
    assert audit_chain.follows(three, START) == "entries 1 to 2 are missing before it"
    assert "moved, or put in" in str(audit_chain.follows(one, two.head))
    assert "replaced" in str(audit_chain.follows(two, Head(1, "f" * 64)))


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * 20_000, b'{"seq":0}', chain(1)[0][:-5], chain(1)[0] + b" "])
def test_what_is_no_line_is_refused_and_never_raises_otherwise(raw: bytes) -> None:
    with pytest.raises(BrokenLine):
        audit_chain.read(raw)


def test_what_callers_invent_stays_short_and_on_one_line() -> None:
    entry = audit_chain.body(at=AT, action="x", by={}, target="n\n" * 9_000, detail={"label": "y" * 90_000})
    _, line = audit_chain.link(START, entry)
    assert b"\n" not in line
    assert len(line) < 2_000
    assert orjson.loads(line)["detail"] == {"left_out_bytes": 90_012}
    assert audit_chain.is_body(entry)


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"at":1}', b'{"at":"",\n"action":1}', b"\xff"])
def test_only_what_a_worker_makes_is_taken_for_an_entry(raw: bytes) -> None:
    assert not audit_chain.is_body(raw)
