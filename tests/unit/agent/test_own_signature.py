"""The node's key: made once, kept privately, never another's; counters that only grow."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.identity import Home
from agent.own_signature import ALONE_BYTES, OwnSignature
from federation.signed import Document, Proof, read, verify

NOW_MS = 1_700_000_000_000
REPORT: dict[str, Any] = {"node_id": "n", "role": "worker", "labels": ["a"], "token": "t", "machine_id": "m"}


class Person:
    """Who hears of troubles."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def trouble(self, error: OSError) -> None:
        self.heard.append(str(error.strerror))


def of(folder: Path, person: Person | None = None) -> OwnSignature:
    person = person or Person()
    return OwnSignature(Home(folder), person.trouble)


def signed(signature: OwnSignature, now_ms: int = NOW_MS, **fields: Any) -> tuple[Proof, Document, dict[str, Any]]:
    body = signature.signed({**REPORT, **fields}, now_ms)
    proof = Proof.of_json(body["signed"])
    verify(proof)
    return proof, read(proof.document), body


def test_what_is_the_nodes_to_say_is_signed_and_sent_beside(tmp_path: Path) -> None:
    _, document, body = signed(of(tmp_path))
    assert document == Document("n", NOW_MS, NOW_MS, {"role": "worker", "labels": ["a"]})
    assert {name: body[name] for name in REPORT} == REPORT


def test_a_large_document_is_sent_once(tmp_path: Path) -> None:
    _, document, body = signed(of(tmp_path), capabilities={"x": "y" * ALONE_BYTES})
    assert "capabilities" not in body
    assert len(document.fields["capabilities"]["x"]) == ALONE_BYTES


def test_the_key_stays_through_restarts_and_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    first = signed(of(folder))[0].key
    assert signed(of(folder))[0].key == first
    assert stat.S_IMODE((folder / "signing_key").stat().st_mode) == 0o600
    Home(folder).forget()
    assert not (folder / "signing_key").exists()
    assert signed(of(folder))[0].key != first


def test_counters_only_grow_also_when_the_clock_goes_back_or_another_signs(tmp_path: Path) -> None:
    one, other = of(tmp_path), of(tmp_path)
    counters = [signed(each, at)[1].counter for each, at in ((one, 50), (other, 10), (one, 10), (of(tmp_path), 70))]
    assert counters == [50, 51, 52, 70]


def test_another_node_has_another_key(tmp_path: Path) -> None:
    own = of(tmp_path)
    before = signed(own)[0].key
    own.renew()
    after = signed(own)[0].key
    assert after != before
    assert signed(of(tmp_path))[0].key == after


@pytest.mark.parametrize("kept", ["", "nonsense", "[]", '{"key":"AAAA","counter":1}', '{"key":7}', "[" * 9_000])
def test_a_file_that_holds_no_key_is_set_aside(tmp_path: Path, kept: str) -> None:
    (tmp_path / "signing_key").write_text(kept)
    signed(of(tmp_path))
    assert (tmp_path / "signing_key.bad").read_text() == kept
    assert Home(tmp_path).signing_key() is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_anothers_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "signing_key"
    path.write_text("another user's")
    path.chmod(0)
    person = Person()
    signed(of(tmp_path, person))
    assert person.heard
    path.chmod(0o600)
    assert path.read_text() == "another user's"


def test_where_nothing_can_be_kept_it_signs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    person = Person()
    own = of(tmp_path / "file" / "home", person)
    assert signed(own)[0].key == signed(own)[0].key
    assert person.heard
