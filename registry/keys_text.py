"""What the commands of keys show: lines and cells of answers, durations, and the command for a new node. Pure."""

import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from registry.federation_text import plain

HEADINGS = ("KEY ID", "KIND", "NAME", "STATUS", "SCOPES", "ENDS", "USED", "USES")
MOST_URLS = 4  # where a new node may ask; once it is in, it learns of the rest
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw]?)")
_LOOPBACK = ("127.", "localhost", "::1")
Json = Any


def duration_s(text: str) -> int:
    """Seconds of `90s`, `15m`, `24h`, `30d`, `2w`, or of a number of seconds. ValueError."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no duration such as 15m, 24h or 30d")
    return int(found[1]) * _UNITS_S[found[2] or "s"]


def cells(key: dict[str, Json], now_s: float) -> tuple[str, ...]:
    """A key's row. `now_s`: Unix time."""
    uses = "-" if key["uses"] is None else str(key["uses"]) + (f"/{key['max_uses']}" if key["max_uses"] else "")
    left_s, ago_s = _from_now_s(key["expires_at"], now_s), _from_now_s(key["last_used_at"], now_s)
    return (
        plain(key["key_id"]),
        plain(key["kind"] or "unknown"),
        plain(key["node_id"] or key["name"] or "-"),
        plain(key["status"]),
        plain(" ".join(key["scopes"]) or "-"),
        "never" if left_s is None else _span(left_s),
        "-" if ago_s is None else _span(-ago_s),
        uses,
    )


def lines(key: dict[str, Json]) -> list[tuple[str, str]]:
    """Everything that is told of a key."""
    told = {name: value for name, value in key.items() if value not in (None, "", [])}
    return [(name.replace("_", " "), plain(" ".join(value) if isinstance(value, list) else str(value)))
            for name, value in told.items()]  # fmt: skip


def made(key: dict[str, Json]) -> str:
    """What there is to say of a key that was just made."""
    until = f"until {_moment(key['expires_at'], '')}" if key["expires_at"] else "until it is revoked"
    limits = f", for {' '.join(key['scopes'])}" if key["scopes"] else ""
    return f"{key['kind']} key {key['key_id']}{limits}: good at every registry {until}. It is shown only now."


def urls_of(federation: dict[str, Json]) -> list[str]:
    """Where nodes may go, as a registry tells: there first."""
    found = [federation["self"].get("url"), *(peer.get("url") for peer in federation.get("peers", []))]
    return list(dict.fromkeys(url for url in found if isinstance(url, str) and url))[:MOST_URLS]


def join_command(urls: Sequence[str], token: str, *, curl: bool) -> str:
    """The one command that brings in a machine. The token stands in the environment: others see a command's words."""
    settings = f"NODE_REGISTRY_URL={shlex.quote(','.join(urls))} NODE_JOIN_TOKEN={shlex.quote(token)}"
    if curl:
        return f"curl -fsS {shlex.quote(urls[0] + '/bootstrap/node_bootstrap.py')} | {settings} python3 -"
    return f"{settings} ./scripts/join-network.sh"


def join_notes(urls: Iterable[str], *, curl: bool) -> list[str]:
    """What whoever pastes the command should know."""
    listed = list(urls)
    notes = [
        "Paste it on the new machine, which needs Python 3.8 and curl."
        if curl
        else "Paste it on the new machine, in the folder of this project; where that is not to be, --curl needs none."
    ]
    if any(url.startswith("https:") for url in listed):
        notes.append(
            "If a private authority signed the registry's certificate, set CA_CERT there to its file"
            + (", after the | too, and give curl the same with --cacert." if curl else ".")
        )
    if all((urlsplit(url).hostname or "").startswith(_LOOPBACK) for url in listed):
        notes.append(f"{listed[0]} is this machine only; for others set REGISTRY_ADVERTISE_URL, or give --node-url.")
    return notes


def _from_now_s(iso: str | None, now_s: float) -> float | None:
    return datetime.fromisoformat(iso).timestamp() - now_s if iso else None


def _span(seconds: float) -> str:
    """About how long that is, in the largest unit that fits twice: 47h, 3d."""
    past, seconds = seconds < 0, abs(seconds)
    unit = next((unit for unit in "dhm" if seconds >= 2 * _UNITS_S[unit]), "s")
    return f"{'-' if past else ''}{seconds // _UNITS_S[unit]:.0f}{unit}"


def _moment(iso: str | None, absent: str) -> str:
    return plain(iso[:16].replace("T", " ") + "Z") if iso else absent
