"""API keys: their form, how one is minted, and how a registry knows its own.

A node key is `sk-node-` and 40 bytes: a nonce, a MAC that says "a node key of this federation",
and a MAC that ties it to one node id. Both are under the federation's secret, so any registry
that shares the secret can check a key it has never seen. The registry keeps only a key's hash.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from registry.certificates import Certificate

NONCE_BYTES = 12
_ISSUED_BYTES = 12
_OWNER_BYTES = 16
_NODE, _ADMIN = "sk-node-", "sk-admin-"
ADMIN_KEY_MIN_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. `node_id` is set for a node key whose record is known here; `key_hash` for
    every key, so that an unknown node's key can still be tied to the id it was minted for. `certificate`: of its
    connection, with mutual TLS; one that names a node makes its holder that node, with or without a key."""

    kind: Literal["none", "node", "admin"]
    node_id: str | None = None
    key_hash: bytes = b""
    key: str = ""
    certificate: Certificate | None = None


ANYONE = Principal("none")


def key_hash(key: str) -> bytes:
    """What is stored of a key. Keys carry 224 random bits, so a plain fast hash is enough."""
    return blake2b(key.encode(), digest_size=20, person=b"dagi-key").digest()


def mint_node_key(secret: bytes, node_id: str, nonce: bytes) -> str:
    """A new node key; `nonce` is 12 random bytes."""
    raw = nonce + _mac(secret, b"issued", nonce, _ISSUED_BYTES) + _owner(secret, nonce, node_id)
    return _NODE + urlsafe_b64encode(raw).decode().rstrip("=")


def mint_admin_key(random: bytes) -> str:
    """A new admin key from 32 random bytes."""
    return _ADMIN + urlsafe_b64encode(random).decode().rstrip("=")


def is_admin_key(text: str) -> bool:
    """Whether a key has the form of an admin key (as `REGISTRY_ADMIN_KEY` must)."""
    return (
        text.startswith(_ADMIN)
        and len(text) >= ADMIN_KEY_MIN_LENGTH
        and text.isascii()
        and text.isprintable()
        and " " not in text
    )


def is_issued(secret: bytes, key: str) -> bool:
    """Whether this federation minted the node key."""
    raw = _raw(key)
    if raw is None:
        return False
    nonce, issued = raw[:NONCE_BYTES], raw[NONCE_BYTES : NONCE_BYTES + _ISSUED_BYTES]
    return hmac.compare_digest(issued, _mac(secret, b"issued", nonce, _ISSUED_BYTES))


def belongs_to(secret: bytes, key: str, node_id: str) -> bool:
    """Whether the node key was minted for this node id."""
    raw = _raw(key)
    if raw is None:
        return False
    return hmac.compare_digest(raw[-_OWNER_BYTES:], _owner(secret, raw[:NONCE_BYTES], node_id))


def _raw(key: str) -> bytes | None:
    if not key.startswith(_NODE):
        return None
    body = key[len(_NODE) :]
    try:
        raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        return None
    return raw if len(raw) == NONCE_BYTES + _ISSUED_BYTES + _OWNER_BYTES else None


def _owner(secret: bytes, nonce: bytes, node_id: str) -> bytes:
    return _mac(secret, b"owner\0" + node_id.encode(), nonce, _OWNER_BYTES)


def _mac(secret: bytes, purpose: bytes, nonce: bytes, size: int) -> bytes:
    key = blake2b(secret, digest_size=32, person=b"dagi-node-key").digest()
    return blake2b(nonce + purpose, key=key, digest_size=size).digest()
