"""Every error an answer can carry: one table from code to HTTP status and title (RFC 9457)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

PROBLEM_JSON = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """An error's HTTP status and its short, stable title."""

    status: int
    title: str


KINDS: dict[str, Kind] = {
    "bad_request": Kind(400, "The request could not be understood"),
    "not_json": Kind(400, "The body is not JSON"),
    "unauthenticated": Kind(401, "A valid key is needed"),
    "key_expired": Kind(401, "The key has ended"),
    "key_revoked": Kind(401, "The key has been revoked"),
    "forbidden": Kind(403, "This key may not do that"),
    "wrong_certificate": Kind(403, "The certificate is another node's"),
    "bad_signature": Kind(403, "The registration is not signed with the key that it shows"),
    "not_allowlisted": Kind(403, "This node is not on the allowlist"),
    "pending": Kind(403, "This node waits for an operator's approval"),
    "no_such_node": Kind(404, "No such node"),
    "no_such_key": Kind(404, "No such key"),
    "no_such_entry": Kind(404, "No such entry"),
    "no_such_request": Kind(404, "No such request for approval"),
    "no_such_registry": Kind(404, "No such registry"),
    "no_such_reservation": Kind(404, "No such reservation"),
    "no_such_route": Kind(404, "No such route"),
    "method_not_allowed": Kind(405, "Method not allowed"),
    "request_timeout": Kind(408, "The request did not arrive in time"),
    "node_id_taken": Kind(409, "The node id belongs to another key"),
    "key_in_use": Kind(409, "The request came with that key"),
    "key_not_active": Kind(409, "The key is not good any more"),
    "signing_key_differs": Kind(409, "The node id belongs to another signing key"),
    "stale_document": Kind(409, "A later document of this node is registered"),
    "instance_replaced": Kind(409, "Another run of this node's agent has registered"),
    "fully_reserved": Kind(409, "All slots of the node are reserved"),
    "entry_in_settings": Kind(409, "The entry comes from the registry's settings"),
    "ambiguous": Kind(409, "Several ask under this node id"),
    "body_too_large": Kind(413, "The body is over the limit"),
    "not_json_type": Kind(415, "The body's content type is not JSON"),
    "expectation_failed": Kind(417, "The Expect header is not supported"),
    "invalid": Kind(422, "A field is wrong"),
    "region_alias": Kind(422, "The region has another name here"),
    "too_many_reservations": Kind(429, "Too many reservations"),
    "too_many_bad_keys": Kind(429, "Too many bad keys"),
    "too_many_requests": Kind(429, "Too many requests"),
    "headers_too_large": Kind(431, "The headers are over the limit"),
    "internal": Kind(500, "The registry failed"),
    "catching_up": Kind(503, "The registry is catching up"),
    "not_yet_visible": Kind(503, "That write has not arrived yet"),
    "too_many_watchers": Kind(503, "Too many watch already"),
    "store_unavailable": Kind(503, "The registry's store is unavailable"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: where it is (`capabilities.ram_gb`, `query.limit`) and what is expected."""

    path: str
    message: str


class ApiError(Exception):
    """An answer other than success. `code` is a key of KINDS; `detail` says what to do next."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_s: int | None = None,
        allow: str | None = None,
        status: int | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """`more`: what programs read beside the standard members."""
        super().__init__(detail)
        self.more = dict(more or {})
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        self.allow = allow
        kind = KINDS[code]
        self.status = status or kind.status
        self.title = kind.title if status in (None, kind.status) else HTTPStatus(self.status).phrase

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 document."""
        document: dict[str, Any] = {
            "type": f"urn:dagi:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        document |= self.more
        if self.errors:
            document["errors"] = [{"path": e.path, "message": e.message} for e in self.errors]
        return document

    def headers(self) -> dict[str, str]:
        """The headers that belong to the status."""
        headers: dict[str, str] = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="dagi-registry"'
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.allow is not None:
            headers["Allow"] = self.allow
        return headers


def invalid(path: str, message: str) -> ApiError:
    """A 422 about one field."""
    return ApiError("invalid", f"{path}: {message}.", errors=[FieldError(path, message)])


def no_such_node(node_id: str) -> ApiError:
    """A 404 about a node; agents answer it by registering again."""
    return ApiError("no_such_node", f"No node {node_id} is registered here; register it first.")


def instance_replaced(node_id: str) -> ApiError:
    """A 409 to a heartbeat; agents answer it by registering again, and the second time under a new id."""
    return ApiError(
        "instance_replaced",
        f"Another agent has registered as {node_id} after this one; if both should run, one needs an id of its own.",
    )
