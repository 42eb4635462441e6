"""An API key as the federation's record of it says, and how it is shown. Pure.

The record is of three parts that are written independently: what the key is (SPEC), how it was used (INTENT), and that
it was revoked (END), which wins over everything, for ever, also where nothing else of the key is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from federation.clock import wall_ms_of
from federation.record import KEY_PREFIX
from federation.record import Record as Versioned
from registry.keys import MINTABLE, Kind
from registry.node import MAX_MS, iso
from registry.scopes import EVERYTHING, Scope, parse_scopes

Status = Literal["active", "expired", "used_up", "revoked"]
MAX_NAME = 255
MAX_COUNTERS = 256  # registries that count uses of one key: more than a federation has
_KINDS = frozenset({*MINTABLE, "node"})
Json = Any


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. `kind` None: revoked before its record arrived. Times are wall-clock milliseconds.

    `uses` counts by registry: each writes only its own number, so that none is lost where several count at once.
    """

    key_id: str
    kind: Kind | None = None
    name: str = ""
    scopes: tuple[str, ...] = ()
    created_at_ms: int = 0
    created_by: str | None = None
    expires_at_ms: int | None = None
    max_uses: int | None = None
    hash: str | None = None  # keyed with the federation's secret
    node_id: str | None = None
    replaced_by: str | None = None
    last_used_at_ms: int | None = None
    uses: Mapping[str, int] = field(default_factory=dict)
    revoked_at_ms: int | None = None
    revoked_by: str | None = None

    def encode(self) -> bytes:
        """The payload of what it is."""
        said = {
            "kind": self.kind, "name": self.name, "scopes": self.scopes, "created_at_ms": self.created_at_ms,
            "created_by": self.created_by, "expires_at_ms": self.expires_at_ms, "max_uses": self.max_uses,
            "hash": self.hash, "node_id": self.node_id, "replaced_by": self.replaced_by,
        }  # fmt: skip
        return bytes(memoryview(orjson.dumps(said)))

    def encode_use(self) -> bytes:
        """The payload of how it was used."""
        return bytes(memoryview(orjson.dumps([self.last_used_at_ms, dict(sorted(self.uses.items()))])))

    @classmethod
    def of(cls, record: Versioned) -> "ApiKey | None":
        """The key that a federation record tells of; None where a peer wrote what is none."""
        key_id = record.key[len(KEY_PREFIX) :]
        made = _read_spec(key_id, record.spec.payload) if record.spec is not None and not record.deleted else None
        if made is not None and record.intent is not None:
            made = _with_use(made, record.intent.payload)
        if record.end is None and not record.deleted:
            return made
        end = record.end
        return replace(
            made or cls(key_id),
            revoked_at_ms=min(wall_ms_of(end.major), MAX_MS) if end is not None else 0,
            revoked_by=_text(end.payload.decode("utf-8", "replace")[:MAX_NAME]) if end is not None else None,
        )

    @property
    def scope(self) -> Scope:
        """What it may see."""
        return parse_scopes(self.scopes) if self.scopes else EVERYTHING

    @property
    def used(self) -> int:
        """How often, as far as is known here."""
        return sum(self.uses.values())

    def expiring(self, at_ms: int) -> "ApiKey":
        """The same key, which ends at that moment or at its own, whichever is earlier."""
        return replace(self, expires_at_ms=min(at_ms, self.expires_at_ms or at_ms))

    def status(self, now_ms: int) -> Status:
        """Whether it is good."""
        if self.revoked_at_ms is not None:
            return "revoked"
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return "expired"
        return "used_up" if self.max_uses is not None and self.used >= self.max_uses else "active"

    def shown(self, now_ms: int) -> dict[str, Json]:
        """As lists and answers show it: nothing of the key itself."""
        return {
            "key_id": self.key_id,
            "kind": self.kind,
            "name": self.name,
            "status": self.status(now_ms),
            "scopes": list(self.scopes),
            "node_id": self.node_id,
            "created_at": iso(self.created_at_ms) if self.created_at_ms else None,
            "created_by": self.created_by,
            "expires_at": _iso(self.expires_at_ms),
            "last_used_at": _iso(self.last_used_at_ms),
            "max_uses": self.max_uses,
            "uses": self.used if self.kind == "join" else None,
            "replaced_by": self.replaced_by,
            "revoked_at": _iso(self.revoked_at_ms),
            "revoked_by": self.revoked_by,
        }


def _read_spec(key_id: str, payload: bytes) -> ApiKey | None:
    """What a SPEC says; a peer may have written anything."""
    try:
        said = orjson.loads(payload)
        made = ApiKey(
            key_id,
            said["kind"] if said["kind"] in _KINDS else None,
            _text(said["name"]) or "",
            tuple(_strings(said["scopes"])),
            _time(said["created_at_ms"]) or 0,
            _text(said["created_by"]),
            _time(said["expires_at_ms"]),
            _whole(said["max_uses"]),
            _text(said["hash"]),
            _text(said["node_id"]),
            _text(said["replaced_by"]),
        )
        parse_scopes(made.scopes)
    except (TypeError, ValueError, LookupError, AttributeError):
        return None
    return made if made.kind is not None else None


def _with_use(key: ApiKey, payload: bytes) -> ApiKey:
    try:
        last_used_at_ms, uses = orjson.loads(payload)
        counted = {str(name): _whole(number) or 0 for name, number in uses.items()}
        if len(counted) > MAX_COUNTERS:
            return key
        return replace(key, last_used_at_ms=_time(last_used_at_ms), uses=counted)
    except (TypeError, ValueError, AttributeError):
        return key


def _text(value: Json) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError("no text")
    return "".join(letter if letter.isprintable() else "?" for letter in value)


def _strings(values: Json) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("no list of words")
    return values


def _time(value: Json) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value <= MAX_MS):
        raise ValueError("no time")
    return value


def _whole(value: Json) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value < 2**53):
        raise ValueError("no count")
    return value


def _iso(at_ms: int | None) -> str | None:
    return iso(at_ms) if at_ms is not None else None
