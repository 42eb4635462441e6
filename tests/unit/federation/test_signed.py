"""What a node signs: one byte of it changed is found, and so is every field that is shown otherwise."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.described import normalise
from federation.signed import (
    FIELDS,
    SIGNED_BY_KEY,
    Document,
    Forged,
    Proof,
    claimed,
    differing,
    incarnation_of,
    join,
    pack,
    read,
    same,
    shown_differently,
    spec_of,
    split,
    unpack,
    verify,
)
from tests.support.signing import REPORT, proof, signing_key

SIGNED = proof()
DOCUMENT = read(SIGNED.document)
BESIDE = orjson.dumps([spec_of(DOCUMENT, "eu"), "x"])
OTHER: dict[str, Any] = {
    "labels": ["gpu"],
    "endpoints": {"ollama": "http://203.0.113.9:11434"},
    "capabilities": {**REPORT["capabilities"], "features": []},
}


def document(**fields: Any) -> bytes:
    told = {"format": 1, "node_id": "n", "counter": 1, "signed_at_ms": 1, **fields}
    return orjson.dumps({name: value for name, value in told.items() if value is not ...})


def test_what_is_signed_is_read_back() -> None:
    verify(SIGNED)
    assert Document("n", 1, 1_700_000_000_000, REPORT) == DOCUMENT
    assert set(REPORT) == set(FIELDS)  # or the tables below say nothing of one
    assert Proof.of_json(SIGNED.to_json()) == SIGNED


@given(st.integers(0, len(SIGNED.document) - 1), st.integers(1, 255))
def test_a_changed_byte_of_the_document_is_found(at: int, change: int) -> None:
    told = bytearray(SIGNED.document)
    told[at] ^= change
    with pytest.raises(Forged):
        verify(SIGNED._replace(document=bytes(told)))


@pytest.mark.parametrize(
    "forged",
    [
        SIGNED._replace(key=proof(key=2).key),
        SIGNED._replace(signature=proof(key=2).signature),
        SIGNED._replace(signature=proof(counter=2).signature),
        SIGNED._replace(signature=bytes(64)),
        SIGNED._replace(key=bytes([255]) * 32),
    ],
)
def test_another_key_or_signature_is_found(forged: Proof) -> None:
    with pytest.raises(Forged):
        verify(forged)


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_that_is_held_otherwise_is_named(field: str) -> None:
    spec = spec_of(DOCUMENT, "eu")
    assert differing(DOCUMENT, spec) == []
    altered = read(proof(**{field: OTHER.get(field, "altered")}).document)
    assert differing(DOCUMENT, spec_of(altered, "eu")) == [field]
    without = {name: value for name, value in spec.items() if name != field}
    assert differing(DOCUMENT, without) == [field]


@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"labels", "instance_id"}))
def test_each_field_that_is_shown_otherwise_is_named(field: str) -> None:
    node = {**spec_of(DOCUMENT, "eu"), "id": "n", "node_id": "n", "node_role": "worker", "status": "online"}
    assert shown_differently(DOCUMENT, node) == []
    assert shown_differently(DOCUMENT, {**node, "labels": ["an operator's"]}) == []
    assert shown_differently(DOCUMENT, {**node, field: OTHER.get(field, "altered")}) == [field]
    assert shown_differently(DOCUMENT, {**node, "node_id": "m"}) == ["node_id"]
    assert shown_differently(DOCUMENT, {**node, "node_role": "admin"}) == ["node_role"]


def test_what_a_node_does_not_say_is_its_registrys_to_say() -> None:
    said = read(proof(region=None, ip_address=None).document)
    node = {**spec_of(said, "us"), "id": "n", "node_id": "n", "node_role": "worker", "ip_address": "203.0.113.9"}
    assert node["region"] == "us"
    assert shown_differently(said, node) == []
    assert differing(said, spec_of(said, "us")) == []


def test_defaults_are_the_same_everywhere() -> None:
    spec = spec_of(read(document(hostname="h", labels=["a", "a"])), "eu")
    assert (spec["node_name"], spec["role"], spec["labels"], spec["endpoints"]) == ("h", "worker", ["a"], {})
    assert spec["capabilities"] == normalise({})


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"", "document: is not JSON"),
        (b"\xff", "document: is not JSON"),
        (b"[]", "document: must be a JSON object"),
        (b"[" * 5_000, "document: is n"),
        (document(format=2), "format: must be 1"),
        (document(format=True), "format: must be 1"),
        (document(format=...), "format: must be 1"),
        (document(node_id=...), "node_id: must"),
        (document(node_id=7), "node_id: must"),
        (document(counter=-1), "counter: must"),
        (document(counter=2**63), "counter: must"),
        (document(counter="1"), "counter: must"),
        (document(counter=True), "counter: must"),
        (document(signed_at_ms=1.5), "signed_at_ms: must"),
        (document(role=1), "role: must be text"),
        (document(labels="gpu"), "labels: must"),
        (document(labels=[1]), "labels: must"),
        (document(endpoints=[]), "endpoints: must"),
        (document(endpoints={"a": 1}), "endpoints: must"),
        (document(capabilities=[]), "capabilities: must"),
        (b'{"format":1,"node_id":"n","node_id":"m","counter":1,"signed_at_ms":1}', "node_id: is there twice"),
        (b'{"format":1,"node_id":"n","counter":1,"signed_at_ms":1,"x":{"a":1,"a":2}}', "a: is there twice"),
        (b'{"format":1,"node_id":"n","counter":NaN,"signed_at_ms":1}', "document: is not JSON"),
    ],
)
def test_what_is_no_document_is_told_with_its_place(told: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(told)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("key", None), ("key", "AAAA"), ("key", "A" * 43 + "\n"), ("key", "é" * 44), ("key", 7),
        ("signature", "A" * 88), ("document", 7), ("document", None), ("document", "\ud800"),
    ],
)  # fmt: skip
def test_a_proof_that_is_none_is_told_by_its_part(part: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{part}: "):
        Proof.of_json({**SIGNED.to_json(), part: value})


def test_a_proof_is_kept_in_little_beside_what_it_proves() -> None:
    payload = join(BESIDE, SIGNED, 7)
    assert len(payload) - len(BESIDE) < len(SIGNED.document) / 3
    told, packed = split(payload)
    assert told == BESIDE
    assert unpack(packed, told) == SIGNED
    assert claimed(payload) == (SIGNED.key, 7)
    assert (split(BESIDE), claimed(BESIDE)) == ((BESIDE, b""), None)


@given(st.binary(max_size=400), st.integers(0, 300))
def test_packed_bytes_of_anybodys_are_a_proof_or_forged_never_a_fault(noise: bytes, cut: int) -> None:
    packed = pack(SIGNED, 1, BESIDE)
    for made in (noise, packed[:cut], packed[:cut] + noise, packed + noise[:1]):
        try:
            found = unpack(made, BESIDE)
        except Forged:
            continue
        try:
            verify(found)
        except Forged:
            continue
        assert found == SIGNED


def test_what_unpacks_to_more_than_any_document_is_forged() -> None:
    bomb = pack(SIGNED._replace(document=b" " * 10_000_000), 1, BESIDE)
    assert len(bomb) < 20_000
    with pytest.raises(Forged):
        unpack(bomb, BESIDE)


def test_incarnations_of_keys_are_above_all_others_and_fit() -> None:
    made = {incarnation_of(signing_key(number).public) for number in range(1, 50)}
    assert len(made) == 49
    assert all(SIGNED_BY_KEY <= each < 2**63 for each in made)


def test_true_is_not_one_and_order_is_nothing() -> None:
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    for one, other in ((True, 1), (1, 1.0), (None, 0), ("1", 1), ([], {})):
        assert not same(one, other)
    assert not same(2**70, 2**70)  # no JSON of ours
