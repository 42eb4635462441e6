"""Keys: what is minted is known again, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.keys import (
    belongs_to,
    is_admin_key,
    is_issued,
    key_hash,
    mint_admin_key,
    mint_node_key,
)

SECRETS = st.binary(min_size=1, max_size=64)
NONCES = st.binary(min_size=12, max_size=12)
IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,40}", fullmatch=True)


@given(SECRETS, SECRETS, NONCES, IDS, IDS)
def test_a_node_key_is_this_federations_and_this_nodes(
    secret: bytes, other: bytes, nonce: bytes, node_id: str, stranger: str
) -> None:
    key = mint_node_key(secret, node_id, nonce)
    assert key.startswith("sk-node-")
    assert is_issued(secret, key)
    assert belongs_to(secret, key, node_id)
    assert is_issued(other, key) == (other == secret)
    assert belongs_to(other, key, node_id) == (other == secret)
    assert belongs_to(secret, key, stranger) == (stranger == node_id)


@given(NONCES, IDS, st.data())
def test_no_changed_key_is_known(nonce: bytes, node_id: str, data: st.DataObject) -> None:
    key = mint_node_key(b"secret", node_id, nonce)
    position = data.draw(st.integers(len("sk-node-"), len(key) - 2))  # the last one carries spare bits
    letter = data.draw(st.sampled_from("ABCXYZabcxyz0189-_").filter(lambda c: c != key[position]))
    changed = key[:position] + letter + key[position + 1 :]
    assert not (is_issued(b"secret", changed) and belongs_to(b"secret", changed, node_id))
    assert key_hash(changed) != key_hash(key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-node-",
        "sk-node-%%%",
        "sk-node-ключ",
        "sk-node-" + "A" * 53,
        "sk-node-" + "A" * 55,
        "sk-admin-" + "A" * 54,
    ],
)
def test_what_is_no_node_key(text: str) -> None:
    assert not is_issued(b"secret", text)
    assert not belongs_to(b"secret", text, "n")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("sk-admin-" + "x" * 31, True),
        ("sk-admin-" + "x" * 30, False),
        ("sk-node-" + "x" * 40, False),
        ("sk-admin-" + "x" * 30 + " x", False),
        ("sk-admin-" + "x" * 30 + "\nx", False),
        ("sk-admin-" + "é" * 40, False),
    ],
)
def test_the_form_of_an_admin_key(text: str, good: bool) -> None:
    assert is_admin_key(text) is good


def test_a_minted_admin_key_has_the_form() -> None:
    assert is_admin_key(mint_admin_key(bytes(32)))


def test_a_hash_tells_nothing_of_its_key() -> None:
    key = mint_node_key(b"secret", "n", bytes(12))
    assert len(key_hash(key)) == 20
    assert key_hash(key) == key_hash(key)
    assert key.encode() not in key_hash(key)
