"""Ollama: its models, which of them are loaded, and what each was made for. Nothing is asked that loads one."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass

from agent.detect.asking import Asker, Json, OtherAnswer, Silent, items, part
from agent.detect.models import Found, count, entry, found, gb, text

MAX_SHOWN = 64  # models that are asked about one by one, of any number that there are
SHOWS_A_TURN = 16
SHOW_S = 0.5  # of each turn: the rest waits for the next turn, rather than the registration for the rest
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Shown:
    """What /api/show tells of a model, and so of every other with the same digest."""

    max_context_length: int | None = None
    capabilities: tuple[str, ...] = ()


class Ollama:
    """Looks at one Ollama, and remembers by digest what it has told of its models."""

    def __init__(self) -> None:
        self._shown: OrderedDict[str, Shown] = OrderedDict()

    async def look(self, ask: Asker) -> Found | None:
        """What it has; None when it is not Ollama. Raises Silent."""
        version = text(part(await ask.get_or_none("/api/version"), "version"))
        if version is None:
            return None
        # Before 0.1.33 it could not tell what is loaded.
        tags, running = await asyncio.gather(ask.get_or_none("/api/tags"), ask.get_or_none("/api/ps"))
        if not isinstance(part(tags, "models"), list):
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHOW_S):
                await self._show(ask, to_show(tags, running, self._shown))
        return Found("ollama", version, parse_ollama(tags, running, self._shown))

    async def _show(self, ask: Asker, wanted: Mapping[str, str]) -> None:
        waiting = list(wanted.items())

        async def some() -> None:
            while waiting:
                digest, name = waiting.pop(0)
                try:
                    answer = await ask.post("/api/show", {"model": name})
                except Silent:
                    return
                except OtherAnswer:
                    answer = None  # remembered as such: asking again would tell nothing else
                self._shown[digest] = parse_show(answer)
                while len(self._shown) > MAX_SHOWN:
                    self._shown.popitem(last=False)

        await asyncio.gather(*(some() for _ in range(min(_AT_ONCE, len(waiting)))))


def to_show(tags: Json, running: Json, shown: Container[str]) -> dict[str, str]:
    """{digest: model} to ask about now: of the first that may be asked about, loaded ones leading, those not known."""
    loaded = {model.get("name") for model in items(running, "models") if isinstance(model.get("name"), str)}
    local = [model for model in items(tags, "models") if not model.get("remote_host")]
    ordered = sorted(local, key=lambda model: not (isinstance(model.get("name"), str) and model["name"] in loaded))
    named = [(text(model.get("digest")), text(model.get("name"))) for model in ordered]
    digests = {digest: name for digest, name in reversed(named) if digest and name}  # a digest's first name stands
    first = [digest for digest in dict.fromkeys(d for d, _ in named if d) if digest in digests][:MAX_SHOWN]
    return {digest: digests[digest] for digest in first if digest not in shown} if first else {}


def parse_show(answer: Json) -> Shown:
    """What /api/show answers. The trained context stands under the architecture's own name."""
    info = part(answer, "model_info")
    architecture = text(part(info, "general.architecture"))
    listed = part(answer, "capabilities")
    names = [text(name) for name in listed[:16]] if isinstance(listed, list) else []
    context = count(part(info, f"{architecture}.context_length")) if architecture else None
    return Shown(context or None, tuple(name for name in names if name))


def parse_ollama(tags: Json, running: Json, shown: Mapping[str, Shown]) -> list[dict[str, Json]]:
    """/api/tags, /api/ps and what is known of /api/show, as one list. Cloud models are not ours to offer."""
    loaded = None if running is None else {text(model.get("name")): model for model in items(running, "models")}
    return found(_model(model, loaded, shown) for model in items(tags, "models") if not model.get("remote_host"))


def _model(
    model: dict[str, Json], loaded: Mapping[str | None, Json] | None, shown: Mapping[str, Shown]
) -> dict[str, Json] | None:
    name, digest = text(model.get("name")), text(model.get("digest"))
    live = loaded.get(name, {}) if loaded is not None else {}
    more = shown.get(digest or "", Shown())
    return entry(
        name,
        None if loaded is None else name in loaded,
        digest=digest,
        size_gb=gb(model.get("size")),
        family=text(part(model, "details", "family")),
        parameter_size=text(part(model, "details", "parameter_size")),
        quantization=text(part(model, "details", "quantization_level")),
        context_length=count(live.get("context_length")),
        max_context_length=more.max_context_length,
        vram_gb=gb(live.get("size_vram")),
        expires_at=text(live.get("expires_at")),
        capabilities=list(more.capabilities) or None,
    )
