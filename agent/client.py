"""The agent's end of the registry's HTTP contract: one request, one Outcome, over a list of registries."""

import json
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from agent.session import Outcome

TIMEOUT_S = 5.0
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

    @property
    def url(self) -> str:
        """The registry in use."""
        return self._urls[self._current]

    async def call(
        self, method: str, path: str, *, key: str | None = None, body: Json = None, params: Json = None
    ) -> tuple[Outcome, Json]:
        """One request; where a registry gives no answer, or 502 to 504, the next in the list is asked."""
        outcome, data = Outcome(None, "no registry is known"), None
        for _ in self._urls:
            outcome, data = await self._once(method, path, key, body, params)
            if outcome.status is not None and outcome.status not in (502, 503, 504):
                break
            if len(self._urls) > 1:
                self._current = (self._current + 1) % len(self._urls)
        return outcome, data

    async def _once(self, method: str, path: str, key: str | None, body: Json, params: Json) -> tuple[Outcome, Json]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        started = time.perf_counter()
        try:
            async with self._opened().request(
                method, self.url + path, json=body, params=params, headers=headers, allow_redirects=False
            ) as answer:
                raw = await answer.read()
                self.last_ms = (time.perf_counter() - started) * 1000
                return _outcome(answer.status, raw, answer.headers.get("Retry-After"))
        except TimeoutError:
            return Outcome(None, f"{self.url} did not answer within {TIMEOUT_S:g} s"), None
        except (aiohttp.ClientError, OSError) as error:
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
                connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=2.0)
            )
        return self._session


def _outcome(status: int, raw: bytes, retry_after: str | None) -> tuple[Outcome, Json]:
    try:
        data = json.loads(raw) if raw else None
    except ValueError:
        data = None
    if status == 200:
        if isinstance(data, dict):
            return Outcome(200), data
        return Outcome(None, "what answers there is not a registry"), None
    told = data.get("detail") if isinstance(data, dict) else None
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return Outcome(status, f"{status}, {told}" if told else f"it answered {status}", seconds), data


def _plain(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return (error.strerror or str(error)).casefold()
    return str(error) or type(error).__name__


def _tls(ca_cert: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if ca_cert is None and cert is None:
        return None
    context = ssl.create_default_context(cafile=ca_cert)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context
