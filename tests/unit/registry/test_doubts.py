"""Registrations of which nobody knows whether they stand."""

from federation.record import Record, Section
from registry.doubts import MAX_DOUBTS, Doubts


def standing(payload: bytes | None) -> Record:
    record = Record("n:a")
    record.life = 1
    record.spec = Section(1, "eu", 0, payload, 1, 1) if payload is not None else None
    return record


def test_only_what_that_registration_wrote_is_in_doubt() -> None:
    doubts = Doubts()
    doubts.note("a", b"one")
    assert doubts.holds("a", standing(b"one"))
    assert not doubts.holds("a", standing(b"another"))  # somebody registered since, and was answered
    assert not doubts.holds("a", standing(None))
    assert not doubts.holds("a", None)
    assert not doubts.holds("b", standing(b"one"))
    doubts.note("a", b"two")
    assert not doubts.holds("a", standing(b"one"))
    doubts.forget("a")
    assert not doubts.holds("a", standing(b"two"))


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    doubts = Doubts()
    for number in range(MAX_DOUBTS + 1):
        doubts.note(f"n{number}", b"x")
    assert not doubts.holds("n0", standing(b"x"))
    assert doubts.holds("n1", standing(b"x"))
    assert doubts.holds(f"n{MAX_DOUBTS}", standing(b"x"))
