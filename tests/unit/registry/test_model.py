"""Strictness: what is refused, under which path, and what is let through."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from registry.errors import ApiError, FieldError
from registry.model import (
    MAX_DEPTH,
    MAX_LABELS,
    AuditQuery,
    DiscoverQuery,
    HeartbeatRequest,
    ListQuery,
    PatchRequest,
    RegisterRequest,
    check_shape,
    parse,
)
from registry.names import RESERVED_NODE_IDS

REFUSED: list[tuple[type[BaseModel], Any, list[str]]] = [
    (RegisterRequest, {"node_id": ""}, ["node_id"]),
    (RegisterRequest, {"node_id": "a" * 256}, ["node_id"]),
    (RegisterRequest, {"node_id": "a/b"}, ["node_id"]),
    (RegisterRequest, {"node_id": "a\n"}, ["node_id"]),
    (RegisterRequest, {"node_id": 7}, ["node_id"]),
    (RegisterRequest, {"node_id": True}, ["node_id"]),
    (RegisterRequest, {"role": 1, "node_name": []}, ["node_name", "role"]),
    (RegisterRequest, {"node_role": 1}, ["node_role"]),
    (RegisterRequest, {"labels": "gpu"}, ["labels"]),
    (RegisterRequest, {"labels": ["ok", 3, "ok", None]}, ["labels.1", "labels.3"]),
    (RegisterRequest, {"labels": ["x"] * (MAX_LABELS + 1)}, ["labels"]),
    (RegisterRequest, {"labels": ["a\x1b[31m"]}, ["labels.0"]),
    (RegisterRequest, {"ip_address": "1.2.3.4 or 1"}, ["ip_address"]),
    (RegisterRequest, {"endpoints": {"api": 1}}, ["endpoints.api"]),
    (RegisterRequest, {"capabilities": []}, ["capabilities"]),
    (RegisterRequest, {"capabilities": {"ram_gb": "64"}}, ["capabilities.ram_gb"]),
    (RegisterRequest, {"capabilities": {"ram_gb": True}}, ["capabilities.ram_gb"]),
    (RegisterRequest, {"capabilities": {"ram_gb": float("nan")}}, ["capabilities.ram_gb"]),
    (RegisterRequest, {"capabilities": {"ram_gb": float("inf")}}, ["capabilities.ram_gb"]),
    (RegisterRequest, {"capabilities": {"ram_gb": -0.5}}, ["capabilities.ram_gb"]),
    (RegisterRequest, {"capabilities": {"system": {"cpu_cores": "8"}}}, ["capabilities.system.cpu_cores"]),
    (RegisterRequest, {"capabilities": {"ollama": {"models": [{"name": 7}]}}}, ["capabilities.ollama.models.0.name"]),
    (RegisterRequest, {"services": 5}, ["services"]),
    (RegisterRequest, {"features": [["x"]]}, ["features.0"]),
    (RegisterRequest, {"gpus": 5}, ["gpus"]),
    (HeartbeatRequest, {}, ["node_id"]),
    (HeartbeatRequest, {"node_id": "n", "metrics": []}, ["metrics"]),
    (HeartbeatRequest, {"node_id": "n", "status": 1}, ["status"]),
    (PatchRequest, {"status": "offline"}, ["status"]),
    (PatchRequest, {"labels_add": "x"}, ["labels_add"]),
    (ListQuery, {"limit": 0}, ["limit"]),
    (ListQuery, {"limit": 1001}, ["limit"]),
    (ListQuery, {"limit": "5"}, ["limit"]),
    (ListQuery, {"limit": 5.5}, ["limit"]),
    (ListQuery, {"limit": True}, ["limit"]),
    (ListQuery, {"offset": -1}, ["offset"]),
    (ListQuery, {"cursor": "a b"}, ["cursor"]),
    (ListQuery, {"colour": "red"}, ["colour"]),
    (ListQuery, {"status": ["alive"]}, ["status.0"]),
    (DiscoverQuery, {"min_vram_gb": True}, ["min_vram_gb"]),
    (DiscoverQuery, {"min_vram_gb": "8"}, ["min_vram_gb"]),
    (DiscoverQuery, {"max_load": 1.5}, ["max_load"]),
    (DiscoverQuery, {"match": "regex"}, ["match"]),
    (DiscoverQuery, {"explain": "yes"}, ["explain"]),
    (AuditQuery, {"since": "yesterday"}, ["since"]),
    (AuditQuery, {"since": "2" * 25}, ["since"]),
]


@pytest.mark.parametrize(
    ("model", "data", "paths"), REFUSED, ids=[f"{m.__name__} {str(d)[:40]}" for m, d, _ in REFUSED]
)
def test_what_is_refused_names_its_fields(model: type[BaseModel], data: Any, paths: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        parse(model, data)
    assert (caught.value.status, caught.value.code) == (422, "invalid")
    assert sorted(error.path for error in caught.value.errors) == paths
    assert caught.value.detail.startswith(caught.value.errors[0].path)


def test_a_time_that_is_none_is_answered_with_one() -> None:
    with pytest.raises(ApiError, match="2026-01-31T12:00"):
        parse(AuditQuery, {"since": "yesterday"})
    assert parse(AuditQuery, {"since": "2026-01-31T12:00"}).since == "2026-01-31T12:00"


@pytest.mark.parametrize("node_id", [*sorted(RESERVED_NODE_IDS), "Register", "DISCOVER"])
def test_reserved_ids_are_refused_in_any_case(node_id: str) -> None:
    with pytest.raises(ApiError, match="reserved"):
        parse(RegisterRequest, {"node_id": node_id})


@pytest.mark.parametrize("node_id", ["a", "a" * 255, "node-x.example.org:9", "A_b-C.d:e", "..."])
def test_good_ids_are_taken(node_id: str) -> None:
    assert parse(RegisterRequest, {"node_id": node_id}).node_id == node_id


def test_a_body_that_is_no_object_is_named_body() -> None:
    with pytest.raises(ApiError, match=r"^body: "):
        parse(RegisterRequest, [])


def test_a_query_says_that_it_is_the_query() -> None:
    with pytest.raises(ApiError) as caught:
        parse(ListQuery, {"limit": 0}, "query")
    assert caught.value.errors[0].path == "query.limit"


def test_ten_thousand_wrong_fields_are_reported_in_short() -> None:
    with pytest.raises(ApiError) as caught:
        parse(PatchRequest, {"labels_add": list(range(MAX_LABELS))})
    assert len(caught.value.errors) == 20


def test_extra_fields_are_kept_at_every_level() -> None:
    request = parse(RegisterRequest, {"new": 1, "capabilities": {"npu": {"tops": 40}, "system": {"board": "x"}}})
    assert request.model_extra == {"new": 1}
    assert request.capabilities is not None
    assert request.capabilities.model_extra == {"npu": {"tops": 40}}
    assert request.capabilities.system is not None
    assert request.capabilities.system.model_extra == {"board": "x"}


def test_numbers_keep_the_kind_they_came_with() -> None:
    capabilities = parse(RegisterRequest, {"capabilities": {"ram_gb": 64, "disk_gb": 64.0}}).capabilities
    assert capabilities is not None
    assert [repr(capabilities.ram_gb), repr(capabilities.disk_gb)] == ["64", "64.0"]
    assert parse(ListQuery, {"limit": 36.0}).limit == 36  # JSON knows one kind of number


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("gpu", ["gpu"]),
        ("gpu,ollama", ["gpu", "ollama"]),
        (" gpu , ,ollama,", ["gpu", "ollama"]),
        (["gpu,a", "b"], ["gpu", "a", "b"]),
        ("", []),
        ([], []),
        (None, []),
    ],
)
def test_names_come_one_by_one_by_commas_or_as_a_list(value: Any, names: list[str]) -> None:
    assert parse(DiscoverQuery, {"capability": value}).capability == names


@pytest.mark.parametrize(
    ("alias", "field"),
    [("labels", "label"), ("node_role", "role"), ("node_type", "type"), ("capabilities", "capability")],
)
def test_filters_have_the_spelling_of_old_callers(alias: str, field: str) -> None:
    assert getattr(parse(DiscoverQuery, {alias: "x"}), field) == ["x"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
FIELDS = st.sampled_from([*RegisterRequest.model_fields, "node_role", "other"])


@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_json_is_either_taken_or_refused_with_paths(data: dict[str, Any]) -> None:
    errors: tuple[FieldError, ...] = ()
    try:
        parse(RegisterRequest, data)
    except ApiError as error:
        errors = error.errors
    assert all(found.path.split(".")[0] in data for found in errors)


def nest(levels: int) -> Any:
    value: Any = 1
    for level in range(levels - 1):
        value = [value] if level % 2 else {"a": value}
    return value


def test_depth_is_bounded() -> None:
    check_shape(nest(MAX_DEPTH))
    with pytest.raises(ApiError, match="deeper"):
        check_shape(nest(MAX_DEPTH + 1))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite_however_deep(number: float) -> None:
    with pytest.raises(ApiError, match="finite"):
        check_shape({"a": [{"b": number}]})
