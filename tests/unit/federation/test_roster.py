"""What the roster says comes from peers: it is taken whole, or not at all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.roster import MAX_ADVERT_SIZE, Advert, is_url, pack_advert, unpack_advert

ADVERT = Advert("https://eu.example.org:9205/registry", "eu-west", bytes(range(32)), 1)
FIELDS: dict[str, Any] = json.loads(pack_advert(ADVERT))


@pytest.mark.parametrize("advert", [ADVERT, Advert(None, "us", b"\xff" * 32, 65_535)])
def test_what_was_packed_is_unpacked(advert: Advert) -> None:
    assert unpack_advert(pack_advert(advert)) == advert


def test_one_advert_has_one_form() -> None:
    assert pack_advert(Advert(None, "eu", bytes(32), 1)) == (
        b'{"identity":"' + b"0" * 64 + b'","region":"eu","url":null,"version":1}'
    )


@pytest.mark.parametrize(
    "change",
    [
        {"url": 5},
        {"url": ""},
        {"url": "ftp://eu"},
        {"url": "javascript:alert(1)"},
        {"region": ""},
        {"region": None},
        {"region": "e" * 64},
        {"region": "eu\n"},
        {"region": "\ud800"},
        {"identity": "00" * 31},
        {"identity": "00" * 33},
        {"identity": "AB" * 32},
        {"identity": None},
        {"identity": 7},
        {"version": 0},
        {"version": -1},
        {"version": True},
        {"version": 1.0},
        {"version": "1"},
        {"version": 2**16},
        {"more": "x" * MAX_ADVERT_SIZE},
    ],
)
def test_a_wrong_field_spoils_it(change: dict[str, Any]) -> None:
    assert unpack_advert(json.dumps(FIELDS | change).encode()) is None


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_missing_field_spoils_it(name: str) -> None:
    assert unpack_advert(json.dumps({k: v for k, v in FIELDS.items() if k != name}).encode()) is None


@pytest.mark.parametrize(
    "packed",
    [b"", b"{}", b"[]", b"null", b"{", b"\xff", b"[" * 1_000, b'{"a":1,"a":2}', b'{"version":NaN}', b"\xef\xbb\xbf{}"],
)
def test_what_is_no_advert_is_none(packed: bytes) -> None:
    assert unpack_advert(packed) is None


def test_a_field_may_not_be_named_twice() -> None:
    packed = pack_advert(ADVERT)
    assert unpack_advert(packed[:-1] + b',"version":1}') is None


def test_a_later_version_may_say_more() -> None:
    assert unpack_advert(json.dumps(FIELDS | {"colour": "red"}).encode()) == ADVERT


def test_what_no_peer_would_take_is_not_packed() -> None:
    with pytest.raises(ValueError, match="cannot be advertised"):
        pack_advert(Advert("eu.example.org", "eu", bytes(32), 1))


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://127.0.0.1:9205", True),
        ("https://[::1]:9205/", True),
        ("http://eu", True),
        ("https://eu.example.org/a/b", True),
        ("HTTP://eu", False),
        ("http://", False),
        ("http:///path", False),
        ("http://:9205", False),
        ("http://eu:0", False),
        ("http://eu:99999", False),
        ("http://eu:port", False),
        ("http://[::1", False),
        ("http://user:secret@eu", False),
        ("http://eu/?a=b", False),
        ("http://eu/#a", False),
        ("http://eu\\@us", False),
        ("http://eu /", False),
        ("http://eü", False),
        ("http://eu\r\nHost: us", False),
        ("http://" + "e" * 600, False),
        (None, False),
    ],
)
def test_what_can_be_dialled(url: object, good: bool) -> None:
    assert is_url(url) is good


@given(st.binary(max_size=300))
def test_no_bytes_upset_it(packed: bytes) -> None:
    assert unpack_advert(packed) is None


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists),
    st.sampled_from(sorted(FIELDS)),
)
def test_no_value_upsets_it(value: object, name: str) -> None:
    advert = unpack_advert(json.dumps(FIELDS | {name: value}).encode())
    assert advert is None or unpack_advert(pack_advert(advert)) == advert
