"""Records made of their states, as stores of tests keep them."""

from typing import Any

from federation.record import Record


def record_of(state: tuple[Any, ...]) -> Record:
    """A record that has this state (Record.state)."""
    key, life, incarnation, *sections = state
    record = Record(key)
    record.life, record.incarnation = life, incarnation
    record.spec, record.intent, record.judgement, record.end = sections
    return record
