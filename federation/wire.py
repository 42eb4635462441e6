"""The one owner of the wire format: messages to frames, and frames to messages or a WireError.

    frame = magic, version, type (its high bit: the body is compressed), body

The body is deflated where that makes it shorter. Whatever there may be many of stands in columns (see
columns.py): the neighbours in a column are alike, so it is short, and is packed and checked in bulk.
Equal messages make equal frames (of one zlib), and a frame's message makes that frame again.
"""

import zlib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from federation.clock import MAX_CHAINS, Vector
from federation.columns import FINGERPRINT_MAX, NUMBER_MAX, Fault, Reader, WireError, Writer, is_ascending
from federation.digest import BUCKETS, GROUPS
from federation.messages import (
    PROTOCOL_VERSION,
    Ack,
    Announce,
    Beat,
    Beats,
    DigestRecords,
    DigestRequest,
    DigestSums,
    Drain,
    Entry,
    Graft,
    Hello,
    Message,
    Prune,
    Pull,
    Push,
    Repair,
    Segment,
    Unchanged,
    Want,
    Watermark,
    Watermarks,
)
from federation.record import MAX_KEY_LENGTH, MAX_LIFE
from federation.wire_items import MAX_ITEMS, get_items, put_items

__all__ = ["AGE_STEP_MS", "MAX_FRAME_SIZE", "Fault", "WireError", "decode", "encode", "quantised"]

MAX_FRAME_SIZE = 2**20  # four times the payload that a sender puts in one: room for what comes with it
MAX_BODY_SIZE = 2**22  # so a frame makes us hold four times its limit at most, whatever it inflates to
MAX_METRICS_SIZE = 64  # measurements are packed numbers; a million nodes send them
MAX_BEATS = 2**14  # four times what a sender puts in a frame
MAX_SEGMENTS = 2**12  # one a chain that had news while a frame was in flight
MAX_HOPS = 2**10  # a line of all the registries planned for, ten times
MAX_REGISTRIES = 2**12  # well over the roster planned for
MAX_NAME = 2**32 - 1  # a CRC-32
MAX_AGE_MS = 2**42  # 139 years: no clock that only moves forward has run so long
AGE_STEP_MS = 250  # finer than anything that an age of measurements is used for

_MAGIC = 0xDA
_COMPRESSED = 0x80
_HEADER_SIZE = 3
_LEAST_SIZE_COMPRESSED = 200  # shorter ones hardly shrink
_COMPRESSION_LEVEL = 1  # the fastest: encoding is on the path of every write

_Name = TypeVar("_Name", int, str)


class _Code(NamedTuple):
    """How one type of message is written and read."""

    kind: type[Any]
    put: Callable[[Writer, Any], None]
    get: Callable[[Reader], Message]


def encode(message: Message) -> bytes:
    """The message's frame. ValueError: it is beyond the limits, and no peer would take it."""
    return _last_push.frame(message) if isinstance(message, Push) else _encoded(message)


class _LastPush:
    """The last push and its frame: mostly one goes to every link, and is encoded once."""

    def __init__(self) -> None:
        self._push: Push | None = None
        self._frame = b""

    def frame(self, push: Push) -> bytes:
        """Its frame. ValueError."""
        if push is not self._push:
            self._frame, self._push = _encoded(push), push
        return self._frame


_last_push = _LastPush()


def _encoded(message: Message) -> bytes:
    number = _NUMBERS[type(message)]
    writer = Writer()
    _CODES[number].put(writer, message)
    body = bytes(writer.out)
    if len(body) > MAX_BODY_SIZE:
        raise ValueError(f"a {type(message).__name__} of {len(body)} bytes is over {MAX_BODY_SIZE}")
    if len(body) >= _LEAST_SIZE_COMPRESSED:
        compressed = zlib.compress(body, _COMPRESSION_LEVEL)
        if len(compressed) < len(body):
            number, body = number | _COMPRESSED, compressed
    if _HEADER_SIZE + len(body) > MAX_FRAME_SIZE:
        raise ValueError(f"a {type(message).__name__} frame of {len(body)} bytes is over {MAX_FRAME_SIZE}")
    return bytes((_MAGIC, PROTOCOL_VERSION, number)) + body


def decode(frame: bytes) -> Message:
    """The frame's message. WireError: it is not a frame of this protocol; the fault is the peer's."""
    if not _HEADER_SIZE <= len(frame) <= MAX_FRAME_SIZE:
        raise WireError(Fault.SIZE, f"{len(frame)} bytes, not {_HEADER_SIZE}..{MAX_FRAME_SIZE}")
    magic, version, number = frame[:_HEADER_SIZE]
    if magic != _MAGIC:
        raise WireError(Fault.PROTOCOL, "it is of another protocol")
    if version != PROTOCOL_VERSION:
        raise WireError(Fault.VERSION, f"version {version}; this registry speaks {PROTOCOL_VERSION}")
    code = _CODES.get(number & ~_COMPRESSED)
    if code is None:
        raise WireError(Fault.TYPE, f"message type {number & ~_COMPRESSED} is not known")
    body = frame[_HEADER_SIZE:]
    reader = Reader(_inflated(body) if number & _COMPRESSED else body)
    message = code.get(reader)
    if reader.left:
        raise WireError(Fault.TRAILING, f"{reader.left} bytes follow its end")
    return message


def quantised(age_ms: int) -> int:
    """A beat's age as it arrives: rounded up, for what is taken for fresher than it is might be
    believed over something newer."""
    return -(-age_ms // AGE_STEP_MS) * AGE_STEP_MS


def _inflated(data: bytes) -> bytes:
    """What was deflated, and never much more than the limit of it."""
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(data, MAX_BODY_SIZE + 1)
    except zlib.error as error:
        raise WireError(Fault.COMPRESSION, "it does not inflate") from error
    if len(body) > MAX_BODY_SIZE:
        raise WireError(Fault.COMPRESSION, f"it inflates to over {MAX_BODY_SIZE} bytes")
    if not inflater.eof:
        raise WireError(Fault.TRUNCATED, "its compressed body breaks off")
    if inflater.unused_data:
        raise WireError(Fault.TRAILING, f"{len(inflater.unused_data)} bytes follow its compressed body")
    return body


# Messages, by type


def _put_hello(writer: Writer, message: Hello) -> None:
    writer.number(message.version)
    writer.chain((message.registry_id, message.generation))
    writer.signed(message.wall_ms)
    _put_position(writer, message)
    _put_origins(writer, message.direct)


def _get_hello(reader: Reader) -> Hello:
    version, (registry_id, generation), wall_ms = reader.number(), reader.chain(), reader.signed()
    vector, floor, life_floor = _get_position(reader)
    return Hello(registry_id, generation, vector, floor, life_floor, _get_origins(reader), wall_ms, version)


def _put_announce(writer: Writer, message: Announce) -> None:
    _put_position(writer, message)
    _put_origins(writer, message.direct)


def _get_announce(reader: Reader) -> Announce:
    return Announce(*_get_position(reader), _get_origins(reader))


def _put_push(writer: Writer, message: Push) -> None:
    segments = message.segments
    writer.number(message.frame)
    writer.number(len(segments), MAX_SEGMENTS)
    for segment in segments:
        chain, after, upto, entries = segment.chain, segment.after, segment.upto, segment.entries
        if not _is_within(after, upto, [entry.seq for entry in entries]):
            raise ValueError(f"a segment of {chain} with entries out of order, or outside {after}..{upto}")
        writer.chain(chain)
        writer.number(after)
        writer.number(upto)
        writer.number(len(entries), MAX_ITEMS)
        writer.number(segment.hops, MAX_HOPS)
    everything = [entry for segment in segments for entry in segment.entries]
    writer.deltas([entry.seq for entry in everything])
    places = [(*segment.chain, entry.seq) for segment in segments for entry in segment.entries]
    put_items(writer, [entry.item for entry in everything], places, [segment.chain for segment in segments])


def _get_push(reader: Reader) -> Push:
    frame = reader.number()
    heads = [
        (reader.chain(), reader.number(), reader.number(), reader.count(MAX_ITEMS), reader.number(MAX_HOPS))
        for _ in range(reader.count(MAX_SEGMENTS, least_size=7))
    ]
    total = sum(count for *_, count, _ in heads)
    if total > min(MAX_ITEMS, reader.left):
        raise WireError(Fault.COUNT, f"{total} entries are over {MAX_ITEMS}, or over what it holds")
    seqs = iter(reader.deltas(total))
    runs = [list(islice(seqs, count)) for *_, count, _ in heads]
    if not all(_is_within(after, upto, run) for (_, after, upto, _, _), run in zip(heads, runs, strict=True)):
        raise WireError(Fault.ORDER, "a segment's entries are out of order, or outside it")
    places = [(*chain, seq) for (chain, *_), run in zip(heads, runs, strict=True) for seq in run]
    items = iter(get_items(reader, places, [chain for chain, *_ in heads]))
    segments = [
        Segment(chain, after, upto, tuple(map(Entry, run, islice(items, count))), hops)
        for (chain, after, upto, count, hops), run in zip(heads, runs, strict=True)
    ]
    return Push(frame, tuple(segments))


def _is_within(after: int, upto: int, seqs: Sequence[int]) -> bool:
    return after <= upto and (not seqs or (after < seqs[0] and seqs[-1] <= upto and is_ascending(seqs)))


def _put_ack(writer: Writer, message: Ack) -> None:
    writer.number(message.frame)


def _get_ack(reader: Reader) -> Ack:
    return Ack(reader.number())


def _put_pull(writer: Writer, message: Pull) -> None:
    writer.number(message.pull_id)
    writer.vector(message.vector)


def _get_pull(reader: Reader) -> Pull:
    return Pull(reader.number(), reader.vector())


def _put_drain(writer: Writer, message: Drain) -> None:
    for number in (message.frame, message.pull_id, message.index):
        writer.number(number)
    writer.flag(message.claim is not None)
    if message.claim is not None:
        writer.vector(message.claim)
    put_items(writer, message.items)


def _get_drain(reader: Reader) -> Drain:
    frame, pull_id, index = reader.number(), reader.number(), reader.number()
    claim = reader.vector() if reader.flag() else None
    return Drain(frame, pull_id, index, get_items(reader), claim)


def _put_watermarks(writer: Writer, message: Watermarks) -> None:
    known = sum(len(mark.known) for mark in message.marks)
    if known > MAX_CHAINS:
        raise ValueError(f"watermarks of {known} chains are over {MAX_CHAINS}")
    writer.signed(message.wall_ms)
    writer.signed(message.mono_ms)
    writer.number(len(message.marks), MAX_REGISTRIES)
    for mark in message.marks:
        writer.chain((mark.owner, mark.generation))
        writer.number(mark.age_ms, MAX_AGE_MS)
        writer.number(len(mark.known))
        for generation, seq in mark.known:
            writer.signed(generation - mark.generation)
            writer.number(seq)
    writer.number(len(message.unchanged), MAX_REGISTRIES)
    writer.column([name for name, _ in message.unchanged], MAX_NAME)
    writer.column([age_ms for _, age_ms in message.unchanged], MAX_AGE_MS)


def _get_watermarks(reader: Reader) -> Watermarks:
    wall_ms, mono_ms = reader.signed(), reader.signed()
    marks: list[Watermark] = []
    room = MAX_CHAINS
    for _ in range(reader.count(MAX_REGISTRIES, least_size=5)):
        marks.append(_get_mark(reader, room))
        room -= len(marks[-1].known)
    count = reader.count(MAX_REGISTRIES)
    names, ages_ms = reader.column(count, MAX_NAME), reader.column(count, MAX_AGE_MS)
    return Watermarks(wall_ms, mono_ms, tuple(marks), tuple(map(Unchanged, names, ages_ms)))


def _get_mark(reader: Reader, most_known: int) -> Watermark:
    (owner, generation), age_ms = reader.chain(), reader.number(MAX_AGE_MS)
    count = reader.count(most_known, least_size=2)
    known = tuple([(generation + reader.signed(), reader.number()) for _ in range(count)])
    if not all(0 <= other <= NUMBER_MAX for other, _ in known):
        raise WireError(Fault.NUMBER, "a watermark of a generation that cannot be")
    return Watermark(owner, generation, known, age_ms)


def _put_beats(writer: Writer, message: Beats) -> None:
    writer.chain(message.chain)
    writer.number(len(message.beats), MAX_BEATS)
    beats = sorted((seq, quantised(age_ms) // AGE_STEP_MS, metrics) for seq, age_ms, metrics in message.beats)
    writer.deltas([seq for seq, _, _ in beats])
    writer.column([steps for _, steps, _ in beats], MAX_AGE_MS // AGE_STEP_MS)
    writer.rows([metrics for _, _, metrics in beats], MAX_METRICS_SIZE)


def _get_beats(reader: Reader) -> Beats:
    chain, count = reader.chain(), reader.count(MAX_BEATS)
    seqs = reader.deltas(count)
    ages_ms = [steps * AGE_STEP_MS for steps in reader.column(count, MAX_AGE_MS // AGE_STEP_MS)]
    beats = map(Beat, seqs, ages_ms, reader.rows(count, MAX_METRICS_SIZE))
    return Beats(chain, tuple(sorted(beats)))  # two of one node come in any order, and are one message all the same


def _put_digest_request(writer: Writer, message: DigestRequest) -> None:
    writer.number(message.walk_id)
    for numbers, most in ((message.groups, GROUPS), (message.buckets, BUCKETS)):
        writer.number(len(numbers), most)
        writer.column(numbers, most - 1)


def _get_digest_request(reader: Reader) -> DigestRequest:
    walk_id = reader.number()
    groups, buckets = (tuple(reader.column(reader.count(most), most - 1)) for most in (GROUPS, BUCKETS))
    return DigestRequest(walk_id, groups, buckets)


def _put_digest_sums(writer: Writer, message: DigestSums) -> None:
    writer.number(message.walk_id)
    writer.flag(message.top)
    _put_position(writer, message)
    numbers = sorted(message.sums)
    writer.number(len(numbers), BUCKETS)
    writer.deltas(numbers, BUCKETS - 1)
    writer.column([message.sums[number] for number in numbers], FINGERPRINT_MAX)


def _get_digest_sums(reader: Reader) -> DigestSums:
    walk_id, top, position, count = reader.number(), reader.flag(), _get_position(reader), reader.count(BUCKETS)
    numbers = reader.deltas(count, BUCKETS - 1)
    sums = _paired(numbers, reader.column(count, FINGERPRINT_MAX))
    return DigestSums(walk_id, sums, top, *position)


def _put_digest_records(writer: Writer, message: DigestRecords) -> None:
    writer.number(message.walk_id)
    writer.number(message.bucket, BUCKETS - 1)
    writer.number(message.index)
    writer.flag(message.last)
    _put_keys(writer, sorted(message.records))
    writer.column([message.records[key] for key in sorted(message.records)], FINGERPRINT_MAX)


def _get_digest_records(reader: Reader) -> DigestRecords:
    walk_id, bucket, index, last = reader.number(), reader.number(BUCKETS - 1), reader.number(), reader.flag()
    keys = _get_keys(reader)
    return DigestRecords(walk_id, bucket, index, _paired(keys, reader.column(len(keys), FINGERPRINT_MAX)), last)


def _put_want(writer: Writer, message: Want) -> None:
    writer.number(message.walk_id)
    writer.number(message.index)
    _put_keys(writer, message.keys)


def _get_want(reader: Reader) -> Want:
    return Want(reader.number(), reader.number(), tuple(_get_keys(reader)))


def _put_repair(writer: Writer, message: Repair) -> None:
    writer.number(message.frame)
    writer.number(message.walk_id)
    writer.number(message.index)
    writer.flag(message.last)
    put_items(writer, message.items)


def _get_repair(reader: Reader) -> Repair:
    frame, walk_id, index, last = reader.number(), reader.number(), reader.number(), reader.flag()
    return Repair(frame, walk_id, index, get_items(reader), last)


def _put_prune(writer: Writer, message: Prune | Graft) -> None:
    _put_origins(writer, message.origins)


def _get_prune(reader: Reader) -> Prune:
    return Prune(_get_origins(reader))


def _get_graft(reader: Reader) -> Graft:
    return Graft(_get_origins(reader))


# What several messages have


def _put_position(writer: Writer, message: Hello | Announce | DigestSums) -> None:
    writer.vector(message.vector)
    writer.vector(message.floor)
    writer.number(message.life_floor, MAX_LIFE)


def _get_position(reader: Reader) -> tuple[Vector, Vector, int]:
    return reader.vector(), reader.vector(), reader.number(MAX_LIFE)


def _put_origins(writer: Writer, origins: Sequence[str]) -> None:
    writer.number(len(origins), MAX_REGISTRIES)
    for origin in origins:
        writer.origin(origin)


def _get_origins(reader: Reader) -> tuple[str, ...]:
    return tuple(reader.origin() for _ in range(reader.count(MAX_REGISTRIES, least_size=2)))


def _put_keys(writer: Writer, keys: Sequence[str]) -> None:
    writer.number(len(keys), MAX_ITEMS)
    writer.texts(keys, MAX_KEY_LENGTH)


def _get_keys(reader: Reader) -> list[str]:
    return reader.texts(reader.count(MAX_ITEMS), MAX_KEY_LENGTH)


def _paired(names: Sequence[_Name], sums: Sequence[int]) -> dict[_Name, int]:
    if not is_ascending(names):
        raise WireError(Fault.ORDER, "what sums are of repeats, or is out of order")
    return dict(zip(names, sums, strict=True))


_CODES = {
    1: _Code(Hello, _put_hello, _get_hello),
    2: _Code(Announce, _put_announce, _get_announce),
    3: _Code(Push, _put_push, _get_push),
    4: _Code(Ack, _put_ack, _get_ack),
    5: _Code(Pull, _put_pull, _get_pull),
    6: _Code(Drain, _put_drain, _get_drain),
    7: _Code(Watermarks, _put_watermarks, _get_watermarks),
    8: _Code(Beats, _put_beats, _get_beats),
    9: _Code(DigestRequest, _put_digest_request, _get_digest_request),
    10: _Code(DigestSums, _put_digest_sums, _get_digest_sums),
    11: _Code(DigestRecords, _put_digest_records, _get_digest_records),
    12: _Code(Want, _put_want, _get_want),
    13: _Code(Repair, _put_repair, _get_repair),
    14: _Code(Prune, _put_prune, _get_prune),
    15: _Code(Graft, _put_prune, _get_graft),
}
_NUMBERS = {code.kind: number for number, code in _CODES.items()}
