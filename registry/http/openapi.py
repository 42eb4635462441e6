"""OpenAPI 3.1, made from the same pydantic models that check the requests."""

from functools import lru_cache
from html import escape
from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic.json_schema import models_json_schema

from registry.errors import KINDS, PROBLEM_JSON
from registry.http.paths import ALLOWLIST, AUDIT, FEDERATION, KEYS, MEMBER, NODE, NODES
from registry.key_model import KeyRequest, KeysQuery, RotateRequest
from registry.keys import KEY_ID_PATTERN
from registry.model import (
    AllowlistQuery,
    AllowRequest,
    AuditQuery,
    CleanupQuery,
    DecisionRequest,
    DiscoverQuery,
    DiscoverQuestion,
    HeartbeatRequest,
    ListQuery,
    OneQuery,
    PatchRequest,
    RegisterRequest,
    ReservationRequest,
    SwitchRequest,
    WatchQuery,
)
from registry.names import NODE_ID_PATTERN, REGISTRY_ID_PATTERN

Json = dict[str, Any]
_BODIES: list[type[BaseModel]] = [
    RegisterRequest, HeartbeatRequest, PatchRequest, DiscoverQuestion, ReservationRequest, CleanupQuery, AllowRequest,
    SwitchRequest, DecisionRequest, KeyRequest, RotateRequest,
]  # fmt: skip
_OPTIONAL_BODIES = (CleanupQuery, ReservationRequest, DecisionRequest, RotateRequest)
_AT_PATH = "HeartbeatAtPath"  # the body where the path names the node
_OBJECT: Json = {"type": "object"}
_PATH_PATTERNS = {
    "node_id": NODE_ID_PATTERN, "registry_id": REGISTRY_ID_PATTERN, "reservation_id": "^[0-9a-f]{16}$",
    "entry": "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,289}$",
    "key_id": KEY_ID_PATTERN,
}  # fmt: skip
# (method, path, summary, body, query, statuses beside 200)
_READ, _OWN = (400, 401, 403, 422), (400, 401, 403, 404, 422, 503)
_WAITED = (*_READ, 503)  # a read may ask for a write that has not arrived
_WATCH = f"{NODES}/watch"
_HELD = f"{NODE}/reservations"
_KEY = f"{KEYS}/{{key_id}}"
_BODY = (408, 413, 415)
_ANYWHERE = (414, 429, 431)  # a long URL, too many requests, long headers
Operation = tuple[str, str, str, type[BaseModel] | None, type[BaseModel] | None, tuple[int, ...]]
OPERATIONS: tuple[Operation, ...] = (
    ("post", f"{NODES}/register", "Register a node, or register it again", RegisterRequest, None,
     (400, 401, 403, 409, 422, 503, *_BODY)),
    ("post", f"{NODES}/heartbeat", "Keep a node alive, with its metrics", HeartbeatRequest, None, (*_OWN, 409, *_BODY)),
    ("get", NODES, "List nodes", None, ListQuery, _WAITED),
    ("get", f"{NODES}/discover", "Find and rank nodes", None, DiscoverQuery, _WAITED),
    ("post", f"{NODES}/discover", "Find and rank nodes", DiscoverQuestion, None, (*_WAITED, *_BODY)),
    ("get", _WATCH, "Watch nodes: snapshot, then upsert and remove, as server-sent events", None, WatchQuery, _WAITED),
    ("get", NODE, "One node", None, OneQuery, (*_WAITED, 404)),
    ("delete", NODE, "Deregister a node", None, None, _OWN),
    ("patch", NODE, "Change the operator's intent", PatchRequest, None, (*_OWN, *_BODY)),
    ("post", f"{NODE}/heartbeat", "Keep a node alive, with its metrics", HeartbeatRequest, None, (*_OWN, 409, *_BODY)),
    ("get", _HELD, "Who holds slots of a node", None, None, (*_READ, 404)),
    ("post", _HELD, "Hold slots of a node for a moment, so that others are led elsewhere", ReservationRequest, None,
     (400, 401, 403, 404, 409, 422, 429, 503, *_BODY)),
    ("delete", f"{_HELD}/{{reservation_id}}", "Release them early", None, None, _OWN),
    ("post", f"{NODE}/key", "Give a node a new key", RotateRequest, None, (*_OWN, *_BODY)),
    ("post", KEYS, "Make a read, join or admin key", KeyRequest, None, (*_READ, 503, *_BODY)),
    ("get", KEYS, "List keys", None, KeysQuery, _READ),
    ("get", _KEY, "One key", None, None, (*_READ, 404)),
    ("delete", _KEY, "Revoke a key, for good", None, None, (*_READ, 409, 503)),
    ("post", f"{_KEY}/rotate", "Replace a key by one with the same rights", RotateRequest, None, (*_OWN, 409, *_BODY)),
    ("get", f"{NODE}/profile", "What a node is", None, None, (*_READ, 404)),
    ("get", f"{NODE}/dashboard", "What a node's page shows", None, None, (*_READ, 404)),
    ("post", "/api/v1/maintenance/cleanup", "Remove nodes that are long offline", CleanupQuery, None,
     (400, 401, 403, 422, 503, *_BODY)),
    ("get", ALLOWLIST, "The allowlist: this registry's own entries, and the federation's", None, AllowlistQuery,
     (400, 401, 403, 422, 503)),
    ("post", ALLOWLIST, "List a node id, an address, a network, or what a certificate names", AllowRequest, None,
     (400, 401, 403, 422, 503, *_BODY)),
    ("patch", ALLOWLIST, "Turn the list, or asking for approval, on or off", SwitchRequest, None,
     (400, 401, 403, 422, 503, *_BODY)),
    ("delete", f"{ALLOWLIST}/{{entry}}", "Take an entry off the list", None, None,
     (400, 401, 403, 404, 409, 422, 503)),
    ("get", f"{ALLOWLIST}/pending", "Who waits for approval", None, None, (400, 401, 403, 422, 503)),
    ("post", f"{NODE}/approve", "Let in who asked under this node id", DecisionRequest, None, (*_OWN, 409, *_BODY)),
    ("post", f"{NODE}/deny", "Refuse who asked under this node id", DecisionRequest, None, (*_OWN, 409, *_BODY)),
    ("get", AUDIT, "The audit log, oldest entries first", None, AuditQuery, _WAITED),
    ("get", FEDERATION, "The federation as it looks from here", None, None, _WAITED),
    ("delete", MEMBER, "Take a registry out of the federation's roster, and its pinned identity with it", None, None,
     (400, 401, 403, 404, 422, 503)),
    ("get", "/", "What this service is", None, None, ()),
    ("get", "/health", "The process answers", None, None, ()),
    ("get", "/healthz", "The process answers", None, None, ()),
    ("get", "/readyz", "Whether it may be used", None, None, ()),
    ("get", "/metrics", "Counts as JSON, or Prometheus' text", None, None, (401, 403, 503)),
)  # fmt: skip


_OPERATORS = frozenset(
    path for _, path, *_ in OPERATIONS
    if path in (AUDIT, MEMBER, f"{NODE}/approve", f"{NODE}/deny", "/api/v1/maintenance/cleanup")
    or path.startswith(ALLOWLIST)
)  # fmt: skip
_EXAMPLES: Json = {  # of questions in the query string
    "capability": ["gpu", "inference"], "label": ["lab"], "role": ["worker"], "region": ["europe", "us-east"],
    "status": ["online", "degraded"], "model": ["qwen3:8b"], "match": "family", "min_vram_gb": 24,
    "min_free_vram_gb": 7.5, "max_load": 0.8, "max_latency_ms": 80, "nearest": "auto", "prefer_region": "europe",
    "sort": "free_vram", "limit": 5, "explain": True,
}  # fmt: skip
_TEXT, _NODE = {"type": "string"}, {"$ref": "#/components/schemas/Node"}


def _object(**properties: Json) -> Json:
    """An object that has these, and maybe more."""
    return {"type": "object", "required": [*properties], "properties": properties}


_NODES = _object(nodes={"type": "array", "items": _NODE}, total={"type": "integer"})
_BEAT = _object(
    success={"type": "boolean"}, node_id=_TEXT, status=_TEXT, timestamp=_TEXT, message=_TEXT, token=_TEXT
)  # fmt: skip
_HOLD: dict[str, Json] = {
    "reservation_id": _TEXT, "slots": {"type": "integer"}, "expires_at": _TEXT, "registry_id": _TEXT,
}  # fmt: skip
_CONFIG = _object(
    heartbeat_interval_s={"type": "number"},
    registries={"type": "array", "items": _object(url=_TEXT, region=_TEXT, registry_id=_TEXT)},
)
_WARNINGS = {"type": "array", "items": _TEXT}
_ONE_KEY = _object(key_id=_TEXT, kind={"type": ["string", "null"]}, name=_TEXT, status=_TEXT, scopes={"type": "array"})
_NEW_KEY = {"allOf": [_ONE_KEY, _object(key=_TEXT, version=_TEXT)]}
_SUCCESS: dict[tuple[str, str], Json] = {
    ("get", ALLOWLIST): _object(
        enforced={"type": "boolean"}, enforced_by=_WARNINGS, approvals={"type": "boolean"},
        entries={"type": "array", "items": _object(entry=_TEXT, kind=_TEXT, source=_TEXT)}, total={"type": "integer"},
        next_cursor={"type": ["string", "null"]},
    ),
    ("post", ALLOWLIST): _object(entry=_TEXT, kind=_TEXT, source=_TEXT, warnings=_WARNINGS),
    ("patch", ALLOWLIST): _object(enforced={"type": "boolean"}, approvals={"type": "boolean"}, warnings=_WARNINGS),
    ("delete", f"{ALLOWLIST}/{{entry}}"): _object(success={"type": "boolean"}, entry=_TEXT, warnings=_WARNINGS),
    ("get", f"{ALLOWLIST}/pending"): _object(pending={"type": "array", "items": _object(node_id=_TEXT, code=_TEXT)}),
    ("post", f"{NODE}/approve"): _object(success={"type": "boolean"}, entry=_TEXT, warnings=_WARNINGS),
    ("post", f"{NODE}/deny"): _object(success={"type": "boolean"}, node_id=_TEXT, code=_TEXT),
    ("post", f"{NODES}/register"): {"allOf": [_NODE, _object(config=_CONFIG, token=_TEXT, version=_TEXT)]},
    ("post", f"{NODES}/heartbeat"): _BEAT,
    ("post", f"{NODE}/heartbeat"): _BEAT,
    ("get", NODES): _NODES,
    ("get", f"{NODES}/discover"): _NODES,
    ("post", f"{NODES}/discover"): _NODES,
    ("get", NODE): _NODE,
    ("patch", NODE): {"allOf": [_NODE, _object(version=_TEXT)]},
    ("delete", NODE): _object(success={"type": "boolean"}, node_id=_TEXT, version=_TEXT),
    ("get", _HELD): _object(
        node_id=_TEXT, slots={"type": ["integer", "null"]}, reserved_slots={"type": "integer"},
        reservations={"type": "array", "items": _object(**_HOLD)},
    ),
    ("post", _HELD): _object(
        **_HOLD, node_id=_TEXT, ttl_s={"type": "number"}, reserved_slots={"type": "integer"}, version=_TEXT
    ),
    ("delete", f"{_HELD}/{{reservation_id}}"): _object(
        success={"type": "boolean"}, node_id=_TEXT, reservation_id=_TEXT, reserved_slots={"type": "integer"},
        version=_TEXT,
    ),
    ("get", AUDIT): _object(
        registry_id=_TEXT, entries={"type": "array", "items": _OBJECT}, next_after={"type": ["integer", "null"]}
    ),
    ("get", FEDERATION): _object(
        self=_OBJECT, peers={"type": "array", "items": _OBJECT}, vector=_OBJECT, conflicts={"type": "integer"},
        expiry_hold_s={"type": ["number", "null"]}, alerts=_OBJECT, as_of=_TEXT,
    ),
    ("post", f"{NODE}/key"): _object(node_id=_TEXT, api_key=_TEXT, key_id=_TEXT, version=_TEXT),
    ("post", KEYS): _NEW_KEY,
    ("post", f"{_KEY}/rotate"): _NEW_KEY,
    ("get", KEYS): _object(keys={"type": "array", "items": _ONE_KEY}, total={"type": "integer"}),
    ("get", _KEY): _ONE_KEY,
    ("delete", _KEY): _object(success={"type": "boolean"}, key_id=_TEXT, version=_TEXT),
    ("delete", MEMBER): _object(success={"type": "boolean"}, registry_id=_TEXT),
}  # fmt: skip


@lru_cache(maxsize=2)
def document(version: str, keys_needed: bool) -> Json:
    """The whole document; `keys_needed` is mode `key`."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation[1], {})[operation[0]] = _operation(operation, keys_needed)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Federated node registry", "version": version},
        "paths": paths,
        "components": {
            "schemas": _schemas(definitions["$defs"]),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "certificate": {
                    "type": "mutualTLS",
                    "description": "Where the registry has --tls-ca. One that names a node stands for that node's key.",
                },
            },
        },
    }


def _schemas(models: Json) -> Json:
    beat = dict(models[HeartbeatRequest.__name__])
    properties = {name: value for name, value in beat["properties"].items() if name != "node_id"}
    question = models[DiscoverQuestion.__name__]
    return {
        **models,
        _AT_PATH: {key: value for key, value in beat.items() if key != "required"} | {"properties": properties},
        DiscoverQuestion.__name__: _question(question),
        "Node": _node(),
        "Problem": _problem(),
    }


def _question(model: Json) -> Json:
    """In a body a list may be one name or names with commas, and what was left empty is not asked."""

    def lenient(schema: Json) -> Json:
        forms = [schema, {"enum": ["", None]}]
        if schema.get("type") == "array":
            forms.insert(1, {"type": "string", **_comma_separated(schema["items"], schema["maxItems"])})
        return {"anyOf": forms}

    fields = {name: lenient(schema) for name, schema in model["properties"].items()}
    return {**model, "properties": fields, "additionalProperties": True}


def _comma_separated(item: Json, most: int) -> Json:
    if "enum" not in item:
        return {key: item[key] for key in ("maxLength", "pattern")}
    one = f"({'|'.join(item['enum'])})"
    return {"pattern": f"^{one}(,{one}){{0,{most - 1}}}$"}


def page(version: str) -> str:
    """The document as one HTML page."""
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(summary)}</td><td>{_parameters_text(body, query)}</td></tr>"
        for method, path, summary, body, query, _ in OPERATIONS
    )
    errors = "".join(
        f"<tr><td>{kind.status}</td><td><code>{code}</code></td><td>{escape(kind.title)}</td></tr>"
        for code, kind in KINDS.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Node registry API</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.4rem;"
        "text-align:left;vertical-align:top}code{background:#f4f4f4;padding:0 .2em}</style>"
        f"<h1>Federated node registry {escape(version)}</h1>"
        "<p>JSON in and out. Keys go in <code>Authorization: Bearer &lt;key&gt;</code>. "
        'The machine-readable form is <a href="/openapi.json">/openapi.json</a>.</p>'
        f"<table><tr><th>Method<th>Path<th>What it does<th>Fields</tr>{rows}</table>"
        f"<h2>Errors</h2><table><tr><th>Status<th>Code<th>Meaning</tr>{errors}</table></html>"
    )


def _operation(operation: Operation, keys_needed: bool) -> Json:
    method, path, summary, body, query, statuses = operation
    must = (keys_needed and not path.endswith("/register")) or path in _OPERATORS
    must = must or path.startswith(KEYS) or path.endswith("/key")
    made: Json = {
        "summary": summary,
        "operationId": f"{method}_{path.strip('/').replace('/', '_').replace('{', '').replace('}', '') or 'root'}",
        "responses": {"200": _success(method, path), **{str(each): _failure() for each in (*statuses, *_ANYWHERE)}},
        "security": ([{"key": []}] if must else [{}, {"key": []}]) if 401 in statuses else [],
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}
        for name, pattern in _PATH_PATTERNS.items()
        if f"{{{name}}}" in path
    ]
    parameters += _query_parameters(query) if query else []
    if parameters:
        made["parameters"] = parameters
    if path == "/readyz":
        made["responses"]["503"] = _success(method, path)
    if body is not None:
        name = _AT_PATH if body is HeartbeatRequest and path != f"{NODES}/heartbeat" else body.__name__
        reference = {"$ref": f"#/components/schemas/{name}"}
        made["requestBody"] = {
            "required": body not in _OPTIONAL_BODIES,
            "content": {"application/json": {"schema": reference}},
        }
    return made


def _success(method: str, path: str) -> Json:
    schema = _SUCCESS.get((method, path), _OBJECT)
    content: Json = {"application/json": {"schema": schema}}
    if path == _WATCH:
        content = {"text/event-stream": {"schema": {"type": "string"}}}
    if path == "/metrics":
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"description": "Done", "content": content}


def _failure() -> Json:
    reference = {"$ref": "#/components/schemas/Problem"}
    return {"description": "A problem (RFC 9457)", "content": {PROBLEM_JSON: {"schema": reference}}}


def _query_parameters(model: type[BaseModel]) -> list[Json]:
    schemas = model.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    parameters = []
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        shown = str(alias.choices[0]) if isinstance(alias, AliasChoices) else name
        schema = {key: value for key, value in schemas.get(shown, schemas.get(name, {})).items() if key != "title"}
        if model is DiscoverQuery and shown in _EXAMPLES:
            schema["examples"] = [_EXAMPLES[shown]]
        parameters.append({"name": shown, "in": "query", "required": False, "schema": schema})
    return parameters


def _parameters_text(body: type[BaseModel] | None, query: type[BaseModel] | None) -> str:
    model = body or query
    return ", ".join(f"<code>{escape(name)}</code>" for name in model.model_fields) if model else ""


def _node() -> Json:
    names = [
        *("id", "node_id", "node_name", "role", "node_role", "node_type", "region", "hostname"),
        *("ip_address", "local_ip", "observed_ip", "status", "status_reason", "last_heartbeat"),
        *("registered_at", "updated_at", "home_registry", "signing_key"),
    ]
    never_null = {"id", "node_id", "node_name", "role", "node_role", "region", "status", "registered_at"}
    text = {name: {"type": "string" if name in never_null else ["string", "null"]} for name in names}
    return {
        "type": "object",
        "required": [*names, "status_age_s", "signature", "labels", "endpoints", "capabilities", "metrics", "metadata"],
        "properties": {
            **text,
            "status_age_s": {"type": ["integer", "null"], "minimum": 0},
            "reserved_slots": {"type": "integer", "minimum": 1},
            "signature": {"enum": ["verified", "unverified", "invalid", None]},
            "signed": {"anyOf": [{"$ref": "#/components/schemas/Signed"}, {"type": "null"}]},
            "labels": {"type": "array", "items": {"type": "string"}},
            "endpoints": _OBJECT,
            "capabilities": _OBJECT,
            "metrics": _OBJECT,
            "metadata": _OBJECT,
        },
    }


def _problem() -> Json:
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"enum": sorted(KINDS)},
            "errors": {"type": "array", "items": _OBJECT},
        },
    }
