"""What discover refuses, as a table: every parameter with every kind of wrong value, in the query and in the body."""

import math
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from registry.errors import ApiError
from registry.http.wire import _read_query
from registry.model import DiscoverQuery, DiscoverQuestion, ReservationRequest, parse

NUMBERS = ["min_vram_gb", "min_free_vram_gb", "min_ram_gb", "min_cpu_cores", "max_latency_ms", "max_load", "limit"]
LISTS = ["role", "type", "region", "label", "capability", "model"]
ONCE = [
    *NUMBERS, "match", "latency", "nearest", "prefer_region", "sort", "explain", "proof", "node_id", "min_version",
]  # fmt: skip
TEXTS = ["nearest", "prefer_region", "node_id"]
CHOICES = ["status", "match", "latency", "sort"]
LONG, CONTROL = "a" * 256, "a\x00b"

QUERIES: list[tuple[str, str]] = [
    *((name, f"{name}={value}") for name in NUMBERS for value in (
        "", "x", "nan", "inf", "-inf", "-1", "1e999", "0x10", "1_0", "%201", "true", "9" * 300, "%D9%A1",
    )),
    *((name, f"{name}=1e13") for name in NUMBERS),
    ("max_load", "max_load=1.01"), ("limit", "limit=0"), ("limit", "limit=1001"), ("limit", "limit=1.5"),
    *((name, f"{name}=1&{name}=1") for name in ONCE),
    *((name, f"{name}={quote(value)}") for name in [*LISTS, *TEXTS] for value in (LONG, CONTROL)),
    *((name, f"{name}={'a,' * 65}a") for name in LISTS),
    *((name, "&".join(f"{name}=a{number}" for number in range(300))) for name in LISTS),
    *((name, f"{name}={value}") for name in CHOICES for value in ("x", "ONLINE", "Min", "0", CONTROL)),
    *((name, f"{name}={value}") for name in ("explain", "proof") for value in ("", "2", "yes", "on", "null")),
    ("status", "status=" + "online," * 9),
    ("nearest", "nearest="), ("node_id", "node_id="), ("node_id", "explain=1&node_id=a/b"),
    ("node_id", "node_id=a"), ("node_id", "explain=0&node_id=a"),
    ("sort", "latency=min&sort=load"), ("sort", "sort=vram&latency=min"),
    ("min_version", "min_version=eu"), ("min_version", "min_version=eu:1:-1"), ("min_version", f"min_version={LONG}"),
    ("node_role", "role=a&node_role=b"), ("labels", "label=a&labels=b"),
    ("capabilities", "capability=a&capabilities=b"),
    ("bogus", "bogus=1"), ("limit[]", "limit[]=1"), ("Limit", "Limit=1"), ("", "=1"), ("a", "a=1&" * 1_000),
    ("registry_rtt_ms", "registry_rtt_ms=1"),
]  # fmt: skip

BODIES: list[tuple[str, dict[str, Any]]] = [
    *((name, {name: value}) for name in NUMBERS for value in (
        "1", "nan", True, -1, math.nan, math.inf, -math.inf, 1e308, 10**400, [], [1], {}, {"a": 1},
    )),
    *((name, {name: value}) for name in [*LISTS, *TEXTS] for value in (7, 1.5, True, {}, LONG, CONTROL)),
    *((name, {name: value}) for name in LISTS for value in ([7], [[]], [None], ["a"] * 65, "a," * 65 + "a", [LONG])),
    *((name, {name: value}) for name in CHOICES for value in ("x", 0, True, {}, ["x"], [7])),
    *((name, {name: value}) for name in ("explain", "proof") for value in (1, 0, "1", "true", [], {})),
    ("sort", {"sort": "ram", "latency": "min"}), ("node_id", {"node_id": "a"}),
    *((name, {name: value}) for name in ("registry_rtt_ms", "node_rtt_ms") for value in (
        7, "x", [], [1], {f"r{number}": 1.0 for number in range(65)},
    )),
    *((f"{name}.eu", {name: {"eu": value}}) for name in ("registry_rtt_ms", "node_rtt_ms") for value in (
        -1, -0.001, 10_000.1, 1e308, math.nan, math.inf, "1", None, True, [], {},
    )),
]  # fmt: skip


def refused(ask: Callable[[], Any]) -> tuple[ApiError, float]:
    """What it says, and how long that took at best, in milliseconds: others use the processor too."""
    took_ms, said = math.inf, None
    for _ in range(5):
        began_s = time.perf_counter()
        try:
            ask()
        except ApiError as error:
            said = error
        took_ms = min(took_ms, (time.perf_counter() - began_s) * 1000)
    assert said is not None, "it was taken"
    return said, took_ms


def check(ask: Callable[[], Any], path: str) -> None:
    error, took_ms = refused(ask)
    assert (error.status, error.code) == (422, "invalid")
    named = {each.path for each in error.errors}  # of a list also which one
    assert named == {path} or all(each.startswith(f"{path}.") for each in named), error.detail
    assert len(error.detail) < 600
    assert took_ms < 1


def test_a_wrong_query_is_named_at_once() -> None:
    for name, query in QUERIES:
        check(lambda query=query: _read_query(DiscoverQuery, query), f"query.{name}")


def test_a_wrong_body_is_named_at_once() -> None:
    for path, body in BODIES:
        error, took_ms = refused(lambda body=body: parse(DiscoverQuestion, body))
        name = path.partition(".")[0]
        assert error.status == 422
        assert {each.path.partition(".")[0] for each in error.errors} == {name}, body
        assert "." not in path or [each.path for each in error.errors] == [path], body
        assert took_ms < 1, (path, took_ms)


def test_a_wrong_reservation_is_named_at_once() -> None:
    for name, value in [(n, v) for n in ("slots", "ttl_s") for v in (
        "1", True, None, -1, 0, 10**400, 1e308, math.nan, math.inf, [], {}, 100_000,
    )]:  # fmt: skip
        check(lambda name=name, value=value: parse(ReservationRequest, {name: value}), name)
    check(lambda: parse(ReservationRequest, {"ttl": 5}), "ttl")


@pytest.mark.parametrize(
    "query",
    [
        "", "label=", "label=a,b&label=c", "limit=1000", "explain=true", "explain=1&node_id=a",
        "sort=latency&latency=min", "min_vram_gb=7.5", "max_load=0", "max_load=1", "status=any",
        "prefer_region=", "nearest=node-a-1", "limit=1&&",
    ],
)  # fmt: skip
def test_what_is_right_is_taken(query: str) -> None:
    assert _read_query(DiscoverQuery, query)
