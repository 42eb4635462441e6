"""TLS whose certificates are files that may be replaced at any time: what is opened next uses the new ones.

For all that listens or dials with a certificate: registries, their links, and agents. TLS 1.3 only.
"""

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NODE_URI, REGISTRY_URI = "urn:dagi:node:", "urn:dagi:registry:"  # then the id, among the alternative names
LOOK_EVERY_S = 2.0
WARN_BEFORE_S = 14 * 86_400.0
WARN_EVERY_S = 86_400.0
Side = Literal["server", "client"]
Event = Literal["reloaded", "unusable", "expiring"]


class UnusableError(Exception):
    """A file cannot be used; one sentence names it and says why."""


@dataclass(frozen=True, slots=True)
class Files:
    """PEM. `cert`: the own chain, the own certificate first. `key`: of it. `ca`: whom to trust; None: whom the
    system does, when dialling, and nobody is asked for a certificate, when listening."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def signature(self) -> tuple[object, ...]:
        """What is another when a file was replaced, or a link leads to another file."""
        return tuple(_signature(path) for path in (self.cert, self.key, self.ca) if path is not None)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """`expiries_s`: until when (Unix time) each is good, by its file."""

    contexts: Mapping[Side, ssl.SSLContext]
    expiries_s: Mapping[str, float]


class Certificates:
    """The certificates in some files, as contexts that never get old. Not for several threads at once."""

    def __init__(
        self,
        files: Files,
        *,
        listens: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        told: Callable[[Event, str], None] = lambda event, detail: None,
    ) -> None:
        """`told`: what people should know, once each. Raises UnusableError."""
        self.told = told
        self._files, self._sides = files, tuple(_sides(listens))
        self._monotonic = monotonic
        self._tried: object = files.signature()
        self._failing: object = None
        self._looked_s = monotonic()
        self._warned_s: dict[str, float] = {}
        # The system's authorities are not read until somebody dials https: that takes a while.
        self._loaded = _load(files, self._sides) if files != Files() else None
        self.client = _Following("client", self._current)
        self.server = _Following("server", self._current)

    def look(self) -> None:
        """See whether files were replaced, and use them. What cannot be used is left, and told of when it is still so
        at the next look: certificate and key are written one after the other."""
        if self._monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = self._monotonic()
        signature = self._files.signature()
        if signature == self._tried:
            return
        try:
            self._loaded = _load(self._files, self._sides)
        except UnusableError as error:
            if signature == self._failing:
                self._tried = signature
                self.told("unusable", f"{error}; what was there before is used on")
            self._failing = signature
            return
        self._tried, self._failing = signature, None
        self._warned_s.clear()
        self.told("reloaded", ", ".join(self._loaded.expiries_s))

    def warn(self, now_s: float) -> None:
        """Tell, once a day, what expires soon. `now_s`: Unix time."""
        for name, until_s in self.expiries_s.items():
            due = now_s - self._warned_s.get(name, float("-inf")) >= WARN_EVERY_S
            if due and until_s - now_s <= WARN_BEFORE_S:
                self._warned_s[name] = now_s
                self.told("expiring", expiry_sentence(name, until_s - now_s))

    @property
    def expiries_s(self) -> Mapping[str, float]:
        """Until when (Unix time) each certificate is good, by its file; of several in one the first that expires."""
        return self._loaded.expiries_s if self._loaded is not None else {}

    def _current(self, side: Side) -> ssl.SSLContext:
        self.look()
        if self._loaded is None:
            self._loaded = _load(self._files, self._sides)
        return self._loaded.contexts[side]


class _Following(ssl.SSLContext):
    """Stands for whichever context is current when a connection is made: it is asked for each."""

    def __new__(cls, side: Side, current: Callable[[Side], ssl.SSLContext]) -> "_Following":
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, side: Side, current: Callable[[Side], ssl.SSLContext]) -> None:
        self._side, self._current = side, current

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *arguments: Any, **options: Any
    ) -> ssl.SSLObject:
        """One connection's, for asyncio and uvloop."""
        made = self._current(self._side).wrap_bio(incoming, outgoing, *arguments, **options)
        if isinstance(made, _Alerting):
            made.outgoing = outgoing
        return made

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """One connection's."""
        return self._current(self._side).wrap_socket(*arguments, **options)


_ALERTS = {
    "CERTIFICATE_REQUIRED": "it wants a certificate, and was shown none",
    "UNKNOWN_CA": "it does not know the authority of the certificate that it was shown",
    "CERTIFICATE_EXPIRED": "the certificate that it was shown has expired",
    "UNSUPPORTED_CERTIFICATE": "the certificate that it was shown is not for clients (clientAuth)",
    "BAD_CERTIFICATE": "it does not take the certificate that it was shown",
    "CERTIFICATE_UNKNOWN": "it does not take the certificate that it was shown",
    "PROTOCOL_VERSION": "it does not speak TLS 1.3",
}


def alert_sentence(error: BaseException) -> str | None:
    """Why the other side ended a TLS connection, if it said so. Whoever listens looks at certificates when whoever
    dials thinks that all is done: its word arrives in place of an answer."""
    text = str(error)
    return next((told for name, told in _ALERTS.items() if f"ALERT_{name}" in text), None)


class _Alerting(ssl.SSLObject):
    """Lets the other side hear why a handshake fails: asyncio and uvloop hang up at once, and the alert that OpenSSL
    has written is never sent. So they are told to send and wait, and of the failure with what comes next."""

    outgoing: ssl.MemoryBIO | None = None
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Go on with it. Raises ssl.SSLError."""
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError as error:
            if self.outgoing is None or not self.outgoing.pending:
                raise
            self._failure = error
            raise ssl.SSLWantReadError from None


def node_of(path: Path) -> str | None:
    """The node that a certificate names by a URI of ours; None: none, or it cannot be read."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # of many kinds: somebody else made the file
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    ids = {uri[len(NODE_URI) :] for uri in uris if uri[: len(NODE_URI)].lower() == NODE_URI}
    return ids.pop() if len(ids) == 1 else None


def expiry_sentence(name: str, left_s: float) -> str:
    """What to say of a certificate that expires in so long, or has."""
    if left_s <= 0:
        return f"{name} has expired, and nobody takes it any more; put a new one in its place"
    days, hours = int(left_s // 86_400), int(left_s // 3_600)
    left = f"{days} days" if days > 1 else f"{hours} hours" if hours > 1 else "an hour or less"
    return f"{name} expires in {left}; put a new one in its place, nothing has to be restarted"


def _sides(listens: bool) -> Iterator[Side]:
    yield "client"
    if listens:
        yield "server"


def _signature(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _load(files: Files, sides: tuple[Side, ...]) -> _Loaded:
    for path in (files.cert, files.key, files.ca):
        if path is not None:
            _readable(path)
    expiries_s = {str(path): _first_expiry_s(path) for path in (files.cert, files.ca) if path is not None}
    return _Loaded({side: _context(files, side) for side in sides}, expiries_s)


def _context(files: Files, side: Side) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if side == "server":
        context.sslobject_class = _Alerting
        context.num_tickets = 0  # who resumes is not looked at again: not its certificate, nor when that expires
    if files.cert is not None:
        try:
            context.load_cert_chain(files.cert, files.key, password=lambda: _locked(files.key or files.cert))
        except OSError as error:
            raise UnusableError(_why(error, files)) from None
    if files.ca is not None:
        try:
            context.load_verify_locations(files.ca)
        except OSError as error:
            raise UnusableError(f"{files.ca}: holds no certificate in PEM form ({error})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    elif side == "client":
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def _locked(path: Path | None) -> bytes:
    raise UnusableError(f"{path}: the key is locked with a passphrase, and nobody is there to type it")


def _readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UnusableError(f"{path}: {error.strerror or error}") from None


def _why(error: OSError, files: Files) -> str:
    """The certificate could be read before: it is the key, or what both are together."""
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return f"{files.key} is not the key of the certificate in {files.cert}"
    if reason:
        return f"{files.cert} with {files.key}: {reason.replace('_', ' ').lower()}"
    return f"{files.key or files.cert}: holds no private key in PEM form, or not all of it"


def _first_expiry_s(path: Path) -> float:
    from cryptography import x509  # takes a while, and most agents have no certificate

    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
        return min(each.not_valid_after_utc.timestamp() for each in found)
    except Exception:  # of many kinds: somebody else made the file
        raise UnusableError(f"{path}: holds no certificate in PEM form, or not all of it") from None


def unsent_bytes(transport: Any) -> int:
    """What a transport holds that was not sent; 0 for one over TLS that is lost, which raises when asked."""
    try:
        return int(transport.get_write_buffer_size())
    except AttributeError:
        return 0


def abort(transport: Any) -> None:
    """End a connection at once, also where nothing is left of it."""
    with contextlib.suppress(AttributeError):
        transport.abort()
