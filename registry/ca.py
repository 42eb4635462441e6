"""A small private authority: what it certifies, and how. No I/O: keys and the moment are given, PEM comes out.

It follows RFC 5280 where that matters to whoever checks: the authority may sign certificates of holders and nothing
else, a node's certificate is for clients, a registry's for servers and clients, as registries dial each other.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.tls import NODE_URI, REGISTRY_URI
from registry.names import NODE_ID_PATTERN, REGISTRY_ID_PATTERN, RESERVED_NODE_IDS

CA_DAYS, HOLDER_DAYS = 3_650, 365
SLACK = timedelta(hours=1)  # clocks of machines that are to take a certificate at once may be late
_COMMON_NAME_LENGTH = 64  # RFC 5280's upper bound
Kind = Literal["node", "registry"]


class CannotIssueError(Exception):
    """Whose fault it is and what to do, in one sentence."""


class WrongNameError(CannotIssueError):
    """What the certificate is to name cannot be named: no file is at fault."""


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority's certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def until(self) -> datetime:
        """When it expires; nothing that it signs is good for longer."""
        return self.certificate.not_valid_after_utc


def new_key() -> ec.EllipticCurvePrivateKey:
    """ECDSA over P-256: everything that speaks TLS takes it, browsers and old tools too."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key's file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate's file."""
    return certificate.public_bytes(Encoding.PEM)


def authority_of(certificate: bytes, key: bytes) -> Authority:
    """An authority from its files. Raises CannotIssueError."""
    try:
        read, secret = x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise CannotIssueError("its ca.crt or ca.key is damaged, or locked with a passphrase") from None
    if not isinstance(secret, ec.EllipticCurvePrivateKey):
        raise CannotIssueError("its ca.key is of another kind than those that are made here (ECDSA)")
    if secret.public_key() != read.public_key():
        raise CannotIssueError("its ca.crt and ca.key do not belong together")
    return Authority(read, secret)


def new_authority(name: str, key: ec.EllipticCurvePrivateKey, now: datetime, days: int, hosts: Sequence[str]) -> bytes:
    """An authority's certificate. `hosts`: the names, with what is below them, and the addresses or networks that it
    may certify; none: all. Raises CannotIssueError."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_COMMON_NAME_LENGTH])])
    builder = (
        _dated(subject, key.public_key(), now, now + timedelta(days=days))
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    if hosts:
        builder = builder.add_extension(x509.NameConstraints(_permitted(hosts), None), critical=True)
    return certificate_pem(builder.sign(key, SHA256()))


def issued(
    authority: Authority, kind: Kind, name: str, public_key: ec.EllipticCurvePublicKey, hosts: Iterable[str],
    now: datetime, days: int,
) -> bytes:  # fmt: skip
    """A certificate for a node or a registry of that id, reachable under those names and addresses. Raises
    CannotIssueError."""
    uri = (NODE_URI if kind == "node" else REGISTRY_URI) + _checked(kind, name)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), *map(_host, hosts)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if kind == "registry" or len(names) > 1:
        usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
    # For people. With its space it is no host's name, which name constraints would be applied to.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{kind} {name}"[:_COMMON_NAME_LENGTH])])
    builder = (
        _dated(subject, public_key, now, _until(authority, now, timedelta(days=days)))
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_authority_key(authority), critical=False)
    )
    return certificate_pem(builder.sign(authority.key, SHA256()))


def renewed(authority: Authority, pem: bytes, now: datetime, days: int | None) -> bytes:
    """The same certificate for the same key, from now on, for as long as the old one was good for or that many days.
    The authority's own too. Raises CannotIssueError."""
    try:
        old = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise CannotIssueError("it holds no certificate in PEM form") from None
    own = old.public_key() == authority.certificate.public_key()
    try:
        old.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise CannotIssueError("another authority made it: that one has to renew it") from None
    validity = timedelta(days=days) if days else old.not_valid_after_utc - old.not_valid_before_utc - SLACK
    until = now + validity if own else _until(authority, now, validity)
    builder = _dated(old.subject, old.public_key(), now, until).issuer_name(authority.certificate.subject)  # type: ignore[arg-type]  # of any kind that it had
    for extension in old.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):  # there already
            builder = builder.add_extension(extension.value, critical=extension.critical)
    return certificate_pem(builder.sign(authority.key, SHA256()))


def expires(pem: bytes) -> datetime:
    """When a certificate expires."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def _dated(
    subject: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _until(authority: Authority, now: datetime, validity: timedelta) -> datetime:
    if authority.until <= now:
        raise CannotIssueError("the authority has expired: renew its ca.crt first, and give it to everybody")
    return min(now + validity, authority.until)


def _authority_key(authority: Authority) -> x509.AuthorityKeyIdentifier:
    try:
        found = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:  # one that others made
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _checked(kind: Kind, name: str) -> str:
    pattern, characters = (NODE_ID_PATTERN, "._:-") if kind == "node" else (REGISTRY_ID_PATTERN, "._-")
    if not re.fullmatch(pattern, name) or (kind == "node" and name in RESERVED_NODE_IDS):
        raise WrongNameError(f"{name!r} is no {kind} id: letters, digits and {' '.join(characters)} are what it has")
    return name


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(_dns_name(text))


def _permitted(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Of a kind that is not named nothing is permitted: who names only hosts means no address, too."""
    names: list[x509.GeneralName] = []
    for text in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            names.append(x509.DNSName(_dns_name(text)))
    if not any(isinstance(name, x509.DNSName) for name in names):
        names.append(x509.DNSName("invalid"))  # RFC 6761: nobody's
    if not any(isinstance(name, x509.IPAddress) for name in names):
        names.append(x509.IPAddress(ipaddress.ip_network("192.0.2.0/32")))  # RFC 5737: nobody's; no IPv6 matches it
    return names


def _dns_name(text: str) -> str:
    labels = text.removeprefix("*.").split(".")
    for label in labels:
        fits = 0 < len(label) < 64 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
        if not fits:
            raise WrongNameError(f"{text!r} is neither a host's name (registry.example.org) nor an address")
    return text
