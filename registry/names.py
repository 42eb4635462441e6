"""Names: node ids made from host names, model names with their tags, region aliases."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import blake2b

LONGEST_RTT_MS = 10_000.0  # milliseconds; no round trip that anybody would use takes longer
NODE_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,255}$"
REGISTRY_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
RESERVED_NODE_IDS = frozenset({".", "..", "register", "heartbeat", "discover", "watch", "profiles", "self"})
_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_LEFT_OUT = frozenset({"", "registry.ollama.ai", "library"})  # the host and namespace that Ollama means by nothing


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's name, `[host/][namespace/]name[:tag]`, compared without case; no tag means `latest`."""

    family: str
    tag: str

    @property
    def full(self) -> str:
        """The canonical name with its tag."""
        return f"{self.family}:{self.tag}"


@lru_cache(maxsize=4_096)  # a fleet has few models, and each name comes with every node
def parse_model(text: str) -> ModelName:
    """Read a model name. Ollama's default host and namespace may be spelled out or left out."""
    *path, last = text.casefold().split("/")
    base, _, tag = last.partition(":")
    parts = [part.strip() for part in (*path, base)]
    while len(parts) > 1 and parts[0] in _LEFT_OUT:
        del parts[0]
    return ModelName("/".join(parts), tag.strip() or "latest")


@lru_cache(maxsize=16_384)  # a fleet has few kinds of machines
def model_terms(names: tuple[str, ...]) -> frozenset[ModelName | str]:
    """What a node's models are found by: themselves, and their families."""
    models = [parse_model(name) for name in names]
    return frozenset([*models, *(model.family for model in models)])


@lru_cache(maxsize=16_384)
def folded(names: tuple[str, ...]) -> frozenset[str]:
    """Names in lower case, as they are compared."""
    return frozenset([name.casefold() for name in names])


def machine_fingerprint(machine_id: str | None, hostname: str, local_ip: str, observed_ip: str) -> str:
    """What tells one machine from another, as 32 hex digits.

    Agents send `machine_id`; older callers are told apart by name and addresses.
    """
    source = f"id\0{machine_id}" if machine_id else f"host\0{hostname}\0{local_ip}\0{observed_ip}"
    return blake2b(source.encode(), digest_size=16, person=b"dagi-machine").hexdigest()


def made_node_id(hostname: str, fingerprint: str, attempt: int) -> str:
    """`node-{hostname}-{8 hex}`: the same machine always gets the same ids in the same order."""
    host = _UNSAFE.sub("-", hostname.casefold()).strip("-.")[:200] or "unnamed"
    digest = blake2b(f"{fingerprint}\0{attempt}".encode(), digest_size=4).hexdigest()
    return f"node-{host}-{digest}"


def canonical_region(region: str, aliases: Mapping[str, str]) -> str:
    """A region's own name: lower case, and through the operator's aliases (`europe`, `eu-*` -> `eu`)."""
    name = region.strip().casefold()
    if name in aliases:
        return aliases[name]
    for pattern, target in aliases.items():
        if "*" in pattern and fnmatchcase(name, pattern):
            return target
    return name
