"""Notes: what was done is kept one by one, what was refused is counted."""

from typing import Any

import orjson

from registry.audit import MAX_REFUSALS, MAX_WAITING, Audit
from registry.keys import Principal
from tests.support.clock import ManualClock

ADMIN = Principal("admin", None, bytes(20), "sk-admin-secret")


def made() -> tuple[Audit, ManualClock]:
    clock = ManualClock()
    return Audit(clock), clock


def entries(audit: Audit) -> list[dict[str, Any]]:
    return [orjson.loads(entry) for entry in audit.take()]


def test_a_note_says_who_what_whom_whence_and_never_the_key() -> None:
    audit, _ = made()
    audit.note("key.revoked", ADMIN, "k1", "192.0.2.1", reason="lost")
    (entry,) = entries(audit)
    assert entry["by"] == {"kind": "admin", "key_id": "0" * 24}
    assert (entry["action"], entry["target"], entry["from"], entry["outcome"], entry["detail"]) == (
        "key.revoked", "k1", "192.0.2.1", "ok", {"reason": "lost"},
    )  # fmt: skip
    assert "secret" not in str(entry)
    assert entries(audit) == []


def test_what_could_not_be_done_is_withdrawn() -> None:
    audit, _ = made()
    audit.note("a", None)
    audit.withdraw(audit.note("b", None))
    assert [entry["action"] for entry in entries(audit)] == ["a"]
    audit.withdraw(None)


def test_refusals_are_one_entry_an_address_and_minute() -> None:
    audit, clock = made()
    for number in range(1_000):
        audit.note("authentication", None, f"n{number}", "192.0.2.1", "bad_key", route="GET /x")
        audit.note("authentication", None, "", "192.0.2.2", "bad_key", route="GET /x")
    audit.tick()
    assert not audit.waiting  # the minute is not over
    clock.advance(60.0)
    audit.tick()
    first, second = entries(audit)
    assert (first["from"], first["detail"]["count"], first["outcome"]) == ("192.0.2.1", 1_000, "bad_key")
    assert first["detail"]["targets"] == ["n0", "n1", "n2", "n3", "n4"]
    assert first["detail"]["route"] == "GET /x"
    assert second["detail"]["count"] == 1_000


def test_addresses_without_number_make_no_entries_without_number() -> None:
    audit, _ = made()
    for number in range(3_000):
        audit.note("authentication", None, "", f"192.0.2.{number}", "bad_key")
    audit.tick(all_of_it=True)
    found = entries(audit)
    assert len(found) == MAX_REFUSALS + 1
    assert sum(entry["detail"]["count"] for entry in found) == 3_000
    assert found[-1]["from"] == "*"


def test_what_there_is_no_room_for_is_counted() -> None:
    audit, _ = made()
    for _ in range(MAX_WAITING + 3):
        audit.note("a", None)
    found = entries(audit)
    assert len(found) == MAX_WAITING + 1
    assert found[-1]["action"] == "audit.lost"
    assert found[-1]["detail"]["count"] == 3
    assert not audit.waiting
