"""What scopes are, and what a key with them may ask."""

import pytest

from registry.errors import ApiError
from registry.model import ListQuery
from registry.scopes import Scope, canonical_scopes, narrowed, parse_scopes

ALIASES = {"europe": "eu", "eu-*": "eu"}


@pytest.mark.parametrize(
    ("words", "scope"),
    [
        ([], Scope()),
        (["nodes"], Scope(True)),
        (["region:eu"], Scope(True, frozenset({"eu"}))),
        (["role:worker", "role:gpu"], Scope(True, frozenset(), frozenset({"worker", "gpu"}))),
        (["nodes", "region:eu", "role:gpu"], Scope(True, frozenset({"eu"}), frozenset({"gpu"}))),
    ],
)
def test_scopes(words: list[str], scope: Scope) -> None:
    assert parse_scopes(words) == scope


@pytest.mark.parametrize(
    "word",
    ["", "all", "*", "node", "Nodes", "nodes:", "nodes:x", "region", "region:", "region:*", "region: eu", "role:a,b",
     "role:" + "x" * 64, "region:eu\n", "models:small", "role:ü", ":eu", "region:eu:us"],
)  # fmt: skip
def test_what_is_no_scope(word: str) -> None:
    with pytest.raises(ValueError, match="no scope"):
        parse_scopes(["nodes", word])


def test_regions_go_by_their_own_names() -> None:
    assert canonical_scopes(["role:x", "region:EU-West", "region:europe"], ALIASES) == ("region:eu", "role:x")
    with pytest.raises(ValueError, match="no scope"):
        canonical_scopes(["region:europe"], {"europe": "the old world"})


@pytest.mark.parametrize(
    ("scope", "asked", "region", "role"),
    [
        (Scope(), {"region": ["us"]}, ["us"], []),
        (Scope(True, frozenset({"eu", "us"})), {}, ["eu", "us"], []),
        (Scope(True, frozenset({"eu", "us"})), {"region": ["europe"]}, ["eu"], []),
        (Scope(True, frozenset(), frozenset({"gpu"})), {"region": ["us"]}, ["us"], ["gpu"]),
    ],
)
def test_a_question_is_narrowed(scope: Scope, asked: dict[str, list[str]], region: list[str], role: list[str]) -> None:
    found = narrowed(ListQuery(**asked), scope, ALIASES)
    assert (found.region, found.role) == (region, role)


@pytest.mark.parametrize(
    ("scope", "asked"),
    [
        (Scope(True, frozenset({"eu"})), {"region": ["us"]}),
        (Scope(True, frozenset({"eu"})), {"region": ["eu", "us"]}),
        (Scope(True, frozenset(), frozenset({"gpu"})), {"role": ["worker"]}),
    ],
)
def test_a_question_for_more_is_refused(scope: Scope, asked: dict[str, list[str]]) -> None:
    with pytest.raises(ApiError) as refusal:
        narrowed(ListQuery(**asked), scope, ALIASES)
    assert refusal.value.status == 403


@pytest.mark.parametrize(
    ("scope", "seen"),
    [
        (Scope(), True),
        (Scope(True), True),
        (Scope(True, frozenset({"eu"}), frozenset({"gpu"})), True),
        (Scope(True, frozenset({"us"}), frozenset({"gpu"})), False),
        (Scope(True, frozenset({"eu"}), frozenset({"worker"})), False),
    ],
)
def test_which_nodes_are_seen(scope: Scope, seen: bool) -> None:
    assert scope.admits("eu", "gpu") == seen
