"""Where pushes wait to be asked for, everything new goes out in one piece; else every write at once."""

from random import Random

from federation.clock import Now
from federation.config import Config
from federation.effects import Effect, Send
from federation.engine import Engine
from federation.messages import Ack, Beats, Hello, Push
from federation.replica import Replica
from tests.support.fabric import START_MS


def at(second: float) -> Now:
    return Now(second, START_MS + int(second * 1000))


def linked(*peers: str, when_asked: bool = True) -> Engine:
    engine = Engine(Config("me", b"me", push_when_asked=when_asked), Replica("me"), Random(1), at(0))
    engine.tick(at(0))
    for peer in peers:
        engine.connected(peer, at(0))
        engine.receive(peer, Hello(peer, 7, dict(engine.replica.vector), {}, 0, (), START_MS), at(0))
    engine.push(at(0))  # nothing: they have it all
    return engine


def pushed(effects: list[Effect]) -> list[tuple[str, int]]:
    """To whom, and how many entries each push has."""
    pushes = [(e.peer, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, Push)]
    return [(peer, sum(len(segment.entries) for segment in push.segments)) for peer, push in pushes]


def test_what_was_written_goes_out_in_one_piece_when_it_is_asked_for() -> None:
    engine = linked("p", "q")
    assert not engine.may_push
    for number in range(5):
        assert pushed(engine.put(f"k:{number}", b"x", at(1.0))) == []
    assert pushed(engine.tick(at(1.1))) == []
    assert engine.may_push
    assert pushed(engine.push(at(1.2))) == [("p", 5), ("q", 5)]
    assert not engine.may_push
    assert pushed(engine.push(at(1.3))) == []


def test_nobody_has_to_ask_where_it_was_not_agreed() -> None:
    engine = linked("p", when_asked=False)
    assert [pushed(engine.put(f"k:{number}", b"x", at(1.0))) for number in range(2)] == [[("p", 1)]] * 2
    assert not engine.may_push


def test_nothing_may_be_pushed_while_the_peer_takes_nothing_and_then_all_of_it() -> None:
    engine, sent = linked("p"), 0
    while not sent or engine.may_push:
        engine.put(f"k:{sent}", b"x", at(1.0))
        sent += len(pushed(engine.push(at(1.0))))
        engine.put(f"k:{sent}-more", b"x", at(1.0))
    assert sent == engine.config.window_frames
    assert pushed(engine.push(at(1.1))) == []
    engine.receive("p", Ack(sent), at(1.2))
    assert engine.may_push
    assert pushed(engine.push(at(1.3))) == [("p", 1)]


def test_measurements_do_not_wait_for_pushes_that_nobody_has_asked_for() -> None:
    engine = linked("p")
    engine.register("n:a", b"x", at(1.0), incarnation=0, judgement=b"up")
    engine.push(at(1.0))
    engine.measured("n:a", b"1", at(1.5))
    engine.put("k:x", b"x", at(2.0))
    assert engine.may_push
    sent = [e.message for e in engine.tick(at(3.0)) if isinstance(e, Send)]
    assert [[beat.metrics for beat in each.beats] for each in sent if isinstance(each, Beats)] == [[b"1"]]


def test_measurements_wait_for_a_peer_that_has_no_room() -> None:
    engine, sent = linked("p"), 0
    engine.register("n:a", b"x", at(1.0), incarnation=0, judgement=b"up")
    while not sent or engine.may_push:
        sent += len(pushed(engine.push(at(1.0))))
        engine.put(f"k:{sent}", b"x", at(1.0))
    engine.measured("n:a", b"1", at(1.5))
    assert not [e for e in engine.tick(at(3.0)) if isinstance(e, Send) and isinstance(e.message, Beats)]
