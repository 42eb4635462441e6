"""How the commands ask a running registry over HTTP. Where that is not possible, whose fault it is and what to do.

Imported by commands only when they run: a registry's start does not pay for it.
"""

import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from dotenv import dotenv_values

from federation.tls import Certificates, Files, UnusableError, alert_sentence

DEFAULT_URL = "http://127.0.0.1:9205"
DEFAULT_ENV_FILE = Path(".env")
KEY_NAMES = ("REGISTRY_ADMIN_KEY", "REGISTRY_READ_KEY")
TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 * 2**20
_NO_KEY = (
    "needs a key: set REGISTRY_ADMIN_KEY (or REGISTRY_READ_KEY) in the environment or in the --env-file; "
    "a registry that made its own admin key showed it at its first start"
)


class CannotAsk(Exception):
    """The registry could not be asked; the text says whose fault it is and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which registry is asked, and with what. `key_name`: the setting that the key came from."""

    url: str
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, and JSON (None where it was none) or text."""

    status: int
    body: Any
    text: str
    raw: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def detail(self) -> str:
        """The sentence of a problem document."""
        return str(self.body.get("detail") or "") if isinstance(self.body, dict) else ""


def target(url: str | None, env_file: Path | None, tls_ca: Path | None, environ: Mapping[str, str]) -> Target:
    """Flags, then environment, then the env file, as `serve` reads them. Raises CannotAsk."""
    if env_file is not None and not env_file.is_file():
        raise CannotAsk(f"--env-file {env_file}: there is no such file")
    try:
        written = dotenv_values(env_file or DEFAULT_ENV_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise CannotAsk(f"{env_file or DEFAULT_ENV_FILE} cannot be read as text: {error}") from None
    given = {**written, **environ}

    def path(name: str) -> Path | None:
        return Path(given[name] or "").expanduser() if given.get(name) else None

    chosen = url or given.get("REGISTRY_URL") or _listening(given)
    if not _is_url(chosen):
        raise CannotAsk(f"--url (REGISTRY_URL) {chosen!r} is not a URL such as {DEFAULT_URL}")
    key_name = next((name for name in KEY_NAMES if given.get(name)), None)
    key = (given[key_name] or "").strip() if key_name else None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise CannotAsk(f"{key_name} holds spaces or characters that no key has; paste it again, on one line")
    return Target(
        chosen.rstrip("/"), key, key_name,
        tls_ca or path("REGISTRY_TLS_CA"), path("REGISTRY_TLS_CERT"), path("REGISTRY_TLS_KEY"),
    )  # fmt: skip


def _listening(given: Mapping[str, str | None]) -> str:
    """Where a registry with these settings listens. TLS is not guessed: its certificate may have another name."""
    host, port = given.get("REGISTRY_HOST") or "", given.get("REGISTRY_PORT") or "9205"
    if host in ("", "0.0.0.0", "::", "localhost"):  # noqa: S104 - not bound here
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_url(text: str) -> bool:
    try:
        split = urlsplit(text)
        return split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:  # a port out of range, half an IPv6 address
        return False


class AdminClient:
    """One registry's HTTP API. No redirect is followed: it would carry the key to somebody else."""

    def __init__(self, to: Target) -> None:
        self.url = to.url
        self._to = to
        self._split = urlsplit(to.url)
        self._tls = _certificates(to).client if self._split.scheme == "https" else None

    def get(self, path: str, accept: str = "application/json") -> Answer:
        """200 and 503 come back; everything else raises CannotAsk."""
        answer = self._request("GET", path, accept)
        return answer if answer.status in (200, 503) else self._explain(answer)

    def delete(self, path: str, within_s: float = TIMEOUT_S) -> Answer:
        """200, 404, 409, 422 and 503 come back; everything else raises CannotAsk."""
        answer = self._request("DELETE", path, "application/json", within_s=within_s)
        return answer if answer.status in (200, 404, 409, 422, 503) else self._explain(answer)

    def send(self, method: str, path: str, body: Mapping[str, Any]) -> Answer:
        """A change, as JSON. 200, 404, 409, 422 and 503 come back; everything else raises CannotAsk."""
        answer = self._request(method, path, "application/json", json.dumps(body).encode())
        return answer if answer.status in (200, 404, 409, 422, 503) else self._explain(answer)

    def readiness(self) -> list[str]:
        """Why the registry is not ready; nothing when it is. What answers here may be no registry at all."""
        body = self.get("/readyz").body
        if not isinstance(body, dict) or not isinstance(body.get("reasons"), list):
            raise CannotAsk(f"what answers at {self.url} is no node registry; check --url")
        return [str(reason) for reason in body["reasons"]] or ([] if body.get("ready") is True else ["no reason given"])

    def _explain(self, answer: Answer) -> NoReturn:
        key_name = self._to.key_name
        if answer.status == 401 and key_name is None:
            raise CannotAsk(f"{self.url} {_NO_KEY}")
        if answer.status == 401 and isinstance(answer.body, dict) and answer.body.get("code") != "unauthenticated":
            raise CannotAsk(f"{self.url} refuses the key in {key_name}: {answer.detail}")
        if answer.status == 401:
            raise CannotAsk(
                f"{self.url} does not know the key in {key_name}; is it another registry's? --url or "
                "REGISTRY_URL names the one to ask"
            )
        if answer.status == 403 and isinstance(answer.body, dict):
            raise CannotAsk(f"{self.url} refuses this to the key in {key_name}: {answer.detail}")
        if answer.status == 404 and isinstance(answer.body, dict) and answer.body.get("code") == "no_such_route":
            raise CannotAsk(f"{self.url} is a registry of an older version, which cannot tell this; upgrade it")
        if isinstance(answer.body, dict) and answer.detail:
            raise CannotAsk(f"{self.url} answered {answer.status}: {answer.detail}")
        raise CannotAsk(f"what answers at {self.url} is no node registry (it said {answer.status}); check --url")

    def _request(
        self, method: str, path: str, accept: str, body: bytes | None = None, within_s: float = TIMEOUT_S
    ) -> Answer:
        headers = {"Accept": accept, "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._to.key:
            headers["Authorization"] = f"Bearer {self._to.key}"
        connection, waits_s = self._connection(), TIMEOUT_S
        try:
            connection.connect()
            waits_s = within_s
            connection.sock.settimeout(waits_s)
            connection.request(method, self._split.path + path, body=body, headers=headers)
            answer = connection.getresponse()
            raw = answer.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CannotAsk(f"{self.url} cannot be asked: {_why(error, self._to, waits_s)}") from None
        finally:
            connection.close()
        text = raw.decode(errors="replace")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        return Answer(answer.status, body, text, raw, dict(answer.getheaders()))

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._split.hostname or "", self._split.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


def _certificates(to: Target) -> Certificates:
    """The system's authorities, or the given one; with our own certificate where there is one (mutual TLS)."""
    own = Files(to.tls_cert, to.tls_key) if to.tls_cert is not None and to.tls_key is not None else Files()
    try:
        return Certificates(replace(own, ca=to.tls_ca))
    except UnusableError as error:
        raise CannotAsk(f"--tls-ca, REGISTRY_TLS_CERT or REGISTRY_TLS_KEY cannot be used: {error}") from None


def _why(error: Exception, to: Target, waits_s: float) -> str:
    """Why there was no answer, and what to do about it."""
    secured = to.url.startswith("https")
    match error:
        case ssl.SSLCertVerificationError():
            named = f"{to.tls_ca} does not vouch for it" if to.tls_ca else "--tls-ca names the authority to trust"
            return f"its certificate is not trusted ({error.verify_message}); {named}"
        case ssl.SSLError() if (alert := alert_sentence(error)) is not None:
            return f"{alert}; set REGISTRY_TLS_CERT and REGISTRY_TLS_KEY to what it takes"
        case ssl.SSLError():
            return "it does not speak TLS; is it http:// rather than https://?"
        case TimeoutError():
            return f"no answer within {waits_s:g} s; is it overloaded, or a firewall between?"
        case ConnectionRefusedError():
            return (
                "connection refused; is it running? `dagi-registry serve` starts it, --url (REGISTRY_URL) names another"
            )
        case socket.gaierror():
            return f"the host's name cannot be looked up ({error.strerror}); check --url"
        case ConnectionError() | http.client.HTTPException():
            other = "does it want a certificate (REGISTRY_TLS_CERT and _KEY)?" if secured else "is it https://?"
            return f"it hung up, or does not speak HTTP; check the port (--url, REGISTRY_URL), or {other}"
        case OSError():
            return f"{os.strerror(error.errno).casefold() if error.errno else error}; check --url and the network"
    return f"{error}; check --url"
