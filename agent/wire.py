"""The registry's answers, as bytes come in: what they mean, or why they are not a registry's. Pure."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from agent.session import Outcome

SHORTEST_INTERVAL_S = 0.1  # a registry that is wrong must not make its nodes a flood
LONGEST_INTERVAL_S = 3600.0
MAX_DETAIL_CHARS = 300
ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
MAX_ADVERTS = 64
MAX_URL_CHARS = 300
_SERVER_MS = re.compile(r"(?:^|,)\s*app\s*;[^,]*?dur=([0-9.]+)")
_WORD_OF_A_REGISTRY = frozenset({404, 409, 422})  # acted upon: a stranger's must not be taken for one
Json = Any


@dataclass(frozen=True, slots=True)
class Registration:
    """What a registration gives: `api_key` only when it was minted just now."""

    node_id: str
    api_key: str | None
    token: str | None


@dataclass(frozen=True, slots=True)
class Advert:
    """A registry that another one told of."""

    url: str
    region: str | None = None
    registry_id: str | None = None


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
    if status in _WORD_OF_A_REGISTRY and not isinstance(data, dict):
        return not_a_registry(url), None
    told = data.get("detail") if isinstance(data, dict) else None
    detail = f"{url} answered {status}" + (f": {printable(told)}" if isinstance(told, str) and told else "")
    code = data.get("code") if isinstance(data, dict) else None
    patience_s = _seconds(headers.get("Retry-After"))
    return Outcome(status, detail, patience_s, code if isinstance(code, str) else None), data


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


def is_replaced(outcome: Outcome, data: Json) -> bool:
    """Whether a heartbeat's answer says that another run of the agent has registered since."""
    return outcome.status == 409 and isinstance(data, dict) and data.get("code") == "instance_replaced"


def has_other_signer(outcome: Outcome, data: Json) -> bool:
    """Whether an answer says that the node id belongs to another signing key."""
    return outcome.status == 409 and isinstance(data, dict) and data.get("code") == "signing_key_differs"


def region_called(outcome: Outcome, data: Json) -> str | None:
    """How the registry calls the region that was signed, where it knows it by another name."""
    if outcome.status != 422 or not isinstance(data, dict) or data.get("code") != "region_alias":
        return None
    called = data.get("region")
    return called if isinstance(called, str) and 0 < len(called) <= 255 and called.isprintable() else None


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


def adverts(listed: Json) -> list[Advert]:
    """The registries in `config.registries`; what is none is left out."""
    if not isinstance(listed, list):
        return []
    found = (_advert(each) for each in listed[:MAX_ADVERTS] if isinstance(each, dict))
    return [advert for advert in found if advert is not None]


def _advert(each: dict[str, Json]) -> Advert | None:
    url = each.get("url")
    if not isinstance(url, str) or len(url) > MAX_URL_CHARS or not url.isprintable() or not is_url(url):
        return None
    if "@" in url or " " in url:  # a name and password, or something that ends elsewhere than it seems to
        return None
    return Advert(url.rstrip("/"), name(each.get("region")), name(each.get("registry_id")))


def kept_adverts(kept: Json, urls: Sequence[str]) -> list[Advert]:
    """What `to_keep` made, where it belongs to the network of these URLs: they were its list, or are in it."""
    if not isinstance(kept, dict) or not isinstance(kept.get("configured"), list):
        return []
    found = adverts(kept.get("learned"))
    same = set(urls) & {*map(str, kept["configured"]), *(advert.url for advert in found)}
    return found if same else []


def to_keep(learned: Iterable[Advert], urls: Sequence[str]) -> Json:
    """What was learned from the registries of these URLs, as JSON."""
    return {"configured": list(urls), "learned": [asdict(advert) for advert in learned]}


def kept_urls(kept: Json) -> tuple[str, ...]:
    """The URLs that `to_keep` was given; none where what is kept is not of it."""
    listed = kept.get("configured") if isinstance(kept, dict) else None
    return tuple(url for url in listed if isinstance(url, str) and is_url(url)) if isinstance(listed, list) else ()


def name(value: Json) -> str | None:
    """A registry's id or region, or None."""
    return value if isinstance(value, str) and is_node_id(value) else None


def is_url(text: str) -> bool:
    """Whether a registry's address can be this: http or https, and a host."""
    try:
        split = urlsplit(text)
        return split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:  # a port out of range, half an IPv6 address
        return False


def server_ms(headers: Mapping[str, str]) -> float:
    """What of a round trip the registry itself used (Server-Timing), in milliseconds; 0 where it does not say."""
    found = _SERVER_MS.search(headers.get("Server-Timing", ""))
    try:
        return float(found[1]) if found else 0.0
    except ValueError:
        return 0.0


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
