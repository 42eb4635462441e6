"""Certificates in files: what cannot be used, what is taken up anew, what is told; handshakes are in memory."""

import shutil
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from federation.tls import (
    LOOK_EVERY_S,
    Certificates,
    Files,
    UnusableError,
    alert_sentence,
    expiry_sentence,
    node_of,
)
from registry.http.node_bootstrap import Registries, certified_id
from tests.support.tls import NOW, Authority, dialling, shaken

DAY_S = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "a")


class Watched:
    """Certificates whose clock is ours, and what they told."""

    def __init__(self, files: Files) -> None:
        self.now_s = 0.0
        self.told: list[tuple[str, str]] = []
        self.certificates = Certificates(
            files, listens=True, monotonic=lambda: self.now_s, told=lambda *what: self.told.append(what)
        )

    def look(self) -> list[tuple[str, str]]:
        """What one more look tells."""
        before = len(self.told)
        self.now_s += LOOK_EVERY_S
        self.certificates.look()
        return self.told[before:]

    def shown_to(self, client: Files) -> str:
        """The serial of the certificate that this one meets."""
        near, _ = shaken(dialling(client), self.certificates.server)
        serial: str = near.getpeercert()["serialNumber"]
        return serial


@pytest.fixture
def eu(authority: Authority) -> Files:
    return authority.issue("registry", "eu", "127.0.0.1")


@pytest.fixture
def box(authority: Authority) -> Files:
    return authority.issue("node", "box")


def copied(files: Files, onto: Files) -> None:
    for source, target in ((files.cert, onto.cert), (files.key, onto.key), (files.ca, onto.ca)):
        assert source is not None
        assert target is not None
        if source != target:
            shutil.copy(source, target)


# what cannot be used

Broken = Callable[[Path, Files], Files]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def half(path: Path | None, folder: Path) -> Path:
    assert path is not None
    return written(folder / f"half-{path.name}", path.read_text()[:150])


BROKEN: dict[str, tuple[Broken, str]] = {
    "no file": (lambda at, own: replace(own, cert=at / "none"), "none: No such file"),
    "no key": (lambda at, own: replace(own, key=at / "none"), "none: No such file"),
    "no authority": (lambda at, own: replace(own, ca=at / "none"), "none: No such file"),
    "a folder": (lambda at, own: replace(own, cert=at), "Is a directory"),
    "an empty file": (lambda at, own: replace(own, cert=written(at / "e", "")), "e: holds no certificate"),
    "an empty key": (lambda at, own: replace(own, key=written(at / "e", "")), "e: holds no private key"),
    "an empty authority": (lambda at, own: replace(own, ca=written(at / "e", "")), "e: holds no certificate"),
    "half of it": (lambda at, own: replace(own, cert=half(own.cert, at)), "or not all of it"),
    "half a key": (lambda at, own: replace(own, key=half(own.key, at)), "or not all of it"),
    "the two exchanged": (lambda at, own: Files(own.key, own.cert, own.ca), "holds no certificate"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_named(eu: Files, tmp_path: Path, name: str) -> None:
    broken, words = BROKEN[name]
    with pytest.raises(UnusableError) as refused:
        Certificates(broken(tmp_path, eu), listens=True)
    assert words in str(refused.value)
    assert "PRIVATE" not in str(refused.value)


def test_anothers_key_and_a_locked_one(authority: Authority, eu: Files, box: Files, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    with pytest.raises(UnusableError, match="is not the key of the certificate in"):
        Certificates(replace(eu, key=box.key))
    assert eu.key is not None
    locked = tmp_path / "locked.key"
    key = load_pem_private_key(eu.key.read_bytes(), password=None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    with pytest.raises(UnusableError, match="locked with a passphrase"):
        Certificates(replace(eu, key=locked))


def test_the_systems_authorities_are_not_read_before_somebody_dials() -> None:
    certificates = Certificates(Files())
    assert certificates.expiries_s == {}
    made = certificates.client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="example.org")
    assert made.context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert made.context.verify_mode is ssl.CERT_REQUIRED
    assert made.context.check_hostname


# whom it lets in

REFUSED = {
    "no certificate": "it wants a certificate, and was shown none",
    "of another authority": "it does not know the authority",
    "expired": "has expired",
    "not yet good": "does not take the certificate",
    "for servers only": "is not for clients",
    "TLS 1.2": "does not speak TLS 1.3",
}


def refused(name: str, authority: Authority, eu: Files, folder: Path) -> ssl.SSLContext:
    match name:
        case "no certificate":
            return dialling(Files(ca=eu.ca))
        case "of another authority":
            return dialling(replace(Authority(folder / "b").issue("node", "box"), ca=eu.ca))
        case "expired":
            return dialling(authority.issue("node", "box", made=NOW - timedelta(days=3), days=2))
        case "not yet good":
            return dialling(authority.issue("node", "box", made=NOW + timedelta(days=3)))
        case "for servers only":
            return dialling(server_only(authority, folder))
    context = dialling(authority.issue("node", "box"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def server_only(authority: Authority, folder: Path) -> Files:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    from registry import ca

    key = ca.new_key()
    builder = x509.CertificateBuilder(
        issuer_name=authority.authority.certificate.subject,
        subject_name=x509.Name([]),
        public_key=key.public_key(),
        serial_number=7,
        not_valid_before=NOW,
        not_valid_after=NOW + timedelta(days=2),
    ).add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    made = builder.sign(authority.authority.key, SHA256())
    (folder / "s.crt").write_bytes(ca.certificate_pem(made))
    (folder / "s.key").write_bytes(ca.key_pem(key))
    return Files(folder / "s.crt", folder / "s.key", authority.ca)


@pytest.mark.parametrize("name", REFUSED)
def test_who_is_not_let_in_hears_why(name: str, authority: Authority, eu: Files, tmp_path: Path) -> None:
    client = refused(name, authority, eu, tmp_path)
    server = Certificates(eu, listens=True).server
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    heard: ssl.SSLError | None = None
    for _ in range(3):
        for step in (near.do_handshake, far.do_handshake, near.read):
            try:
                step()
            except ssl.SSLWantReadError:
                continue  # also of the server's end, which first sends its alert
            except ssl.SSLError as error:
                heard = heard or error
    assert heard is not None
    assert REFUSED[name] in (alert_sentence(heard) or "")
    with pytest.raises(ssl.SSLError):  # and then it ends
        far.do_handshake()


def test_nobody_resumes_what_was_looked_at_once(eu: Files, box: Files) -> None:
    near, far = shaken(dialling(box), Certificates(eu, listens=True).server)
    assert far.getpeercert()["subjectAltName"] == (("URI", "urn:dagi:node:box"),)
    assert near.version() == "TLSv1.3"
    assert not near.session.has_ticket


def test_a_nodes_certificate_serves_nobody(eu: Files, box: Files) -> None:
    """Who has stolen one cannot pose as a registry."""
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(Certificates(eu).client, Certificates(box, listens=True).server)


# what is taken up anew


def test_what_replaces_a_file_is_used_for_what_is_opened_next(authority: Authority, eu: Files, box: Files) -> None:
    watched = Watched(eu)
    before = watched.shown_to(box)
    authority.issue("registry", "eu", "127.0.0.1")
    assert watched.shown_to(box) == before  # looked at a moment ago
    watched.now_s += LOOK_EVERY_S
    assert watched.shown_to(box) != before  # without anybody's look
    assert watched.told == [("reloaded", f"{eu.cert}, {eu.ca}")]
    assert watched.look() == []


def test_an_authority_that_was_taken_out_vouches_for_nobody_any_more(
    authority: Authority, eu: Files, box: Files, tmp_path: Path
) -> None:
    watched, other = Watched(eu), Authority(tmp_path / "b")
    theirs = other.issue("registry", "eu", "127.0.0.1")
    newcomer = other.issue("node", "box")
    watched.shown_to(box)
    assert eu.ca is not None
    assert theirs.ca is not None
    old, new = eu.ca.read_text(), theirs.ca.read_text()
    eu.ca.write_text(old + new)  # both for a while
    watched.look()
    watched.shown_to(box)
    watched.shown_to(replace(newcomer, ca=eu.ca))
    copied(theirs, eu)
    watched.look()
    watched.shown_to(newcomer)
    with pytest.raises(ssl.SSLError):
        watched.shown_to(box)


def test_what_cannot_be_used_is_left_and_told_of_once(authority: Authority, eu: Files, box: Files) -> None:
    watched = Watched(eu)
    before = watched.shown_to(box)
    assert eu.cert is not None
    good = eu.cert.read_bytes()
    eu.cert.write_bytes(good[:100])
    assert watched.look() == []  # it may be in the midst of being written
    ((event, detail),) = watched.look()
    assert event == "unusable"
    assert detail == f"{eu.cert}: holds no certificate in PEM form, or not all of it; what was there before is used on"
    assert [watched.look() for _ in range(3)] == [[], [], []]
    assert watched.shown_to(box) == before
    eu.cert.unlink()
    assert [watched.look(), watched.look()] == [
        [], [("unusable", f"{eu.cert}: No such file or directory; what was there before is used on")],
    ]  # fmt: skip
    eu.cert.write_bytes(good)
    assert watched.look() == [("reloaded", f"{eu.cert}, {eu.ca}")]


def test_certificate_and_key_are_written_one_after_the_other(authority: Authority, eu: Files, box: Files) -> None:
    watched, newer = Watched(eu), authority.issue("registry", "eu", "127.0.0.1", to="newer")
    assert eu.cert is not None
    assert eu.key is not None
    assert newer.cert is not None
    assert newer.key is not None
    shutil.copy(newer.cert, eu.cert)
    assert watched.look() == []
    watched.shown_to(box)
    shutil.copy(newer.key, eu.key)
    assert [event for event, _ in watched.look()] == ["reloaded"]
    watched.shown_to(box)


def test_a_link_that_leads_elsewhere_is_another_file(authority: Authority, eu: Files, box: Files) -> None:
    """As Kubernetes and certbot replace them."""
    newer = authority.issue("registry", "eu", "127.0.0.1", to="newer")
    at = {name: authority.folder / f"live-{name}" for name in ("cert", "key")}
    for name, link in at.items():
        link.symlink_to(getattr(eu, name))
    watched = Watched(Files(at["cert"], at["key"], eu.ca))
    before = watched.shown_to(box)
    for name, link in at.items():
        link.unlink()
        link.symlink_to(getattr(newer, name))
    assert [event for event, _ in watched.look()] == ["reloaded"]
    assert watched.shown_to(box) != before


# what expires


def test_what_expires_is_told_of_once_a_day_from_two_weeks_before(authority: Authority, tmp_path: Path) -> None:
    watched = Watched(authority.issue("registry", "eu", days=20))
    ((name, until_s), _) = watched.certificates.expiries_s.items()
    days: list[tuple[float, str]] = []
    for quarter in range(4 * 22):
        at_s = until_s - 20 * DAY_S + quarter * DAY_S / 4
        before = len(watched.told)
        watched.certificates.warn(at_s)
        days += [((at_s - until_s) / DAY_S, detail) for _, detail in watched.told[before:] if name in detail]
    assert [day for day, _ in days] == [float(day) for day in range(-14, 2)]
    assert {event for event, _ in watched.told} == {"expiring"}


@pytest.mark.parametrize(
    ("left_s", "words"),
    [
        (13.5 * DAY_S, "expires in 13 days"),
        (1.9 * DAY_S, "expires in 45 hours"),
        (60.0, "expires in an hour or less"),
        (0.0, "has expired"),
        (-DAY_S, "has expired"),
    ],
)
def test_how_it_is_said(left_s: float, words: str) -> None:
    assert expiry_sentence("eu.crt", left_s).startswith(f"eu.crt {words}")


def test_a_new_one_ends_the_warnings(authority: Authority) -> None:
    files = authority.issue("registry", "eu", days=3)
    watched = Watched(files)
    now_s = NOW.timestamp()
    watched.certificates.warn(now_s)
    assert [event for event, _ in watched.told] == ["expiring"]
    authority.issue("registry", "eu", days=25)
    watched.look()
    watched.certificates.warn(now_s + 2 * DAY_S)
    assert [event for event, _ in watched.told] == ["expiring", "reloaded"]
    authority.issue("registry", "eu", days=5)
    watched.look()
    watched.certificates.warn(now_s)  # this one was not warned of yet
    assert [event for event, _ in watched.told] == ["expiring", "reloaded", "reloaded", "expiring"]


# whose it is


def test_the_node_that_a_certificate_names(
    authority: Authority, eu: Files, box: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the agent reads it, and the script that has nothing but Python."""
    named: list[tuple[Any, str | None]] = [
        (box, "box"),
        (eu, None),
        (authority.issue("node", "a:b.C_d-e"), "a:b.C_d-e"),
    ]
    long = ("x", "0" * 120, "Z" * 200)
    named += [(authority.issue("node", text, "localhost", to=str(len(text))), text) for text in long]
    for files, name in named:
        monkeypatch.setenv("NODE_CERT", str(files.cert))
        assert node_of(files.cert) == certified_id() == name
    assert node_of(tmp_path / "none") is None
    assert node_of(authority.ca) is None
    assert box.key is not None
    assert node_of(box.key) is None
    for path in (tmp_path / "none", box.key, tmp_path):
        monkeypatch.setenv("NODE_CERT", str(path))
        assert certified_id() is None


def test_the_script_too_takes_up_new_files_and_leaves_broken_ones(
    authority: Authority, box: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert box.cert is not None
    for name, path in (("CA_CERT", box.ca), ("NODE_CERT", box.cert), ("NODE_KEY", box.key)):
        monkeypatch.setenv(name, str(path))
    monkeypatch.setenv("NODE_REGISTRY_URL", "https://127.0.0.1:1")  # nobody answers
    registries = Registries()
    first = registries.opener
    registries.call("GET", "/", None, None)
    assert registries.opener is first
    box.cert.write_text("half of it")
    registries.call("GET", "/", None, None)
    assert registries.opener is first
    authority.issue("node", "box")
    registries.call("GET", "/", None, None)
    assert registries.opener is not first
