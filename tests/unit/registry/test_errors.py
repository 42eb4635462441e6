"""The table of errors, against the contract's."""

import pytest

from registry.errors import KINDS, ApiError, FieldError, invalid, no_such_node

# api.md: 400 not JSON, 415 content type, 401 key, 403 may not, 404, 409, 413, 422, 503
STATUSES = {
    "bad_request": 400,
    "not_json": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_allowlisted": 403,
    "no_such_node": 404,
    "no_such_route": 404,
    "method_not_allowed": 405,
    "node_id_taken": 409,
    "instance_replaced": 409,
    "body_too_large": 413,
    "not_json_type": 415,
    "expectation_failed": 417,
    "invalid": 422,
    "internal": 500,
    "store_unavailable": 503,
}


@pytest.mark.parametrize(("code", "status"), STATUSES.items())
def test_each_code_has_its_status_and_document(code: str, status: int) -> None:
    error = ApiError(code, "Do this.")
    assert error.status == KINDS[code].status == status
    assert error.problem() == {
        "type": f"urn:dagi:problem:{code}",
        "title": KINDS[code].title,
        "status": status,
        "detail": "Do this.",
        "code": code,
    }
    assert str(error) == "Do this."
    assert ("WWW-Authenticate" in error.headers()) == (status == 401)


def test_the_table_is_whole() -> None:
    assert set(STATUSES) <= set(KINDS)
    assert len({kind.title for kind in KINDS.values()}) == len(KINDS)


def test_headers_that_belong_to_an_error() -> None:
    assert ApiError("store_unavailable", "x", retry_after_s=2).headers() == {"Retry-After": "2"}
    assert ApiError("method_not_allowed", "x", allow="GET").headers() == {"Allow": "GET"}


def test_a_status_of_its_own_has_a_title_of_its_own() -> None:
    problem = ApiError("bad_request", "x", status=414).problem()
    assert (problem["status"], problem["code"]) == (414, "bad_request")
    assert problem["title"] != KINDS["bad_request"].title


def test_field_errors_are_listed() -> None:
    assert invalid("a.b", "must be short").problem()["errors"] == [{"path": "a.b", "message": "must be short"}]
    assert ApiError("invalid", "x", errors=[FieldError("a", "b")]).errors == (FieldError("a", "b"),)
    assert "errors" not in no_such_node("n").problem()


def test_an_unknown_code_is_a_fault_of_ours() -> None:
    with pytest.raises(KeyError):
        ApiError("nonsense", "x")
