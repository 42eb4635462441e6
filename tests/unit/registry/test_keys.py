"""Keys: what is minted is known again, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.keys import (
    MAX_EXPIRY_S,
    MAX_KEY_LENGTH,
    MAX_USES,
    MINTABLE,
    Grant,
    Principal,
    belongs_to,
    is_admin_key,
    is_issued,
    key_hash,
    key_id_of,
    keyed_hash,
    mint,
    mint_node_key,
    read_grant,
)
from registry.scopes import MAX_SCOPES

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
    position = data.draw(st.integers(len("sk-node-"), len(key) - 1))
    letter = data.draw(st.sampled_from("ABCXYZabcxyz0189-_").filter(lambda c: c != key[position]))
    changed = key[:position] + letter + key[position + 1 :]
    assert not (is_issued(b"secret", changed) and belongs_to(b"secret", changed, node_id))
    assert position < len(key) - 1 or not is_issued(b"secret", changed)  # its spare bits are nobody's to choose
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


SCOPES = st.from_regex(r"nodes|(region|role):[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
GRANTS = st.builds(
    Grant,
    st.sampled_from(MINTABLE),
    st.none() | st.integers(1, MAX_EXPIRY_S).map(lambda s: s * 1000),
    st.none() | st.integers(1, MAX_USES),
    st.lists(SCOPES, max_size=MAX_SCOPES).map(tuple),
)


@given(SECRETS, SECRETS, NONCES, GRANTS)
def test_a_minted_key_says_itself_what_it_may(secret: bytes, other: bytes, nonce: bytes, grant: Grant) -> None:
    key = mint(secret, grant, nonce)
    assert key.startswith(f"sk-{grant.kind}-")
    assert len(key) <= MAX_KEY_LENGTH
    assert read_grant(secret, key) == grant
    assert (read_grant(other, key) == grant) == (other == secret)
    assert not is_issued(secret, key)


@given(NONCES, GRANTS, st.data())
def test_no_changed_minted_key_is_known(nonce: bytes, grant: Grant, data: st.DataObject) -> None:
    key = mint(b"secret", grant, nonce)
    position = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.characters(codec="ascii").filter(lambda c: c != key[position]))
    assert read_grant(b"secret", key[:position] + letter + key[position + 1 :]) is None


@given(NONCES, st.sampled_from(MINTABLE), st.sampled_from(MINTABLE))
def test_no_key_becomes_one_of_another_kind(nonce: bytes, kind: str, other: str) -> None:
    key = mint(b"secret", Grant(kind), nonce)  # type: ignore[arg-type]  # it is drawn of those
    forged = f"sk-{other}-" + key.removeprefix(f"sk-{kind}-")
    assert (read_grant(b"secret", forged) is not None) == (other == kind)


KEY = mint(b"secret", Grant("read", 1_000, 5, ("nodes",)), bytes(12))
BODY = KEY.removeprefix("sk-read-")


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "sk-", "sk-read-", "sk-read-A", "sk-read-%", "sk-read-" + "A" * 5_000, "sk-read-" + "A" * 54,
        "sk-none-" + BODY, "sk-node-" + BODY, "SK-READ-" + BODY, "sk-read" + BODY, f"sk-read--{BODY}", BODY,
        KEY + "=", KEY + "A", KEY + " ", KEY + "\n", " " + KEY, KEY[:-1], KEY + KEY, KEY + "\0",
        "sk-read-\u0441" + BODY[1:], "sk-read-" + BODY.swapcase(), "sk-join-" + BODY, "sk-admin-" + BODY,
        KEY[:20] + "\n" + KEY[20:], KEY[:20] + "==" + KEY[20:], "sk-read-" + BODY + "\udc80",
    ],
)  # fmt: skip
def test_what_is_no_minted_key(text: str) -> None:
    assert read_grant(b"secret", text) is None
    assert not is_issued(b"secret", text)


@pytest.mark.parametrize(
    "grant",
    [
        Grant("read", scopes=("everything",)),
        Grant("read", scopes=("nodes,region:eu",)),
        Grant("read", scopes=("nodes",) * (MAX_SCOPES + 1)),
        Grant("join", max_uses=MAX_USES + 1),
        Grant("join", max_uses=-1),
        Grant("join", (MAX_EXPIRY_S + 1) * 1000),
        Grant("join", -1_000),
    ],
)
def test_what_cannot_be_minted(grant: Grant) -> None:
    with pytest.raises(ValueError, match=r"out of bounds|is no scope"):
        mint(b"secret", grant, bytes(12))


def test_a_key_with_a_scope_of_a_later_version_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.keys.parse_scopes", lambda texts: None)
    key = mint(b"secret", Grant("read", scopes=("models:small",)), bytes(12))
    monkeypatch.undo()
    assert read_grant(b"secret", key) is None


def test_a_minted_admin_key_has_the_form() -> None:
    assert is_admin_key(mint(b"secret", Grant("admin"), bytes(12)))


def test_what_is_kept_and_shown_of_a_key_is_not_the_key() -> None:
    hashed = key_hash(KEY)
    assert keyed_hash(b"one", hashed) != keyed_hash(b"another", hashed) != hashed
    who = Principal("read", None, hashed, KEY)
    assert who.key_id == key_id_of(hashed) == hashed.hex()[:24]
    assert KEY not in repr(who)


def test_a_hash_tells_nothing_of_its_key() -> None:
    key = mint_node_key(b"secret", "n", bytes(12))
    assert len(key_hash(key)) == 20
    assert key_hash(key) == key_hash(key)
    assert key.encode() not in key_hash(key)
