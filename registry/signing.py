"""Node-signed registrations, as this registry takes and judges them. What a proof is: federation/signed.py.

The first signing key seen for a node id owns it: the record's incarnation is made of that key, so it stands with the
record in every registry, through re-registrations, and whatever the registration itself is said to be.
"""

from collections.abc import Mapping
from typing import Any

from federation.record import Record as Versioned
from federation.signed import (
    FIELDS,
    SIGNED_BY_KEY,
    Document,
    Forged,
    Proof,
    claimed,
    differing,
    incarnation_of,
    is_of_other_format,
    read,
    same,
    split,
    unpack,
    verify,
)
from federation.writes import Token
from registry.errors import ApiError, FieldError, invalid
from registry.model import RegisterRequest, check_shape, parse
from registry.names import canonical_region

Json = Any
VERIFIED, UNVERIFIED, INVALID = "verified", "unverified", "invalid"
_SPELLINGS = {"node_role": "role"}  # callers' names of fields


class LaterFormat(Exception):
    """The document is signed as it should be, and of a later version of this software."""


def parse_registration(data: Mapping[str, Json], aliases: Mapping[str, str]) -> RegisterRequest:
    """Check a registration's body. Of a signed one every signed field is the document's. Raises 422."""
    told = data.get("signed")
    if told is None:
        return parse(RegisterRequest, data)
    try:
        proof = Proof.of_json(told)
    except ValueError as fault:
        raise _wrong("signed", fault) from None
    try:
        document = read(proof.document)
    except ValueError as fault:
        raise _wrong("signed.document", fault) from None
    check_shape(document.fields)
    _contradicts(data, document)
    request = parse(RegisterRequest, {**data, **document.fields, "node_id": document.node_id, "signed": None})
    _named_as_here(document, aliases)
    request.take_signed(proof, document)
    return request


def proven(request: RegisterRequest) -> None:
    """Raise 403 unless a signed registration is signed with the key that it shows."""
    if request.proof is None:
        return
    try:
        verify(request.proof)
    except Forged:
        raise ApiError(
            "bad_signature",
            "The signature is not of signed.document by signed.key: sign the document's exact UTF-8 bytes (Ed25519).",
        ) from None


def require_key(request: RegisterRequest, held: Versioned | None, *, is_admin: bool) -> None:
    """Raise 409 where the node id belongs to another signing key, or what is signed is older than what stands.
    `held`: what stands under that id, if anything does. An admin may give it another key, or none. What no key has
    signed that it belongs to is forged, and keeps nobody out who may register the id otherwise."""
    standing = _standing(held) if held is not None and not held.deleted and is_bound(held.incarnation) else None
    if held is None or standing is None:
        return
    if request.signing_key != standing.key:
        if not is_admin:
            raise signing_key_differs(held.key.partition(":")[2], signed=request.signing_key is not None)
        return
    counter = _counter(standing)
    if counter is None or request.document is None or request.proof is None:
        return
    if request.document.counter < counter or (
        request.document.counter == counter and request.proof.document != standing.document
    ):
        raise ApiError(
            "stale_document",
            f"The document's counter is {request.document.counter}, and one with {counter} is registered: sign anew, "
            "with a higher one.",
        )


def signing_key_differs(node_id: str, *, signed: bool) -> ApiError:
    """A 409: the id is another key's."""
    why = "another key signs for it" if signed else "its agent signs what it registers, and this is not signed"
    return ApiError(
        "signing_key_differs",
        f"{node_id} belongs to another node: {why}. Take another node_id, or ask an admin to register it anew.",
    )


def is_bound(incarnation: int) -> bool:
    """Whether a record of this incarnation belongs to a signing key."""
    return incarnation >= SIGNED_BY_KEY


def begins_anew(held: Versioned | None, incarnation: int) -> bool:
    """Whether a registration of this incarnation can only stand in a new life: the id changes hands between keys, or
    has had none."""
    if held is None or held.deleted or held.incarnation == incarnation:
        return False
    return is_bound(held.incarnation) or is_bound(incarnation)


def token_for(token: Token | None, incarnation: int) -> Token | None:
    """The token that a node brings, as it may be used with that incarnation: its life and stamps count in any case."""
    if token is None or token.incarnation == incarnation:
        return token
    return token._replace(incarnation=incarnation) if is_bound(token.incarnation) or is_bound(incarnation) else token


def is_losers(token: Token | None, held: Token) -> bool:
    """Whether a heartbeat is of a node that registered under an id that belongs to another key."""
    return token is not None and is_bound(held.incarnation) and token.incarnation != held.incarnation and token < held


# judging what others hold


def first_look(payload: bytes, incarnation: int) -> str | None:
    """How a registration stands as far as can be told for nothing: UNVERIFIED, INVALID, or None: nobody signed it."""
    signed = claimed(payload)
    if signed is None:
        return INVALID if is_bound(incarnation) or b"\n" in payload else None
    return UNVERIFIED if incarnation_of(signed[0]) == incarnation else INVALID


def fault_of(node_id: str, incarnation: int, payload: bytes, spec: Mapping[str, Json]) -> str | None:
    """Why a signed registration is not the node's own, in words; None: it is. The same everywhere, as nothing counts
    but the record. LaterFormat: a later version of this software has to tell."""
    signed = claimed(payload)
    if signed is None:
        return "the node's signature is missing" if first_look(payload, incarnation) else None
    if incarnation_of(signed[0]) != incarnation:
        return "it is signed with another key than the node's"
    head, packed = split(payload)
    try:
        proof = unpack(packed, head)
        verify(proof)
        if is_of_other_format(proof.document):
            raise LaterFormat
        document = read(proof.document)
        changed = differing(document, spec)
    except Forged as fault:
        return str(fault)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "what is signed is no registration"
    if document.node_id != node_id:
        return "what is signed is another node's registration"
    if document.counter != signed[1]:
        return "its counter is not the signed one"
    return f"it differs from what the node signed in: {', '.join(changed)}" if changed else None


def proof_of(payload: bytes) -> Proof | None:
    """The proof that a payload carries, for others to check; None where it has none that can be read."""
    head, packed = split(payload)
    try:
        return unpack(packed, head) if packed else None
    except Forged:
        return None


# parts


def _standing(held: Versioned) -> Proof | None:
    """What the holder of the key has signed; None where what stands is nothing that it did."""
    proof = proof_of(held.spec.payload) if held.spec is not None else None
    if proof is None or incarnation_of(proof.key) != held.incarnation:
        return None
    try:
        verify(proof)
    except Forged:
        return None
    return proof


def _counter(proof: Proof) -> int | None:
    """Of a document, unless it is of a later version of this software."""
    try:
        return read(proof.document).counter
    except ValueError:
        return None


def _contradicts(data: Mapping[str, Json], document: Document) -> None:
    for told, value in data.items():
        name = _SPELLINGS.get(told, told)
        if name == "node_id" and value not in (None, document.node_id):
            raise invalid("node_id", "differs from the signed document")
        if name in FIELDS and value is not None and not same(value, document.fields.get(name)):
            what = "differs from" if name in document.fields else "is not in"
            raise invalid(told, f"{what} the signed document")


def _named_as_here(document: Document, aliases: Mapping[str, str]) -> None:
    region = document.fields.get("region")
    if region and (name := canonical_region(region, aliases)) != region:
        raise ApiError(
            "region_alias",
            f"region: it is called {name!r} here; sign that name.",
            errors=[FieldError("region", f"is called {name!r} here")],
            more={"region": name},
        )


def _wrong(where: str, fault: ValueError) -> ApiError:
    path, _, message = str(fault).partition(": ")
    return invalid(where if path == "document" and where.endswith(path) else f"{where}.{path}", message)
