"""What a node says of itself, signed by it: the document, its signature, and what a registry has to show of it.

The document is JSON text. A node signs its bytes with its own Ed25519 key, and they travel with its record as they
are, so that whoever has the record can check it, however many registries lie between. Agents, registries and clients
share this module; the engine knows nothing of it: to it a registration is bytes.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from federation.described import normalise
from federation.ed25519 import KEY_SIZE, SIGNATURE_SIZE, PrivateKey, is_signed_by

Json = Any

FORMAT = 1  # of the document, and of what `spec_of` makes of it
MAX_DOCUMENT_BYTES = 200_000  # what fits in a request; the largest report is 160 KiB
SIGNED_BY_KEY = 1 << 62  # incarnations from here on are of a signing key
_MAX_COUNTER = 2**63 - 1
_TEXTS = ("node_name", "role", "node_type", "region", "hostname", "ip_address", "local_ip", "instance_id")
FIELDS = (*_TEXTS, "labels", "endpoints", "capabilities")  # what a node signs of itself
_COUNTER_BYTES = 8
_HEAD_BYTES = KEY_SIZE + SIGNATURE_SIZE + _COUNTER_BYTES


class Forged(Exception):
    """This is not what the node signed; says why."""


class Proof(NamedTuple):
    """A document, and who signed it."""

    key: bytes
    signature: bytes
    document: bytes

    def to_json(self) -> dict[str, str]:
        """As it goes over HTTP."""
        return {
            "key": base64.b64encode(self.key).decode(),
            "document": self.document.decode(errors="replace"),
            "signature": base64.b64encode(self.signature).decode(),
        }

    @classmethod
    def of_json(cls, told: Json) -> "Proof":
        """Read what `to_json` wrote. ValueError says which part is wrong."""
        if not isinstance(told, dict) or not isinstance(told.get("document"), str):
            raise ValueError("document: must be the text that was signed")
        try:
            document = told["document"].encode()
        except UnicodeEncodeError:
            raise ValueError("document: is no text that UTF-8 can carry") from None
        if len(document) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"document: is over {MAX_DOCUMENT_BYTES} bytes")
        key, signature = _binary(told, "key", KEY_SIZE), _binary(told, "signature", SIGNATURE_SIZE)
        return cls(key, signature, document)


class Document(NamedTuple):
    """What a document says. `counter` grows with each that a node signs; `fields`: those of FIELDS that it has."""

    node_id: str
    counter: int
    signed_at_ms: int
    fields: dict[str, Json]


def sign(key: PrivateKey, node_id: str, fields: Mapping[str, Json], counter: int, signed_at_ms: int) -> Proof:
    """A document of these fields, as FIELDS names them, and its proof."""
    told = {"format": FORMAT, "node_id": node_id, "counter": counter, "signed_at_ms": signed_at_ms, **fields}
    document = json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return Proof(key.public, key.sign(document), document)


def verify(proof: Proof) -> None:
    """Raise Forged unless the holder of the key has signed the document. Takes about 60 us for a few KB."""
    if not is_signed_by(proof.key, proof.signature, proof.document):
        raise Forged("the signature is not of this document and this key")


def is_of_other_format(document: bytes) -> bool:
    """Whether a document is of a later version of this software, which alone can tell what it means."""
    try:
        told = orjson.loads(document)
    except ValueError:
        return False
    return isinstance(told, dict) and type(told.get("format")) is int and told["format"] > FORMAT


def read(document: bytes) -> Document:
    """What a document says. ValueError says what is wrong with it: its path, then words."""
    told = _json_object(document)
    if told.get("format") != FORMAT or type(told["format"]) is not int:
        raise ValueError(f"format: must be {FORMAT}")
    node_id = told.get("node_id")
    if not isinstance(node_id, str) or not node_id:
        raise ValueError("node_id: must be the node's id")
    counter, at_ms = _whole(told, "counter"), _whole(told, "signed_at_ms")
    for path in _wrong(told):
        raise ValueError(path)
    return Document(node_id, counter, at_ms, {name: told[name] for name in FIELDS if name in told})


def spec_of(document: Document, region: str) -> dict[str, Json]:
    """What registries hold of a node that signed this. `region`: where it is, unless it says so itself."""
    told = document.fields
    return {
        **{name: told.get(name) for name in _TEXTS},
        "node_name": told.get("node_name") or told.get("hostname") or document.node_id,
        "role": told.get("role") or "worker",
        "region": told.get("region") or region,
        "labels": list(dict.fromkeys(told.get("labels") or [])),
        "endpoints": told.get("endpoints") or {},
        "capabilities": normalise(told.get("capabilities") or {}),
    }


def differing(document: Document, spec: Mapping[str, Json]) -> list[str]:
    """The fields of what is held of a node that are not as it signed them."""
    wanted = spec_of(document, str(spec.get("region")))
    return [name for name in wanted if not same(wanted[name], spec.get(name))]


def shown_differently(document: Document, node: Mapping[str, Json]) -> list[str]:
    """The fields of a node, as a registry shows it, that are not as it signed them. Labels are left out, as operators
    add and remove some, and so is what the node does not say: where it is seen from, which region it falls into."""
    wanted = spec_of(document, str(node.get("region")))
    del wanted["labels"], wanted["instance_id"]
    if wanted["ip_address"] is None:
        del wanted["ip_address"]
    wanted |= {"id": document.node_id, "node_id": document.node_id, "node_role": wanted["role"]}
    return [name for name in wanted if not same(wanted[name], node.get(name))]


def same(one: Json, other: Json) -> bool:
    """Whether two values are the same JSON: true is not 1, and the order of names does not count."""
    try:
        return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return False


def incarnation_of(key: bytes) -> int:
    """What orders two nodes of one id by their keys. No time is in it: who registers later gains nothing. Above that
    of every node without a key."""
    digest = blake2b(key, digest_size=8, person=b"dagi-incarnate").digest()
    return SIGNED_BY_KEY | int.from_bytes(digest, "big") >> 2


# in a record


def pack(proof: Proof, counter: int, beside: bytes) -> bytes:
    """The proof as it is kept behind `beside`, which says nearly the same as the document: that makes it short."""
    packer = zlib.compressobj(6, wbits=-zlib.MAX_WBITS, memLevel=5, zdict=beside)
    packed = packer.compress(proof.document) + packer.flush()
    return proof.key + proof.signature + counter.to_bytes(_COUNTER_BYTES, "big") + packed


def unpack(packed: bytes, beside: bytes) -> Proof:
    """Read what `pack` wrote. Raises Forged."""
    if len(packed) < _HEAD_BYTES:
        raise Forged("its proof is cut short")
    unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS, zdict=beside)
    try:
        document = unpacker.decompress(packed[_HEAD_BYTES:], MAX_DOCUMENT_BYTES)
    except zlib.error:
        raise Forged("its proof cannot be read") from None
    if not unpacker.eof or unpacker.unused_data:
        raise Forged("its proof cannot be read")
    return Proof(packed[:KEY_SIZE], packed[KEY_SIZE : KEY_SIZE + SIGNATURE_SIZE], document)


def join(told: bytes, proof: Proof, counter: int) -> bytes:
    """A registration's payload: JSON, a line feed, and the proof."""
    return b"\n".join((told, pack(proof, counter, told)))


def split(payload: bytes) -> tuple[bytes, bytes]:
    """What a registration's payload says, and the packed proof behind it; b"" without one."""
    at = payload.find(b"\n")  # JSON as it is kept has none
    return (payload, b"") if at < 0 else (payload[:at], payload[at + 1 :])


def claimed(payload: bytes) -> tuple[bytes, int] | None:
    """(signing key, counter) of a payload, as it claims them; None where it is not signed."""
    at = payload.find(b"\n") + 1
    if not at or len(payload) - at < _HEAD_BYTES:
        return None
    key_ends, ends = at + KEY_SIZE, at + _HEAD_BYTES
    return payload[at:key_ends], int.from_bytes(payload[ends - _COUNTER_BYTES : ends], "big")


# parts


def _whole(told: Mapping[str, Json], name: str) -> int:
    number = told.get(name)
    if type(number) is not int or not 0 <= number <= _MAX_COUNTER:
        raise ValueError(f"{name}: must be a whole number, from 0 to 2^63 - 1")
    return number


def _binary(told: Mapping[str, Json], name: str, size: int) -> bytes:
    text = told.get(name)
    try:
        found = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        found = b""
    if len(found) != size or base64.b64encode(found).decode() != text:
        raise ValueError(f"{name}: must be {size} bytes in base64")
    return found


def _json_object(document: bytes) -> dict[str, Json]:
    try:
        told = orjson.loads(document)
        json.loads(document, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("document: is nested too deep") from None
    except _Twice as twice:
        raise ValueError(f"{twice}: is there twice") from None
    except ValueError:
        raise ValueError("document: is not JSON") from None
    if not isinstance(told, dict):
        raise ValueError("document: must be a JSON object")
    return told


class _Twice(Exception):
    """A name that an object has twice: readers would not agree what it says."""


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1)[:64])
    return found


def _wrong(told: Mapping[str, Json]) -> Iterator[str]:
    for name in _TEXTS:
        if not isinstance(told.get(name), str | None):
            yield f"{name}: must be text"
    labels, endpoints, capabilities = (told.get(name) for name in ("labels", "endpoints", "capabilities"))
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        yield "labels: must be a list of texts"
    texts = endpoints.values() if isinstance(endpoints, dict) else ()
    if endpoints is not None and not (isinstance(endpoints, dict) and all(isinstance(text, str) for text in texts)):
        yield "endpoints: must be an object of texts"
    if capabilities is not None and not isinstance(capabilities, dict):
        yield "capabilities: must be an object"
