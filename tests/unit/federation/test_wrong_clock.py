"""A registry whose clock is days ahead of everybody else's."""

from federation.clock import wall_ms_of
from federation.engine import Engine
from tests.support.fabric import Fabric

DAYS_MS = 2 * 86_400_000


def joined(*names: str) -> Fabric:
    fabric = Fabric()
    for name in names:
        fabric.add(name)
    fabric.mesh()
    fabric.run(5)
    return fabric


def tick_ahead(fabric: Fabric, engine: Engine, key: str) -> None:
    """It hears everybody once more with its wrong clock, then registers a node."""
    ahead = fabric.now(DAYS_MS)
    _, effects = engine.register(key, b"x", ahead, incarnation=1, judgement=b"online")
    fabric.perform(engine.config.registry_id, effects)


def test_with_two_peers_it_mints_from_their_median() -> None:
    fabric = joined("eu", "us", "as")
    tick_ahead(fabric, fabric.engines["eu"], "n:a")
    fabric.run(5)
    for engine in fabric.engines.values():
        record = engine.replica.get("n:a")
        assert record is not None
        assert record.spec is not None
        assert abs(wall_ms_of(record.spec.major) - fabric.now().wall_ms) < 10_000


def test_among_two_nobody_can_tell_and_what_is_nobodys_clock_is_refused_and_told_of() -> None:
    fabric = joined("eu", "us")
    tick_ahead(fabric, fabric.engines["eu"], "n:a")
    fabric.run(5)
    assert fabric.engines["us"].replica.get("n:a") is None
    assert ("us", "clock_ahead") in {(name, alert.code) for name, alert in fabric.alerts}
    _, effects = fabric.engines["eu"].register("n:b", b"x", fabric.now(), incarnation=1, judgement=b"online")
    fabric.perform("eu", effects)
    fabric.run(5)
    assert fabric.engines["us"].replica.get("n:b") is not None, "a jump that is over is not carried on"


def test_it_is_joined_once_its_time_is_within_the_horizon() -> None:
    fabric = joined("eu", "us")
    tick_ahead(fabric, fabric.engines["eu"], "n:a")
    fabric.run(5)
    fabric.now_s = fabric._ticked_s = fabric.now_s + DAYS_MS / 1000
    fabric.run(180)
    assert fabric.engines["us"].replica.get("n:a") is not None, "a walk offers it again"
