"""Between two pushes over one link there is a gap: who writes often is heard in pieces, who writes once at once."""

from random import Random

from federation.clock import Now
from federation.config import Config
from federation.effects import Effect, Send
from federation.engine import Engine
from federation.messages import Hello, Push
from federation.replica import Replica
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


def test_a_write_goes_out_at_once_and_those_close_behind_it_together() -> None:
    engine = linked()
    assert pushed(engine.put("k:0", b"x", at(1.0))) == [1]
    assert engine.push_due_s is None
    assert pushed(engine.put("k:1", b"x", at(1.001))) == []
    assert pushed(engine.put("k:2", b"x", at(1.002))) == []
    assert engine.push_due_s == 1.0 + GAP_S
    assert pushed(engine.push(at(1.0 + GAP_S / 2))) == []
    assert pushed(engine.push(at(1.0 + GAP_S))) == [2]
    assert engine.push_due_s is None
    assert pushed(engine.put("k:3", b"x", at(2.0))) == [1]


def test_nothing_is_due_while_the_peer_takes_nothing() -> None:
    engine = linked()
    window = engine.config.window_frames
    sent = sum(len(pushed(engine.put(f"k:{i}", b"x", at(1.0 + i)))) for i in range(window + 3))
    assert sent == window
    assert engine.push_due_s is None
