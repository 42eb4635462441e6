"""What `audit verify` finds: changed, cut, remade histories; and what is only the trace of a kill."""

from collections.abc import Sequence

import pytest

from federation.ed25519 import PrivateKey
from registry import audit_chain
from registry.audit_chain import START, Head
from registry.audit_checkpoint import Checkpoint, checkpoint_of, signed
from registry.audit_verify import Verdict, Verifier, sightings_in

AT = "2026-01-02T03:04:05.000Z"
KEY, OTHER_KEY = PrivateKey(b"1" * 32), PrivateKey(b"2" * 32)


class Log:
    """A registry's, as it would write it."""

    def __init__(self, registry_id: str = "eu", key: PrivateKey = KEY) -> None:
        self.registry_id, self.key = registry_id, key
        self.head = START
        self.lines: list[bytes] = []

    def note(self, action: str = "key.created", target: str = "k", **detail: object) -> None:
        entry = audit_chain.body(at=AT, action=action, by={"kind": "admin"}, target=target, detail=detail)
        self.head, line = audit_chain.link(self.head, entry)
        self.lines.append(line + b"\n")

    def sign(self) -> Checkpoint:
        made = signed(self.key, self.registry_id, self.head, AT)
        self._checkpoint("checkpoint.signed", made, self.key.public)
        return made

    def witness(self, checkpoint: Checkpoint, identity: bytes) -> None:
        self._checkpoint("checkpoint.witnessed", checkpoint, identity)

    def _checkpoint(self, action: str, made: Checkpoint, identity: bytes) -> None:
        self.note(
            action, made.registry_id, seq=made.head.seq, hash=made.head.hash, signed_at=made.at,
            signature=made.signature, identity=identity.hex(),
        )  # fmt: skip


def two_regions(entries: int = 6) -> tuple[Log, Log]:
    """eu signed where it stood after three entries and at the end; us saw both."""
    eu, us = Log(), Log("us", OTHER_KEY)
    for number in range(entries):
        eu.note(target=f"k{number}")
        if number in (2, entries - 1):
            us.witness(eu.sign(), KEY.public)
    return eu, us


def verify(lines: Sequence[bytes], *witnesses: Log, identity: bytes | None = None) -> Verdict:
    seen = [sighting for log in witnesses for sighting in sightings_in(log.lines, "eu", log.registry_id)[0]]
    return Verifier(identity, seen).check(lines)


def test_a_log_as_it_was_written_is_sound() -> None:
    eu, us = two_regions()
    verdict = verify(eu.lines, us, identity=KEY.public)
    assert verdict.problems == []
    assert verdict.notes == []
    assert (verdict.entries, verdict.checkpoints, verdict.witnesses, verdict.head) == (8, 2, 2, eu.head)
    assert verdict.summary()["ok"] is True


def test_it_says_where_and_when_a_line_was_changed() -> None:
    eu, _ = two_regions()
    eu.lines[4] = eu.lines[4].replace(b"k3", b"kX")
    (problem,) = verify(eu.lines).problems
    assert "broken at entry 5" in problem
    assert AT in problem
    assert "changed" in problem


def test_a_torn_last_line_is_told_apart_from_tampering() -> None:
    eu, us = two_regions()
    torn = verify([*eu.lines, eu.lines[0][:40]], us)
    assert torn.problems == []
    assert "torn" in torn.notes[0]
    within = verify([*eu.lines[:3], eu.lines[3][:40] + b"\n", *eu.lines[4:]], us)
    assert "broken at entry 4" in within.problems[0]


def test_a_history_that_was_remade_whole_is_found_by_what_others_saw() -> None:
    _, us = two_regions()
    remade = Log()
    for number in range(6):
        remade.note(target="innocent" if number == 4 else f"k{number}")
        if number == 2:
            remade.sign()
    assert verify(remade.lines).problems == []  # by itself it looks as good as any
    (problem,) = verify(remade.lines, us).problems
    assert "rewritten somewhere after entry 3" in problem
    assert "us saw another entry 7" in problem


def test_even_the_registrys_own_key_does_not_help_who_rewrites() -> None:
    eu, us = two_regions()
    remade = Log()
    remade.note(target="innocent")
    remade.sign()
    for _ in range(6):
        remade.note()
    assert "from the start" in verify(remade.lines, us, identity=KEY.public).problems[0]
    assert eu.head != remade.head


def test_a_cut_end_is_found_by_what_others_saw() -> None:
    eu, us = two_regions()
    (problem,) = verify(eu.lines[:5], us).problems
    assert "ends at entry 5" in problem
    assert "us saw entry 7" in problem


def test_a_trimmed_beginning_is_no_fault_but_is_told() -> None:
    eu, us = two_regions()
    verdict = verify(eu.lines[4:], us, identity=KEY.public)
    assert verdict.problems == []
    assert "begins at entry 5" in verdict.notes[0]


def test_nobody_can_frame_a_registry_with_heads_that_it_did_not_sign() -> None:
    eu, us = two_regions()
    liar = Log("xx", OTHER_KEY)
    liar.witness(Checkpoint("eu", Head(3, "f" * 64), AT, "0" * 128), KEY.public)
    liar.witness(signed(OTHER_KEY, "eu", Head(3, "f" * 64), AT), OTHER_KEY.public)
    verdict = verify(eu.lines, us, liar, identity=KEY.public)
    assert verdict.problems == []
    assert len(verdict.notes) == 2
    assert all("proves nothing" in note for note in verdict.notes)


def test_a_checkpoint_that_somebody_else_put_in_does_not_hold() -> None:
    log = Log()
    log.note()
    forged = signed(OTHER_KEY, "eu", log.head, AT)
    log.note("checkpoint.signed", "eu", seq=1, hash=log.head.hash, signed_at=AT, signature=forged.signature,
             identity=KEY.public.hex())  # fmt: skip
    assert "does not hold" in verify(log.lines, identity=KEY.public).problems[0]
    log = Log()
    log.note()
    made = signed(KEY, "eu", Head(1, "e" * 64), AT)
    log.note("checkpoint.signed", "eu", seq=1, hash="e" * 64, signed_at=AT, signature=made.signature,
             identity=KEY.public.hex())  # fmt: skip
    assert "signs another entry 1" in verify(log.lines, identity=KEY.public).problems[0]


def test_a_witness_whose_own_log_is_broken_is_told() -> None:
    _, us = two_regions()
    us.lines[0] = us.lines[0].replace(b"witnessed", b"witnessex")
    found, wrong = sightings_in(us.lines, "eu", "us")
    assert [sighting.checkpoint.head.seq for sighting in found] == []
    assert "broken at entry 1" in wrong[0]


@pytest.mark.parametrize(
    "fields",
    [None, [], [0, "f" * 64, AT, "0" * 128], [True, "f" * 64, AT, "0" * 128], [1, "f" * 63, AT, "0" * 128],
     [1, "f" * 64, "x\n", "0" * 128], [1, "f" * 64, AT, "0"], [1, "é" * 64, AT, "0" * 128], ["1", "f" * 64, AT, ""]],
)  # fmt: skip
def test_what_a_peer_invents_is_no_checkpoint(fields: object) -> None:
    assert checkpoint_of("eu", fields) is None


def test_a_signature_of_no_hex_is_none() -> None:
    assert not Checkpoint("eu", Head(1, "f" * 64), AT, "z" * 128).is_by(KEY.public)
    assert not signed(KEY, "eu", Head(1, "f" * 64), AT).is_by(b"short")
