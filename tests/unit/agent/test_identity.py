"""Who a node is: kept privately and whole, read from old places, never shared by two homes."""

import errno
import os
from pathlib import Path

import pytest

from agent import identity
from agent.identity import Claim, Credentials, Home, machine_id, new_instance_id, new_node_id
from agent.wire import is_node_id


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home that is not ours."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setattr(identity, "_APPLICATION_CONTAINER", ())
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("DAGI_HOME", raising=False)
    return folder


def test_an_id_is_made_once_and_kept(home: Path) -> None:
    first = Home().node_id()
    assert Home().node_id() == first
    assert (home / ".dagi" / "node_id").read_text() == first + "\n"
    assert is_node_id(first)
    assert first.startswith("node-")


def test_what_is_kept_is_private_from_the_first_byte(home: Path) -> None:
    mask = os.umask(0)
    try:
        Home().node_id()
        Home().keep_credentials(Credentials("a", "sk-node-x", "t"))
    finally:
        os.umask(mask)
    for name in ("node_id", "credentials.json"):
        assert (home / ".dagi" / name).stat().st_mode & 0o777 == 0o600
    assert (home / ".dagi").stat().st_mode & 0o777 == 0o700


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Credentials("a", "sk-node-x", "t")
    Home().keep_credentials(kept)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Home().keep_credentials(Credentials("a", "sk-node-y", "t2"))
    assert Home().credentials() == kept
    assert [path.name for path in (home / ".dagi").iterdir()] == ["credentials.json"]


def test_two_homes_never_share_an_id(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".dagi_node_id").write_text("node-old-12345678")
    ids = {Home(tmp_path / "one").node_id(), Home(tmp_path / "two").node_id()}
    monkeypatch.setenv("DAGI_HOME", str(tmp_path / "three"))
    ids.add(Home().node_id())
    assert len(ids) == 3
    assert "node-old-12345678" not in ids


@pytest.mark.parametrize("name", [".dagi/node-id", ".dagi_node_id"])
def test_a_legacy_file_is_read_and_its_id_moves_to_the_documented_place(home: Path, name: str) -> None:
    legacy = home / name
    legacy.parent.mkdir(exist_ok=True)
    legacy.write_text("node-old-12345678\n")
    assert Home().node_id() == "node-old-12345678"
    assert (home / ".dagi" / "node_id").read_text() == "node-old-12345678\n"


@pytest.mark.parametrize("damage", [b"", b"\n", b"a b", b"\x00" * 40, b"\xff\xfe", b"x" * 256, "ключ".encode()])
def test_a_damaged_id_is_set_aside_and_a_new_one_made(home: Path, damage: bytes) -> None:
    path = home / ".dagi" / "node_id"
    path.parent.mkdir()
    path.write_bytes(damage)
    made = Home().node_id()
    assert is_node_id(made)
    assert Home().node_id() == made
    assert path.with_name("node_id.bad").read_bytes() == damage


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b"7", b'{"api_key":"x"}', b"\xff", b"[" * 100_000],
)
def test_damaged_credentials_are_none(home: Path, damage: bytes) -> None:
    Home().node_id()
    (home / ".dagi" / "credentials.json").write_bytes(damage)
    assert Home().credentials() is None


def test_credentials_hold_only_what_can_be_sent(home: Path) -> None:
    Home().node_id()
    (home / ".dagi" / "credentials.json").write_text('{"node_id":"a","api_key":"k\\r\\nX: y","token":5}')
    assert Home().credentials() == Credentials("a", None, None)


def test_an_id_that_may_not_be_read_is_an_error_and_never_replaced(home: Path) -> None:
    path = home / ".dagi" / "node_id"
    path.mkdir(parents=True)  # stands for any file that is there and cannot be read, for root too
    with pytest.raises(OSError, match="directory"):
        Home().node_id()
    with pytest.raises(OSError, match="directory"):
        Home().keep_id("node-other")
    assert path.is_dir()


def test_what_is_known_already_is_not_written_again(home: Path) -> None:
    kept = Credentials("a", "sk-node-x", "t")
    Home().keep_id("a")
    Home().keep_credentials(kept)
    before = {path.name: path.stat().st_ino for path in (home / ".dagi").iterdir()}
    Home().keep_id("a")
    Home().keep_credentials(kept)
    assert {path.name: path.stat().st_ino for path in (home / ".dagi").iterdir()} == before


def test_without_a_home_folder_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(OSError, match="DAGI_HOME"):
        Home().node_id()
    assert Home().credentials() is None


def test_forgetting_removes_both_and_may_be_done_twice(home: Path) -> None:
    Home().node_id()
    Home().keep_credentials(Credentials("a"))
    Home().forget()
    Home().forget()
    assert list((home / ".dagi").iterdir()) == []


def test_the_machine_is_told_apart_without_its_raw_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = "0123456789abcdef0123456789abcdef"
    found = []
    for text in (raw, raw, raw[::-1], "uninitialized", ""):
        (tmp_path / "machine-id").write_text(text + "\n")
        monkeypatch.setattr(identity, "_MACHINE_ID_FILES", (str(tmp_path / "none"), str(tmp_path / "machine-id")))
        monkeypatch.setattr(identity.sys, "platform", "linux")
        found.append(machine_id())
    assert found[0] is not None
    assert found[0] == found[1] != found[2]
    assert found[3:] == [None, None]
    assert raw not in found[0]


def test_every_run_and_every_id_is_another() -> None:
    assert new_instance_id() != new_instance_id()
    assert new_node_id() != new_node_id()


@pytest.mark.parametrize("host", ["", "-", "Büro Zwei", "a" * 300, "x.example.org", "vm_1"])
def test_any_host_name_gives_an_id_that_registries_take(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.socket, "gethostname", lambda: host)
    assert is_node_id(new_node_id())


def test_a_container_s_image_is_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(identity, "_MACHINE_ID_FILES", (str(tmp_path / "machine-id"),))
    assert machine_id() is not None
    (tmp_path / ".dockerenv").touch()
    monkeypatch.setattr(identity, "_APPLICATION_CONTAINER", (str(tmp_path / ".dockerenv"),))
    assert machine_id() is None
    monkeypatch.setattr(identity, "_APPLICATION_CONTAINER", ())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    assert machine_id() is None


@pytest.mark.parametrize(
    ("made_on", "here", "may_be"), [("m", "m", True), ("m", "n", False), (None, "n", True), ("m", None, True)]
)
def test_credentials_remember_their_machine(home: Path, made_on: str | None, here: str | None, may_be: bool) -> None:
    Home().keep_credentials(Credentials("a", "sk-node-x", "t", made_on))
    kept = Home().credentials()
    assert kept is not None
    assert kept.are_of(here) is may_be


def test_credentials_of_before_machines_were_remembered_are_of_any(home: Path) -> None:
    (home / ".dagi").mkdir()
    (home / ".dagi" / "credentials.json").write_text('{"node_id":"a","api_key":"sk-node-x","token":"t"}')
    assert Home().credentials() == Credentials("a", "sk-node-x", "t", None)


def test_credentials_that_may_not_be_read_are_never_replaced_and_their_id_is_not_used(home: Path) -> None:
    Home().keep_id("a")
    path = home / ".dagi" / "credentials.json"
    path.mkdir()  # stands for any file that is there and cannot be read, for root too
    with pytest.raises(OSError, match="directory"):
        Home().node_id()
    with pytest.raises(OSError, match="directory"):
        Home().keep_credentials(Credentials("b"))
    assert path.is_dir()
    assert (home / ".dagi" / "node_id").read_text() == "a\n"


def test_one_agent_at_a_time_runs_for_a_home(tmp_path: Path) -> None:
    first, second, other = Home(tmp_path / "a"), Home(tmp_path / "a"), Home(tmp_path / "b")
    assert first.lock()
    assert first.lock()
    assert not second.lock()
    assert other.lock()
    first.unlock()
    assert second.lock()
    for each in (first, second, other):
        each.unlock()


def test_where_nothing_can_be_locked_an_agent_may_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert Home(tmp_path / "file" / "home").lock()
    assert Home(tmp_path / "file").lock()


# when it was told that another run registered (s), its interval -> whether it gives way
CLAIMS: list[tuple[list[float], float, list[bool]]] = [
    ([0], 30, [False]),
    ([0, 31], 30, [False, True]),  # the other one claims it, too: it lives
    ([0, 179], 1, [False, True]),
    ([0, 181], 1, [False, False]),  # long after: another registration that was under way, say
    ([0, 3_600], 3_600, [False, True]),
    ([0, 500, 560], 30, [False, False, True]),
]


@pytest.mark.parametrize(("told_at_s", "interval_s", "expected"), CLAIMS)
def test_an_id_is_given_up_only_to_a_run_that_claims_it_again(
    told_at_s: list[float], interval_s: float, expected: list[bool]
) -> None:
    claim = Claim()
    assert [claim.is_lost(now_s, interval_s) for now_s in told_at_s] == expected
