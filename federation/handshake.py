"""How two registries prove themselves to each other before a link is up. No I/O: texts in, texts out.

    dialler  -> acceptor   card: id, region, URL, public key, nonce, version
    acceptor -> dialler    its card, and its proof
    dialler  -> acceptor   its proof
    acceptor -> dialler    welcome

A proof is an HMAC under a key made from the federation's secret, and a signature by the registry's own key;
both over its role and the transcript, which holds every field of both cards. So a proof is good for one
handshake, one role, one pair of registries and these very claims: replayed, reflected or altered it is none.
The secret is never sent; who does not know it gets an HMAC under 32 characters or more, and no more.

Who the other side is gets judged only after its proof: before, everything it says may be anybody's.
"""

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from federation.ed25519 import PrivateKey, is_signed_by
from federation.roster import is_identity, is_region, is_registry_id, is_url, is_version, read_object

LINK_VERSION = 2  # of the handshake and of what follows it
MAX_TEXT_SIZE = 4_096  # a card is a quarter of it
NONCE_SIZE = 32

_LABEL = b"dagi federation link"
_NONCE_DIGITS = 2 * NONCE_SIZE
_MAC_DIGITS = 2 * 32
_SIGNATURE_DIGITS = 2 * 64

Role = Literal["dialler", "acceptor"]
Code = Literal[
    "malformed",  # it does not keep this protocol
    "wrong_version",  # it keeps another version of it
    "wrong_secret",  # it does not know our secret
    "wrong_signature",  # it does not have the key that it shows
    "identity_changed",  # another key is pinned to its id
    "wrong_certificate",  # its certificate is not that registry's
    "same_id",  # it is another registry, with our id
    "myself",  # it is this registry
    "no_secret",  # we have no secret
]


class Refused(Exception):
    """The handshake is over. `code` is for counting and for the other side, `detail` is for people here.
    `about`: the id that somebody who knows the secret claimed, if that is what it is about."""

    def __init__(self, code: Code, detail: str, about: str | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: Code = code
        self.detail = detail
        self.about = about


@dataclass(frozen=True, slots=True)
class Identity:
    """This registry, to its peers. `url` None: nobody can dial it (NAT). `secret` None: it has no federation."""

    registry_id: str
    region: str
    url: str | None
    private_key: PrivateKey = field(repr=False)
    secret: bytes | None = field(repr=False)

    @property
    def public_key(self) -> bytes:
        """What others pin to the id: 32 bytes."""
        return self.private_key.public


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side, after it proved itself."""

    registry_id: str
    region: str
    url: str | None
    identity: bytes


Pinned = Callable[[str], bytes | None]
"""The public key that belongs to a registry id; None: it is not known yet, and whatever comes first is."""


class _Side:
    """What both sides do. `peer` is set once the other has proved itself, `done` when both know of it."""

    def __init__(self, identity: Identity, nonce: bytes, pinned: Pinned) -> None:
        """`nonce`: 32 random bytes, never used before."""
        if not identity.secret:
            raise Refused("no_secret", "set REGISTRY_FEDERATION_SECRET here")
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
        self.peer: Peer | None = None
        self.done = False
        self._identity = identity
        self._pinned = pinned
        self._key = hmac.digest(identity.secret, _LABEL + b" key", sha256)
        self._card: Mapping[str, Any] = {
            "version": LINK_VERSION,
            "id": identity.registry_id,
            "region": identity.region,
            "url": identity.url,
            "identity": identity.public_key.hex(),
            "nonce": nonce.hex(),
        }

    def _proof(self, role: Role, transcript: bytes) -> dict[str, str]:
        said = _said(role, transcript)
        return {
            "mac": hmac.digest(self._key, said, sha256).hex(),
            "signature": self._identity.private_key.sign(said).hex(),
        }

    def _prove(self, role: Role, transcript: bytes, card: Mapping[str, Any], proof: object) -> Peer:
        """The other side, if the proof is its own."""
        fields = _only(proof, {"mac", "signature"})
        mac, signature = fields["mac"], fields["signature"]
        if not (_is_hex(mac, _MAC_DIGITS) and _is_hex(signature, _SIGNATURE_DIGITS)):
            raise Refused("malformed", "its proof is none")
        said = _said(role, transcript)
        if not hmac.compare_digest(hmac.digest(self._key, said, sha256), bytes.fromhex(mac)):
            raise Refused("wrong_secret", "it does not prove that it knows the federation's secret")
        identity = bytes.fromhex(card["identity"])
        if not is_signed_by(identity, bytes.fromhex(signature), said):
            raise Refused("wrong_signature", "it does not prove that it has the key that it shows")
        peer = Peer(card["id"], card["region"], card["url"], identity)
        self._judge(peer)
        return peer

    def _judge(self, peer: Peer) -> None:
        own = self._identity
        if peer.registry_id == own.registry_id:
            if hmac.compare_digest(peer.identity, own.public_key):
                raise Refused("myself", "it is this registry itself")
            raise Refused("same_id", f"it is another registry that is also called {own.registry_id}")
        pinned = self._pinned(peer.registry_id)
        if pinned is not None and not hmac.compare_digest(pinned, peer.identity):
            detail = f"{peer.registry_id} shows another identity than the one pinned"
            raise Refused("identity_changed", detail, peer.registry_id)


class Dialler(_Side):
    """The side that opened the connection."""

    def __init__(self, identity: Identity, nonce: bytes, pinned: Pinned) -> None:
        super().__init__(identity, nonce, pinned)

    def first(self) -> str:
        """What to send at once."""
        return _text(self._card)

    def receive(self, text: str) -> str | None:
        """What to send next, if anything. `peer` is known after the first answer. Raises Refused."""
        if self.done:
            raise Refused("malformed", "it goes on after the handshake")
        fields = _object(text)
        if self.peer is not None:
            _only(fields, {"welcome"})
            self.done = True
            return None
        card = _card(_only(fields, {"card", "proof"})["card"])
        _must_differ(self._card, card)
        transcript = _transcript(self._card, card)
        self.peer = self._prove("acceptor", transcript, card, fields["proof"])
        return _text(self._proof("dialler", transcript))


class Acceptor(_Side):
    """The side that was called."""

    def __init__(self, identity: Identity, nonce: bytes, pinned: Pinned) -> None:
        super().__init__(identity, nonce, pinned)
        self._theirs: Mapping[str, Any] | None = None

    def receive(self, text: str) -> str:
        """What to send next. Raises Refused."""
        if self.done:
            raise Refused("malformed", "it goes on after the handshake")
        fields = _object(text)
        if self._theirs is None:
            self._theirs = _card(fields)
            _must_differ(self._card, self._theirs)
            return _text({"card": self._card, "proof": self._proof("acceptor", self._transcript(self._theirs))})
        self.peer = self._prove("dialler", self._transcript(self._theirs), self._theirs, fields)
        self.done = True
        return _text({"welcome": True})

    def _transcript(self, theirs: Mapping[str, Any]) -> bytes:
        return _transcript(theirs, self._card)


def _object(text: str) -> Mapping[str, Any]:
    try:
        fields = read_object(text.encode(), MAX_TEXT_SIZE)
    except UnicodeEncodeError:
        fields = None
    if fields is None:
        raise Refused("malformed", f"it sent what is no JSON object of at most {MAX_TEXT_SIZE} bytes")
    return fields


def _only(fields: object, names: set[str]) -> Mapping[str, Any]:
    """Exactly these fields: who wants more needs a version of its own, or one side would not know what the
    other takes for agreed."""
    if not isinstance(fields, dict) or fields.keys() != names:
        raise Refused("malformed", f"it sent other fields than {', '.join(sorted(names))}")
    return fields


def _card(fields: object) -> Mapping[str, Any]:
    version = fields.get("version") if isinstance(fields, dict) else None
    if is_version(version) and version != LINK_VERSION:  # first: another version may have other fields
        raise Refused("wrong_version", f"it speaks version {version} of the link protocol, we speak {LINK_VERSION}")
    card = _only(fields, {"version", "id", "region", "url", "identity", "nonce"})
    valid = (
        is_version(version)
        and is_registry_id(card["id"])
        and is_region(card["region"])
        and (card["url"] is None or is_url(card["url"]))
        and is_identity(card["identity"])
        and _is_hex(card["nonce"], _NONCE_DIGITS)
    )
    if not valid:
        raise Refused("malformed", "its card has a field of a wrong form")
    return card


def _must_differ(own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    if own["nonce"] == other["nonce"]:
        raise Refused("malformed", "it sends our own words back")


def _transcript(dialler: Mapping[str, Any], acceptor: Mapping[str, Any]) -> bytes:
    """The hash of everything that both said of themselves. One text for each pair of cards."""
    return sha256(_LABEL + _text([dialler, acceptor]).encode()).digest()


def _said(role: Role, transcript: bytes) -> bytes:
    """What a proof is over."""
    return _LABEL + b" " + role.encode() + b" " + transcript


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and all(digit in "0123456789abcdef" for digit in value)
