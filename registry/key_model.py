"""What is sent to the routes of keys, strictly checked. A field that is not known is refused: one that was meant to
limit a key, and misspelled, must not be passed over."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from registry.keys import MAX_USES, Mintable
from registry.model import NodeId, Whole, _listed, _whole
from registry.scopes import MAX_SCOPES, parse_scopes

DAY_S = 86_400
JOIN_EXPIRES_S = DAY_S  # to bring in a machine takes minutes; what lies in a shell's history should not last
MAX_EXPIRES_S = 3_650 * DAY_S
OVERLAP_S = 3_600  # for whoever has the old key to be given the new one
MAX_OVERLAP_S = 90 * DAY_S
SCOPE_PATTERN = "^(nodes|(region|role):[A-Za-z0-9][A-Za-z0-9._-]{0,62})$"
Label = Annotated[str, Field(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Request(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, extra="forbid", allow_inf_nan=False)


def _scope(text: str) -> str:
    parse_scopes([text])
    return text


_ScopeWord = Annotated[str, AfterValidator(_scope), Field(json_schema_extra={"pattern": SCOPE_PATTERN})]


def _only_for(kind: str, field: str) -> dict[str, Any]:
    """The schema of "only keys of that kind have this field"."""
    nothing = {"maxItems": 0} if field == "scopes" else {"type": "null"}
    return {"anyOf": [{"properties": {"kind": {"const": kind}}}, {"properties": {field: nothing}}]}


class KeyRequest(_Request):
    """POST /api/v1/keys. `scopes`, of read keys only: `nodes`, `region:<name>`, `role:<name>`. `expires_in_s`: join
    keys end after a day where nothing is said, others never. `max_uses`, of join keys only: how many nodes it lets in.
    """

    model_config = ConfigDict(
        defer_build=True, json_schema_extra={"allOf": [_only_for("read", "scopes"), _only_for("join", "max_uses")]}
    )

    kind: Mintable
    name: Label = ""
    scopes: Annotated[list[_ScopeWord], Field(max_length=MAX_SCOPES)] = Field(default_factory=list)
    expires_in_s: Annotated[int, Field(ge=1, le=MAX_EXPIRES_S), BeforeValidator(_whole)] | None = None
    max_uses: Annotated[int, Field(ge=1, le=MAX_USES), BeforeValidator(_whole)] | None = None

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "KeyRequest":
        if self.scopes and self.kind != "read":
            raise ValueError("scopes: only read keys have any")
        if self.max_uses is not None and self.kind != "join":
            raise ValueError("max_uses: only join keys are counted")
        return self


class RotateRequest(_Request):
    """POST /api/v1/keys/{key_id}/rotate, and POST /api/v1/nodes/{node_id}/key. For how long the old key stays good
    beside the new one; 0: it ends at once."""

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S), BeforeValidator(_whole)] = OVERLAP_S


_Shown = Literal["active", "expired", "used_up", "revoked", "any"]


def _active() -> list[_Shown]:
    return ["active"]


class KeysQuery(_Request):
    """GET /api/v1/keys. `node_id`: the keys of that node, its present one among them."""

    status: Annotated[list[_Shown], Field(max_length=8), BeforeValidator(_listed)] = Field(default_factory=_active)
    kind: Annotated[list[Literal["read", "join", "admin", "node"]], Field(max_length=8), BeforeValidator(_listed)] = (
        Field(default_factory=list)
    )
    node_id: NodeId | None = None
    limit: Whole = Field(100, ge=1, le=1000)
    offset: Whole = Field(0, ge=0, le=10_000_000)
