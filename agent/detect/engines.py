"""Inference engines on this machine: asked on loopback, known by what they answer."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

OLLAMA_URL = "http://127.0.0.1:11434"
MAX_ANSWER_BYTES = 4 * 2**20  # 10,000 models are about 3 MB
TIMEOUT_S = 2.0
GB = 2**30
Json = Any


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


async def detect_ollama(url: str = OLLAMA_URL) -> dict[str, Json]:
    """`{available, version, models, reason}`. Nothing is asked that would load a model."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        base = dialable(url)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            version, tags, running = await asyncio.gather(
                _ask(session, f"{base}/api/version"), _ask(session, f"{base}/api/tags"), _running(session, base)
            )
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
        return {"available": False, "models": [], "reason": _why(error)}
    if not isinstance(version, dict) or "version" not in version:
        return {"available": False, "models": [], "reason": "what answers there is not Ollama"}
    return {"available": True, "version": str(version["version"]), "models": parse_ollama(tags, running)}


async def _running(session: aiohttp.ClientSession, base: str) -> Json:
    """What is loaded; None from an Ollama that cannot tell (before 0.1.33)."""
    try:
        return await _ask(session, f"{base}/api/ps")
    except ValueError:
        return None


def parse_ollama(tags: Json, running: Json) -> list[dict[str, Json]]:
    """Ollama's /api/tags and /api/ps as one list. Cloud models are not ours to offer.

    Fields of a kind that Ollama does not document are null: one odd model must not make the
    registry refuse the whole node.
    """
    loaded = None if running is None else {_text(model.get("name")): model for model in _models(running)}
    found = []
    for model in _models(tags):
        name = _text(model.get("name"))
        if model.get("remote_host") or not name:
            continue
        told = model.get("details")
        details = told if isinstance(told, dict) else {}
        live = loaded.get(name, {}) if loaded is not None else {}
        found.append(
            {
                "name": name,
                "loaded": None if loaded is None else name in loaded,
                "digest": _text(model.get("digest")),
                "size_gb": _gb(model.get("size")),
                "family": _text(details.get("family")),
                "parameter_size": _text(details.get("parameter_size")),
                "quantization": _text(details.get("quantization_level")),
                "context_length": _count(live.get("context_length")),
                "vram_gb": _gb(live.get("size_vram")),
            }
        )
    return found


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) and len(value) <= 255 and value.isprintable() else None


def _count(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else None


def _gb(size_bytes: Json) -> float | None:
    known = isinstance(size_bytes, int) and not isinstance(size_bytes, bool) and 0 <= size_bytes < 2**60
    return round(size_bytes / GB, 2) if known else None


def _models(answer: Json) -> list[dict[str, Json]]:
    models = answer.get("models") if isinstance(answer, dict) else None
    return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []


async def _ask(session: aiohttp.ClientSession, url: str) -> Json:
    async with session.get(url, allow_redirects=False) as answer:
        body = await answer.content.read(MAX_ANSWER_BYTES)
        while len(body) < MAX_ANSWER_BYTES and (more := await answer.content.read(MAX_ANSWER_BYTES - len(body))):
            body += more
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status}")
        return json.loads(body)


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"nothing answers at {error.host}:{error.port}"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return "the connection was closed before the answer was complete"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError | aiohttp.ClientResponseError):
        return "what answers there is not Ollama"
    return str(error) or type(error).__name__
