"""The agent's end of the registry's HTTP contract: one request, one Outcome, over a list of registries."""

import os
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from agent.config import ConfigurationError
from agent.session import Outcome
from agent.wire import read_answer

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 * 2**20  # a page of 1,000 nodes of 4 KB is a quarter of it
Json = Any


class RegistryClient:
    """Talks to the first registry of the list that answers, and stays with it while it does."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        ca_cert: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self._urls = list(urls)
        self._current = 0
        self._tls = _tls(ca_cert, cert, key)
        self._session: aiohttp.ClientSession | None = None
        self.last_ms: float | None = None
        self.passed_over = ""  # of the last call: which registries gave no answer before one did, and why

    @property
    def url(self) -> str:
        """The registry in use."""
        return self._urls[self._current]

    async def call(
        self, method: str, path: str, *, key: str | None = None, body: Json = None, params: Json = None
    ) -> tuple[Outcome, Json]:
        """One request; where a registry gives no answer, or 502 to 504, the next in the list is asked."""
        outcome, data = Outcome(None, "no registry is known"), None
        failures: list[str] = []
        for _ in self._urls:
            outcome, data = await self._once(method, path, key, body, params)
            if outcome.status is not None and outcome.status not in (502, 503, 504):
                self.passed_over = "; ".join(failures)
                return outcome, data
            failures.append(outcome.detail)
            self._current = (self._current + 1) % len(self._urls)
        return replace(outcome, detail="; ".join(failures) or outcome.detail), data

    async def _once(self, method: str, path: str, key: str | None, body: Json, params: Json) -> tuple[Outcome, Json]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        started = time.perf_counter()
        try:
            async with self._opened().request(
                method, self.url + path, json=body, params=params, headers=headers, allow_redirects=False
            ) as answer:
                raw = await _read(answer)
                self.last_ms = (time.perf_counter() - started) * 1000
                return read_answer(self.url, answer.status, raw, answer.headers)
        except TimeoutError:
            return Outcome(None, f"{self.url} did not answer within {TIMEOUT_S:g} s"), None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(None, f"{self.url}: {_plain(error)}"), None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls) if self._tls else aiohttp.TCPConnector()
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=2.0),
                cookie_jar=aiohttp.DummyCookieJar(),  # a login page on the way must leave nothing behind
            )
        return self._session


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is over {MAX_ANSWER_BYTES} bytes; that is no registry's")
    return bytes(body)


def _plain(error: BaseException) -> str:
    """Why a request got no answer, in words that say what to look at."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({error.certificate_error}); CA_CERT names the authority to trust"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"no TLS connection ({error.strerror or error}); is it http:// rather than https://?"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _why_not_connected(error.os_error)
    if isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return "the connection was closed before the answer was complete"
    if isinstance(error, aiohttp.ClientResponseError):
        return "what answers there does not speak HTTP; check the port"
    return str(error) or type(error).__name__


def _why_not_connected(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused (is the registry running there?)"
    if isinstance(error, socket.gaierror):
        return f"the host's name cannot be looked up ({error.strerror})"
    return os.strerror(error.errno).casefold() if error.errno else str(error)


def _tls(ca_cert: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if ca_cert is None and cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca_cert)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:
        raise ConfigurationError(f"CA_CERT, NODE_CERT or NODE_KEY cannot be used: {error.strerror or error}") from None
    return context
