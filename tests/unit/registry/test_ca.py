"""The private authority: what it certifies, and that it stops there. OpenSSL itself judges, in memory."""

import json
import shlex
import ssl
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner, Result

from federation.tls import Certificates, Files
from registry import ca
from registry.certificates import certificate_of
from registry.cli import app
from tests.support.tls import NOW, Authority, dialling, shaken


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def seen_by(server: Files, client: Files, host: str = "127.0.0.1") -> Any:
    """The client's certificate as a registry reads it, after a handshake that OpenSSL has found good."""
    _, far = shaken(dialling(client), Certificates(server, listens=True).server, host)
    return certificate_of(far.getpeercert())


def read(files: Files) -> x509.Certificate:
    assert files.cert is not None
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


IDS = ["box", "node-box-1a2b3c4d", "a:b", "box.example.org", ".x", "-x", "N" * 255]


@pytest.mark.parametrize("name", IDS)
def test_a_nodes_certificate_names_it_and_nothing_else(authority: Authority, name: str) -> None:
    eu = authority.issue("registry", "eu", "127.0.0.1")
    assert len(name) <= 255
    found = seen_by(eu, authority.issue("node", name, to="n"))
    assert (found.node_id, found.registry_id) == (name, None)
    assert found.names[0] == f"urn:dagi:node:{name}"


def test_a_registrys_certificate_serves_and_dials_under_each_of_its_names(authority: Authority) -> None:
    eu = authority.issue("registry", "eu", "registry.example.org", "192.0.2.7", "2001:db8::1", "localhost")
    for host in ("registry.example.org", "192.0.2.7", "2001:db8::1", "localhost"):
        found = seen_by(eu, eu, host)
        assert (found.node_id, found.registry_id) == (None, "eu")
    with pytest.raises(ssl.SSLCertVerificationError):
        seen_by(eu, eu, "example.org")


def test_a_node_signs_nothing(authority: Authority) -> None:
    """A certificate that a node's key has signed is nobody's."""
    box = authority.issue("node", "box")
    assert box.key is not None
    posing = ca.authority_of(authority.ca.read_bytes(), ca.key_pem(authority._key))
    posing = replace(posing, certificate=read(box), key=ca.new_key())
    key = ca.new_key()
    (authority.folder / "e.crt").write_bytes(
        ca.issued(posing, "node", "admin", key.public_key(), (), NOW, 3) + box.cert.read_bytes()  # type: ignore[union-attr]  # it has one
    )
    (authority.folder / "e.key").write_bytes(ca.key_pem(key))
    eve = Files(authority.folder / "e.crt", authority.folder / "e.key", authority.ca)
    with pytest.raises(ssl.SSLError):
        seen_by(authority.issue("registry", "eu", "127.0.0.1"), eve)


def test_what_is_critical_is_marked_so(authority: Authority) -> None:
    own = authority.authority.certificate
    found = {type(each.value).__name__: (each.critical, each.value) for each in own.extensions}
    assert found["BasicConstraints"] == (True, x509.BasicConstraints(ca=True, path_length=0))
    critical, usage = found["KeyUsage"]
    assert critical
    assert usage.key_cert_sign  # type: ignore[attr-defined]  # it is a KeyUsage
    assert not usage.digital_signature  # type: ignore[attr-defined]  # as above
    leaf = read(authority.issue("node", "box"))
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.ExtendedKeyUsageOID.CLIENT_AUTH
    ]


@pytest.mark.parametrize(
    ("permit", "good", "bad"),
    [
        (["example.org"], ["eu.example.org", "example.org"], ["eu.example.com", "192.0.2.7", "localhost"]),
        (["192.0.2.0/24"], ["192.0.2.7"], ["198.51.100.1", "eu.example.org", "2001:db8::1"]),
        (["example.org", "192.0.2.0/24"], ["192.0.2.7", "a.example.org"], ["127.0.0.1", "example.com"]),
    ],
)
def test_an_authority_for_some_names_vouches_for_no_others(
    tmp_path: Path, permit: list[str], good: list[str], bad: list[str]
) -> None:
    authority = Authority(tmp_path / "narrow", *permit)
    box = authority.issue("node", "box.example.com")  # an id is no host's name, whatever it looks like
    for host in good:
        assert seen_by(authority.issue("registry", "eu", host), box, host).node_id == "box.example.com"
    for host in bad:
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
            seen_by(authority.issue("registry", "eu", host), box, host)


# renewal


def test_a_renewed_one_is_the_same_but_for_its_dates(authority: Authority) -> None:
    eu = authority.issue("registry", "eu", "registry.example.org", made=NOW - timedelta(days=19), days=20)
    box = authority.issue("node", "box")
    before = read(eu)
    assert eu.cert is not None
    eu.cert.write_bytes(ca.renewed(authority.authority, eu.cert.read_bytes(), NOW, None))
    after = read(eu)
    assert after.not_valid_after_utc == NOW + timedelta(days=20)
    assert after.serial_number != before.serial_number
    assert (after.subject, after.public_key(), list(after.extensions)) == (
        before.subject, before.public_key(), list(before.extensions),
    )  # fmt: skip
    assert seen_by(eu, box, "registry.example.org").node_id == "box"


def test_an_authority_renews_itself_also_when_it_has_expired(tmp_path: Path) -> None:
    key = ca.new_key()
    old = ca.new_authority("old", key, NOW - timedelta(days=20), 10, ())
    expired = ca.authority_of(old, ca.key_pem(key))
    with pytest.raises(ca.CannotIssueError, match=r"renew its ca\.crt first"):
        ca.issued(expired, "node", "box", key.public_key(), (), NOW, 10)
    pem = ca.renewed(expired, old, NOW, None)
    assert ca.expires(pem) == NOW + timedelta(days=10)
    ca.issued(ca.authority_of(pem, ca.key_pem(key)), "node", "box", key.public_key(), (), NOW, 10)


def test_nothing_outlasts_the_authority_and_nothing_of_anothers_is_renewed(
    authority: Authority, tmp_path: Path
) -> None:
    box = authority.issue("node", "box", days=9_000)
    assert read(box).not_valid_after_utc == authority.authority.until
    assert box.cert is not None
    with pytest.raises(ca.CannotIssueError, match="another authority made it"):
        ca.renewed(Authority(tmp_path / "b").authority, box.cert.read_bytes(), NOW, None)


@pytest.mark.parametrize(
    ("kind", "name", "hosts"),
    [
        ("node", "", ()), ("node", "a b", ()), ("node", "a\n", ()), ("node", "n" * 256, ()), ("node", "..", ()),
        ("node", "discover", ()), ("registry", "", ()), ("registry", "a:b", ()), ("registry", ".eu", ()),
        ("registry", "eu", ("http://eu.example.org",)), ("registry", "eu", ("eu.example.org:9205",)),
        ("registry", "eu", ("",)), ("registry", "eu", ("ü.example.org",)), ("registry", "eu", ("a..b",)),
        ("registry", "eu", ("192.0.2.0/24",)),
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(authority: Authority, kind: ca.Kind, name: str, hosts: tuple[str, ...]) -> None:
    with pytest.raises(ca.CannotIssueError):
        ca.issued(authority.authority, kind, name, ca.new_key().public_key(), hosts, NOW, 1)


# the commands


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ca", *arguments])


def done(*arguments: str) -> dict[str, Any]:
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_from_nothing_to_a_handshake(tmp_path: Path) -> None:
    at, out = str(tmp_path / "ca"), str(tmp_path)
    made = done("init", at, "--days", "100")
    eu = done("issue", "--ca", at, "--out", out, "--registry", "eu", "--host", "127.0.0.1", "--host", "localhost")
    box = done("issue", "--ca", at, "--out", out, "--node", "box", "--days", "7")
    assert eu["settings"] == {
        "REGISTRY_TLS_CERT": f"{out}/registry-eu.crt", "REGISTRY_TLS_KEY": f"{out}/registry-eu.key",
        "REGISTRY_TLS_CA": f"{at}/ca.crt",
    }  # fmt: skip
    assert list(box["settings"]) == ["NODE_CERT", "NODE_KEY", "CA_CERT"]
    server, client = (Files(*map(Path, each["settings"].values())) for each in (eu, box))
    assert seen_by(server, client, "localhost").node_id == "box"
    for secret in (made["key"], eu["key"], box["key"]):
        assert Path(secret).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700
    renewed = done("renew", "--ca", at, "--days", "30", box["certificate"])
    assert renewed["expires_at"] > box["expires_at"]
    assert seen_by(server, client).node_id == "box"
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "box.crt", "box.key", "ca", "registry-eu.crt", "registry-eu.key",
    ]  # fmt: skip


def test_what_init_prints_next_works_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = command("init", str(tmp_path / "an authority")).output
    _, *words = shlex.split(next(line for line in printed.splitlines() if "--registry" in line).partition("dagi-")[2])
    assert words[0] == "ca"
    result = command(*words[1:])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "registry-eu.crt").is_file()


def test_nothing_is_replaced_unless_that_is_asked_for(tmp_path: Path) -> None:
    at, out = str(tmp_path / "ca"), str(tmp_path)
    done("init", at)
    box = ("issue", "--ca", at, "--out", out, "--node", "box")
    done(*box)
    key = (tmp_path / "box.key").read_bytes()
    for again in (("init", at), box):
        result = command(*again)
        assert result.exit_code == 2
        assert "is there already; --force replaces it" in result.stderr
    assert (tmp_path / "box.key").read_bytes() == key
    done(*box, "--force")
    assert (tmp_path / "box.key").read_bytes() != key


def test_what_cannot_be_done_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    at = str(tmp_path / "ca")
    done("init", at)
    (tmp_path / "both").write_bytes(
        (tmp_path / "ca" / "ca.crt").read_bytes() + (tmp_path / "ca" / "ca.key").read_bytes()
    )
    (tmp_path / "junk").write_text("junk")
    refused = {
        ("issue", "--ca", str(tmp_path / "none"), "--node", "x"): "there is no authority here",
        ("issue", "--ca", at): "name one: --node ID or --registry ID",
        ("issue", "--ca", at, "--node", "x", "--registry", "y"): "name one",
        ("issue", "--ca", at, "--node", "a b"): "dagi-registry: 'a b' is no node id",
        ("issue", "--ca", at, "--node", "x", "--out", str(tmp_path / "none")): "No such file",
        ("renew", "--ca", at, str(tmp_path / "none")): "No such file",
        ("renew", "--ca", at, str(tmp_path / "junk")): "no certificate in PEM form",
        ("renew", "--ca", at, str(tmp_path / "both")): "holds more than a certificate",
        ("renew", "--ca", at, str(tmp_path / "ca" / "ca.key")): "no certificate in PEM form",
    }
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in refused.items():
        result = command(*arguments)
        assert result.exit_code == 2, arguments
        assert words in result.stderr
        assert "PRIVATE" not in result.output
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "ca" / "ca.key").write_bytes(ca.key_pem(ca.new_key()))
    assert "do not belong together" in command("issue", "--ca", at, "--node", "x").stderr
