"""Who a client's certificate says that it is: a node, a registry, or somebody else.

A name of ours is a URI among the alternative names: `urn:dagi:node:<node id>` or `urn:dagi:registry:<registry id>`.
A certificate without any such URI, as real authorities give, is named by its common name.
"""

import json
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from federation.tls import NODE_URI, REGISTRY_URI
from registry.names import NODE_ID_PATTERN, REGISTRY_ID_PATTERN, RESERVED_NODE_IDS

_OURS = "urn:dagi:"
_MAX_NAMES = 16  # one is usual; they travel in a header between workers
_MAX_NAME_LENGTH = 300  # a URI of ours with the longest id


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that the given authority vouches for. `node_id`, `registry_id`: whom it names, if anybody;
    one by its common name alone names both. `names`: all that an allowlist may know it by: its URIs as they stand,
    and `cn:` with its common name. `expires_s`: Unix time."""

    node_id: str | None
    registry_id: str | None
    names: tuple[str, ...]
    expires_s: float


def certificate_of(peercert: Mapping[str, Any]) -> Certificate:
    """What `ssl` tells of a certificate that it has verified."""
    uris = [value for kind, value in peercert.get("subjectAltName", ()) if kind == "URI"]
    common = [value for part in peercert.get("subject", ()) for kind, value in part if kind == "commonName"]
    if any(uri.lower().startswith(_OURS) for uri in uris):
        node_ids, registry_ids = _ids(uris, NODE_URI), _ids(uris, REGISTRY_URI)
    else:
        node_ids = registry_ids = set(common)
    names = [*uris, *(f"cn:{name}" for name in common)]
    return Certificate(
        _only(node_ids, NODE_ID_PATTERN, RESERVED_NODE_IDS),
        _only(registry_ids, REGISTRY_ID_PATTERN),
        tuple(name for name in names if len(name) <= _MAX_NAME_LENGTH)[:_MAX_NAMES],
        float(ssl.cert_time_to_seconds(peercert["notAfter"])),
    )


def registry_named(peercert: Mapping[str, Any] | None) -> str | None:
    """The registry that a certificate names, as `ssl` tells of it; None: none does."""
    return certificate_of(peercert).registry_id if peercert else None


def packed(certificate: Certificate) -> str:
    """For the header between a registry's own workers: printable ASCII."""
    return json.dumps([certificate.node_id, certificate.registry_id, certificate.names, certificate.expires_s])


@lru_cache(maxsize=4_096)  # the same nodes' requests are passed on again and again
def unpacked(text: str) -> Certificate:
    """What `packed` wrote."""
    node_id, registry_id, names, expires_s = json.loads(text)
    return Certificate(node_id, registry_id, tuple(names), expires_s)


def _ids(uris: Iterable[str], prefix: str) -> set[str]:
    """The scheme and our name in it have no case (RFC 8141), ids do."""
    return {uri[len(prefix) :] for uri in uris if uri[: len(prefix)].lower() == prefix}


def _only(ids: set[str], pattern: str, reserved: frozenset[str] = frozenset()) -> str | None:
    """The one id that there is; of two nobody knows which is meant."""
    if len(ids) != 1:
        return None
    (name,) = ids
    return name if re.fullmatch(pattern, name) and name not in reserved else None
