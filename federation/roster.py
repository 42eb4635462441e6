"""What the roster says of a registry: the payload of its record, `r:<registry_id>`. It comes from peers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from federation.columns import ORIGIN_MAX_LENGTH

IDENTITY_SIZE = 32  # an Ed25519 public key
MAX_URL_LENGTH = 512
MAX_REGION_LENGTH = 63  # a DNS label's, as registry ids
MAX_ADVERT_SIZE = 2_048  # three times what the fields can take: a later version may say more
MAX_VERSION = 2**16 - 1

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{ORIGIN_MAX_LENGTH - 1}}}")
_IDENTITY = re.compile(rf"[0-9a-f]{{{2 * IDENTITY_SIZE}}}")
_URL = re.compile(rf"https?://[!-~]{{1,{MAX_URL_LENGTH}}}")  # visible ASCII


@dataclass(frozen=True, slots=True)
class Advert:
    """One registry. `url` None: it only dials out (NAT). `identity`: its public key, to which its id is pinned.
    `version`: of the link protocol."""

    url: str | None
    region: str
    identity: bytes
    version: int


def pack_advert(advert: Advert) -> bytes:
    """The record's payload. Canonical. ValueError: it says what no peer would take."""
    fields = {
        "identity": advert.identity.hex(),
        "region": advert.region,
        "url": advert.url,
        "version": advert.version,
    }
    packed = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    if unpack_advert(packed) != advert:
        raise ValueError(f"{advert} cannot be advertised: a URL is http(s)://host[:port][/path], a key 32 bytes")
    return packed


def unpack_advert(packed: bytes) -> Advert | None:
    """What `pack_advert` wrote, here or in a later version (whose further fields are passed over); None for
    anything else."""
    return _unpacked(packed) if len(packed) <= MAX_ADVERT_SIZE else None


@lru_cache(maxsize=1_024)  # whenever a seal is checked, its origin's is asked for
def _unpacked(packed: bytes) -> Advert | None:
    fields = read_object(packed, MAX_ADVERT_SIZE)
    if fields is None or not fields.keys() >= {"url", "region", "identity", "version"}:
        return None
    url, region, identity, version = (fields[name] for name in ("url", "region", "identity", "version"))
    if not (is_region(region) and is_identity(identity) and is_version(version)):
        return None
    if url is not None and not is_url(url):
        return None
    return Advert(url, region, bytes.fromhex(identity), version)


def read_object(packed: bytes, most_size: int) -> Mapping[str, Any] | None:
    """A JSON object that a peer sent; None if it is none, is too long, or names a field twice."""
    if len(packed) > most_size:
        return None
    try:
        found = json.loads(packed, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_registry_id(value: object) -> bool:
    """Whether it can be a registry's id."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_region(value: object) -> bool:
    """Whether it can be a region's name."""
    return isinstance(value, str) and 0 < len(value) <= MAX_REGION_LENGTH and value.isascii() and value.isprintable()


def is_identity(value: object) -> bool:
    """Whether it is a public key as hex digits."""
    return isinstance(value, str) and _IDENTITY.fullmatch(value) is not None


def is_version(value: object) -> bool:
    """Whether it can be a protocol's version."""
    return type(value) is int and 0 < value <= MAX_VERSION


def is_url(value: object) -> bool:
    """Whether a registry can be dialled at it: http(s), a host, perhaps a port and a path, and nothing else."""
    if not isinstance(value, str) or len(value) > MAX_URL_LENGTH or _URL.fullmatch(value) is None:
        return False
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    return bool(parts.hostname) and port != 0 and not any(mark in value for mark in "@?#\\")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is named twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
