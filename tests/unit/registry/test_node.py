"""A node's record: what a registration and an operator's PATCH make of it."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.model import PatchRequest, parse
from registry.node import (
    Intent,
    Record,
    candidate_id,
    fingerprint_of,
    iso,
    parse_token,
    patched,
    registered,
    shown,
)
from tests.support.records import NOW_MS, origin, record, request

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x4FF, exclude_characters="\x7f"), max_size=20)
LABELS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=4)
PATCHES = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["online", "maintenance", "draining"]),
        "labels_add": LABELS,
        "labels_remove": LABELS,
    },
)
REPORTS = st.fixed_dictionaries(
    {},
    optional={
        "node_name": TEXT,
        "role": TEXT,
        "labels": LABELS,
        "region": TEXT,
        "status": st.sampled_from(["online", "leaving", "draining"]),
        "endpoints": st.dictionaries(TEXT, TEXT, max_size=2),
        "capabilities": st.fixed_dictionaries({}, optional={"gpu": TEXT, "ram_gb": st.integers(0, 9)}),
    },
)


def patch(**fields: Any) -> PatchRequest:
    return parse(PatchRequest, fields)


def token_of(life: int, incarnation: int, epoch: int) -> str:
    return base64.urlsafe_b64encode(f"{life}.{incarnation}.{epoch}".encode()).decode().rstrip("=")


@given(REPORTS, PATCHES)
def test_what_is_encoded_decodes_to_itself(report: dict[str, Any], change: dict[str, Any]) -> None:
    made = patched(record("n", **report), patch(**change), NOW_MS + 1)
    assert Record.decode(made.encode()) == made
    assert Record.decode(made.encode()).encode() == made.encode()


def test_defaults_of_a_registration_that_says_nothing() -> None:
    view = shown(record("n"))
    assert (view["node_name"], view["role"], view["region"]) == ("n", "worker", "eu")
    assert view["ip_address"] == view["observed_ip"] == "192.0.2.7"
    assert (view["hostname"], view["local_ip"], view["node_type"]) == (None, None, None)
    assert (view["labels"], view["endpoints"], view["home_registry"]) == ([], {}, "here")


@pytest.mark.parametrize(
    "place",
    [
        lambda facts: facts,
        lambda facts: {"capabilities": facts},
        lambda facts: {"capabilities": {"system": facts}},
    ],
    ids=["beside", "among the capabilities", "in the system block"],
)
def test_facts_of_the_machine_are_found_where_callers_put_them(place: Any) -> None:
    facts = {"hostname": "gpu-box", "ip_address": "192.0.2.99", "local_ip": "10.0.0.9"}
    view = shown(record("n", **place(facts)))
    assert {name: view[name] for name in facts} == facts
    assert view["node_name"] == "gpu-box"
    assert fingerprint_of(request(**place(facts)), "192.0.2.7") == fingerprint_of(request(**facts), "192.0.2.7")


def test_facts_that_cannot_be_ones_are_passed_over() -> None:
    odd = {"hostname": 7, "ip_address": ["192.0.2.1"], "local_ip": "a\nb"}
    view = shown(record("n", capabilities=odd))
    assert (view["hostname"], view["ip_address"], view["local_ip"]) == (None, "192.0.2.7", None)


def test_both_names_of_the_role_are_read_and_shown() -> None:
    for name in ("role", "node_role"):
        view = shown(record("n", **{name: "gpu-worker"}))
        assert view["role"] == view["node_role"] == "gpu-worker"


@pytest.mark.parametrize(
    ("asked", "own", "shown_as"),
    [("Europe", "us", "eu"), (None, "us", "us"), (None, "eu-west", "eu"), ("x", "us", "x")],
)
def test_regions_go_through_the_aliases_wherever_they_come_from(asked: str | None, own: str, shown_as: str) -> None:
    made = registered(None, "n", request(**({"region": asked} if asked else {})), origin(region=own))
    assert shown(made)["region"] == shown_as


@given(REPORTS, REPORTS, PATCHES)
def test_registering_again_keeps_intent_key_and_the_first_time(
    one: dict[str, Any], two: dict[str, Any], change: dict[str, Any]
) -> None:
    first = patched(registered(None, "n", request(**one), origin()), patch(**change), NOW_MS + 1)
    again = registered(first, "n", request(**two), origin(NOW_MS + 5, registry_id="there", observed_ip="192.0.2.8"))
    assert again.intent == first.intent
    assert again.registered_at_ms == NOW_MS
    assert again.last_registration_ms == again.updated_at_ms == NOW_MS + 5
    assert (again.home_registry, again.observed_ip) == ("there", "192.0.2.8")
    assert again.spec == registered(None, "n", request(**two), origin()).spec  # nothing of the report before
    assert again.reported == two.get("status")


@given(REPORTS, PATCHES)
def test_a_patch_is_the_same_the_second_time(report: dict[str, Any], change: dict[str, Any]) -> None:
    once = patched(record("n", **report), patch(**change), NOW_MS + 1)
    assert patched(once, patch(**change), NOW_MS + 1) == once


@given(LABELS, LABELS, LABELS, LABELS)
def test_labels_are_what_was_reported_and_what_the_operator_wants(
    reported: list[str], add: list[str], remove: list[str], later: list[str]
) -> None:
    first = patched(record("n", labels=reported), patch(labels_add=add, labels_remove=remove), NOW_MS)
    labels = shown(first)["labels"]
    assert len(labels) == len(set(labels))
    assert set(labels) == (set(reported) - (set(remove) - set(add))) | set(add)
    again = registered(first, "n", request(labels=later), origin(NOW_MS + 1))
    assert set(shown(again)["labels"]) == (set(later) - (set(remove) - set(add))) | set(add)


@pytest.mark.parametrize(
    ("reported", "intent", "wanted", "after"),
    [
        (None, None, "maintenance", (None, "maintenance")),
        (None, "maintenance", "draining", (None, "draining")),
        (None, "maintenance", "online", (None, None)),
        (None, "maintenance", None, (None, "maintenance")),
        ("draining", None, "online", (None, None)),
        ("leaving", None, "online", ("leaving", None)),  # only its next registration clears that
    ],
)
def test_what_a_patched_status_leaves(
    reported: str | None, intent: str | None, wanted: str | None, after: tuple[str | None, str | None]
) -> None:
    stored = Record("n", {}, "", "", "", 0, 0, 0, reported=reported, intent=Intent(intent))
    made = patched(stored, patch(**({"status": wanted} if wanted else {})), NOW_MS)
    assert (made.reported, made.intent.status) == after


TRIPLES = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**53 - 1))


@given(TRIPLES)
def test_tokens_round_trip(triple: tuple[int, int, int]) -> None:
    assert parse_token(token_of(*triple)) == triple


BROUGHT = TRIPLES.filter(lambda t: t[2] < 2**50)  # milliseconds until the year 37,000


@given(st.lists(st.tuples(st.none() | BROUGHT, st.integers(-5, 5)), min_size=1, max_size=6))
def test_each_registration_is_minted_above_the_record_and_the_token(
    steps: list[tuple[tuple[int, int, int] | None, int]],
) -> None:
    """Whatever the token says and however the clock jumps."""
    stored: Record | None = None
    for brought, jump in steps:
        text = token_of(*brought) if brought else None
        made = registered(stored, "n", request(**({"token": text} if text else {})), origin(NOW_MS + jump))
        after = parse_token(made.token)
        assert made.life % 2 == 1
        assert after > (brought or (0, 0, 0))
        if stored is not None:
            assert after > parse_token(stored.token)
        stored = made


@pytest.mark.parametrize("token", [None, "", "x", "%%%", "MS4x", token_of(-1, 0, 0), token_of(1, 0, 2**60), "é" * 9])
def test_foreign_tokens_mean_nothing(token: str | None) -> None:
    assert parse_token(token) == (0, 0, 0)


def test_the_same_machine_gets_the_same_id_and_another_a_new_one() -> None:
    one, other = request(hostname="box", local_ip="10.0.0.1"), request(hostname="box", local_ip="10.0.0.2")
    ids = [candidate_id(r, fingerprint_of(r, "192.0.2.7"), 0) for r in (one, one, other)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("node-box-")


def test_times_are_utc_with_milliseconds() -> None:
    assert iso(NOW_MS + 7) == "2023-11-14T22:13:20.007Z"
    assert iso(0) == "1970-01-01T00:00:00.000Z"
