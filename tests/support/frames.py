"""Frames made by hand, as no registry would make them."""

import zlib

from federation.columns import Writer
from federation.messages import (
    PROTOCOL_VERSION,
    Ack,
    Announce,
    Beats,
    DigestRecords,
    DigestRequest,
    DigestSums,
    Drain,
    Graft,
    Hello,
    Message,
    Prune,
    Pull,
    Push,
    Repair,
    Want,
    Watermarks,
)
from federation.wire import encode

COMPRESSED = 0x80
SMALLEST: dict[type, Message] = {
    Hello: Hello("a", 0, {}, {}, 0, (), 0),
    Announce: Announce({}, {}, 0, ()),
    Push: Push(0, ()),
    Ack: Ack(0),
    Pull: Pull(0, {}),
    Drain: Drain(0, 0, 0, ()),
    Watermarks: Watermarks(0, 0, ()),
    Beats: Beats(("a", 0), ()),
    DigestRequest: DigestRequest(0),
    DigestSums: DigestSums(0, {}, False),
    DigestRecords: DigestRecords(0, 0, 0, {}, False),
    Want: Want(0, 0, ()),
    Prune: Prune(()),
    Graft: Graft(()),
    Repair: Repair(0, 0, 0, (), False),
}


def body_of(frame: bytes) -> bytes:
    """What a frame carries, inflated."""
    return zlib.decompress(frame[3:]) if frame[2] & COMPRESSED else frame[3:]


def _type_of(kind: type) -> int:
    """The byte that says which message a frame is."""
    return encode(SMALLEST[kind])[2]


def framed(kind: type, body: bytes) -> bytes:
    """A frame of that type and any body."""
    return bytes((0xDA, PROTOCOL_VERSION, _type_of(kind))) + body


def deflated(kind: type, body: bytes) -> bytes:
    """The same, with its body compressed."""
    return bytes((0xDA, PROTOCOL_VERSION, _type_of(kind) | COMPRESSED)) + zlib.compress(body)


def varints(*values: int) -> bytes:
    """Numbers as frames carry them, and larger ones than they may."""
    writer = Writer()
    for value in values:
        writer.number(value, 2**80)
    return bytes(writer.out)
