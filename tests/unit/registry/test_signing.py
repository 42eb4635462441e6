"""Signed registrations: what is taken, who may have an id, and what of others' records is forged."""

import base64
import contextlib
import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.record import Record as Versioned
from federation.signed import FIELDS, Document, Proof, claimed, incarnation_of, join, split
from federation.writes import Token
from registry.directory import Directory
from registry.discovery import filters_of, matching
from registry.errors import ApiError
from registry.lifecycle import Windows
from registry.model import DiscoverQuery, RegisterRequest, parse
from registry.node import Record, registered, rekeyed
from registry.signing import (
    INVALID,
    UNVERIFIED,
    VERIFIED,
    LaterFormat,
    begins_anew,
    fault_of,
    first_look,
    is_losers,
    parse_registration,
    proof_of,
    proven,
    require_key,
    token_for,
)
from tests.support.records import ALIASES, HOME, origin, request, unread_of, versioned
from tests.support.signing import REPORT, body, proof, signing_key

KEY, OTHER_KEY = (incarnation_of(signing_key(number).public) for number in (1, 2))
NO_KEY = 12345


def taken(told: dict[str, Any]) -> RegisterRequest:
    found = parse_registration(told, ALIASES)
    proven(found)
    return found


def refused(told: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as raised:
        taken(told)
    return raised.value


def node(node_id: str = "n", *, key: int = 1, **fields: Any) -> Record:
    """A node that registered, signed."""
    made = registered(None, node_id, taken(body(node_id, key=key, **fields)), origin())
    number = made.proof[0].key if made.proof is not None else b""
    return replace(made, incarnation=incarnation_of(number))


def reread(record: Record, payload: bytes, incarnation: int | None = None) -> Record:
    """The same node as a peer would have it, with that payload."""
    held = versioned(record)
    assert held.spec is not None
    held.spec = held.spec._replace(payload=payload)
    held.incarnation = record.incarnation if incarnation is None else incarnation
    found = Record.of(held)
    assert found is not None
    return found


def fault(record: Record) -> str | None:
    assert record.kept is not None
    return fault_of(record.node_id, record.incarnation, record.kept, record.spec)


# taking them


def test_a_signed_registration_is_the_document_and_nothing_else() -> None:
    found = taken({**body(), "token": "t", "machine_id": "m", "status": "online", "unknown": {"a": 1}})
    assert found.signing_key == signing_key().public
    assert (found.node_id, found.role, found.token, found.machine_id) == ("n", "worker", "t", "m")
    spec = registered(None, "n", found, origin()).spec
    assert spec["labels"] == REPORT["labels"]
    assert spec["capabilities"]["models"] == ["qwen3:8b"]
    assert "unknown" not in spec["capabilities"]  # nobody signed it


@pytest.mark.parametrize("field", FIELDS)
def test_what_contradicts_the_document_is_refused_by_name(field: str) -> None:
    taken({**body(), field: REPORT[field]})
    taken({**body(), field: None})
    error = refused({**body(**{field: None}), field: REPORT[field]})
    assert (error.status, error.errors[0].path) == (422, field)


def test_other_spellings_contradict_too() -> None:
    assert refused({**body(), "node_role": "admin"}).errors[0].path == "node_role"
    assert refused({**body(), "node_id": "m"}).errors[0].path == "node_id"


@pytest.mark.parametrize(
    ("signed", "path"),
    [
        (7, "signed.document"),
        ({}, "signed.document"),
        ({**proof().to_json(), "key": "no"}, "signed.key"),
        ({**proof().to_json(), "signature": None}, "signed.signature"),
        ({**proof().to_json(), "document": "nothing"}, "signed.document"),
        ({**proof().to_json(), "document": '{"format":9}'}, "signed.document.format"),
    ],
)
def test_a_proof_that_is_none_is_named_by_its_place(signed: Any, path: str) -> None:
    error = refused({"node_id": "n", "signed": signed})
    assert (error.status, error.errors[0].path) == (422, path)


def test_signed_fields_are_checked_as_others_are() -> None:
    assert refused(body(capabilities={"ram_gb": "much"})).errors[0].path == "capabilities.ram_gb"
    assert refused(body(labels=["x"] * 300)).status == 422
    assert refused(body("not an id")).errors[0].path == "node_id"
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    assert "nested deeper" in refused(body(capabilities=deep)).detail


def test_a_wrong_signature_is_told_as_one() -> None:
    for wrong in (
        {"signature": base64.b64encode(bytes(64)).decode()},
        {"document": proof(role="admin").to_json()["document"]},
    ):
        error = refused({"signed": {**proof().to_json(), **wrong}})
        assert (error.status, error.code) == (403, "bad_signature")


def test_a_region_is_signed_by_the_name_that_it_has_here() -> None:
    error = refused(body(region="europe"))
    assert (error.status, error.code, error.problem()["region"]) == (422, "region_alias", "eu")
    found = registered(None, "n", taken(body(region=None)), origin(region="eu-west"))
    assert found.spec["region"] == "eu"


# whose id it is


def held(incarnation: int = KEY, counter: int = 5, *, life: int = 1, **fields: Any) -> Versioned:
    made = versioned(node(counter=counter, **fields))
    made.life, made.incarnation = life, incarnation
    return made


def code_of(told: RegisterRequest, standing: Versioned | None, *, is_admin: bool = False) -> str | None:
    try:
        require_key(told, standing, is_admin=is_admin)
    except ApiError as error:
        return error.code
    return None


def standing(payload: bytes) -> Versioned:
    made = versioned(node())
    assert made.spec is not None
    made.spec = made.spec._replace(payload=payload)
    return made


# Its own signature, what it registered changed beside it; nothing that it signed; and of a later version.
TOLD, MADE = split(node().encode_spec())[0], proof(counter=10**15)
ALTERED = standing(join(TOLD.replace(b"fast", b"slow", 1), proof(), 1))
FORGED = standing(join(TOLD, MADE._replace(signature=bytes(64)), 10**15))
LATER = standing(join(TOLD, Proof(MADE.key, signing_key().sign(b'{"format":2}'), b'{"format":2}'), 10**15))
UNSIGNED = request(node_id="n")
OWN, ANOTHERS = taken(body(counter=6)), taken(body(key=2, counter=6))

MAY: dict[str, tuple[RegisterRequest, Versioned | None, str | None]] = {
    "nobody's, signed": (OWN, None, None),
    "nobody's, unsigned": (UNSIGNED, None, None),
    "own": (OWN, held(), None),
    "another's key": (ANOTHERS, held(), "signing_key_differs"),
    "not signed": (UNSIGNED, held(), "signing_key_differs"),
    "unsigned until now": (OWN, held(NO_KEY), None),
    "unsigned, as ever": (UNSIGNED, held(NO_KEY), None),
    "deleted": (ANOTHERS, held(life=2), None),
    "older": (taken(body(counter=4)), held(), "stale_document"),
    "the same again": (taken(body(counter=5)), held(), None),
    "another one of that number": (taken(body(counter=5, role="x")), held(), "stale_document"),
    "own, where a forged one stands": (OWN, FORGED, None),
    "another's, where what is altered stands": (ANOTHERS, ALTERED, "signing_key_differs"),
    "another's, where what nobody signed stands": (ANOTHERS, FORGED, None),
    "unsigned, where what nobody signed stands": (UNSIGNED, FORGED, None),
    "own, where a later format stands": (OWN, LATER, None),
    "another's, where a later format stands": (ANOTHERS, LATER, "signing_key_differs"),
}


@pytest.mark.parametrize("case", MAY)
def test_the_first_key_owns_an_id(case: str) -> None:
    told, standing, code = MAY[case]
    assert code_of(told, standing) == code
    assert code_of(told, standing, is_admin=True) == (None if code == "signing_key_differs" else code)


@pytest.mark.parametrize(
    ("standing", "incarnation", "anew"),
    [
        (None, KEY, False),
        (held(life=2), OTHER_KEY, False),
        (held(KEY), KEY, False),
        (held(KEY), OTHER_KEY, True),
        (held(KEY), NO_KEY, True),
        (held(NO_KEY), KEY, True),
        (held(NO_KEY), NO_KEY + 1, False),
    ],
)
def test_an_id_that_changes_hands_begins_a_life_of_its_own(
    standing: Versioned | None, incarnation: int, anew: bool
) -> None:
    assert begins_anew(standing, incarnation) is anew


def test_a_token_counts_with_the_incarnation_of_the_key() -> None:
    assert token_for(None, KEY) is None
    assert token_for(Token(3, NO_KEY, 9), KEY) == Token(3, KEY, 9)
    assert token_for(Token(3, KEY, 9), NO_KEY) == Token(3, NO_KEY, 9)
    assert token_for(Token(3, NO_KEY, 9), NO_KEY + 1) == Token(3, NO_KEY, 9)


@pytest.mark.parametrize(
    ("token", "is_losers_"),
    [
        (None, False),
        (Token(1, min(KEY, OTHER_KEY), 99), True),
        (Token(1, max(KEY, OTHER_KEY), 1), False),
        (Token(3, min(KEY, OTHER_KEY), 1), False),
        (Token(1, NO_KEY, 99), True),
    ],
)
def test_who_lost_an_id_is_told_with_its_next_heartbeat(token: Token | None, is_losers_: bool) -> None:
    assert is_losers(token, Token(1, max(KEY, OTHER_KEY), 50)) is is_losers_


# what others hold


def test_what_is_registered_is_found_to_be_the_nodes_own_everywhere() -> None:
    for fields in ({}, {"region": None, "labels": None}, {"capabilities": None}, {"hostname": None, "node_name": None}):
        made = node(**fields)
        there = reread(made, made.encode_spec())
        assert first_look(made.encode_spec(), made.incarnation) == UNVERIFIED
        assert fault(there) is None
        assert proof_of(made.encode_spec()) == made.proof[0] if made.proof else False


@pytest.mark.parametrize("field", FIELDS)
def test_each_altered_field_of_anothers_node_is_found(field: str) -> None:
    made = node()
    told, packed = split(made.encode_spec())
    parts = orjson.loads(told)
    value = parts[0][field]
    parts[0][field] = {"x": "y"} if field == "endpoints" else [*value, "x"] if field == "labels" else "altered"
    if field == "capabilities":
        parts[0][field] = {**value, "features": []}
    forged = orjson.dumps(parts)
    assert fault(reread(made, forged + b"\n" + packed))  # the proof as it was
    assert made.proof is not None
    again = fault(reread(made, join(forged, *made.proof)))  # and made to fit
    assert again is not None
    assert field in again


def test_a_record_that_is_not_its_keys_is_forged_at_first_sight() -> None:
    made, others = node(), node(key=2)
    told, _ = split(made.encode_spec())
    assert first_look(told, NO_KEY) is None
    for payload, incarnation in (
        (told, KEY),  # the signature taken away
        (others.encode_spec(), KEY),  # another's in its place
        (made.encode_spec(), NO_KEY),
        (told + b"\n", KEY),
        (told + b"\nshort", NO_KEY),
    ):
        assert first_look(payload, incarnation) == INVALID
        assert fault_of("n", incarnation, payload, made.spec)


def test_another_nodes_document_another_counter_and_nonsense_are_forged() -> None:
    made = node()
    assert made.proof is not None
    told, _ = split(made.encode_spec())
    assert "another node" in str(fault(replace(reread(made, made.encode_spec()), node_id="m")))
    assert "counter" in str(fault(reread(made, join(told, made.proof[0], 99))))
    signer = signing_key()
    for text in (
        b"{}",
        b"[]",
        b"\xff",
        b'{"format":1,"node_id":"n","counter":1,"signed_at_ms":1,"capabilities":{"gpus":7}}',
    ):
        said = Proof(made.proof[0].key, signer.sign(text), text)
        assert fault(reread(made, join(told, said, 1)))


def test_a_later_format_is_neither_verified_nor_forged() -> None:
    made, text = node(), b'{"format":2}'
    assert made.proof is not None
    said = Proof(made.proof[0].key, signing_key().sign(text), text)
    with pytest.raises(LaterFormat):
        fault(reread(made, join(split(made.encode_spec())[0], said, 1)))


# what is known of them


class Here:
    """A directory, and what it alerts."""

    def __init__(self) -> None:
        self.directory = Directory(Windows(30, 90, 300), 0.0, HOME)
        self.told: list[str] = []
        self.directory.signatures.on_fault = lambda code, node_id, detail: self.told.append(f"{code} {node_id}")
        self._version = 0

    def put(self, record: Record) -> str | None:
        self._version += 1
        self.directory.put(record, self._version, 1.0)
        return self.state(record.node_id)

    def state(self, node_id: str = "n") -> str | None:
        entry = self.directory.get(node_id)
        assert entry is not None
        shown = orjson.loads(entry.fragment() + b"}")
        assert shown["signature"] == entry.signature
        return entry.signature

    def found(self, **asked: Any) -> int:
        query = parse(DiscoverQuery, {"status": "any", **asked})
        return matching(self.directory.columns, filters_of(query, "online", {})).total


def test_it_is_checked_later_and_known_from_then_on() -> None:
    here, made = Here(), node()
    record = reread(made, made.encode_spec())
    assert here.put(record) == UNVERIFIED
    assert here.directory.check_next()
    assert here.state() == VERIFIED
    assert not here.directory.check_next()
    assert here.put(replace(record, epoch=99)) == VERIFIED  # nothing of the registration has changed
    assert here.directory.counts().by_signature == {VERIFIED: 1, UNVERIFIED: 0}
    shown = orjson.loads(here.directory.get("n").fragment() + b"}")  # type: ignore[union-attr]  # it is there
    assert base64.b64decode(shown["signing_key"]) == made.proof[0].key  # type: ignore[index]  # it is signed
    assert here.told == []


def test_what_was_checked_when_it_came_in_is_known_at_once() -> None:
    here, made = Here(), node()
    here.directory.signatures.vouch(made)
    assert here.put(reread(made, made.encode_spec())) == VERIFIED
    assert here.put(reread(node("m", counter=2), node("m", counter=2).encode_spec())) == UNVERIFIED


def test_a_forged_one_is_told_left_out_and_mended_by_the_node_alone() -> None:
    here, made = Here(), node()
    told, packed = split(made.encode_spec())
    here.put(reread(made, told.replace(b"fast", b"slow") + b"\n" + packed))
    assert here.found() == 1
    here.directory.check("n")
    assert here.state() == INVALID
    assert here.found() == 0
    entry = here.directory.get("n")
    assert entry is not None
    assert entry.must_register
    assert here.told == ["signature_invalid n"]
    later = node(counter=2)
    assert here.put(reread(later, later.encode_spec())) == UNVERIFIED
    here.directory.check("n")
    assert (here.state(), here.found(), entry.must_register) == (VERIFIED, 1, False)


def test_the_same_bytes_in_another_incarnation_are_looked_at_anew() -> None:
    here, made = Here(), node()
    record = reread(made, made.encode_spec())
    here.put(record)
    here.directory.check("n")
    entry = here.directory.get("n")
    assert entry is not None
    for version, changed, state, found in (
        (2, replace(record, epoch=99), VERIFIED, 1),
        (3, replace(record, incarnation=record.incarnation ^ 1), INVALID, 0),
        (4, record, UNVERIFIED, 1),
    ):
        here.directory.show(unread_of(changed, entry.registration), version, 1.0)
        assert (here.state(), here.found()) == (state, found)


def test_who_wants_signed_nodes_gets_no_others() -> None:
    here, made = Here(), node()
    here.put(reread(made, made.encode_spec()))
    here.put(registered(None, "plain", request(), origin()))
    assert (here.found(), here.found(signed=True)) == (2, 1)
    here.directory.check("n")
    assert (here.found(), here.found(signed=True)) == (2, 1)


def test_the_newest_and_those_that_are_shown_come_first() -> None:
    here = Here()
    for name in ("a", "b", "c"):
        made = node(name)
        here.put(reread(made, made.encode_spec()))
    here.directory.signatures.hurry("a")
    here.directory.check_next()
    here.directory.check_next()
    assert [here.state(name) for name in ("a", "b", "c")] == [VERIFIED, UNVERIFIED, VERIFIED]
    here.directory.delete("b", 99)
    assert not here.directory.check_next()


def test_an_older_registration_and_another_key_in_its_place_are_told() -> None:
    here = Here()
    for counter in (5, 6, 4):
        made = node(counter=counter)
        here.directory.signatures.vouch(made)
        here.put(reread(made, made.encode_spec()))
    entry = here.directory.get("n")
    assert entry is not None
    assert here.told == ["registration_replayed n"]
    assert entry.must_register
    other = node(key=2)
    here.put(reread(other, other.encode_spec()))
    assert here.told[1:] == ["signing_key_changed n"]
    assert not entry.must_register


def test_a_counter_that_was_only_claimed_binds_nobody() -> None:
    here, made = Here(), node(counter=5)
    assert made.proof is not None
    here.put(reread(made, join(split(made.encode_spec())[0], made.proof[0], 99)))
    here.put(reread(made, made.encode_spec()))
    assert here.told == []
    assert claimed(made.encode_spec()) == (made.proof[0].key, 5)
    assert isinstance(taken(body()).document, Document)


def test_another_api_key_leaves_the_signature_as_it_is() -> None:
    made = node()
    again = rekeyed(reread(made, made.encode_spec()), "ab" * 32)
    assert again.key_hash == "ab" * 32
    assert fault(reread(again, again.encode_spec())) is None
    assert proof_of(again.encode_spec()) == proof()
    plain = rekeyed(registered(None, "n", request(), origin()), "ab" * 32)
    assert split(plain.encode_spec())[1] == b""


NAMES = st.sampled_from(
    [*FIELDS, "format", "counter", "system", "gpu", "gpus", "models", "model_details", "ollama", "services", "features"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(NAMES | st.text(max_size=4), JSON, max_size=6))
def test_whatever_a_node_of_a_hostile_registry_has_signed_is_judged_without_a_fault(told: dict[str, Any]) -> None:
    made = node()
    text = json.dumps({"format": 1, "node_id": "n", "counter": 1, "signed_at_ms": 1, **told}).encode()
    said = Proof(signing_key().public, signing_key().sign(text), text)
    with contextlib.suppress(LaterFormat):
        assert fault(reread(made, join(split(made.encode_spec())[0], said, 1))) is not None
