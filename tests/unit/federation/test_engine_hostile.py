"""Whatever authenticated peers say: nothing is raised, everything that is answered can be sent, and what
this registry writes itself stays its own."""

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from federation.clock import HLC_MAX, Now, hlc_of
from federation.columns import NUMBER_MAX
from federation.config import Config
from federation.digest import BUCKETS, GROUPS
from federation.effects import Effect, Send
from federation.engine import Engine
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
from federation.record import MAX_LIFE, SEAL_SIZE, Item, Section
from federation.replica import Replica
from federation.wire import MAX_AGE_MS, decode, encode
from tests.support.fabric import START_MS
from tests.unit.federation.states import PAYLOADS
from tests.unit.federation.test_wire import MESSAGES

PEERS = ("p", "q", "r")
NODES = ("n:0", "n:1", "n:2")


def now(second: float) -> Now:
    return Now(1000 + second, START_MS + int(second * 1000))


def started() -> tuple[Engine, list[Effect]]:
    """A registry with nodes, a tombstone and a key of its own, and three peers that have greeted."""
    engine = Engine(Config("me", advert=b"me", frame_bytes=300), Replica("me"), Random(1), now(0))
    effects: list[Effect] = []
    for key in NODES:
        effects += engine.register(key, b"x", now(0), incarnation=1, judgement=b"online")[1]
    effects += engine.delete("n:2", b"gone", now(0)) + engine.put("k:a", b"key", now(0))
    for peer in PEERS:
        effects += engine.connected(peer, now(0))
        effects += engine.receive(peer, Hello(peer, 7, {(peer, 7): 3}, {}, 0, (), START_MS), now(0))
    return engine, effects


GENERATION = started()[0].replica.generation

# Values that mean something to it, and the ends of what a frame can carry

ORIGINS = st.sampled_from(["me", *PEERS, "x"])
NUMBERS = st.integers(0, 9) | st.sampled_from([GENERATION, NUMBER_MAX - 1, NUMBER_MAX])
GENERATIONS = st.sampled_from([GENERATION, 7, 0, GENERATION + 1, NUMBER_MAX])
CHAINS = st.tuples(ORIGINS, GENERATIONS)
VECTORS = st.dictionaries(CHAINS, NUMBERS, max_size=4)
KEYS = st.sampled_from([*NODES, "k:a", "r:me", "r:p", "n:9"])
LIVES = st.integers(1, 4) | st.sampled_from([MAX_LIFE - 1, MAX_LIFE])
STAMPS = st.sampled_from([0, hlc_of(START_MS), hlc_of(START_MS + 3_600_000), hlc_of(START_MS + 10**9), HLC_MAX])
BIRTHS = st.just(()) | st.tuples(ORIGINS, GENERATIONS, NUMBERS)
SEALS = st.sampled_from([b"", b"s" * SEAL_SIZE])  # no frame brings another
SECTIONS = st.builds(Section, STAMPS, ORIGINS, STAMPS, PAYLOADS, GENERATIONS, NUMBERS, BIRTHS, SEALS)
ITEMS = st.builds(Item, KEYS, LIVES, NUMBERS, st.integers(0, 3), SECTIONS)
POSITION: dict[str, Any] = {"vector": VECTORS, "floor": VECTORS, "life_floor": st.sampled_from([0, 3, MAX_LIFE])}
MILLISECONDS = st.sampled_from([-NUMBER_MAX, 0, START_MS, NUMBER_MAX])
SUMS = st.integers(0, 3)
AGES = st.sampled_from([0, MAX_AGE_MS])


def few(of: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=most).map(tuple)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    after, upto = sorted((draw(NUMBERS), draw(NUMBERS)))
    entries = [Entry(upto, draw(ITEMS))] if after < upto and draw(st.booleans()) else []
    if after + 1 < upto and draw(st.booleans()):
        entries.insert(0, Entry(after + 1, draw(ITEMS)))
    return Segment(draw(CHAINS), after, upto, tuple(entries))


MARKS = st.builds(Watermark, ORIGINS, GENERATIONS, few(st.tuples(GENERATIONS, NUMBERS)), AGES)


UNCHANGED = MARKS.map(lambda mark: Unchanged(mark.name, mark.age_ms))
MESSAGE_IDS = st.sampled_from([0, 0, 0, 1, -1])
"""Of a pull or a walk: relative to the newest that the peer was asked for."""

SAID: list[st.SearchStrategy[Any]] = [
    st.builds(
        Hello, st.sampled_from([*PEERS, "me"]), GENERATIONS, direct=few(ORIGINS), wall_ms=MILLISECONDS, **POSITION
    ),
    st.builds(Announce, direct=few(ORIGINS), **POSITION),
    st.builds(Push, NUMBERS, few(segments(), 2)),
    st.builds(Ack, NUMBERS),
    st.builds(Prune, few(ORIGINS)),
    st.builds(Graft, few(ORIGINS)),
    st.builds(Pull, NUMBERS, VECTORS),
    st.builds(Drain, NUMBERS, MESSAGE_IDS, st.integers(0, 2), few(ITEMS), st.none() | VECTORS),
    st.builds(Watermarks, MILLISECONDS, MILLISECONDS, few(MARKS), few(UNCHANGED)),
    st.builds(Beats, CHAINS, few(st.builds(Beat, NUMBERS, AGES, PAYLOADS))),
    st.builds(DigestRequest, MESSAGE_IDS, few(st.integers(0, GROUPS - 1)), few(st.integers(0, BUCKETS - 1))),
    st.builds(
        DigestSums,
        MESSAGE_IDS,
        st.dictionaries(st.integers(0, BUCKETS - 1), SUMS, max_size=3),
        st.booleans(),
        **POSITION,
    ),
    st.builds(
        DigestRecords, MESSAGE_IDS, st.integers(0, 63), st.integers(0, 2), st.dictionaries(KEYS, SUMS), st.booleans()
    ),
    st.builds(Want, MESSAGE_IDS, st.integers(0, 2), few(KEYS)),
    st.builds(Repair, NUMBERS, MESSAGE_IDS, st.integers(0, 2), few(ITEMS), st.booleans()),
]
MESSAGE = st.one_of(*SAID)
NAMES = st.sampled_from(PEERS)
STEPS = st.sampled_from(["receive"] * 6 + ["tick", "write"])
SECONDS = st.sampled_from([0.1, 2.0, 50.0, 4_000.0])


def sent(effects: list[Effect], peer: str) -> list[Message]:
    """What a peer receives: everything has to be fit for a frame."""
    return [decode(encode(effect.message)) for effect in effects if isinstance(effect, Send) and effect.peer == peer]


class Peer:
    """What a hostile peer knows: it has listened to what it was told."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ids = {"pull_id": 0, "walk_id": 0}

    def hear(self, effects: list[Effect]) -> None:
        for message in sent(effects, self._name):
            if isinstance(message, Pull):
                self._ids["pull_id"] = message.pull_id
            elif isinstance(message, DigestRequest | Want):
                self._ids["walk_id"] = message.walk_id

    def fitted(self, message: Any) -> Message:
        """The message with its id, which is relative to what we were asked."""
        changes = {
            name: max(0, known + getattr(message, name)) for name, known in self._ids.items() if hasattr(message, name)
        }
        fitted: Message = message if isinstance(message, Pull) else replace(message, **changes)
        return fitted


@given(st.data())
def test_nothing_that_peers_say_raises_or_makes_it_speak_what_cannot_be_sent(data: st.DataObject) -> None:
    engine, effects = started()
    peers = {name: Peer(name) for name in PEERS}
    second = 0.0
    for _ in range(data.draw(st.integers(1, 12))):
        for peer in peers.values():
            peer.hear(effects)
        chain, before = engine.replica.chain, engine.replica.next_seq
        match data.draw(STEPS):
            case "receive":
                name = data.draw(NAMES)
                effects = engine.receive(name, peers[name].fitted(data.draw(MESSAGE)), now(second))
            case "tick":
                second += data.draw(SECONDS)
                effects = engine.tick(now(second))
            case "write":
                effects = write_everything(engine, now(second))
        assert engine.replica.chain > chain or engine.replica.next_seq >= before
    for peer in peers.values():
        peer.hear(effects)


def write_everything(engine: Engine, at: Now) -> list[Effect]:
    """What the shell may ask for at any time. A name whose lives are used up is not registered again."""
    effects: list[Effect] = []
    for key in NODES:
        if has_lives_left(engine, key):
            token, more = engine.register(key, b"x", at, incarnation=1, judgement=b"online")
            effects += more + engine.heartbeat(key, at, judgement=b"online", metrics=b"m", token=token)[1]
            effects += engine.amend(key, b"draining", at) + engine.judge(key, b"offline", at)
            assert engine.standing(key, at) is not None
    if (record := engine.replica.get("n:0")) is not None and record.exists:
        effects += engine.delete("n:0", b"gone", at)
    if has_lives_left(engine, "k:a"):
        effects += engine.put("k:a", b"y", at)
    return effects + engine.revoke("k:a", b"leaked", at)


def has_lives_left(engine: Engine, key: str) -> bool:
    record = engine.replica.get(key)
    return record is None or record.life < (2 if key.startswith("k:") else MAX_LIFE)


@given(st.lists(st.tuples(st.sampled_from(PEERS), MESSAGES), max_size=4))
def test_nor_anything_else_that_fits_a_frame(said: list[tuple[str, Message]]) -> None:
    engine, _ = started()
    for second, (peer, message) in enumerate(said):
        effects = engine.receive(peer, message, now(second)) + engine.tick(now(second + 0.5))
        for name in PEERS:
            sent(effects, name)
    before = engine.replica.next_seq
    write_everything(engine, now(len(said)))
    assert engine.replica.next_seq > before, "it writes on"
