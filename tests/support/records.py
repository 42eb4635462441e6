"""Nodes as a registration makes them, for tests of what is done with them."""

from typing import Any

from registry.model import RegisterRequest, parse
from registry.node import Origin, Record, registered

NOW_MS = 1_700_000_000_000
ALIASES = {"europe": "eu", "eu-*": "eu", "america": "us", "us-*": "us"}


def origin(now_ms: int = NOW_MS, **fields: Any) -> Origin:
    """A registration that arrives at the registry `here` in region `eu`."""
    usual = {"registry_id": "here", "region": "eu", "observed_ip": "192.0.2.7", "aliases": ALIASES}
    return Origin(**{**usual, "now_ms": now_ms, **fields})


def request(**fields: Any) -> RegisterRequest:
    """A checked registration."""
    return parse(RegisterRequest, fields)


def record(node_id: str, **fields: Any) -> Record:
    """A node that registered once."""
    return registered(None, node_id, request(**fields), origin())
