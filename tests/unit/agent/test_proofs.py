"""A client that checks: whatever a lying registry does to a node, it is left out, with the reason."""

import base64
from typing import Any

import pytest

from agent.proofs import Proofs
from federation.signed import FIELDS, Proof, read, spec_of
from tests.support.signing import proof, signing_key


def node(made: Proof | None = None, **shown: Any) -> dict[str, Any]:
    """As a registry shows it."""
    made = made or proof()
    spec = spec_of(read(made.document), "eu")
    del spec["instance_id"]
    told = {"id": "n", "node_id": "n", "node_role": spec["role"], "status": "online", "signed": made.to_json()}
    return {**spec, **told, **shown}


def given(proofs: Proofs, *nodes: Any) -> int:
    return len(proofs.genuine({"nodes": [*nodes], "total": 9})["nodes"])


def test_what_is_as_it_was_signed_is_given_with_all_the_rest() -> None:
    proofs = Proofs({})
    shown = node(labels=["an operator's"], status="degraded", latency_ms=3)
    assert proofs.genuine({"nodes": [shown], "total": 9}) == {"nodes": [shown], "total": 9}
    assert proofs.rejected == {}
    for strange in (None, [], {"nodes": None}, {"detail": "x"}):
        assert proofs.genuine(strange) == strange


@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"labels", "instance_id"}))
def test_each_field_that_a_registry_alters_is_named(field: str) -> None:
    proofs = Proofs({})
    altered = {"endpoints": {"ollama": "http://203.0.113.9:1"}, "capabilities": {"gpu": "H100"}}.get(field, "altered")
    for value in (altered, None):
        assert given(proofs, node(**{field: value})) == 0
        assert proofs.rejected["n"] == f"it is shown otherwise than it signed: {field}"
    assert given(proofs, node()) == 1
    assert proofs.rejected == {}  # of each the newest


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (node(signed=None), "not signed"),
        (node(signed=7), "cannot be read"),
        (node(signed={**proof().to_json(), "document": "{}"}), "not of its document"),
        (node(signed={**proof().to_json(), "signature": base64.b64encode(bytes(64)).decode()}), "not of its document"),
        (node(signed=proof("m").to_json()), "otherwise"),  # another's proof
        (node(node_id="m", id="m"), "otherwise"),
    ],
)
def test_what_proves_nothing_is_left_out_with_the_reason(shown: dict[str, Any], why: str) -> None:
    proofs = Proofs({})
    assert given(proofs, shown, "nonsense", {}, {"node_id": 7}) == 0
    assert why in proofs.rejected[shown["node_id"]]


def test_a_signed_document_that_is_no_registration_is_left_out() -> None:
    text = b'{"format":1,"node_id":"n","counter":1,"signed_at_ms":1,"capabilities":{"gpus":7}}'
    made = Proof(proof().key, signing_key().sign(text), text)
    proofs = Proofs({})
    assert given(proofs, {**node(), "signed": made.to_json()}) == 0
    assert proofs.rejected["n"] == "what is signed is no registration"


def test_the_first_key_seen_is_the_nodes_and_a_given_one_before_that() -> None:
    proofs = Proofs({})
    assert [given(proofs, node(proof(key=number, counter=2))) for number in (1, 2, 1)] == [1, 0, 1]
    assert given(proofs, node(proof(key=2))) == 0
    assert "another key" in proofs.rejected["n"]
    key = base64.b64encode(proof(key=2).key).decode()
    told = Proofs({"n": key})
    assert [given(told, node(proof(key=number))) for number in (1, 2)] == [0, 1]
    for wrong in ("", "AAAA", "é"):
        with pytest.raises(ValueError, match="the key of n"):
            Proofs({"n": wrong})
