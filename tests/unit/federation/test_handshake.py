"""Who proves itself gets a link; whoever repeats, reflects, alters or guesses gets a code."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.ed25519 import PrivateKey
from federation.handshake import LINK_VERSION, MAX_TEXT_SIZE, Acceptor, Dialler, Identity, Peer, Refused

SECRET = b"a secret of the federation, long enough"
KEYS = {name: PrivateKey(name.encode().ljust(32, b".")) for name in ("eu", "us", "thief")}


def identity(name: str, *, key: str | None = None, secret: bytes | None = SECRET, url: str | None = None) -> Identity:
    return Identity(name, f"{name}-west", url, KEYS[key or name], secret)


def nobody(registry_id: str) -> bytes | None:
    return None


def dialler(who: Identity, nonce: int = 1, pinned: Callable[[str], bytes | None] = nobody) -> Dialler:
    return Dialler(who, bytes([nonce]) * 32, pinned)


def acceptor(who: Identity, nonce: int = 2, pinned: Callable[[str], bytes | None] = nobody) -> Acceptor:
    return Acceptor(who, bytes([nonce]) * 32, pinned)


def talk(one: Dialler, other: Acceptor) -> list[str]:
    """Everything that both said."""
    said = [one.first()]
    said.append(other.receive(said[-1]))
    proof = one.receive(said[-1])
    assert proof is not None
    said.append(proof)
    said.append(other.receive(proof))
    assert one.receive(said[-1]) is None
    return said


def refused(code: str, run: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        run()
    assert caught.value.code == code
    return caught.value


def altered(text: str, *path: str, value: Any) -> str:
    whole = fields = json.loads(text)
    for name in path[:-1]:
        fields = fields[name]
    fields[path[-1]] = value
    return json.dumps(whole)


def test_both_learn_who_the_other_is() -> None:
    eu, us = identity("eu", url="https://eu.example.org"), identity("us")
    one, other = dialler(eu), acceptor(us)
    said = talk(one, other)
    assert one.done
    assert other.done
    assert one.peer == Peer("us", "us-west", None, us.public_key)
    assert other.peer == Peer("eu", "eu-west", "https://eu.example.org", eu.public_key)
    assert len(said) == 4
    assert max(map(len, said)) < MAX_TEXT_SIZE / 2


def test_the_secret_is_never_said() -> None:
    said = "".join(talk(dialler(identity("eu")), acceptor(identity("us"))))
    assert SECRET.decode() not in said
    assert SECRET.hex() not in said
    assert "secret" not in repr(identity("eu"))
    assert "key" not in repr(identity("eu"))


def test_the_dialler_says_no_proof_before_it_has_one() -> None:
    assert set(json.loads(dialler(identity("eu")).first())) == {"version", "id", "region", "url", "identity", "nonce"}


def test_another_secret() -> None:
    one, other = dialler(identity("eu", secret=b"x" * 32)), acceptor(identity("us"))
    answer = other.receive(one.first())
    refused("wrong_secret", lambda: one.receive(answer))
    assert one.peer is None
    truth = dialler(identity("eu"))
    proof = truth.receive(answer)
    assert proof is not None
    forged = altered(proof, "mac", value="0" * 64)
    refused("wrong_secret", lambda: other.receive(forged))
    assert other.peer is None


@pytest.mark.parametrize("make", [dialler, acceptor])
@pytest.mark.parametrize("secret", [None, b""])
def test_without_a_secret_there_is_no_handshake(make: Callable[[Identity], object], secret: bytes | None) -> None:
    refused("no_secret", lambda: make(identity("eu", secret=secret)))


def test_another_version_is_told_apart_whatever_its_fields() -> None:
    later = json.dumps({"version": LINK_VERSION + 1, "wholly": "new"})
    assert (
        f"speaks version {LINK_VERSION + 1}"
        in refused("wrong_version", lambda: acceptor(identity("us")).receive(later)).detail
    )
    one, other = dialler(identity("eu")), acceptor(identity("us"))
    answer = altered(other.receive(one.first()), "card", "version", value=LINK_VERSION + 1)
    refused("wrong_version", lambda: one.receive(answer))


@pytest.mark.parametrize(
    ("name", "value"),
    [("id", "xx"), ("region", "xx"), ("url", "http://xx"), ("identity", "ab" * 32), ("nonce", "ab" * 32)],
)
def test_no_field_can_be_altered_on_the_way(name: str, value: str) -> None:
    """Of neither card: whoever sits between cannot make the two agree on something else."""
    one, other = dialler(identity("eu")), acceptor(identity("us"))
    answer = other.receive(altered(one.first(), name, value=value))
    refused("wrong_secret", lambda: one.receive(answer))
    one, other = dialler(identity("eu")), acceptor(identity("us"))
    changed = altered(other.receive(one.first()), "card", name, value=value)
    refused("wrong_secret", lambda: one.receive(changed))


def test_who_knows_the_secret_still_needs_the_key() -> None:
    """A card with the key of another, and a signature by one's own."""

    class Thief(Dialler):
        def steal(self) -> None:
            self._card = {**self._card, "identity": identity("eu").public_key.hex()}

    one, other = Thief(identity("eu", key="thief"), b"1" * 32, nobody), acceptor(identity("us"))
    one.steal()
    proof = one.receive(other.receive(one.first()))
    assert proof is not None
    refused("wrong_signature", lambda: other.receive(proof))


def test_a_recorded_handshake_is_worth_nothing() -> None:
    said = talk(dialler(identity("eu")), acceptor(identity("us")))
    other = acceptor(identity("us"), nonce=3)
    other.receive(said[0])
    refused("wrong_secret", lambda: other.receive(said[2]))
    one = dialler(identity("eu"), nonce=4)
    refused("wrong_secret", lambda: one.receive(said[1]))


def test_own_words_sent_back_prove_nothing() -> None:
    one, other = dialler(identity("eu")), acceptor(identity("us"))
    first = one.first()
    answer = other.receive(first)
    refused("malformed", lambda: one.receive(first))
    refused("wrong_secret", lambda: other.receive(json.dumps(json.loads(answer)["proof"])))  # the other role's
    card = json.loads(first)
    mirrored = json.dumps({"card": card, "proof": json.loads(answer)["proof"]})
    refused("malformed", lambda: one.receive(mirrored))


def test_our_own_answers_relayed_to_us_lead_to_ourselves() -> None:
    """Somebody dials us with what we say to it: all that it gets us to believe is that we talk to ourselves."""
    one, other = dialler(identity("eu")), acceptor(identity("eu"))
    answer = other.receive(one.first())
    refused("myself", lambda: one.receive(answer))


def test_another_registry_of_our_id() -> None:
    one, other = dialler(identity("eu")), acceptor(identity("eu", key="thief"))
    answer = other.receive(one.first())
    refused("same_id", lambda: one.receive(answer))


@pytest.mark.parametrize("who", ["dialler", "acceptor"])
def test_another_identity_than_the_pinned_one(who: str) -> None:
    pinned = {"eu": identity("eu").public_key, "us": identity("us").public_key}.get
    one = dialler(identity("eu", key="thief" if who == "dialler" else None), pinned=pinned)
    other = acceptor(identity("us", key="thief" if who == "acceptor" else None), pinned=pinned)
    refused("identity_changed", lambda: talk(one, other))


def test_the_pinned_identity_passes() -> None:
    pinned = {"eu": identity("eu").public_key, "us": identity("us").public_key}.get
    talk(dialler(identity("eu"), pinned=pinned), acceptor(identity("us"), pinned=pinned))


def test_pins_are_looked_at_only_after_the_proof() -> None:
    """Else a stranger could raise the alarm about anybody."""
    asked: list[str] = []

    def pinned(registry_id: str) -> bytes | None:
        asked.append(registry_id)
        return b"?" * 32

    other = acceptor(identity("us"), pinned=pinned)
    other.receive(dialler(identity("eu")).first())
    refused("malformed", lambda: other.receive("{}"))
    assert not asked


GARBAGE = [
    "", "{}", "[]", "null", "7", "{", "[" * 4_000, "\ud800", "x" * 5_000,
    f'{{"version":{LINK_VERSION}}}', '{"version":true}', '{"a":1,"a":1}', '{"version":NaN}',
]  # fmt: skip


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage(text: str) -> None:
    refused("malformed", lambda: acceptor(identity("us")).receive(text))
    refused("malformed", lambda: dialler(identity("eu")).receive(text))
    other = acceptor(identity("us"))
    other.receive(dialler(identity("eu")).first())
    refused("malformed", lambda: other.receive(text))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", ""), ("id", "a b"), ("id", 5), ("id", "a" * 64), ("region", ""), ("url", "file:///x"), ("url", 1),
        ("identity", "0" * 63), ("nonce", "0" * 63), ("nonce", None), ("version", "1"), ("version", 1.0), ("more", 1),
    ],
)  # fmt: skip
def test_a_card_with_a_wrong_or_unknown_field(name: str, value: object) -> None:
    text = altered(dialler(identity("eu")).first(), name, value=value)
    refused("malformed", lambda: acceptor(identity("us")).receive(text))


def test_nothing_may_follow() -> None:
    one, other = dialler(identity("eu")), acceptor(identity("us"))
    said = talk(one, other)
    refused("malformed", lambda: one.receive(said[3]))
    refused("malformed", lambda: other.receive(said[2]))


def test_a_welcome_alone_is_none() -> None:
    one = dialler(identity("eu"))
    refused("malformed", lambda: one.receive('{"welcome":true}'))


def test_a_nonce_has_its_size() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Dialler(identity("eu"), b"short", nobody)


@given(st.text(max_size=200))
def test_no_text_upsets_it(text: str) -> None:
    refused("malformed", lambda: acceptor(identity("us")).receive(text))


@given(st.integers(0, 2), st.data())
def test_no_single_character_can_be_changed(at: int, data: st.DataObject) -> None:
    """Up to the welcome, which only says that a proof was taken."""
    one, other = dialler(identity("eu")), acceptor(identity("us"))

    def passed_on(text: str, index: int) -> str:
        if index != at:
            return text
        place = data.draw(st.integers(0, len(text) - 1))
        return text[:place] + data.draw(st.characters(exclude_characters=text[place])) + text[place + 1 :]

    def handshake() -> None:
        answer = other.receive(passed_on(one.first(), 0))
        proof = one.receive(passed_on(answer, 1))
        assert proof is not None
        other.receive(passed_on(proof, 2))

    with pytest.raises(Refused):
        handshake()
