"""The registry's answers, as bytes come in: what they mean, or why they are not a registry's. Pure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.session import Outcome

SHORTEST_INTERVAL_S = 0.1  # a registry that is wrong must not make its nodes a flood
LONGEST_INTERVAL_S = 3600.0
MAX_DETAIL_CHARS = 300
ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
Json = Any


@dataclass(frozen=True, slots=True)
class Registration:
    """What a registration gives: `api_key` only when it was minted just now."""

    node_id: str
    api_key: str | None
    token: str | None


def is_node_id(text: str) -> bool:
    """Whether a registry takes this as a node's id."""
    return 1 <= len(text) <= 255 and set(text) <= ID_CHARACTERS


def read_answer(url: str, status: int, raw: bytes, headers: Mapping[str, str]) -> tuple[Outcome, Json]:
    """An answer's outcome and JSON. A 200 that is not a JSON object counts as no answer."""
    data = decode(raw)
    if status == 200:
        if isinstance(data, dict):
            return Outcome(200), data
        return not_a_registry(url), None
    if 300 <= status < 400:
        target = printable(headers.get("Location", "")) or "nowhere"
        return Outcome(status, f"{url} redirects to {target}; set NODE_REGISTRY_URL to the registry itself"), None
    told = data.get("detail") if isinstance(data, dict) else None
    detail = f"{url} answered {status}" + (f": {printable(told)}" if isinstance(told, str) and told else "")
    return Outcome(status, detail, _seconds(headers.get("Retry-After"))), data


def not_a_registry(url: str) -> Outcome:
    """The outcome of an answer that no registry gives: a wrong port, or a login page on the way."""
    return Outcome(None, f"what answers at {url} is not a registry; check the address, port and network login")


def decode(raw: bytes) -> Json:
    """The JSON in some bytes, or None."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def registration(data: Json) -> Registration | None:
    """What a registration's answer gives, or None when it is not one."""
    if not isinstance(data, dict) or not isinstance(data.get("node_id"), str) or not is_node_id(data["node_id"]):
        return None
    return Registration(data["node_id"], secret(data.get("api_key")), secret(data.get("token")))


def secret(value: Json) -> str | None:
    """A key or token that a header can carry, or None."""
    fine = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
    return value if fine and value else None


def interval_s(config: Json) -> float | None:
    """The heartbeat interval that a registry asks for, within what makes sense, or None."""
    value = config.get("heartbeat_interval_s") if isinstance(config, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return None
    return float(min(max(value, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S))


def printable(text: str) -> str:
    """A stranger's text, short and without what could drive a terminal."""
    line = "".join(c if c.isprintable() else " " for c in text[:MAX_DETAIL_CHARS])
    return line.strip()


def _seconds(retry_after: str | None) -> float | None:
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
