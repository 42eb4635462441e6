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
    """An address to dial. Ollama's own setting may be one to bind: 0.0.0.0, or without a scheme."""
    split = urlsplit(url if "://" in url else f"http://{url}")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(split.hostname or "", split.hostname)  # noqa: S104
    return urlunsplit((split.scheme, f"{host}:{split.port or 11434}", split.path.rstrip("/"), "", ""))


async def detect_ollama(url: str = OLLAMA_URL) -> dict[str, Json]:
    """`{available, version, models, reason}`. Nothing is asked that would load a model."""
    base = dialable(url)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            version, tags, running = await asyncio.gather(
                *(_ask(session, f"{base}/api/{path}") for path in ("version", "tags", "ps"))
            )
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return {"available": False, "models": [], "reason": _why(error)}
    if not isinstance(version, dict) or "version" not in version:
        return {"available": False, "models": [], "reason": "what answers there is not Ollama"}
    return {"available": True, "version": str(version["version"]), "models": parse_ollama(tags, running)}


def parse_ollama(tags: Json, running: Json) -> list[dict[str, Json]]:
    """Ollama's /api/tags and /api/ps as one list. Cloud models are not ours to offer."""
    loaded = {model.get("name"): model for model in _models(running)}
    found = []
    for model in _models(tags):
        if model.get("remote_host") or not isinstance(model.get("name"), str):
            continue
        told = model.get("details")
        details = told if isinstance(told, dict) else {}
        live = loaded.get(model["name"])
        vram = live.get("size_vram") if live else None
        found.append(
            {
                "name": model["name"],
                "loaded": live is not None,
                "digest": model.get("digest"),
                "family": details.get("family"),
                "parameter_size": details.get("parameter_size"),
                "quantization": details.get("quantization_level"),
                "context_length": live.get("context_length") if live else None,
                "vram_gb": round(vram / GB, 2) if isinstance(vram, int) else None,
            }
        )
    return found


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
        return "nothing listens there"
    if isinstance(error, json.JSONDecodeError):
        return "what answers there is not Ollama"
    return str(error) or type(error).__name__
