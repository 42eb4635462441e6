"""Which id an agent goes by, which key it sends, and when it has to become another node."""

import errno
import os
from pathlib import Path

import pytest

from agent import own_identity
from agent.identity import Credentials, Home
from agent.own_identity import OwnIdentity
from agent.wire import Registration

KEY, OTHER = "sk-node-a", "sk-node-b"


class Person:
    """Who reads what is said."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def says(self, line: str) -> None:
        self.read.append(line)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is `here`."""
    monkeypatch.setattr(own_identity, "machine_id", lambda: "here")


@pytest.fixture
def person() -> Person:
    return Person()


def of(folder: Path, person: Person, *, set_key: str | None = None, join_token: str | None = None) -> OwnIdentity:
    return OwnIdentity(Home(folder), set_key=set_key, join_token=join_token, say=person.says)


def settled(folder: Path, made_on: str | None = "here") -> str:
    """A home with an id and its key."""
    node_id = Home(folder).node_id()
    Home(folder).keep_credentials(Credentials(node_id, KEY, "t", made_on))
    return node_id


def test_what_a_registration_gives_is_sent_from_then_on_and_after_a_restart(tmp_path: Path, person: Person) -> None:
    own = of(tmp_path, person, join_token="sk-join-x")
    assert (own.key, own.token, own.has_no_key) == ("sk-join-x", None, True)
    own.registered(Registration("n", KEY, "t1"))
    own.heard("t2")
    own.heard(None)
    own.registered(Registration("n", None, "t3"))  # keys are shown once
    for each in (own, of(tmp_path, person)):
        assert (each.node_id, each.key, each.token, each.has_no_key) == ("n", KEY, "t3", False)
    assert Home(tmp_path).credentials() == Credentials("n", KEY, "t3", "here")
    assert person.read == []


# the machine that a home was made on -> whether its id is kept
MACHINES = [("here", True), (None, True), ("elsewhere", False)]


@pytest.mark.parametrize(("made_on", "kept"), MACHINES)
def test_a_home_that_was_copied_to_another_machine_is_another_node(
    made_on: str | None, kept: bool, tmp_path: Path, person: Person
) -> None:
    before = settled(tmp_path, made_on)
    own = of(tmp_path, person)
    assert (own.node_id == before) is kept
    assert (own.token is not None) is kept
    assert own.key == KEY  # the copied one still lets it join: it has no token of its own
    assert [before in line and "copy of another machine's" in line for line in person.read] == [True] * (not kept)
    own.registered(Registration(own.node_id, OTHER, "u"))
    assert of(tmp_path, person).node_id == own.node_id
    assert len(person.read) == (not kept)


def test_a_machine_that_does_not_know_itself_keeps_its_id(
    tmp_path: Path, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settled(tmp_path, "elsewhere")
    monkeypatch.setattr(own_identity, "machine_id", lambda: None)
    assert of(tmp_path, person).node_id == before
    assert person.read == []


def test_a_run_that_was_replaced_claims_its_id_and_told_again_leaves_it(tmp_path: Path, person: Person) -> None:
    before = settled(tmp_path)
    own = of(tmp_path, person, join_token="sk-join-x")
    assert own.node_id == before
    own.is_replaced(100.0, 30.0)
    assert (own.node_id, person.read) == (before, [])
    own.is_replaced(131.0, 30.0)
    assert own.node_id != before
    assert (own.key, own.token, own.has_no_key) == ("sk-join-x", None, True)
    assert before in person.read[0]
    assert "takes a new id" in person.read[0]
    fresh = own.node_id
    own.is_replaced(132.0, 30.0)  # as the new node it was told once
    assert own.node_id == fresh


def test_a_key_that_was_set_stays_with_its_id_and_the_mistake_is_told(tmp_path: Path, person: Person) -> None:
    before = settled(tmp_path, "elsewhere")
    own = of(tmp_path, person, set_key=OTHER)
    assert (own.node_id, own.key) == (before, OTHER)
    own.is_replaced(100.0, 30.0)
    own.is_replaced(131.0, 30.0)
    assert own.node_id == before
    assert "NODE_API_KEY" in person.read[0]


def test_a_program_that_shares_the_home_is_no_clone(tmp_path: Path, person: Person) -> None:
    before = settled(tmp_path)
    own = of(tmp_path, person)
    assert own.node_id == before
    own.is_replaced(100.0, 30.0)
    of(tmp_path, person).registered(Registration(before, None, "the other's"))
    own.is_replaced(131.0, 30.0)
    assert own.node_id == before
    assert str(tmp_path) in person.read[0]


def test_an_id_that_is_anothers_is_left_to_it(tmp_path: Path, person: Person) -> None:
    Home(tmp_path).keep_id("template")
    own = of(tmp_path, person)
    own.is_anothers()
    assert own.node_id != "template"
    assert person.read == ["template is another node's; this machine takes a new id"]


def test_credentials_of_another_id_are_not_sent(tmp_path: Path, person: Person) -> None:
    settled(tmp_path)
    Home(tmp_path).keep_id("someone-else")
    own = of(tmp_path, person)
    assert (own.node_id, own.key, own.has_no_key) == ("someone-else", None, True)


def test_a_home_that_cannot_be_used_is_told_once(
    tmp_path: Path, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = of(tmp_path, person)
    full = True

    def fsync(_handle: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    for token in ("t1", "t2", "t3"):
        own.registered(Registration(own.node_id, KEY, token))
    assert len(person.read) == 1
    assert "No space left" in person.read[0]
    assert (own.key, own.token) == (KEY, "t3")
    full = False
    own.registered(Registration(own.node_id, None, "t4"))
    assert Home(tmp_path).credentials() == Credentials(own.node_id, KEY, "t4", "here")
    full = True
    own.registered(Registration(own.node_id, None, "t5"))  # full again: news
    assert len(person.read) == 2


def test_credentials_that_may_not_be_read_are_told_and_left(tmp_path: Path, person: Person) -> None:
    before = Home(tmp_path).node_id()
    (tmp_path / "credentials.json").mkdir()
    own = of(tmp_path, person)
    assert own.node_id != before
    own.registered(Registration(own.node_id, KEY, "t"))
    assert (own.key, len(person.read)) == (KEY, 1)
    assert "credentials.json" in person.read[0]


def test_the_claim_is_kept_and_belongs_to_this_home(tmp_path: Path, person: Person) -> None:
    own = of(tmp_path, person)
    claim = own.approval_claim
    assert len(claim) == 32
    assert claim == own.approval_claim == of(tmp_path, person).approval_claim
    assert (tmp_path / "claim").stat().st_mode & 0o777 == 0o600
    (tmp_path / "claim").write_text("short\n")
    other = of(tmp_path, person).approval_claim
    assert other not in ("short", claim)
    Home(tmp_path).forget()
    assert not (tmp_path / "claim").exists()


def test_a_claim_that_cannot_be_kept_lasts_as_long_as_the_agent(tmp_path: Path, person: Person) -> None:
    (tmp_path / "file").write_text("")
    own = of(tmp_path / "file" / "home", person)
    assert own.approval_claim == own.approval_claim != of(tmp_path / "file" / "home", person).approval_claim
    assert "cannot be kept" in person.read[0]


# a certificate that names the node


def certified(folder: Path, person: Person, name: str = "box") -> OwnIdentity:
    return OwnIdentity(Home(folder), certified=name, say=person.says)


def test_a_new_home_takes_the_id_of_its_certificate_and_no_doubt_changes_it(tmp_path: Path, person: Person) -> None:
    own = certified(tmp_path, person)
    assert (own.node_id, own.key, own.has_no_key) == ("box", None, False)
    own.registered(Registration("box", KEY, "t"))
    own.is_replaced(0.0, 30.0)
    own.is_replaced(10.0, 30.0)
    assert not own.has_other_signer()
    assert own.node_id == "box"
    assert person.read == [
        "another agent runs as box with the same NODE_CERT: take it out of one's settings",
    ]


def test_an_id_that_no_registry_took_gives_way_to_the_certificates(tmp_path: Path, person: Person) -> None:
    assert of(tmp_path, person).node_id != "box"
    assert certified(tmp_path, person).node_id == "box"
    assert Home(tmp_path).kept_id() == "box"
    Home(tmp_path).keep_credentials(Credentials("box", KEY, "t", None))
    assert certified(tmp_path, person, "other").node_id == "box"


def test_a_home_that_moved_with_its_certificate_is_no_copy(tmp_path: Path, person: Person) -> None:
    Home(tmp_path).keep_id("box")
    Home(tmp_path).keep_credentials(Credentials("box", KEY, "t", "elsewhere"))
    assert certified(tmp_path, person).node_id == "box"
    assert person.read == []


def test_a_key_that_another_program_kept_is_taken_up_and_never_written_over(tmp_path: Path, person: Person) -> None:
    own = of(tmp_path, person)
    own.registered(Registration(own.node_id, "sk-node-old", "t1"))
    assert not own.look_again()
    other = of(tmp_path, person)
    assert other.node_id == own.node_id
    other.rekeyed("sk-node-new")
    own.heard("t2")
    assert own.key == "sk-node-new"
    kept = Home(tmp_path).credentials()
    assert kept is not None
    assert (kept.api_key, kept.token) == ("sk-node-new", "t2")


@pytest.mark.parametrize(
    ("set_key", "token", "registered", "words"),
    [
        (None, None, True, ("keys rotate --node", "set as NODE_API_KEY here")),
        ("sk-node-set", None, False, ("keys rotate --node", "in place of the present one")),
        (None, "sk-join-x", False, ("another join token", "NODE_JOIN_TOKEN")),
        (None, None, False, ("a join token", "NODE_JOIN_TOKEN")),
    ],
)
def test_who_is_refused_is_told_a_way_out(
    tmp_path: Path,
    person: Person,
    set_key: str | None,
    token: str | None,
    registered: bool,
    words: tuple[str, str],
) -> None:
    own = of(tmp_path, person, set_key=set_key, join_token=token)
    if registered:
        own.registered(Registration(own.node_id, "sk-node-own", "t"))
    assert all(word in own.way_out for word in words)
