"""Between two pushes over one link there is a gap: who writes often is heard in pieces, who writes once at once."""

from random import Random

from federation.clock import Now
from federation.config import Config
from federation.effects import Effect, Send
from federation.engine import Engine
from federation.messages import Hello, Push
from federation.replica import Replica
from federation.streams import PUSHES_AT_ONCE
from tests.support.fabric import START_MS

GAP_S = 0.02


def at(second: float) -> Now:
    return Now(second, START_MS + int(second * 1000))


def linked() -> Engine:
    engine = Engine(Config("me", b"me", push_gap_s=GAP_S), Replica("me"), Random(1), at(0))
    engine.tick(at(0))
    engine.connected("p", at(0))
    engine.receive("p", Hello("p", 7, dict(engine.replica.vector), {}, 0, (), START_MS), at(0))
    return engine


def pushed(effects: list[Effect]) -> list[int]:
    """How many entries each push has."""
    pushes = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Push)]
    return [sum(len(segment.entries) for segment in push.segments) for push in pushes]


def test_a_few_writes_go_out_at_once_and_those_close_behind_them_together() -> None:
    engine = linked()
    for number in range(PUSHES_AT_ONCE + 1):
        assert pushed(engine.put(f"k:{number}", b"x", at(1.0))) == [1]
        assert engine.push_due_s is None
    assert pushed(engine.put("k:x", b"x", at(1.001))) == []
    assert pushed(engine.put("k:y", b"x", at(1.002))) == []
    due_s = engine.push_due_s
    assert due_s is not None
    assert 1.0 < due_s <= 1.0 + GAP_S
    assert pushed(engine.push(at(due_s - GAP_S / 10))) == []
    assert pushed(engine.push(at(due_s))) == [2]
    assert engine.push_due_s is None
    assert pushed(engine.put("k:z", b"x", at(2.0))) == [1]


def test_who_writes_often_is_heard_as_often_as_the_gap_allows() -> None:
    engine = linked()
    writes = [pushed(engine.put(f"k:{number}", b"x", at(1.0 + number / 1_000))) for number in range(400)]
    pushes = sum(map(len, writes))
    assert abs(pushes - (PUSHES_AT_ONCE + 0.4 / GAP_S)) <= 2


def test_nothing_is_due_while_the_peer_takes_nothing() -> None:
    engine = linked()
    window = engine.config.window_frames
    sent = sum(len(pushed(engine.put(f"k:{i}", b"x", at(1.0 + i)))) for i in range(window + 3))
    assert sent == window
    assert engine.push_due_s is None
