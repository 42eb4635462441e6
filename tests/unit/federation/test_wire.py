"""The wire format: what is written is read, what is wrong is refused, and how long it is."""

import json
import random
from dataclasses import replace
from typing import Any, get_args
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from federation.clock import HLC_MAX, Vector
from federation.columns import FINGERPRINT_MAX, NUMBER_MAX
from federation.messages import (
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
from federation.record import MAX_INCARNATION, MAX_KEY_LENGTH, MAX_LIFE, SEAL_SIZE, Item, Section
from federation.wire import (
    AGE_STEP_MS,
    MAX_AGE_MS,
    MAX_FRAME_SIZE,
    MAX_HOPS,
    MAX_METRICS_SIZE,
    MAX_NAME,
    Fault,
    WireError,
    decode,
    encode,
    quantised,
)
from federation.wire_items import MAX_PAYLOAD_SIZE
from tests.support.frames import body_of, deflated, framed

GENERATION = 1_764_000_000_000  # a moment in ms: as large as a generation is likely to be
CHAIN = ("eu-west-1", GENERATION)


# Anything that the types allow


def numbers(most: int = NUMBER_MAX, least: int = 0) -> st.SearchStrategy[int]:
    near = st.integers(least, min(most, least + 300))
    return near | st.sampled_from([least, most]) | st.integers(least, most)


ORIGINS = st.sampled_from(["a", "eu", "Z9._-", "o" * 63]) | st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True
)
KEYS = st.text(max_size=8) | st.sampled_from(["", "\n", "k" * MAX_KEY_LENGTH, "ї" * (MAX_KEY_LENGTH // 2), "r:eu"])
CHAINS = st.tuples(ORIGINS, numbers())
DOTS = st.tuples(ORIGINS, numbers(), numbers())
VECTORS: st.SearchStrategy[Vector] = st.dictionaries(CHAINS, numbers(), max_size=4)
POSITIONS = {"vector": VECTORS, "floor": VECTORS, "life_floor": numbers(MAX_LIFE)}
SIGNED = st.integers(-NUMBER_MAX, NUMBER_MAX)
PAYLOADS = st.binary(max_size=20) | st.sampled_from([b"p" * 1000, bytes(MAX_PAYLOAD_SIZE)])


SEALS = st.just(b"") | st.binary(min_size=SEAL_SIZE, max_size=SEAL_SIZE)


def tuples_of(element: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(element, max_size=most).map(tuple)


@st.composite
def items(draw: st.DrawFn) -> Item:
    origin, generation, seq = draw(DOTS)
    birth = draw(st.just(()) | st.just((origin, generation, seq)) | DOTS)
    stamp, minor, seal = draw(numbers(HLC_MAX)), draw(numbers(HLC_MAX)), draw(SEALS)
    section = Section(stamp, origin, minor, draw(PAYLOADS), generation, seq, birth, seal)
    return Item(
        draw(KEYS), draw(numbers(MAX_LIFE, 1)), draw(numbers(MAX_INCARNATION)), draw(st.integers(0, 3)), section
    )


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    chain = draw(CHAINS)
    after, *seqs, upto = sorted(draw(st.sets(numbers(), min_size=2, max_size=6)))
    if draw(st.booleans()):
        seqs.append(upto)
    entries = []
    for seq in seqs:
        item = draw(items())
        if draw(st.booleans()):
            section = item.section._replace(origin=chain[0], generation=chain[1], seq=seq)
            item = item._replace(section=section)
        entries.append(Entry(seq, item))
    return Segment(chain, after, upto, tuple(entries), draw(numbers(MAX_HOPS)))


MARKS = st.builds(Watermark, ORIGINS, numbers(), tuples_of(st.tuples(numbers(), numbers())), numbers(MAX_AGE_MS))
UNCHANGED = st.builds(Unchanged, numbers(MAX_NAME), numbers(MAX_AGE_MS))
QUANTISED = numbers(MAX_AGE_MS // AGE_STEP_MS).map(lambda steps: steps * AGE_STEP_MS)
BEATS = tuples_of(st.builds(Beat, numbers(), QUANTISED, st.binary(max_size=MAX_METRICS_SIZE)), 6) | tuples_of(
    st.builds(Beat, numbers(), QUANTISED, st.binary(min_size=6, max_size=6)), 6
)
SUMS = numbers(FINGERPRINT_MAX)
DIRECT = tuples_of(ORIGINS)

BY_TYPE: dict[type, st.SearchStrategy[Any]] = {
    Hello: st.builds(
        Hello, registry_id=ORIGINS, generation=numbers(), direct=DIRECT, wall_ms=SIGNED, version=numbers(), **POSITIONS
    ),
    Announce: st.builds(Announce, direct=DIRECT, **POSITIONS),
    Push: st.builds(Push, numbers(), tuples_of(segments(), 3)),
    Ack: st.builds(Ack, numbers()),
    Pull: st.builds(Pull, numbers(), VECTORS),
    Drain: st.builds(Drain, numbers(), numbers(), numbers(), tuples_of(items()), st.none() | VECTORS),
    Watermarks: st.builds(Watermarks, SIGNED, SIGNED, tuples_of(MARKS), tuples_of(UNCHANGED)),
    Beats: st.builds(Beats, CHAINS, BEATS.map(sorted).map(tuple)),
    DigestRequest: st.builds(DigestRequest, numbers(), tuples_of(numbers(63)), tuples_of(numbers(4095), 70)),
    DigestSums: st.builds(
        DigestSums, numbers(), st.dictionaries(numbers(4095), SUMS, max_size=70), st.booleans(), **POSITIONS
    ),
    DigestRecords: st.builds(
        DigestRecords, numbers(), numbers(4095), numbers(), st.dictionaries(KEYS, SUMS, max_size=5), st.booleans()
    ),
    Want: st.builds(Want, numbers(), numbers(), tuples_of(KEYS)),
    Prune: st.builds(Prune, DIRECT),
    Graft: st.builds(Graft, DIRECT),
    Repair: st.builds(Repair, numbers(), numbers(), numbers(), tuples_of(items()), st.booleans()),
}
MESSAGES: st.SearchStrategy[Message] = st.one_of(*BY_TYPE.values())


# Laws


@pytest.mark.parametrize("kind", get_args(Message), ids=lambda kind: kind.__name__)
def test_what_is_written_is_read(kind: type) -> None:
    @given(BY_TYPE[kind])
    @settings(max_examples=60)
    def law(message: Message) -> None:
        frame = encode(message)
        assert decode(frame) == message
        assert encode(decode(frame)) == frame

    law()


@given(MESSAGES, st.data())
@settings(max_examples=200)
def test_a_damaged_frame_is_refused_or_a_message(message: Message, data: st.DataObject) -> None:
    body = bytearray(body_of(encode(message)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    raw = framed(type(message), bytes(body))
    assert_refused_or_sound(raw if len(raw) <= MAX_FRAME_SIZE else raw[:MAX_FRAME_SIZE])
    assert_refused_or_sound(deflated(type(message), bytes(body)))


@given(MESSAGES, st.data())
def test_a_flipped_bit_of_a_frame_is_refused_or_a_message(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert_refused_or_sound(bytes(frame))


@given(st.sampled_from(get_args(Message)), st.binary(max_size=200), st.booleans())
@settings(max_examples=400)
def test_noise_is_refused_or_a_message(kind: type, noise: bytes, headed: bool) -> None:
    assert_refused_or_sound(framed(kind, noise) if headed else noise)


@given(MESSAGES)
def test_a_frame_that_breaks_off_is_refused(message: Message) -> None:
    frame = encode(message)
    for end in range(len(frame)) if len(frame) < 500 else range(0, len(frame), len(frame) // 97):
        with pytest.raises(WireError):
            decode(frame[:end])


@given(MESSAGES, st.binary(min_size=1, max_size=3))
def test_nothing_may_follow_a_frame(message: Message, more: bytes) -> None:
    with pytest.raises(WireError) as refusal:
        decode(encode(message) + more)
    assert refusal.value.fault is Fault.TRAILING


@given(VECTORS)
def test_equal_messages_make_equal_frames(vector: Vector) -> None:
    assert encode(Pull(1, vector)) == encode(Pull(1, dict(reversed(vector.items()))))


@given(st.lists(st.builds(Beat, numbers(), numbers(MAX_AGE_MS - AGE_STEP_MS), st.binary(max_size=8)), max_size=6))
@example([Beat(5, 1, b""), Beat(5, 0, b""), Beat(2, 249, b"")])
def test_beats_arrive_in_order_and_never_younger(beats: list[Beat]) -> None:
    arrived = decode(encode(Beats(CHAIN, tuple(beats))))
    assert isinstance(arrived, Beats)
    assert arrived.beats == tuple(sorted(beat._replace(age_ms=quantised(beat.age_ms)) for beat in beats))
    assert all(0 <= quantised(beat.age_ms) - beat.age_ms < AGE_STEP_MS for beat in beats)


def test_two_beats_of_one_node_are_one_message_in_any_order() -> None:
    beats = Beats(CHAIN, (Beat(1, 0, b"\0"), Beat(1, 0, b"\1")))
    frame = bytearray(encode(beats))
    place = bytes(frame).index(b"\0\1", len(frame) - 2)
    frame[place : place + 2] = b"\1\0"
    assert decode(bytes(frame)) == beats


def assert_refused_or_sound(frame: bytes) -> None:
    """What is taken in can be passed on: nobody can make us hold what our own frames cannot carry."""
    try:
        message = decode(frame)
    except WireError:
        return
    assert decode(encode(message)) == message


ONE_ITEM = Item("k", 1, 1, 0, Section(1, "a", 0, b"p", 1, 1))


# The format itself: a change here is a new protocol version

PINNED: dict[str, tuple[Message, str]] = {
    "ack": (Ack(300), "da0204ac02"),
    "pull": (
        Pull(1, {("b", 2): 3, ("a", 7): 1, ("a", 6): 200}),
        "da0205 01 02 0161 02 0162 01 06 09 01 0600 c801 8d03 01 00c9",
    ),
    "announce": (Announce({("a", 1): 2}, {}, 3, ("b",)), "da0202 0101610101 02 00 03 01 0162"),
    "watermarks": (
        Watermarks(-1, 3, (Watermark("a", 9, ((8, 5),), 700),), (Unchanged(2**32 - 1, 9), Unchanged(0, 8))),
        "da0207 01 06 01 0161 09 bc05 01 01 05 02 00 04 ff00 ff00 ff00 ff00 08 01 0100",
    ),
    "beats": (
        Beats(("a", 1), (Beat(5, 250, b"xy"), Beat(7, 500, b"zw"))),
        "da0208 0161 01 02 05 04 00 01 01 00 01 02 00 787a7977",
    ),
    "repair": (
        Repair(1, 2, 3, (ONE_ITEM,), True),
        "da020d 01 02 03 01 01 00 01 00 01 00 6b 01 00 01 01 0161 01 00 00 01 01 01 00 70",
    ),
    "repair of a registration": (
        Repair(1, 2, 3, (ONE_ITEM._replace(section=ONE_ITEM.section._replace(birth=("a", 1, 1))),), True),
        "da020d 01 02 03 01 01 04 01 00 01 00 6b 01 00 01 01 0161 01 00 00 01 01 01 00 70",
    ),
    "repair of what is sealed": (
        Repair(1, 2, 3, (ONE_ITEM._replace(section=ONE_ITEM.section._replace(seal=b"s" * 64)),), True),
        "da020d 01 02 03 01 01 40 01 00 01 00 6b 01 00 01 01 0161 01 00 00 01 01 01 00 70" + "73" * 64,
    ),
    "push": (
        Push(1, (Segment(("a", 1), 0, 4, (Entry(1, ONE_ITEM),)),)),
        "da0203 01 01 0161 01 00 04 01 00 01 01 20 01 00 01 00 6b 01 00 01 00 01 01 00 70",
    ),
}


@pytest.mark.parametrize("case", PINNED)
def test_the_format_stays_what_it_is(case: str) -> None:
    message, frame = PINNED[case]
    assert encode(message).hex() == frame.replace(" ", "")


@settings(deadline=None)
@given(st.lists(tuples_of(segments(), 2), min_size=2, max_size=2), st.permutations([0, 0, 1, 1, 0]))
def test_what_was_pushed_before_changes_no_frame(known: list[tuple[Segment, ...]], order: list[int]) -> None:
    alone = [encode(Push(9, tuple(replace(segment) for segment in each))) for each in known]  # equal, and not the same
    assert [encode(Push(9, known[which])) for which in order] == [alone[which] for which in order]


# How long it is


@pytest.mark.parametrize(("count", "most_bytes_a_beat"), [(3_300, 10), (100, 12)])
def test_beats_are_short_even_when_every_metric_changed(count: int, most_bytes_a_beat: int) -> None:
    chance = random.Random(1)
    seqs = chance.sample(range(200_000), count)
    beats = tuple(Beat(seq, 250 * chance.randint(0, 12), chance.randbytes(6)) for seq in seqs)
    assert len(encode(Beats(CHAIN, beats))) <= most_bytes_a_beat * count


def test_what_does_not_shrink_is_left_as_it_is() -> None:
    noise = random.Random(1).randbytes(1_000)
    frame = encode(Repair(0, 0, 0, (ONE_ITEM._replace(section=ONE_ITEM.section._replace(payload=noise)),), True))
    assert frame.endswith(noise)


def test_a_watermark_is_short() -> None:
    mark = Watermark("eu-west-1", GENERATION, ((GENERATION, 250_000),), 730)
    one, two = (len(encode(Watermarks(GENERATION, 0, (mark,) * count))) for count in (1, 2))
    assert two - one <= 24
    many = tuple(Unchanged(crc32(b"%d" % number), 17 * number) for number in range(100))
    assert len(encode(Watermarks(GENERATION, 0, (mark,), many))) - one <= 7 * 100


def test_an_announcement_of_one_chain_is_short() -> None:
    assert len(encode(Announce({CHAIN: 250_000}, {}, 0, ()))) <= 40


def test_a_record_of_a_drain_is_short() -> None:
    chance = random.Random(1)
    records = 2_000
    sections = [each for number in range(records) for each in registered(number, chance)]
    size = sum(len(encode(Drain(0, 0, 0, tuple(sections[at : at + 500])))) for at in range(0, len(sections), 500))
    assert size <= 250 * records


def registered(number: int, chance: random.Random) -> list[Item]:
    """A node as it registers, about 1 KB, and its owner's judgement of it."""
    node = {
        "node_name": f"node-host{number % 500}-{chance.getrandbits(32):08x}",
        "labels": chance.sample(["prod", "gpu", "home", "lab", "edge"], 2),
        "endpoint": f"http://192.0.2.{chance.randint(1, 254)}:{chance.randint(1024, 65535)}",
        "capabilities": {
            "gpu": [{"name": chance.choice(["NVIDIA A10G", "NVIDIA L4"]), "vram_gb": 24, "driver": "550.54.15"}] * 2,
            "cpu": {"model": "AMD EPYC 7B13", "cores": chance.choice([8, 16, 32])},
            "ram_gb": chance.choice([32, 64, 128]),
            "disk_gb": chance.randint(100, 4_000),
            "models": [
                {
                    "name": chance.choice(["llama3.2:3b", "qwen3:8b", "gemma3:12b"]),
                    "size_gb": chance.randint(10, 200) / 10,
                    "quantization": chance.choice(["Q4_K_M", "Q8_0"]),
                    "context_tokens": 8192,
                    "modalities": ["text"],
                }
                for _ in range(5)
            ],
        },
    }
    payload, key, incarnation = json.dumps(node).encode(), str(node["node_name"]), chance.getrandbits(62)
    stamp, seq = GENERATION + 7 * number << 16, 2 * number + 1
    birth = (*CHAIN, seq)
    spec = Section(stamp, CHAIN[0], 0, payload, CHAIN[1], seq, birth)
    judgement = Section(
        stamp + 1, CHAIN[0], stamp + (chance.randint(1, 3_600_000) << 16), b"1", CHAIN[1], seq + 1, birth
    )
    return [Item(key, 1, incarnation, 0, spec), Item(key, 1, incarnation, 2, judgement)]
