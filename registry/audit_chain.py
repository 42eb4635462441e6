"""The audit log's form: one JSON object a line, each bound to the one before it by a hash.

    {"seq":7,"at":"...","action":"...", ... ,"prev":"<hash of line 6>","hash":"<SHA-256 of this line up to ,\"hash\">"}

Lines are checked as they stand, byte for byte: whoever has `sha256sum` can do it without us.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

Json = Any

MAX_TEXT = 300  # characters of a target, which callers may invent
MAX_DETAIL_BYTES = 4_096  # of an entry: what is longer is told by its size
MAX_LINE_BYTES = 16_384  # a line that is longer is none of ours
_FIELDS = ("at", "action", "by", "target", "from", "outcome", "detail")
_HASH = b',"hash":"'
_TAIL_BYTES = len(_HASH) + 64 + len('"}')


class Head(NamedTuple):
    """Where a chain has come to: the number of its last entry, and that entry's hash."""

    seq: int
    hash: str


START = Head(0, "0" * 64)  # what the first entry comes after


class BrokenLine(ValueError):
    """A line is not as it was written; says how."""


@dataclass(frozen=True, slots=True)
class Line:
    """One entry that is whole: what it says, and where it stands."""

    raw: bytes
    entry: Mapping[str, Json]
    head: Head
    prev: str

    @property
    def at(self) -> str:
        """When it happened (ISO 8601)."""
        return str(self.entry.get("at", ""))


def body(
    *,
    at: str,
    action: str,
    by: Mapping[str, Json],
    target: str = "",
    address: str = "",
    outcome: str = "ok",
    detail: Mapping[str, Json] | None = None,
) -> bytes:
    """An entry as a JSON object that has no place in a chain yet. `by`: who, with which kind of key and its id."""
    told = dict(detail or {})
    size = len(orjson.dumps(told, default=str))
    if size > MAX_DETAIL_BYTES:
        told = {"left_out_bytes": size}
    values = (at, action, dict(by), target[:MAX_TEXT], address[:64], outcome, told)
    return orjson.dumps(dict(zip(_FIELDS, values, strict=True)), default=str)


def is_body(raw: bytes) -> bool:
    """Whether that is what `body` makes: it came from another worker, by way of the store."""
    try:
        entry = orjson.loads(raw)
    except ValueError:
        return False
    return isinstance(entry, dict) and tuple(entry) == _FIELDS and len(raw) < MAX_LINE_BYTES and b"\n" not in raw


def link(after: Head, entry: bytes) -> tuple[Head, bytes]:
    """The entry at its place: the new head, and the line (without its end)."""
    said = b'{"seq":%d,%b,"prev":"%b"' % (after.seq + 1, entry[1:-1], after.hash.encode())
    made = sha256(said).hexdigest()
    return Head(after.seq + 1, made), b'%b%b%b"}' % (said, _HASH, made.encode())


def read(raw: bytes) -> Line:
    """One line, which agrees with its own hash. BrokenLine."""
    said, tail = raw[:-_TAIL_BYTES], raw[-_TAIL_BYTES:]
    if len(raw) > MAX_LINE_BYTES or not (tail.startswith(_HASH) and tail.endswith(b'"}')):
        raise BrokenLine("it is no entry of an audit log")
    told = tail[len(_HASH) : -2].decode("ascii", errors="replace")
    if sha256(said).hexdigest() != told:
        raise BrokenLine("it was changed: its hash does not fit what it says")
    try:
        entry = orjson.loads(raw)
        seq, prev = entry["seq"], entry["prev"]
    except (ValueError, KeyError, TypeError):
        raise BrokenLine("it is no entry of an audit log") from None
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 1 or not isinstance(prev, str):
        raise BrokenLine("it is no entry of an audit log")
    return Line(raw, entry, Head(seq, told), prev)


def follows(line: Line, after: Head) -> str | None:
    """What is wrong with that line coming next; None: nothing."""
    seq = line.head.seq
    if seq == after.seq + 2:
        return f"entry {after.seq + 1} is missing before it"
    if seq > after.seq + 2:
        return f"entries {after.seq + 1} to {seq - 1} are missing before it"
    if seq <= after.seq:
        return f"it stands after entry {after.seq}: it was moved, or put in"
    if line.prev != after.hash:
        return f"it does not follow the entry {after.seq} that stands before it: one of the two was replaced"
    return None
