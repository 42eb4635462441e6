"""Checkpoints: what a registry signs of its audit log and gives to the others, who write it into theirs.

From then on whoever changes the log's past would have to change it at every other registry too. Pure.
"""

from dataclasses import dataclass

import orjson

from federation.ed25519 import PrivateKey, is_signed_by
from federation.record import Record
from registry.audit_chain import Head
from registry.tables import Table

CHECKPOINT_PREFIX = "h:"
_SAYS = b"dagi audit checkpoint 1\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """At that time our log had come to that entry: signed by the registry's identity."""

    registry_id: str
    head: Head
    at: str
    signature: str = ""

    def said(self) -> bytes:
        """What is signed."""
        return _SAYS + f"{self.registry_id}\n{self.head.seq}\n{self.head.hash}\n{self.at}".encode()

    def encode(self) -> bytes:
        """The record's payload."""
        return orjson.dumps([self.head.seq, self.head.hash, self.at, self.signature])

    def is_by(self, identity: bytes) -> bool:
        """Whether the holder of that Ed25519 key signed it."""
        try:
            signature = bytes.fromhex(self.signature)
        except ValueError:
            return False
        return is_signed_by(identity, signature, self.said())


def signed(key: PrivateKey, registry_id: str, head: Head, at: str) -> Checkpoint:
    """A checkpoint of ours."""
    bare = Checkpoint(registry_id, head, at)
    return Checkpoint(registry_id, head, at, key.sign(bare.said()).hex())


def checkpoint_of(registry_id: str, fields: object) -> Checkpoint | None:
    """What `encode` made, decoded: [seq, hash, at, signature]. None: it is none."""
    match fields:
        case [int(seq), str(digest), str(at), str(signature)] if (
            not isinstance(seq, bool)
            and 0 < seq < 2**53
            and len(digest) == 64
            and digest.isascii()
            and digest.isalnum()
            and len(at) <= 40
            and at.isascii()
            and at.isprintable()
            and len(signature) == 128
        ):
            return Checkpoint(registry_id, Head(seq, digest), at, signature)
        case _:
            return None


def table() -> Table[Checkpoint]:
    """Every registry's newest checkpoint, by its id."""
    return Table(CHECKPOINT_PREFIX, _read)


def _read(record: Record) -> Checkpoint | None:
    if record.deleted or record.spec is None:
        return None
    try:
        fields = orjson.loads(record.spec.payload)
    except ValueError:
        return None
    return checkpoint_of(record.key[len(CHECKPOINT_PREFIX) :], fields)
