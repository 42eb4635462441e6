"""A node: what a registration and an operator's PATCH make of it, and what a peer's record can."""

import base64
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.clock import HLC_MAX
from federation.record import MAX_INCARNATION, MAX_LIFE, Section
from federation.record import Record as Versioned
from federation.writes import Token
from registry.directory import Directory
from registry.lifecycle import Windows
from registry.model import PatchRequest, parse
from registry.node import (
    Intent,
    Record,
    Word,
    candidate_id,
    fingerprint_of,
    iso,
    parse_token,
    patched,
    registered,
    rendered,
    replaced,
    token_text,
)
from tests.support.records import NOW_MS, origin, record, request, versioned

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


def shown(node: Record) -> Any:
    """What callers see of a node, but for what changes with every heartbeat."""
    return orjson.loads(rendered(node.node_id, node.encode_spec(), node.intent, node.home_registry) + b"}")


def patch(**fields: Any) -> PatchRequest:
    return parse(PatchRequest, fields)


def changed(node: Record, change: dict[str, Any], at_ms: int = NOW_MS) -> Record:
    """The node after an operator's PATCH."""
    return replace(node, intent=patched(node.intent, patch(**change), at_ms))


WORDS = st.builds(
    Word,
    st.sampled_from(["online", "degraded", "offline"]),
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | st.integers(0, 2**42),
)


@given(REPORTS, PATCHES, WORDS)
def test_a_node_is_read_back_from_its_federation_record(
    report: dict[str, Any], change: dict[str, Any], word: Word
) -> None:
    made = changed(record("n", **report), change, NOW_MS + 1)
    made = replace(made, word=word, key_hash="ab" * 32, incarnation=7, said=(3, 9), epoch=HLC_MAX)
    assert Record.of(versioned(made)) == made


def test_a_record_without_a_judgement_or_intent_is_a_node_of_who_registered_it() -> None:
    node = Record.of(versioned(record("n"), judgement=None))
    assert node is not None
    assert (node.home_registry, node.word, node.intent, node.said) == ("here", Word(), Intent(), (0, 0))
    assert node.epoch > 0  # the registration's own stamp is in the token all the same


@pytest.mark.parametrize("key", ["r:n", "k:n", "n", "", "n:", "n:a b", "n:a\n", "n:a/b", 'n:"', "n:" + "a" * 256])
def test_what_stands_under_other_keys_is_no_node(key: str) -> None:
    made, other = versioned(record("n")), Versioned(key)
    other.life, other.spec = 1, made.spec
    assert Record.of(other) is None


def test_a_deleted_node_is_none() -> None:
    made = versioned(record("n"))
    made.life = 2
    assert Record.of(made) is None
    assert Record.of(versioned(record("n"), spec=None)) is None  # its registration has not arrived


# what a peer may have written

GOOD_SPEC = orjson.loads(record("n", labels=["x"], capabilities={"gpu": "L4", "models": ["m"]}).encode_spec())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip
SECTION = st.builds(
    Section, st.integers(0, HLC_MAX), st.sampled_from(["here", "p"]), st.just(0), st.just(b""), st.just(1), st.just(1)
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in paths(item, (*at, key)))]


def bent(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    """The value with something else in one place."""
    if not path:
        return put
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = bent(value[path[0]], path[1:], put)
    return copy


BENT_SPECS = st.builds(bent, st.just(GOOD_SPEC), st.sampled_from(paths(GOOD_SPEC)), JSON).map(orjson.dumps)
BENT_WORDS = st.builds(
    bent, st.just(["degraded", "x", "y", 5]), st.sampled_from([(), (0,), (1,), (2,), (3,)]), JSON
).map(orjson.dumps)
BENT_INTENTS = st.builds(
    bent, st.just(["draining", ["a"], ["b"], 5]), st.sampled_from([(), (0,), (1,), (1, 0), (2,), (2, 0), (3,)]), JSON
).map(orjson.dumps)
BYTES = st.binary(max_size=40) | JSON.map(orjson.dumps)


def shows(versioned: Versioned) -> bool:
    """Whether the record is a node. Then everything that is done with one can be done with it."""
    node = Record.of(versioned)
    if node is None:
        return False
    directory = Directory(Windows(30, 90, 300), 0.0, "here")
    entry = directory.put(node, 1, 0.0)
    assert entry is not None
    view = orjson.loads(entry.fragment() + b"}")
    assert view["node_id"] == node.node_id
    assert view["status"] in ("online", "degraded", "offline", "draining", "maintenance")
    assert parse_token(entry.token) is not None
    assert shown(registered(node, node.node_id, request(), origin()))["home_registry"] == "here"
    return True


@given(BYTES | BENT_SPECS, st.none() | BYTES | BENT_WORDS, st.none() | BYTES | BENT_INTENTS, SECTION)
def test_whatever_a_peer_wrote_is_a_node_that_can_be_shown_or_none(
    spec: bytes, judgement: bytes | None, intent: bytes | None, section: Section
) -> None:
    made = Versioned("n:n")
    made.life, made.incarnation = MAX_LIFE - 1, MAX_INCARNATION
    made.spec = section._replace(payload=spec)
    made.judgement = section._replace(payload=judgement) if judgement is not None else None
    made.intent = section._replace(payload=intent) if intent is not None else None
    shows(made)


@pytest.mark.parametrize("place", paths(GOOD_SPEC), ids=str)
@pytest.mark.parametrize("put", [None, 0, -1, 2**63, 1e300, "", "\x00", [], {}, [[]], [{}], [None], {"a": []}], ids=str)
def test_each_place_of_a_registration_may_hold_anything(place: tuple[Any, ...], put: Any) -> None:
    made = versioned(record("n"))
    assert made.spec is not None
    made.spec = made.spec._replace(payload=orjson.dumps(bent(GOOD_SPEC, place, put)))
    shows(made)


@pytest.mark.parametrize("levels", [10, 60, 200, 240, 255, 400, 1_100])
def test_a_registration_may_be_nested_however_deep(levels: int) -> None:
    made = versioned(record("n"))
    assert made.spec is not None
    deep = b'{"a":' * levels + b"1" + b"}" * levels
    made.spec = made.spec._replace(
        payload=made.spec.payload.replace(b'"capabilities":{', b'"capabilities":{"x":' + deep + b",")
    )
    assert shows(made) == (levels <= 60)


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b'["online"]', b'["gone",null,null,null]', b'[["online"],null,null,null]',
     b'["online",1,null,null]', b'["online",null,[],null]', b'["online",null,null,null,null]', b"\xff"],
)  # fmt: skip
def test_a_word_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Word.decode(payload)


@given(WORDS)
def test_words_round_trip_and_equal_ones_are_equal_bytes(word: Word) -> None:
    assert Word.decode(word.encode()) == word
    assert Word.decode(word.encode()).encode() == word.encode()


@given(PATCHES, PATCHES)
def test_intents_round_trip(one: dict[str, Any], two: dict[str, Any]) -> None:
    intent = patched(patched(Intent(), patch(**one), NOW_MS), patch(**two), NOW_MS + 1)
    assert Intent.decode(intent.encode()) == intent


@pytest.mark.parametrize(
    "payload",
    [b"", b"7", b"[]", b'["maintenance",[],[]]', b'["maintenance",1,[],0]', b'["maintenance",[1],[],0]',
     b'["maintenance",[],[],null]', b'[1,[],[],0]', b'["maintenance",[],[],"x"]'],
)  # fmt: skip
def test_an_intent_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Intent.decode(payload)


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
    first = replace(registered(None, "n", request(**one), origin()), key_hash="ab")
    first = changed(first, change, NOW_MS + 1)
    again = registered(first, "n", request(**two), origin(NOW_MS + 5, registry_id="there", observed_ip="192.0.2.8"))
    assert (again.intent, again.key_hash) == (first.intent, "ab")
    assert again.registered_at_ms == NOW_MS
    assert again.last_registration_ms == again.updated_at_ms == NOW_MS + 5
    assert (again.home_registry, again.observed_ip) == ("there", "192.0.2.8")
    assert again.spec == registered(None, "n", request(**two), origin()).spec  # nothing of the report before
    assert again.reported == two.get("status")


@given(PATCHES, PATCHES)
def test_a_patch_is_the_same_the_second_time(before: dict[str, Any], change: dict[str, Any]) -> None:
    once = patched(patched(Intent(), patch(**before), NOW_MS), patch(**change), NOW_MS + 1)
    assert patched(once, patch(**change), NOW_MS + 1) == once


@given(LABELS, LABELS, LABELS, LABELS)
def test_labels_are_what_was_reported_and_what_the_operator_wants(
    reported: list[str], add: list[str], remove: list[str], later: list[str]
) -> None:
    first = changed(record("n", labels=reported), {"labels_add": add, "labels_remove": remove})
    labels = shown(first)["labels"]
    assert len(labels) == len(set(labels))
    assert set(labels) == (set(reported) - (set(remove) - set(add))) | set(add)
    again = registered(first, "n", request(labels=later), origin(NOW_MS + 1))
    assert set(shown(again)["labels"]) == (set(later) - (set(remove) - set(add))) | set(add)


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        (None, "maintenance", "maintenance"),
        ("maintenance", "draining", "draining"),
        ("maintenance", "online", None),
        ("maintenance", None, "maintenance"),
        (None, "online", None),
    ],
)
def test_what_a_patched_status_leaves(before: str | None, wanted: str | None, after: str | None) -> None:
    made = patched(Intent(before), patch(**({"status": wanted} if wanted else {})), NOW_MS)
    assert made.status == after


# tokens

TOKENS = st.builds(Token, st.integers(0, MAX_LIFE), st.integers(0, MAX_INCARNATION), st.integers(0, HLC_MAX))


@given(TOKENS)
def test_tokens_round_trip(token: Token) -> None:
    text = token_text(token)
    assert parse_token(text) == token
    assert text.isascii()
    assert not set(text) & set('"\\=+/ ')  # it stands in JSON as it is, and in URLs


def test_a_node_carries_what_orders_its_states() -> None:
    made = replace(record("n"), life=3, incarnation=5, epoch=7)
    assert made.token == Token(3, 5, 7)


def raw(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [None, "", "x", "%%%", "MS4x", "é" * 9, "\x00", raw("1.2"), raw("1.2.3.4"), raw("-1.0.0"), raw("1.0.x"),
     raw(f"1.0.{2**63}"), raw("9" * 5_000 + ".0.0"), raw("1.0.0.")],
)  # fmt: skip
def test_foreign_tokens_mean_nothing(token: str | None) -> None:
    assert parse_token(token) is None


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_whatever_a_node_brings_is_a_token_or_nothing(text: str) -> None:
    token = parse_token(text)
    assert token is None or all(0 <= part < 2**63 for part in token)


def test_the_same_machine_gets_the_same_id_and_another_a_new_one() -> None:
    one, other = request(hostname="box", local_ip="10.0.0.1"), request(hostname="box", local_ip="10.0.0.2")
    ids = [candidate_id(r, fingerprint_of(r, "192.0.2.7"), 0) for r in (one, one, other)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("node-box-")


def test_times_are_utc_with_milliseconds() -> None:
    assert iso(NOW_MS + 7) == "2023-11-14T22:13:20.007Z"
    assert iso(0) == "1970-01-01T00:00:00.000Z"


NEWEST = Token(1, 7, 100)  # what the newest registration here has given
# the run that registered last, the one that beats, its token -> whether another run has replaced it
RUNS: list[tuple[str | None, str | None, Token | None, bool]] = [
    ("a", "a", NEWEST, False),
    ("b", "a", Token(1, 7, 99), True),  # a clone registered after it
    ("b", "a", Token(1, 6, 200), True),  # in another life of the same id
    ("b", "a", NEWEST, False),  # what it has was not given before
    ("b", "a", Token(1, 7, 101), False),  # it registered elsewhere meanwhile: this registry lags
    ("b", "a", Token(1, 8, 1), False),
    ("b", "a", None, False),  # nobody can know
    ("b", None, Token(1, 7, 99), False),  # agents that do not say which run they are
    (None, "a", Token(1, 7, 99), False),
    (None, None, Token(1, 7, 99), False),
]


@pytest.mark.parametrize(("last", "beats", "token", "expected"), RUNS)
def test_a_run_is_replaced_by_one_that_registered_after_it(
    last: str | None, beats: str | None, token: Token | None, expected: bool
) -> None:
    said = {"instance_id": last} if last else {}
    made = replace(record("n", **said), incarnation=NEWEST.incarnation, registration_epoch=NEWEST.epoch)
    # Its home registry's judgements raise the token, and do not count.
    assert replaced(replace(made, epoch=NEWEST.epoch + 50), beats, token) is expected


def test_the_epoch_of_a_registration_is_its_own() -> None:
    made = Record.of(versioned(replace(record("n"), epoch=HLC_MAX)))
    assert made is not None
    assert made.registration_epoch < made.epoch == HLC_MAX
