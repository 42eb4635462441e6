"""What the wire format refuses, as tables: what a peer may not send, and what is not sent."""

import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from federation.columns import MAX_CHAINS, NUMBER_MAX
from federation.messages import (
    Ack,
    Beat,
    Beats,
    DigestRecords,
    DigestRequest,
    DigestSums,
    Drain,
    Entry,
    Message,
    Pull,
    Push,
    Repair,
    Segment,
    Want,
    Watermark,
    Watermarks,
)
from federation.record import MAX_LIFE, Item, Section
from federation.wire import (
    AGE_STEP_MS,
    MAX_BEATS,
    MAX_BODY_SIZE,
    MAX_FRAME_SIZE,
    MAX_METRICS_SIZE,
    MAX_REGISTRIES,
    Fault,
    WireError,
    decode,
    encode,
)
from federation.wire_items import MAX_ITEMS, MAX_PAYLOAD_SIZE
from tests.support.frames import body_of, deflated, framed, varints

CHAIN = ("a", 1)
A = b"\x01a"  # the registry id "a"
HUGE = varints(2**62)
ONE_ITEM = Item("k", 1, 1, 0, Section(1, "a", 0, b"p", 1, 1))
REPAIR_OF_ONE = body_of(encode(Repair(0, 0, 0, (ONE_ITEM,), False)))


def repair_with(at: int, *replaced: int) -> bytes:
    """The repair of one item with some bytes replaced. It reads: frame, walk, last, count, shape, records
    named, reference, key's size, width, key, life, width, incarnation, chains, origin's size, ..."""
    return framed(Repair, REPAIR_OF_ONE[:at] + bytes(replaced) + REPAIR_OF_ONE[at + len(replaced) :])


REFUSED: dict[str, tuple[bytes, Fault]] = {
    "nothing": (b"", Fault.SIZE),
    "half a header": (b"\xda\x02", Fault.SIZE),
    "a frame over the limit": (framed(Want, bytes(MAX_FRAME_SIZE - 2)), Fault.SIZE),
    "another protocol": (b"GET / HTTP/1.1", Fault.PROTOCOL),
    "a later version": (b"\xda\x03\x04\x00", Fault.VERSION),
    "no such type": (b"\xda\x02\x00", Fault.TYPE),
    "no such type, compressed": (b"\xda\x02\xff" + zlib.compress(b""), Fault.TYPE),
    "no deflate": (b"\xda\x02\x84garbage", Fault.COMPRESSION),
    "deflate of nothing": (deflated(Ack, b""), Fault.TRUNCATED),
    "a deflate bomb": (deflated(Want, bytes(64 * 2**20)), Fault.COMPRESSION),
    "one byte over the body's limit": (deflated(Want, bytes(MAX_BODY_SIZE + 1)), Fault.COMPRESSION),
    "two deflate streams": (deflated(Ack, b"\0") + zlib.compress(b"\0"), Fault.TRAILING),
    "a deflate stream that breaks off": (deflated(Ack, b"\0")[:-1], Fault.TRUNCATED),
    "a number over 63 bits": (framed(Ack, varints(2**63)), Fault.NUMBER),
    "a number without end": (framed(Ack, b"\xff" * 1000), Fault.NUMBER),
    "a zero without end": (framed(Ack, b"\x80" * 1000), Fault.NUMBER),
    "a number not in its shortest form": (framed(Ack, b"\x81\x00"), Fault.NUMBER),
    "a flag that is neither": (framed(Drain, b"\0\0\0\x02"), Fault.NUMBER),
    "an origin of no characters": (framed(Beats, b"\0\0\0"), Fault.ORIGIN),
    "an origin of 64 characters": (framed(Beats, b"\x40" + b"a" * 64 + b"\0\0"), Fault.NUMBER),
    "an origin that starts with a dot": (framed(Beats, b"\x02.a\0\0"), Fault.ORIGIN),
    "an origin with a line's end": (framed(Beats, b"\x02a\n\0\0"), Fault.ORIGIN),
    "an origin beyond ASCII": (framed(Beats, b"\x02\xd1\x97\0\0"), Fault.ORIGIN),
    "a vector of more chains than there are bytes": (framed(Pull, b"\0" + HUGE), Fault.COUNT),
    "a vector of too many generations": (
        deflated(Pull, b"\0\x02" + 2 * (A + varints(MAX_CHAINS // 2 + 1)) + bytes(2**18)),
        Fault.COUNT,
    ),
    "a chain twice": (framed(Pull, b"\0\x01" + A + b"\x02" + b"\x05\0\0" + b"\x01\0\0"), Fault.ORDER),
    "an origin twice": (framed(Pull, b"\0\x02" + 2 * (A + b"\x01") + b"\x05\0\0" + b"\x01\0\0"), Fault.ORDER),
    "origins out of order": (framed(Pull, b"\0\x02\x01b\x01" + A + b"\x01\x05\0\0\x01\0\0"), Fault.ORDER),
    "too many registries": (deflated(Watermarks, b"\0\0" + varints(MAX_REGISTRIES + 1) + bytes(2**16)), Fault.COUNT),
    "watermarks of too many chains": (
        framed(Watermarks, b"\0\0\x02" + 2 * (A + b"\0\0" + varints(MAX_CHAINS // 2 + 1) + bytes(MAX_CHAINS + 2))),
        Fault.COUNT,
    ),
    "a watermark of a generation below 0": (framed(Watermarks, b"\0\0\x01" + A + b"\0\0\x01\x01\0"), Fault.NUMBER),
    "a watermark older than any": (framed(Watermarks, b"\0\0\x01" + A + b"\0" + HUGE + b"\0"), Fault.NUMBER),
    "more unchanged marks than registries": (framed(Watermarks, b"\0\0\0" + varints(MAX_REGISTRIES + 1)), Fault.COUNT),
    "a mark's name past 32 bits": (framed(Watermarks, b"\0\0\0\x01" + varints(2**32) + b"\0\0\0"), Fault.NUMBER),
    "an unchanged mark older than any": (framed(Watermarks, b"\0\0\0\x01\0\0" + HUGE + b"\0"), Fault.NUMBER),
    "more beats than the limit": (framed(Beats, A + b"\0" + varints(MAX_BEATS + 1)), Fault.COUNT),
    "beats before position 0": (framed(Beats, A + b"\0\x02\x01\x03\0\0\0\0\0"), Fault.NUMBER),
    "beats past the last position": (
        framed(Beats, A + b"\0\x02" + varints(NUMBER_MAX) + b"\x02\0\0\0\0\0"),
        Fault.NUMBER,
    ),
    "an age past the limit": (framed(Beats, A + b"\0\x01\0" + HUGE + b"\0\0\0"), Fault.NUMBER),
    "metrics over the limit": (framed(Beats, A + b"\0\x01\0\0\0\x41\0" + bytes(65)), Fault.NUMBER),
    "a column of three bytes a number": (framed(Beats, A + b"\0\x01\0\0\x03\0\0\0"), Fault.NUMBER),
    "a group past the last": (framed(DigestRequest, b"\0\x01\x40\0\0"), Fault.NUMBER),
    "more groups than there are": (framed(DigestRequest, b"\0\x41\0\0\0"), Fault.COUNT),
    "a bucket's sum twice": (framed(DigestSums, b"\0\0\0\0\0\x02\x05\0\0\x07\0"), Fault.ORDER),
    "a bucket past the last": (framed(DigestRecords, b"\0" + varints(4096) + b"\0" + b"\0\0"), Fault.NUMBER),
    "a record's sum twice": (framed(DigestRecords, b"\0\0\0\0\x02\x01\0kk\0\0"), Fault.ORDER),
    "more keys than the limit": (framed(Want, b"\0\0" + varints(MAX_ITEMS + 1)), Fault.COUNT),
    "a key over the limit": (framed(Want, b"\0\0\x01" + varints(301) + b"\0" + b"k" * 301), Fault.NUMBER),
    "one key of many over the limit": (framed(Want, b"\0\0\x02\xac\x02\x01\0\x01" + b"k" * 601), Fault.NUMBER),
    "a key that is not UTF-8": (framed(Want, b"\0\0\x01\x01\0\xff"), Fault.TEXT),
    "a key that ends within a character": (framed(Want, b"\0\0\x02\x01\0\xd1\x97"), Fault.TEXT),
    "items beyond the body": (repair_with(4, 100), Fault.COUNT),
    "an item of an unknown shape": (repair_with(5, 0x80), Fault.SHAPE),
    "a seal that is not there": (repair_with(5, 0x40), Fault.TRUNCATED),
    "an item of two births": (repair_with(5, 0b1100), Fault.SHAPE),
    "an item in place, of no place": (repair_with(5, 0b100000), Fault.SHAPE),
    "more records than items": (
        framed(Repair, REPAIR_OF_ONE[:6] + b"\2\0" + b"\1\0kj" + b"\1\0" + b"\1\0\0" + REPAIR_OF_ONE[14:]),
        Fault.COUNT,
    ),
    "an item of no record": (repair_with(6, 0), Fault.COUNT),
    "an item of another record than is named": (repair_with(7, 1), Fault.COUNT),
    "a life of 0": (repair_with(11, 0), Fault.NUMBER),
    "a life past the limit": (framed(Repair, REPAIR_OF_ONE[:11] + varints(2**31) + REPAIR_OF_ONE[12:]), Fault.NUMBER),
    "an incarnation past the limit": (
        framed(Repair, REPAIR_OF_ONE[:13] + varints(2**63) + REPAIR_OF_ONE[14:]),
        Fault.NUMBER,
    ),
    "a write of a chain that is not named": (
        framed(Repair, REPAIR_OF_ONE[:14] + b"\0" + REPAIR_OF_ONE[18:]),
        Fault.COUNT,
    ),
    "a payload over the limit": (
        deflated(Repair, REPAIR_OF_ONE[:-3] + varints(MAX_PAYLOAD_SIZE + 1) + bytes(MAX_PAYLOAD_SIZE + 2)),
        Fault.NUMBER,
    ),
    "payloads beyond the frame": (framed(Repair, REPAIR_OF_ONE[:-3] + b"\x05\0p"), Fault.TRUNCATED),
    "entries beyond the body": (framed(Push, b"\0\x01" + A + b"\0\0\x05" + varints(10_000) + b"\0"), Fault.COUNT),
    "a segment that ends before it starts": (framed(Push, b"\0\x01" + A + b"\0\x05\x04\0\0\0"), Fault.ORDER),
    "an entry outside its segment": (framed(Push, b"\0\x01" + A + b"\0\x05\x06\x01\0\x07\x01"), Fault.ORDER),
    "an entry at what its segment follows": (framed(Push, b"\0\x01" + A + b"\0\x05\x06\x01\0\x05\x01"), Fault.ORDER),
    "entries and no items": (framed(Push, b"\0\x01" + A + b"\0\x05\x06\x01\0\x06\0"), Fault.COUNT),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(case: str) -> None:
    frame, fault = REFUSED[case]
    with pytest.raises(WireError, match="the peer's frame is refused") as refusal:
        decode(frame)
    assert refusal.value.fault is fault, str(refusal.value)


@pytest.mark.parametrize("case", ["a deflate bomb", "more beats than the limit", "items beyond the body"])
def test_what_is_refused_takes_little_memory(case: str) -> None:
    frame, _ = REFUSED[case]
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_BODY_SIZE


def item(**changes: Any) -> Item:
    section = {name: changes.pop(name) for name in list(changes) if name in Section._fields}
    return ONE_ITEM._replace(section=ONE_ITEM.section._replace(**section), **changes)


def pushed(after: int, upto: int, *seqs: int) -> Push:
    return Push(0, (Segment(CHAIN, after, upto, tuple(Entry(seq, ONE_ITEM) for seq in seqs)),))


NOT_WRITTEN: dict[str, Callable[[], Message]] = {
    "a number below 0": lambda: Ack(-1),
    "a number over 63 bits": lambda: Ack(2**63),
    "a generation below 0": lambda: Pull(0, {("a", -1): 1}),
    "too many chains": lambda: Pull(0, {("a", generation): 1 for generation in range(MAX_CHAINS + 1)}),
    "watermarks of too many chains": lambda: Watermarks(0, 0, (Watermark("a", 1, ((1, 1),) * (MAX_CHAINS + 1), 0),)),
    "an origin that is no id": lambda: Beats(("", 1), ()),
    "an origin with a line's end": lambda: Beats(("a\n", 1), ()),
    "a life of 0": lambda: Repair(0, 0, 0, (item(life=0),), True),
    "a life below 0": lambda: Repair(0, 0, 0, (item(life=-1),), True),
    "a life past the limit": lambda: Repair(0, 0, 0, (item(life=MAX_LIFE + 1),), True),
    "a kind that is none": lambda: Repair(0, 0, 0, (item(kind=4),), True),
    "a key over the limit": lambda: Repair(0, 0, 0, (item(key="k" * 301),), True),
    "one key of many over the limit": lambda: Want(0, 0, ("k", "k" * 301)),
    "a key over the limit in bytes": lambda: Repair(0, 0, 0, (item(key="ї" * 151),), True),
    "a key that no encoding has": lambda: Repair(0, 0, 0, (item(key="\ud800"),), True),
    "a payload over the limit": lambda: Repair(0, 0, 0, (item(payload=bytes(MAX_PAYLOAD_SIZE + 1)),), True),
    "a stamp past the last": lambda: Repair(0, 0, 0, (item(major=2**63),), True),
    "a stamp below 0": lambda: Repair(0, 0, 0, (ONE_ITEM, item(minor=-1)), True),
    "a body over the limit": lambda: Repair(0, 0, 0, (item(payload=bytes(MAX_PAYLOAD_SIZE)),) * 17, True),
    "a frame over the limit": lambda: Repair(
        0, 0, 0, tuple(item(payload=random.Random(seq).randbytes(MAX_PAYLOAD_SIZE)) for seq in range(4)), True
    ),
    "a segment that ends before it starts": lambda: pushed(5, 4),
    "an entry outside its segment": lambda: pushed(5, 6, 7),
    "entries out of order": lambda: pushed(5, 9, 8, 7),
    "metrics over the limit": lambda: Beats(CHAIN, (Beat(1, 0, bytes(MAX_METRICS_SIZE + 1)),)),
    "an age below 0": lambda: Beats(CHAIN, (Beat(1, -AGE_STEP_MS, b""),)),
    "a bucket past the last": lambda: DigestSums(0, {4096: 1}, False),
    "a sum over 64 bits": lambda: DigestSums(0, {1: 2**64}, False),
}


@pytest.mark.parametrize("case", NOT_WRITTEN)
def test_what_no_peer_would_take_is_not_written(case: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as fault:
        encode(NOT_WRITTEN[case]())
    assert not isinstance(fault.value, WireError)
