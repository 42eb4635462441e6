"""A registry that lost its store, and gets its own words back from others."""

from tests.support.fabric import Fabric


def test_it_says_again_what_only_the_lost_store_had_said_once_it_hears_the_node() -> None:
    fabric = Fabric()
    for name in ("eu", "us"):
        fabric.add(name)
    token, effects = fabric.engines["eu"].register("n:a", b"x", fabric.now(), incarnation=1, judgement=b"online")
    fabric.perform("eu", effects)
    fabric.mesh()
    fabric.run(5)
    fabric.unlink("eu", "us")
    fabric.run(1)
    eu, us = fabric.add("eu"), fabric.engines["us"]
    fabric.link("eu", "us")
    fabric.run(5)
    before = us.standing("n:a", fabric.now())
    assert before is not None
    assert not before.reachable, "nobody has heard the node since"
    answer, effects = eu.heartbeat("n:a", fabric.now(), judgement=b"online", token=token)
    assert answer is not None
    fabric.perform("eu", effects)
    fabric.run(3)
    after = us.standing("n:a", fabric.now())
    assert after is not None
    assert (after.owner, after.reachable) == ("eu", True)
