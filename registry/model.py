"""The contract in types: what callers send, strictly checked. Strings are not numbers here."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, islice
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from federation.signed import MAX_DOCUMENT_BYTES, Document, Proof
from registry.errors import ApiError, FieldError
from registry.holds import LEAST_TTL_S, LONGEST_TTL_S, MOST_SLOTS, USUAL_TTL_S
from registry.names import LONGEST_RTT_MS, NODE_ID_PATTERN, RESERVED_NODE_IDS

MAX_LABELS = 256  # a node's labels are compared one by one; people use a handful
MAX_DEPTH = 24  # the deepest real report seen is 6 levels
MAX_LIMIT = 1000

_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
_ADDRESS = r"^[A-Za-z0-9.:%_-]*$"

Json = Any
Text = Annotated[str, Field(max_length=255, pattern=_NO_CONTROL)]
Name = Annotated[str, Field(min_length=1, max_length=255, pattern=_NO_CONTROL)]
Address = Annotated[str, Field(max_length=255, pattern=_ADDRESS)]
# A union, so that 64 stays 64; each member has the bounds, as the schema would lose them outside.
Amount = Annotated[float, Field(ge=0, le=1e12)] | Annotated[int, Field(ge=0, le=10**12)]


def _whole(value: Json) -> Json:
    """JSON has one kind of number: 36.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


def _not_reserved(value: Json) -> Json:
    if isinstance(value, str) and value.casefold() in RESERVED_NODE_IDS:
        raise ValueError("is a reserved name; choose another")
    return value


NodeId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        pattern=NODE_ID_PATTERN,
        json_schema_extra={"not": {"enum": sorted(RESERVED_NODE_IDS)}},
    ),
    BeforeValidator(_not_reserved),
]
Labels = Annotated[list[Name], Field(max_length=MAX_LABELS)]
Claim = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22,128}$")]  # of 128 random bits or more
_NUMBER = "([1-8][0-9]{0,18}|9[0-9]{0,17})"  # of those below 2^63
Version = Annotated[
    str,
    Field(max_length=128, pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,62}}:{_NUMBER}:(0|{_NUMBER})$"),
]


class _Strict(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, extra="allow", allow_inf_nan=False, populate_by_name=True)


class Gpu(_Strict):
    """One GPU. Sizes in GB (2^30 bytes); what the machine does not tell is null."""

    name: Text | None = None
    vendor: Text | None = None
    uuid: Text | None = None
    vram_gb: Amount | None = None
    vram_free_gb: Amount | None = None
    utilization_percent: Amount | None = None
    unified: bool | None = None


class GpuBlock(_Strict):
    """The nested shape's GPUs."""

    available: bool | None = None
    gpus: list[Gpu | Text] | None = None
    count: Whole | None = None
    name: Text | None = None


class Model(_Strict):
    """One model of an inference engine."""

    name: Name | None = None
    loaded: bool | None = None
    digest: Text | None = None
    context_length: Amount | None = None
    quantization: Text | None = None
    vram_gb: Amount | None = None


class Engine(_Strict):
    """An inference engine and the models it has."""

    available: bool | None = None
    models: list[Name | Model] | None = None


class System(_Strict):
    """The nested shape's machine facts, in the spellings of all callers."""

    cpu_cores: Amount | None = None
    cpu_count: Amount | None = None
    ram_gb: Amount | None = None
    ram_total_gb: Amount | None = None
    memory_gb: Amount | None = None
    memory_total_gb: Amount | None = None
    disk_gb: Amount | None = None
    disk_total_gb: Amount | None = None
    os: Text | None = None
    platform: Text | None = None


class Capabilities(_Strict):
    """What a node can do, flat or nested; fields that this registry does not know are kept."""

    cpu_cores: Amount | None = None
    ram_gb: Amount | None = None
    disk_gb: Amount | None = None
    os: Text | None = None
    gpu: Text | bool | list[Gpu | Text] | GpuBlock | None = None
    gpus: list[Gpu | Text] | None = None
    models: list[Name | Model] | None = None
    model_details: list[Model] | None = None
    ollama: Engine | bool | Text | None = None
    system: System | None = None
    services: list[Name] | dict[str, Json] | None = None
    features: list[Name] | dict[str, Json] | None = None


class Signed(BaseModel):
    """What a node signed of itself (federation/signed.py): `document` is the exact text, a JSON object of `format`,
    `node_id`, `counter`, `signed_at_ms` and the fields of a registration; key and signature are Ed25519, in base64."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="ignore")

    key: Annotated[str, Field(min_length=44, max_length=44, pattern="^[A-Za-z0-9+/]{43}=$")]
    document: Annotated[str, Field(min_length=2, max_length=MAX_DOCUMENT_BYTES)]
    signature: Annotated[str, Field(min_length=88, max_length=88, pattern="^[A-Za-z0-9+/]{86}==$")]


class RegisterRequest(Capabilities):
    """POST /api/v1/nodes/register. Every field may be missing. Callers also send capabilities beside
    the other fields instead of under `capabilities`: there they are checked the same. Of a signed registration
    the document counts; what else is sent must not contradict it."""

    node_id: NodeId | None = None
    node_name: Text | None = None
    role: Text | None = Field(None, validation_alias=AliasChoices("role", "node_role"))
    node_type: Text | None = None
    labels: Labels | None = None
    region: Text | None = None
    hostname: Text | None = None
    ip_address: Address | None = None
    local_ip: Address | None = None
    status: Text | None = None
    endpoints: dict[str, Text] | None = None
    capabilities: Capabilities | None = None
    machine_id: Text | None = None
    instance_id: Text | None = None
    token: Text | None = None
    claim: Claim | None = None
    signed: Signed | None = None
    _signed: tuple[Proof, Document] | None = PrivateAttr(None)

    def take_signed(self, proof: Proof, document: Document) -> None:
        """It is made of that document; whether that is signed is still to be seen (registry/signing.py)."""
        self._signed = proof, document

    @property
    def proof(self) -> Proof | None:
        """What it was signed with; None where it is not signed."""
        return self._proof_and_document[0]

    @property
    def document(self) -> Document | None:
        """What was signed."""
        return self._proof_and_document[1]

    @property
    def signing_key(self) -> bytes | None:
        """The node's signing key: 32 bytes; None where it does not sign."""
        proof = self._proof_and_document[0]
        return proof.key if proof is not None else None

    @property
    def _proof_and_document(self) -> tuple[Proof, Document] | tuple[None, None]:
        """Past pydantic's way to a private attribute, which takes five microseconds each time."""
        private = self.__pydantic_private__
        return (private and private["_signed"]) or (None, None)


class HeartbeatRequest(_Strict):
    """POST /api/v1/nodes/heartbeat: keep-alive with whatever the node measured."""

    node_id: NodeId
    status: Text | None = None
    metrics: dict[str, Json] | None = None
    token: Text | None = None
    instance_id: Text | None = None


class PatchRequest(BaseModel):
    """PATCH /api/v1/nodes/{node_id}: the operator's intent; it stands over what the agent reports."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="ignore")

    status: Literal["online", "maintenance", "draining"] | None = None
    labels_add: Labels = Field(default_factory=list)
    labels_remove: Labels = Field(default_factory=list)


class AllowRequest(BaseModel):
    """POST /api/v1/allowlist: a node id, an address, a network, or `cert:` and what a certificate names."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid")

    entry: Annotated[str, Field(min_length=1, max_length=290)]
    note: Annotated[str, Field(max_length=200, pattern=_NO_CONTROL)] | None = None


class SwitchRequest(BaseModel):
    """PATCH /api/v1/allowlist: whether the list is on, and whether who is not on it may ask for approval."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid")

    enforced: bool | None = None
    approvals: bool | None = None


class DecisionRequest(BaseModel):
    """POST .../approve and .../deny: which of those that ask under one node id is meant."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid")

    code: Annotated[str, Field(min_length=1, max_length=32)] | None = None


class AllowlistQuery(BaseModel):
    """GET /api/v1/allowlist. `cursor` is the `next_cursor` of the page before. `unlisted`: which registered nodes the
    list does not cover; all of them are looked at."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid")

    limit: Whole = Field(1_000, ge=1, le=10_000)
    cursor: Annotated[str, Field(min_length=1, max_length=290)] | None = None
    unlisted: bool = False


def _listed(value: Json) -> Json:
    """One name, names with commas, or a list of either."""
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    split: list[Json] = []
    for item in items:
        split += [part.strip() for part in item.split(",")] if isinstance(item, str) else [item]
    return [part for part in split if part != ""]


Names = Annotated[list[Text], Field(max_length=64), BeforeValidator(_listed)]
STATUSES = ("online", "degraded", "offline", "maintenance", "draining", "any")
Statuses = Annotated[
    list[Literal["online", "degraded", "offline", "maintenance", "draining", "any"]],
    Field(max_length=8),
    BeforeValidator(_listed),
]
SORTS = ("latency", "load", "free_vram", "vram", "ram", "node_id")


class NodeFilter(BaseModel):
    """What list and discover both filter by. Several statuses, roles, types or regions: any of
    them; several labels or capabilities: all of them. `signed`: nodes that sign what they register."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    status: Statuses = Field(default_factory=list)
    role: Names = Field(default_factory=list, validation_alias=AliasChoices("role", "node_role"))
    type: Names = Field(default_factory=list, validation_alias=AliasChoices("type", "node_type"))
    region: Names = Field(default_factory=list)
    label: Names = Field(default_factory=list, validation_alias=AliasChoices("label", "labels"))
    capability: Names = Field(default_factory=list, validation_alias=AliasChoices("capability", "capabilities"))
    signed: bool = False


class ResourceFilter(NodeFilter):
    """What discover and watch filter by besides. Sizes in GB, load 0..1."""

    model: Names = Field(default_factory=list)
    match: Literal["exact", "family"] = "exact"
    min_vram_gb: Amount | None = None
    min_free_vram_gb: Amount | None = None
    min_ram_gb: Amount | None = None
    min_cpu_cores: Amount | None = None
    max_load: Annotated[float, Field(ge=0, le=1)] | None = None


class OneQuery(BaseModel):
    """GET /api/v1/nodes/{node_id}. `min_version`: an answer to a write gave it; the read waits, not for long,
    until that write is visible. `proof`: also what the node signed, for whoever wants to check it."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid")

    min_version: Version | None = None
    proof: bool = False


class WatchQuery(ResourceFilter):
    """GET /api/v1/nodes/watch. Every status, unless some are asked for. Numbers count as of a node's last write."""


class ListQuery(NodeFilter):
    """GET /api/v1/nodes. `cursor` is the `next_cursor` of the page before. `since`, of an earlier answer: what has
    changed after it, as soon as something has; no page."""

    limit: Whole = Field(100, ge=1, le=MAX_LIMIT)
    min_version: Version | None = None
    since: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    offset: Whole = Field(0, ge=0, le=10_000_000)
    cursor: Annotated[str, Field(min_length=1, max_length=255, pattern=NODE_ID_PATTERN)] | None = None
    proof: bool = False


class DiscoverQuery(ResourceFilter):
    """GET or POST /api/v1/nodes/discover. Latency in milliseconds. `node_id`: with `explain`, why that node is, or is
    not, in the answer."""

    limit: Whole = Field(100, ge=1, le=MAX_LIMIT)
    min_version: Version | None = None
    max_latency_ms: Amount | None = None
    latency: Literal["min"] | None = None
    nearest: Name | None = None
    prefer_region: Text | None = None
    sort: Literal["latency", "load", "free_vram", "vram", "ram", "node_id"] | None = None
    explain: bool = False
    proof: bool = False
    node_id: Annotated[str, Field(min_length=1, max_length=255, pattern=NODE_ID_PATTERN)] | None = None

    @field_validator("sort")
    @classmethod
    def _is_no_other_order(cls, sort: str | None, info: ValidationInfo) -> str | None:
        if sort not in (None, "latency") and info.data.get("latency") == "min":
            raise ValueError("is another order than latency=min; send one of the two")
        return sort

    @field_validator("node_id")
    @classmethod
    def _is_explained(cls, node_id: str | None, info: ValidationInfo) -> str | None:
        if node_id is not None and not info.data.get("explain", True):
            raise ValueError("asks why that node is in the answer, or is not: send explain=1 with it")
        return node_id

    @cached_property
    def echo(self) -> bytes:
        """What was asked, as the answer repeats it: JSON."""
        return orjson.dumps(self.model_dump(exclude_defaults=True))


RoundTrips = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=255)], Annotated[float, Field(ge=0, le=LONGEST_RTT_MS)]],
    Field(max_length=64),
]


class DiscoverQuestion(DiscoverQuery):
    """POST /api/v1/nodes/discover. What the caller measured, in milliseconds: round trips to registries by their
    id (without them, those of the caller's own node count), and to nodes by theirs. No other answer knows of it."""

    model_config = ConfigDict(
        defer_build=True,
        json_schema_extra={
            "examples": [
                {"model": "qwen3:8b", "min_free_vram_gb": 8, "nearest": "auto", "limit": 5},
                {"capability": ["gpu", "inference"], "region": "europe", "max_load": 0.8, "sort": "load"},
                {"latency": "min", "registry_rtt_ms": {"eu": 12.5, "us": 95}, "node_rtt_ms": {"node-a-1": 3.2}},
                {"label": "lab", "explain": True, "node_id": "node-a-1"},
            ]
        },
    )

    registry_rtt_ms: RoundTrips | None = None
    node_rtt_ms: RoundTrips | None = None


class ReservationRequest(BaseModel):
    """POST /api/v1/nodes/{node_id}/reservations: hold so many slots of a node, for so many seconds."""

    model_config = ConfigDict(defer_build=True,
        strict=True, extra="forbid", allow_inf_nan=False,
        json_schema_extra={"examples": [{}, {"slots": 2, "ttl_s": 30}]},
    )  # fmt: skip

    slots: Whole = Field(1, ge=1, le=MOST_SLOTS)
    ttl_s: Annotated[float, Field(ge=LEAST_TTL_S, le=LONGEST_TTL_S)] = USUAL_TTL_S


class CleanupQuery(BaseModel):
    """POST /api/v1/maintenance/cleanup: how long ago a node must have been heard to be removed."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid", allow_inf_nan=False)

    older_than_s: Annotated[float, Field(ge=0, le=1e9)] = 3600.0


_MOMENT = re.compile(r"[0-9][0-9TZ:.-]{0,23}")


def _moment(text: str) -> str:
    if _MOMENT.fullmatch(text) is None:
        raise ValueError("must be a time in UTC such as 2026-01-31 or 2026-01-31T12:00")
    return text


class AuditQuery(BaseModel):
    """GET /api/v1/audit. `after`: the number of the last entry of the page before. `since`: ISO 8601 in UTC, or the
    beginning of it. `action`: or the beginning of it. `actor`: a kind of key, a key's id, or a node's."""

    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid", allow_inf_nan=False)

    after: Whole = Field(0, ge=0, le=2**53)
    limit: Whole = Field(100, ge=1, le=MAX_LIMIT)
    since: Annotated[str, Field(min_length=1), AfterValidator(_moment)] | None = None
    action: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    actor: Annotated[str, Field(min_length=1, max_length=255)] | None = None


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: Json, where: str = "") -> M:
    """Check a decoded body. Raises ApiError 422 that names each wrong field."""
    try:
        # What model_validate calls, without its look at the options: half of a heartbeat's check.
        checked: M = model.__pydantic_validator__.validate_python(data)
        return checked
    except ValidationError as error:
        raise invalid_fields(error, data, where) from None


def invalid_fields(error: ValidationError, data: Json, where: str = "") -> ApiError:
    """The 422 for pydantic's errors; nothing of the input is echoed but its field names."""
    found: dict[str, FieldError] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = _path(item["loc"], data, where, missing=item["type"] == "missing") or "body"
        message = item["msg"].removeprefix("Value error, ")
        found.setdefault(path, FieldError(path, message[:200]))
    # A union reports each member: the one that got furthest is what the caller meant.
    inner = {path.rpartition(".")[0] for path in found}
    inner |= {part for path in inner for part in accumulate(path.split("."), "{}.{}".format)}
    # Twenty are enough to act on; a body of 10,000 wrong labels needs no more.
    errors = list(islice((e for path, e in found.items() if path not in inner), 20))
    first = errors[0]
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError("invalid", f"{first.path}: {first.message}{more}.", errors=errors)


def _path(loc: Sequence[int | str], data: Json, where: str, *, missing: bool) -> str:
    """The input's own path: pydantic adds the names of union members, which callers never wrote."""
    parts: list[str] = [where] if where else []
    here = data
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_list or (isinstance(here, Mapping) and part in here):
            here = here[part]
        elif not (last and missing):
            continue
        parts.append(str(part)[:64])
    return ".".join(parts)


def check_shape(data: Json) -> None:
    """Refuse what is nested too deep, and numbers that JSON cannot carry."""
    stack: list[tuple[Json, int]] = [(data, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ApiError(
                "invalid",
                f"The body is nested deeper than {MAX_DEPTH} levels.",
                errors=[FieldError("body", f"nested deeper than {MAX_DEPTH} levels")],
            )
        if isinstance(value, dict):
            stack.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)
        elif isinstance(value, float) and value - value != 0:
            raise ApiError(
                "invalid",
                "The body holds a number that is not finite.",
                errors=[FieldError("body", "numbers must be finite")],
            )
