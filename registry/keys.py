"""API keys: their form, how one is minted, and how a registry knows its own. Pure.

A key is `sk-<kind>-` and base64 of bytes that end in MACs under the federation's secret. So any registry that shares
the secret can check a key it has never seen, in the very moment in which it was made.

    node               nonce, a MAC "a node key of this federation", a MAC that ties it to one node id
    read, join, admin  nonce, when it expires, how often it may be used, its scopes, a MAC over all of that

A key's id is the beginning of its hash: everything that knows the key or its hash knows the id, and nobody who knows
the id knows more of the key. Each key has exactly one spelling, or else a revocation could be spelled around.
"""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, NamedTuple

from registry.certificates import Certificate
from registry.scopes import EVERYTHING, MAX_SCOPES, Scope, parse_scopes

NONCE_BYTES = 12
_ISSUED_BYTES = 12
_OWNER_BYTES = 16
_NODE_BYTES = NONCE_BYTES + _ISSUED_BYTES + _OWNER_BYTES
_EXPIRY_BYTES, _USES_BYTES, _MAC_BYTES = 5, 3, 20
_HEAD_BYTES = NONCE_BYTES + _EXPIRY_BYTES + _USES_BYTES
_NODE, _ADMIN = "sk-node-", "sk-admin-"
ADMIN_KEY_MIN_LENGTH = 40
MAX_KEY_LENGTH = 2_048  # a key with the most and longest scopes has 1,700
MAX_EXPIRY_S = 2 ** (8 * _EXPIRY_BYTES) - 1
MAX_USES = 2 ** (8 * _USES_BYTES) - 1
KEY_ID_PATTERN = "^[0-9a-f]{24}$"
_KEY_ID = re.compile(KEY_ID_PATTERN)
_KEY_HASH = blake2b(digest_size=20, person=b"dagi-key")
_BASE64 = re.compile("[A-Za-z0-9_-]+")

Kind = Literal["none", "node", "read", "join", "admin"]
Mintable = Literal["read", "join", "admin"]
MINTABLE: tuple[Mintable, ...] = ("read", "join", "admin")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a minted key says of itself. Times are wall-clock milliseconds, in whole seconds; None: without end."""

    kind: Mintable
    expires_at_ms: int | None = None
    max_uses: int | None = None
    scopes: tuple[str, ...] = ()


class Principal(NamedTuple):
    """Who is asking. `node_id` is set for a node key whose record is known here; `key_hash` for
    every key, so that an unknown node's key can still be tied to the id it was minted for. `certificate`: of its
    connection, with mutual TLS; one that names a node makes its holder that node, with or without a key. A tuple, as
    one is made for each request.
    """

    kind: Kind
    node_id: str | None = None
    key_hash: bytes = b""
    key: str = ""
    grant: Grant | None = None  # of a minted key
    scope: Scope = EVERYTHING
    certificate: Certificate | None = None

    @property
    def key_id(self) -> str | None:
        """The id of the key it came with: what lists and logs say."""
        return key_id_of(self.key_hash) if self.key_hash else None

    def __repr__(self) -> str:
        return f"Principal({self.kind}, {self.node_id}, {self.key_id})"  # never the key


ANYONE = Principal("none")


def key_hash(key: str) -> bytes:
    """What finds a key again. Keys carry 160 random bits or more, so a plain fast hash is enough."""
    begun = _KEY_HASH.copy()  # half of what setting it up anew takes, at every request
    begun.update(key.encode())
    return begun.digest()


def keyed_hash(secret: bytes, hashed: bytes) -> bytes:
    """What a minted key's record keeps of it: its hash, keyed with the federation's secret."""
    return blake2b(hashed, key=_derived(secret, b"dagi-key-record"), digest_size=20).digest()


def key_id_of(hashed: bytes) -> str:
    """The id of the key with that hash: 24 hexadecimal digits."""
    return hashed.hex()[:24]


def is_key_id(text: str) -> bool:
    """Whether a key's id can be this."""
    return _KEY_ID.fullmatch(text) is not None


def mint_node_key(secret: bytes, node_id: str, nonce: bytes) -> str:
    """A new node key; `nonce` is 12 random bytes."""
    return _NODE + _text(nonce + _mac(secret, b"issued", nonce, _ISSUED_BYTES) + _owner(secret, nonce, node_id))


def mint(secret: bytes, grant: Grant, nonce: bytes) -> str:
    """A new read, join or admin key; `nonce` is 12 random bytes. ValueError: a number or a scope is out of bounds."""
    expires_s, uses = (grant.expires_at_ms or 0) // 1000, grant.max_uses or 0
    if not (0 <= expires_s <= MAX_EXPIRY_S and 0 <= uses <= MAX_USES and len(grant.scopes) <= MAX_SCOPES):
        raise ValueError("out of bounds")
    parse_scopes(grant.scopes)
    scopes = ",".join(grant.scopes).encode()
    body = nonce + expires_s.to_bytes(_EXPIRY_BYTES) + uses.to_bytes(_USES_BYTES) + scopes
    return f"sk-{grant.kind}-{_text(body + _grant_mac(secret, grant.kind, body))}"


def read_grant(secret: bytes, key: str) -> Grant | None:
    """What a minted key of this federation says; None: it is none, or says what this version does not know."""
    kind = next((kind for kind in MINTABLE if key.startswith(f"sk-{kind}-")), None)
    raw = _raw(key, f"sk-{kind}-") if kind is not None else None
    if kind is None or raw is None or len(raw) < _HEAD_BYTES + _MAC_BYTES:
        return None
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _grant_mac(secret, kind, body)):
        return None
    expires_s = int.from_bytes(body[NONCE_BYTES : NONCE_BYTES + _EXPIRY_BYTES])
    uses = int.from_bytes(body[NONCE_BYTES + _EXPIRY_BYTES : _HEAD_BYTES])
    try:
        scopes = tuple(body[_HEAD_BYTES:].decode("ascii").split(",")) if len(body) > _HEAD_BYTES else ()
        parse_scopes(scopes)
    except ValueError:  # of a later version: to see too little is safe, too much is not
        return None
    return Grant(kind, expires_s * 1000 or None, uses or None, scopes)


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
    raw = _node_raw(key)
    if raw is None:
        return False
    nonce, issued = raw[:NONCE_BYTES], raw[NONCE_BYTES : NONCE_BYTES + _ISSUED_BYTES]
    return hmac.compare_digest(issued, _mac(secret, b"issued", nonce, _ISSUED_BYTES))


def belongs_to(secret: bytes, key: str, node_id: str) -> bool:
    """Whether the node key was minted for this node id."""
    raw = _node_raw(key)
    if raw is None:
        return False
    return hmac.compare_digest(raw[-_OWNER_BYTES:], _owner(secret, raw[:NONCE_BYTES], node_id))


def _node_raw(key: str) -> bytes | None:
    raw = _raw(key, _NODE)
    return raw if raw is not None and len(raw) == _NODE_BYTES else None


def _raw(key: str, prefix: str) -> bytes | None:
    """The bytes of a key that is spelled as it was minted, to the last bit."""
    body = key[len(prefix) :]
    if not key.startswith(prefix) or len(key) > MAX_KEY_LENGTH or _BASE64.fullmatch(body) is None:
        return None
    try:
        raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        return None
    return raw if _text(raw) == body else None


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _owner(secret: bytes, nonce: bytes, node_id: str) -> bytes:
    return _mac(secret, b"owner\0" + node_id.encode(), nonce, _OWNER_BYTES)


def _mac(secret: bytes, purpose: bytes, nonce: bytes, size: int) -> bytes:
    return blake2b(nonce + purpose, key=_derived(secret, b"dagi-node-key"), digest_size=size).digest()


def _grant_mac(secret: bytes, kind: str, body: bytes) -> bytes:
    derived = _derived(secret, b"dagi-api-key")
    return blake2b(kind.encode() + b"\0" + body, key=derived, digest_size=_MAC_BYTES).digest()


@lru_cache(maxsize=16)  # of the one or two secrets that a registry has
def _derived(secret: bytes, purpose: bytes) -> bytes:
    return blake2b(secret, digest_size=32, person=purpose).digest()
