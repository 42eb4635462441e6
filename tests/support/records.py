"""Nodes as a registration makes them, for tests of what is done with them."""

from dataclasses import replace
from typing import Any

from federation.clock import hlc_of
from federation.record import Record as Versioned
from federation.record import Section
from registry.model import RegisterRequest, parse
from registry.node import Intent, Origin, Record, Unread, node_key, registered

NOW_MS = 1_700_000_000_000
ALIASES = {"europe": "eu", "eu-*": "eu", "america": "us", "us-*": "us"}
HOME = "here"


def origin(now_ms: int = NOW_MS, **fields: Any) -> Origin:
    """A registration that arrives at the registry `here` in region `eu`."""
    usual = {"registry_id": HOME, "region": "eu", "observed_ip": "192.0.2.7", "aliases": ALIASES}
    return Origin(**{**usual, "now_ms": now_ms, **fields})


def request(**fields: Any) -> RegisterRequest:
    """A checked registration."""
    return parse(RegisterRequest, fields)


def record(node_id: str, **fields: Any) -> Record:
    """A node that registered once."""
    return registered(None, node_id, request(**fields), origin())


def versioned(node: Record, **sections: Section | None) -> Versioned:
    """The federation's record of a node, written in one go by its home registry; `sections` stand instead."""
    made = Versioned(node_key(node.node_id))
    made.life, made.incarnation = node.life, node.incarnation
    generation, seq = node.said
    at, home = hlc_of(NOW_MS), node.home_registry
    made.spec = Section(at, home, 0, node.encode_spec(), max(1, generation), max(1, seq))
    made.judgement = Section(node.epoch, home, 0, node.word.encode(), generation, seq)
    if node.intent != Intent():
        made.intent = Section(at, home, 0, node.intent.encode(), max(1, generation), seq + 1)
    for name, section in sections.items():
        setattr(made, name, section)
    return made


def unread_of(node: Record, registration: bytes) -> Unread:
    """What is said beside a registration, as it was kept."""
    return Unread(
        node.node_id, registration, node.home_registry, node.word, node.intent, node.token, node.said, node.epoch
    )


def at_home(node: Record, registry_id: str, said: tuple[int, int] = (1, 1)) -> Record:
    """The same node, where another registry judges it. `said`: at that position of its chain."""
    return replace(node, home_registry=registry_id, said=said)
