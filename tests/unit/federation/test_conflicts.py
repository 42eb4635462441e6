"""What counts as a conflict: a write that lost to one made without knowing of it."""

import pytest

from federation.signed import SIGNED_BY_KEY
from federation.writes import Token
from tests.support.fabric import Fabric


def two_linked() -> Fabric:
    fabric = Fabric()
    fabric.add("a")
    fabric.add("b")
    fabric.link("a", "b")
    fabric.run(3)
    return fabric


def registered(fabric: Fabric, at: str, incarnation: int = 1, token: Token | None = None) -> Token:
    made, effects = fabric.engines[at].register(
        "n:x", at.encode(), fabric.now(), incarnation=incarnation, judgement=b"online", token=token
    )
    fabric.perform(at, effects)
    return made


def conflicts(fabric: Fabric) -> int:
    return sum(engine.conflicts for engine in fabric.engines.values())


def test_edits_on_both_sides_of_a_cut_are_one() -> None:
    fabric = two_linked()
    registered(fabric, "a")
    fabric.run(3)
    for at in "ab":
        fabric.perform(at, fabric.engines[at].amend("n:x", at.encode(), fabric.now()))
    fabric.run(3)
    assert conflicts(fabric) == 1


def test_an_edit_of_what_was_seen_is_none() -> None:
    fabric = two_linked()
    token = registered(fabric, "a")
    fabric.run(3)
    fabric.perform("a", fabric.engines["a"].amend("n:x", b"one", fabric.now()))
    fabric.run(3)
    fabric.perform("b", fabric.engines["b"].amend("n:x", b"two", fabric.now()))
    registered(fabric, "b", token=token)
    fabric.run(3)
    assert conflicts(fabric) == 0


def test_two_first_registrations_of_one_id_are_one() -> None:
    fabric = two_linked()
    registered(fabric, "a", incarnation=1)
    registered(fabric, "b", incarnation=2)
    fabric.run(3)
    assert conflicts(fabric) == 1


@pytest.mark.parametrize("first", "ab")
@pytest.mark.parametrize("later_s", [0, 40])
def test_of_two_keys_that_claim_one_id_apart_time_chooses_neither(first: str, later_s: int) -> None:
    """Whoever registers first, and however much later the other does: the greater incarnation has it."""
    fabric = two_linked()
    fabric.unlink("a", "b")
    incarnations = {"a": SIGNED_BY_KEY + 5, "b": SIGNED_BY_KEY + 9}
    other = "b" if first == "a" else "a"
    registered(fabric, first, incarnations[first])
    fabric.run(1 + later_s)
    registered(fabric, other, incarnations[other])
    registered(fabric, other, incarnations[other])
    fabric.link("a", "b")
    fabric.run(5)
    assert fabric.equal()
    for engine in fabric.engines.values():
        record = engine.replica.get("n:x")
        assert record is not None
        assert record.spec is not None
        assert (record.incarnation, record.spec.payload) == (incarnations["b"], b"b")
