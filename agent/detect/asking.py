"""Asking one engine over HTTP, within limits: nothing that an engine answers may cost more than its own field."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

MAX_ANSWER_BYTES = 8 * 2**20  # 10,000 models are 3 to 6 MB, by engine
TIMEOUT_S = 2.0  # of one answer: an engine that loads a model is slow for a moment
Json = Any


class Silent(Exception):
    """Nothing answers, or not in time; the text says which, and of what."""


class OtherAnswer(Exception):
    """Something answered, and not what was asked for."""


def dialable(url: str) -> str:
    """An address to dial. Ollama's own setting may be one to bind: 0.0.0.0, or without a scheme.

    Without a port it is Ollama's, unless a scheme says otherwise, as Ollama itself reads it.
    Raises ValueError for what is no address.
    """
    bare = "://" not in url
    split = urlsplit(f"http://{url}" if bare else url)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(split.hostname or "", split.hostname)  # noqa: S104 - not bound here
    port = split.port or (11434 if bare else {"https": 443}.get(split.scheme, 80))
    return urlunsplit(
        (split.scheme, f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}", split.path.rstrip("/"), "", "")
    )


class Asker:
    """Asks one address. What was got is remembered, as several kinds of engines are looked for by the same paths."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base
        self._got: dict[str, Json | OtherAnswer] = {}

    async def get(self, path: str) -> Json:
        """Decoded JSON. Raises Silent or OtherAnswer."""
        if path not in self._got:
            try:
                self._got[path] = _decoded(await self._read("GET", path))
            except OtherAnswer as error:
                self._got[path] = error
        got = self._got[path]
        if isinstance(got, OtherAnswer):
            raise got
        return got

    async def get_or_none(self, path: str) -> Json:
        """The same, and None for what this engine does not have. Raises Silent."""
        try:
            return await self.get(path)
        except OtherAnswer:
            return None

    async def text(self, path: str) -> str:
        """Plain text, as metrics are; empty for what this engine does not have. Raises Silent."""
        try:
            return (await self._read("GET", path)).decode(errors="replace")
        except OtherAnswer:
            return ""

    async def post(self, path: str, body: Json) -> Json:
        """Decoded JSON. Raises Silent or OtherAnswer."""
        return _decoded(await self._read("POST", path, body))

    async def _read(self, method: str, path: str, body: Json = None) -> bytes:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async with self._session.request(method, self._base + path, json=body, allow_redirects=False) as answer:
                    if answer.status != 200:
                        raise OtherAnswer(f"it answered {answer.status}")
                    return await _bounded(answer)
        except TimeoutError:
            raise Silent(f"no answer within {TIMEOUT_S:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise Silent(f"nothing answers at {error.host}:{error.port}") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError):
            raise Silent("the connection was closed before the answer was complete") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # no HTTP, or no address
            raise OtherAnswer(str(error)[:200] or type(error).__name__) from None


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise OtherAnswer(f"its answer is over {MAX_ANSWER_BYTES // 2**20} MiB")
    return b"".join(parts)


def _decoded(body: bytes) -> Json:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise OtherAnswer("its answer is no JSON") from None


def items(answer: Json, key: str) -> list[dict[str, Json]]:
    """The objects in a list that an answer holds; none for any other answer."""
    listed = answer.get(key) if isinstance(answer, dict) else None
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def part(answer: Json, *keys: str) -> Json:
    """What stands under keys of nested objects; None where one is missing or no object."""
    for key in keys:
        answer = answer.get(key) if isinstance(answer, dict) else None
    return answer


def gauges(text: str, names: Iterable[str]) -> dict[str, float]:
    """Sums of the named gauges in a text of Prometheus' format: engines give one line for each model."""
    wanted = set(names)
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name not in wanted:
            continue
        try:
            value = float(line.rpartition("}")[2].split()[0] if "{" in line else line.split()[1])
        except (ValueError, IndexError):
            continue
        if value - value == 0:
            found[name] = found.get(name, 0.0) + value
    return found
