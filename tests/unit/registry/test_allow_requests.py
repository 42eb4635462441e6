"""What the allowlist keeps in records, and who may wait for approval."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from federation.record import Record, Section
from registry.allow_requests import (
    DAY_MS,
    MAX_FROM_ONE_ADDRESS,
    MAX_REQUESTS,
    Claimant,
    Listing,
    Request,
    Switch,
    asked,
    claimant_of,
    code_of,
    encode,
    no_room,
    parse_code,
    read_entry,
    read_request,
)
from registry.model import RegisterRequest, parse
from tests.unit.registry.test_allow_entries import WRITTEN

NOW_MS = 1_800_000_000_000
CLAIM = "c" * 32


def request(node_id: str = "gpu-7", claim: str | None = CLAIM, ip: str = "192.0.2.7", **said: Any) -> Request:
    body = parse(RegisterRequest, {**said, **({"claim": claim} if claim else {})})
    return asked(
        node_id, body, claimant_of(node_id, None, claim, "f" * 32, ip), at_ms=NOW_MS, through="eu", observed_ip=ip,
        presented="none", certificate=None, hostname=None, local_ip=None,
    )  # fmt: skip


def record(key: str, payload: bytes, life: int = 1) -> Record:
    made = Record(key)
    made.life, made.spec = life, Section(1, "eu", 0, payload, 1, 1)
    return made


def test_who_asks_is_known_by_what_it_alone_can_show() -> None:
    def who(node_id: str = "gpu-7", certified: str | None = None, claim: str | None = None, ip: str = "a") -> Claimant:
        return claimant_of(node_id, certified, claim, "f", ip)

    assert who(claim=CLAIM) == who(claim=CLAIM, ip="b") != who(claim="d" * 32)
    assert who(claim=CLAIM).bound_to == "claim"
    assert who(claim=CLAIM).name != who("gpu-8", claim=CLAIM).name  # a claim seen for one id is of no use for another
    assert who(certified="gpu-7") == who(certified="gpu-7", claim=CLAIM, ip="b")
    assert who(certified="gpu-7").bound_to == "certificate"
    assert who(certified="gpu-8", claim=CLAIM) == who(claim=CLAIM)  # another node's certificate says nothing
    assert who(ip="192.0.2.7") == who(ip="::ffff:192.0.2.7") != who(ip="192.0.2.8")
    assert who().bound_to == "address"


def test_a_code_is_read_as_people_type_it() -> None:
    code = code_of("0123456789abcdef" * 2)
    assert len(code) == 14
    assert parse_code(code) == parse_code(code.lower().replace("-", " ")) == parse_code(code.replace("-", "")) == code
    assert parse_code("") != code


@pytest.mark.parametrize("value", [Switch(True, False, NOW_MS, "admin key at eu"), Switch(False)])
def test_a_switch_is_read_back(value: Switch) -> None:
    assert read_entry(record("a:*", encode(value))) == value


@pytest.mark.parametrize("text", sorted({text for _, _, text in WRITTEN}))
def test_a_listing_is_read_back(text: str) -> None:
    value = Listing("approved", NOW_MS, "admin key at eu", "why", "ab" * 16)
    assert read_entry(record(f"a:{text}", encode(value))) == value
    assert read_entry(record(f"a:{text}", encode(value), life=2)) is None


def test_a_request_is_read_back_under_its_own_key_alone() -> None:
    value = request()
    assert read_request(record(f"p:{value.name}", encode(value))) == value
    assert read_request(record(f"p:gpu-8/{value.code}", encode(value))) is None
    assert read_request(record(f"p:{value.name}", encode(value), life=2)) is None


@pytest.mark.parametrize("payload", [b"", b"no", b"[]", b"{}", b'{"enforced":"no"}', b'{"enforced":true,"at_ms":-1}'])
def test_a_switch_that_cannot_be_read_is_on(payload: bytes) -> None:
    assert read_entry(record("a:*", payload)) == Switch(enforced=True)


WRONG = [
    {"at_ms": "x"}, {"at_ms": True}, {"at_ms": 10**18}, {"claimant": "ab"}, {"claimant": "zz" * 16}, {"claimant": 7},
    {"source": "made up"}, {"by": None}, {"by": "x" * 301}, {"note": 7},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_listing_that_a_peer_made_up_is_none(wrong: dict[str, Any]) -> None:
    fine = orjson.loads(encode(Listing("added", NOW_MS, "x")))
    assert read_entry(record("a:gpu-7", orjson.dumps({**fine, "later": 1}))) == Listing("added", NOW_MS, "x")
    assert read_entry(record("a:gpu-7", orjson.dumps({**fine, **wrong}))) is None


@pytest.mark.parametrize("name", ["192.0.2.7/24", "node:gpu-7", "192.0.2.7/32", "a b", "", "**"])
def test_an_entry_in_another_spelling_is_none(name: str) -> None:
    assert read_entry(record(f"a:{name}", encode(Listing()))) is None


@pytest.mark.parametrize(
    "wrong", [{"state": "approved"}, {"bound_to": "trust"}, {"claimant": None}, {"observed_ip": None}, {"node_id": 7}]
)
def test_a_request_that_a_peer_made_up_is_none(wrong: dict[str, Any]) -> None:
    value = request()
    payload = orjson.dumps({**orjson.loads(encode(value)), **wrong})
    assert read_request(record(f"p:{value.name}", payload)) is None
    assert read_request(record(f"p:{value.name}", orjson.dumps({"node_id": "gpu-7"}))) is None


def test_what_a_stranger_says_is_cut_and_cannot_drive_a_terminal() -> None:
    value = request(node_name="x" * 255, role="\u202eevil\u200b", region="   ")
    assert value.node_name == "x" * 120
    assert value.role == "evil"
    assert value.region is None
    assert len(encode(value)) < 1_000


def test_one_address_and_all_together_may_have_so_many_requests() -> None:
    here = [request(f"n{i}") for i in range(MAX_FROM_ONE_ADDRESS)]
    assert no_room(here[1:], "192.0.2.7", NOW_MS) is None
    assert "from this address" in (no_room(here, "::ffff:192.0.2.7", NOW_MS) or "")
    assert no_room(here, "192.0.2.8", NOW_MS) is None
    assert no_room(here, "192.0.2.7", NOW_MS + DAY_MS) is None  # their day is over
    denied = [replace(each, state="denied") for each in here]
    assert no_room(denied, "192.0.2.7", NOW_MS) is not None  # who was refused does not come again as another
    many = [request(f"n{i}", ip=f"198.51.{i // 250}.{i % 250}") for i in range(MAX_REQUESTS)]
    assert str(MAX_REQUESTS) in (no_room(many, "192.0.2.7", NOW_MS) or "")
    assert no_room(many[1:], "192.0.2.7", NOW_MS) is None


def test_a_sites_ipv6_addresses_count_as_one() -> None:
    here = [request(f"n{i}", ip=f"2001:db8::{i + 1:x}") for i in range(MAX_FROM_ONE_ADDRESS)]
    assert no_room(here, "2001:db8::ffff:1", NOW_MS) is not None
    assert no_room(here, "2001:db8:0:1::1", NOW_MS) is None


def test_a_request_lasts_a_day_and_is_removed_by_the_registry_that_took_it() -> None:
    value = request()
    last_ms = NOW_MS + DAY_MS - 1
    assert not value.is_over(last_ms)
    assert value.is_over(last_ms + 1)
    assert value.is_to_be_removed(last_ms + 1, "eu")
    assert not value.is_to_be_removed(last_ms + 1, "us")
    assert value.is_to_be_removed(last_ms + 3_600_001, "us")  # eu is gone
    assert replace(value, at_ms=NOW_MS + 2 * DAY_MS).is_to_be_removed(NOW_MS, "us")  # of no clock
