"""A node's record: what is stored of it, how a registration changes it, how it is shown."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from registry.capabilities import nested, normalise
from registry.model import Capabilities, PatchRequest, RegisterRequest
from registry.names import canonical_region, machine_fingerprint, made_node_id

Json = Any
_NOT_CAPABILITIES = RegisterRequest.model_fields.keys() - Capabilities.model_fields.keys()


@dataclass(frozen=True, slots=True)
class Intent:
    """The operator's wishes; they stand over what the agent reports until patched away."""

    status: str | None = None
    labels_add: tuple[str, ...] = ()
    labels_remove: tuple[str, ...] = ()

    def labels(self, reported: list[str]) -> list[str]:
        """The labels to show, in the order given, each once."""
        wanted = dict.fromkeys([*reported, *self.labels_add])
        return [label for label in wanted if label not in self.labels_remove]


@dataclass(frozen=True, slots=True)
class Record:
    """A node as the store keeps it. Times are wall-clock milliseconds.

    `life`, `incarnation` and `epoch` order the states of one node across registries: a
    registration is minted above whatever token the node brings.
    """

    node_id: str
    spec: dict[str, Json]
    fingerprint: str
    observed_ip: str
    home_registry: str
    registered_at_ms: int
    last_registration_ms: int
    updated_at_ms: int
    key_hash: str | None = None
    reported: str | None = None
    intent: Intent = field(default_factory=Intent)
    life: int = 1
    incarnation: int = 0
    epoch: int = 0

    def encode(self) -> bytes:
        """The bytes that the store keeps."""
        return orjson.dumps(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> "Record":
        """Read what `encode` wrote."""
        fields = orjson.loads(data)
        intent = fields.pop("intent")
        return cls(
            intent=Intent(intent["status"], tuple(intent["labels_add"]), tuple(intent["labels_remove"])),
            **fields,
        )

    @property
    def token(self) -> str:
        """What the node brings with its next request, so that any registry mints above it."""
        text = f"{self.life}.{self.incarnation}.{self.epoch}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where and when a registration arrived."""

    registry_id: str
    region: str
    observed_ip: str
    now_ms: int
    aliases: Mapping[str, str]


def parse_token(token: str | None) -> tuple[int, int, int]:
    """(life, incarnation, epoch) of a token; zeros for none, a foreign or an absurd one."""
    if not token:
        return 0, 0, 0
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii")
        life, incarnation, epoch = (int(part) for part in text.split("."))
    except (ValueError, binascii.Error):
        return 0, 0, 0
    bounded = 0 <= life < 2**31 and 0 <= incarnation < 2**63 and 0 <= epoch < 2**53
    return (life, incarnation, epoch) if bounded else (0, 0, 0)


def fingerprint_of(request: RegisterRequest, observed_ip: str) -> str:
    """What tells the registering machine from others."""
    return machine_fingerprint(
        request.machine_id, _said(request, "hostname") or "", _said(request, "local_ip") or "", observed_ip
    )


def candidate_id(request: RegisterRequest, fingerprint: str, attempt: int) -> str:
    """The id to try when the node brings none."""
    return made_node_id(_said(request, "hostname") or request.node_name or "", fingerprint, attempt)


def registered(stored: Record | None, node_id: str, request: RegisterRequest, origin: Origin) -> Record:
    """The record after a registration. What a registration does not say is no longer so;
    the operator's intent, the key and the first registration stay."""
    life, incarnation, epoch = parse_token(request.token)
    now_ms = origin.now_ms
    spec = _spec(request, node_id, origin)
    if stored is None:
        return Record(
            node_id=node_id,
            spec=spec,
            fingerprint=fingerprint_of(request, origin.observed_ip),
            observed_ip=origin.observed_ip,
            home_registry=origin.registry_id,
            registered_at_ms=now_ms,
            last_registration_ms=now_ms,
            updated_at_ms=now_ms,
            reported=request.status,
            life=max(1, life | 1),
            incarnation=incarnation or now_ms,
            epoch=max(now_ms, epoch + 1),
        )
    life, incarnation = max((stored.life, stored.incarnation), (life | 1, incarnation))
    return replace(
        stored,
        spec=spec,
        life=life,
        incarnation=incarnation,
        fingerprint=fingerprint_of(request, origin.observed_ip),
        observed_ip=origin.observed_ip,
        home_registry=origin.registry_id,
        last_registration_ms=now_ms,
        updated_at_ms=now_ms,
        reported=request.status,
        epoch=max(now_ms, stored.epoch + 1, epoch + 1),
    )


def patched(stored: Record, patch: PatchRequest, now_ms: int) -> Record:
    """The record after an operator's PATCH; the same PATCH again changes nothing more."""
    intent = stored.intent
    status = intent.status
    if patch.status is not None:
        status = None if patch.status == "online" else patch.status
    removed = [label for label in patch.labels_remove if label not in patch.labels_add]
    add = [label for label in intent.labels_add if label not in removed]
    remove = [label for label in intent.labels_remove if label not in patch.labels_add]
    return replace(
        stored,
        intent=Intent(
            status,
            tuple(dict.fromkeys([*add, *patch.labels_add])),
            tuple(dict.fromkeys([*remove, *removed])),
        ),
        reported=None if patch.status == "online" and stored.reported == "draining" else stored.reported,
        updated_at_ms=now_ms,
    )


def shown(record: Record) -> dict[str, Json]:
    """The node as list, get and discover show it, but for what changes with every heartbeat."""
    spec = record.spec
    flat = spec["capabilities"]
    first = iso(record.registered_at_ms)
    last = iso(record.last_registration_ms)
    return {
        "id": record.node_id,
        "node_id": record.node_id,
        "node_name": spec["node_name"],
        "role": spec["role"],
        "node_role": spec["role"],
        "node_type": spec["node_type"],
        "region": spec["region"],
        "labels": record.intent.labels(spec["labels"]),
        "hostname": spec["hostname"],
        "ip_address": spec["ip_address"] or record.observed_ip,
        "local_ip": spec["local_ip"],
        "observed_ip": record.observed_ip,
        "registered_at": first,
        "updated_at": iso(record.updated_at_ms),
        "home_registry": record.home_registry,
        "endpoints": spec["endpoints"],
        "capabilities": flat,
        "metadata": {
            "capabilities": nested(flat),
            "first_registration": first,
            "last_registration": last,
        },
    }


def iso(at_ms: int) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`."""
    seconds, milliseconds = divmod(at_ms, 1000)
    return f"{_iso_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=512)  # most times shown are of the last minutes
def _iso_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def _said(request: RegisterRequest, name: str) -> str | None:
    """A fact of the machine (`hostname`, `ip_address`, `local_ip`) from where callers put it: beside
    the capabilities, among them, or in their `system` block."""
    capabilities = request.capabilities
    system = capabilities.system if capabilities else None
    extras = [part.model_extra or {} for part in (capabilities, system) if part is not None]
    for value in (getattr(request, name), *(extra.get(name) for extra in extras)):
        if isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable():
            return value
    return None


def _spec(request: RegisterRequest, node_id: str, origin: Origin) -> dict[str, Json]:
    raw = request.capabilities.model_dump(exclude_unset=True) if request.capabilities else {}
    beside = request.model_dump(exclude_unset=True, exclude=_NOT_CAPABILITIES)
    raw.update((key, value) for key, value in beside.items() if key not in raw)
    hostname = _said(request, "hostname")
    return {
        "node_name": request.node_name or hostname or node_id,
        "role": request.role or "worker",
        "node_type": request.node_type,
        "labels": list(dict.fromkeys(request.labels or [])),
        "region": canonical_region(request.region or origin.region, origin.aliases),
        "hostname": hostname,
        "ip_address": _said(request, "ip_address"),
        "local_ip": _said(request, "local_ip"),
        "endpoints": request.endpoints or {},
        "instance_id": request.instance_id,
        "capabilities": normalise(raw),
    }
