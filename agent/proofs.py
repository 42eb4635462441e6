"""Whether nodes are what they signed, whatever the registry says that tells of them. Pure."""

import base64
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from federation.signed import Document, Forged, Proof, read, shown_differently, verify

MOST_KEYS = 100_000  # nodes whose first key is remembered: 20 MB
KEPT_DOCUMENTS = 4_096  # checked once; a second look at one costs a third of the first
MOST_REJECTED = 1_000
Json = Any


class Proofs:
    """Checks answers. A node's key is the one in `keys` (base64 by node id), else the first that was seen of it here.

    `rejected`: why nodes were left out, the newest of each.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        """Raises ValueError where one of `keys` is none."""
        self.rejected: OrderedDict[str, str] = OrderedDict()
        self._told = {node_id: _key(node_id, text) for node_id, text in keys.items()}
        self._seen: OrderedDict[str, bytes] = OrderedDict()
        self._documents: OrderedDict[bytes, Document] = OrderedDict()

    def genuine(self, answer: Json) -> Json:
        """The answer to discover or list, without the nodes that do not prove what is shown of them."""
        if not isinstance(answer, dict) or not isinstance(answer.get("nodes"), list):
            return answer
        return {**answer, "nodes": [node for node in answer["nodes"] if self._is_genuine(node)]}

    def _is_genuine(self, node: Json) -> bool:
        if not isinstance(node, dict) or not isinstance(node.get("node_id"), str):
            return False
        node_id = node["node_id"]
        why = self._fault(node_id, node)
        self.rejected.pop(node_id, None)
        if why is not None:
            self.rejected[node_id] = why
            if len(self.rejected) > MOST_REJECTED:
                self.rejected.popitem(last=False)
        return why is None

    def _fault(self, node_id: str, node: Mapping[str, Json]) -> str | None:
        if node.get("signed") is None:
            return "it is not signed"
        try:
            proof = Proof.of_json(node["signed"])
            document = self._read(proof)
        except Forged:
            return "its signature is not of its document"
        except ValueError as fault:
            return f"its proof cannot be read: {fault}"
        known = self._told.get(node_id) or self._seen.get(node_id)
        if known is not None and known != proof.key:
            return "it is signed with another key than before"
        try:
            changed = shown_differently(document, node)
        except (TypeError, ValueError, AttributeError, RecursionError):
            return "what is signed is no registration"
        if changed:
            return f"it is shown otherwise than it signed: {', '.join(changed)}"
        self._seen[node_id] = proof.key
        self._seen.move_to_end(node_id)
        if len(self._seen) > MOST_KEYS:
            self._seen.popitem(last=False)
        return None

    def _read(self, proof: Proof) -> Document:
        digest = blake2b(b"".join(proof), digest_size=16).digest()
        document = self._documents.get(digest)
        if document is None:
            verify(proof)
            document = self._documents[digest] = read(proof.document)
            if len(self._documents) > KEPT_DOCUMENTS:
                self._documents.popitem(last=False)
        return document


def _key(node_id: str, text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError(f"verify: the key of {node_id} is none; give signing_key as a registry shows it")
    return key
