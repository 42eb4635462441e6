"""All inference engines of this machine: where to look, what was found, what has fallen silent.

Looked for on loopback at the ports that engines use, and where settings say. A closed port costs a refused
connection. What answers is asked as the port's usual engine first and then as each other kind; what is none of them
is left alone for ten minutes.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from agent.detect.asking import Asker, Silent, dialable
from agent.detect.models import Found
from agent.detect.ollama import Ollama
from agent.detect.openai_engines import (
    look_llamacpp,
    look_lmstudio,
    look_localai,
    look_mlx,
    look_sglang,
    look_vllm,
)
from agent.detect.other_engines import look_comfyui, look_exo, look_tgi

Look = Callable[[Asker], Awaitable[Found | None]]

OLLAMA_URL = "http://127.0.0.1:11434"
PORTS = {  # and the engine that usually has it; mlx-lm, LocalAI and TGI's container share ports with others
    1234: "lmstudio", 3000: "tgi", 8000: "vllm", 8001: "vllm", 8080: "llamacpp", 8081: "llamacpp",
    8188: "comfyui", 30000: "sglang", 52415: "exo",
}  # fmt: skip
# Signed answers first; mlx-lm, which signs nothing, last. Ollama's remembers what it was told, so each place has one.
LOOKS: dict[str, Callable[[], Look]] = {
    "vllm": lambda: look_vllm, "sglang": lambda: look_sglang, "llamacpp": lambda: look_llamacpp,
    "lmstudio": lambda: look_lmstudio, "tgi": lambda: look_tgi, "localai": lambda: look_localai,
    "exo": lambda: look_exo, "comfyui": lambda: look_comfyui, "ollama": lambda: Ollama().look, "mlx": lambda: look_mlx,
}  # fmt: skip
PLACE_LIMIT_S = 2.5  # for all questions to one place: less than the limit of detection as a whole
FIRST_LIMIT_S = 1.0  # to find out what is there: a program that hangs must not hold up this node's registration
CONNECT_LIMIT_S = 1.0  # a firewall that drops packets would take minutes; less is too little for a machine at work
REST_S = 30.0  # an engine that still loads its model answers errors; looked at again after twice as long each time
MOST_REST_S = 600.0  # what is no engine gets odd requests no more often than this
GONE_S = 300.0  # an engine that restarts to load another model takes minutes


@dataclass(slots=True)
class Place:
    """An address, what was found there, and when (monotonic seconds). `found` outlives silence until it is gone."""

    url: str
    usual: str
    fixed: bool = False  # a setting names it: always looked at, whatever answers there
    look: Look | None = None
    found: Found | None = None
    heard_at: float = 0.0
    foreign_at: float | None = None
    foreign_times: int = 0
    reason: str | None = "it has not answered yet"  # None: it answered the last time


def due(place: Place, now: float) -> bool:
    """Whether to ask there for each kind: what was found to be no engine rests, longer each time."""
    rest_s = min(REST_S * 2 ** min(place.foreign_times - 1, 10), MOST_REST_S)
    return place.foreign_at is None or now - place.foreign_at >= rest_s


def not_an_engine(place: Place, reason: str, now: float) -> None:
    """What answers there could not be recognised; it was no engine before either."""
    place.found, place.look, place.reason = None, None, reason
    if due(place, now):
        place.foreign_at, place.foreign_times = now, place.foreign_times + 1


def state(place: Place, now: float) -> str:
    """`up`: it answered the last time. `silent`: it did a moment ago. `gone`: it has not for minutes."""
    if place.reason is None:
        return "up"
    return "silent" if now - place.heard_at < GONE_S else "gone"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as found, at all its places together; `found` is None when it has never been heard."""

    name: str
    found: Found | None
    state: str
    reason: str | None


class Engines:
    """Looks at all places in turn, and remembers what is where."""

    def __init__(
        self,
        ollama_url: str | None = None,
        engine_urls: Iterable[str] = (),
        *,
        ports: dict[int, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._wrong: str | None = None
        self._places = [
            Place(f"http://127.0.0.1:{port}", usual) for port, usual in (PORTS if ports is None else ports).items()
        ]
        try:
            self._fix(Place(dialable(ollama_url or OLLAMA_URL), "ollama", fixed=True))
        except ValueError:
            self._wrong = f"{str(ollama_url)[:80]} is no address; mend OLLAMA_BASE_URL or OLLAMA_HOST"
        for url in engine_urls:
            self._fix(Place(dialable(url), "vllm", fixed=True))
        self._under_way: asyncio.Task[None] | None = None

    def _fix(self, place: Place) -> None:
        self._places = [other for other in self._places if other.url != place.url] + [place]

    async def survey(self) -> list[Engine]:
        """Ask all places at once. Who asks while that is under way waits for the same answers."""
        task = self._under_way
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._under_way = asyncio.create_task(self._survey())
        await asyncio.shield(task)
        return self.known()

    def known(self) -> list[Engine]:
        """What was found by the last look, an engine at several places as one; Ollama always, with a reason."""
        now = self._clock()
        by_name: dict[str, list[Place]] = {"ollama": []}
        for place in self._places:
            if place.found is not None:
                by_name.setdefault(place.found.engine, []).append(place)
        return [_engine(name, places, now, self._why_no_ollama()) for name, places in by_name.items()]

    def _why_no_ollama(self) -> str:
        told = next((place.reason for place in self._places if place.usual == "ollama" and place.fixed), None)
        return self._wrong or told or "what answers there is not Ollama"

    async def _survey(self) -> None:
        now = self._clock()
        due_places = [place for place in self._places if place.found is not None or place.fixed or due(place, now)]
        async with aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session:
            await asyncio.gather(*(self._visit(session, place) for place in due_places))

    async def _visit(self, session: aiohttp.ClientSession, place: Place) -> None:
        try:
            refused = await _refused(place.url)
            if refused is not None:
                place.reason, place.foreign_at, place.foreign_times = refused, None, 0
                return
            async with asyncio.timeout(PLACE_LIMIT_S if place.found or place.fixed else FIRST_LIMIT_S):
                found = await self._recognise(place, Asker(session, place.url))
        except (Silent, TimeoutError) as error:
            self._missed(place, str(error) or "it answers too slowly")
        except Exception as error:  # one engine's odd answer must not cost the others
            self._missed(place, f"its answers are not understood: {type(error).__name__}")
        else:
            self._take(place, found)

    def _missed(self, place: Place, reason: str) -> None:
        if place.found is None:
            not_an_engine(place, reason, self._clock())
        place.reason = reason

    async def _recognise(self, place: Place, ask: Asker) -> Found | None:
        if place.look is not None and (found := await place.look(ask)) is not None:
            return found
        order = sorted(LOOKS, key=lambda name: name != place.usual)
        for name in order if due(place, self._clock()) else order[:1]:
            look = LOOKS[name]()
            if (found := await look(ask)) is not None:
                place.look = look
                return found
        return None

    def _take(self, place: Place, found: Found | None) -> None:
        now = self._clock()
        if found is not None:
            place.found, place.heard_at, place.reason = found, now, None
            place.foreign_at, place.foreign_times = None, 0
        elif place.found is not None and now - place.heard_at < GONE_S:
            place.reason = "it answers errors"  # as an engine does while it starts
        else:
            not_an_engine(place, f"what answers there is not {_TITLE.get(place.usual, 'an engine')}", now)


_TITLE = {"ollama": "Ollama"}


def _engine(name: str, places: list[Place], now: float, no_ollama: str) -> Engine:
    states = [state(place, now) for place in places]
    best = next((each for each in ("up", "silent", "gone") if each in states), "gone")
    heard = [place for place, its in zip(places, states, strict=True) if its == best and place.found is not None]
    if not heard:
        return Engine(name, None, "gone", no_ollama)
    reason = None if best == "up" else heard[0].reason
    return Engine(name, merged([place.found for place in heard if place.found is not None]), best, reason)


def merged(founds: list[Found]) -> Found:
    """Several of one engine on a machine as one: their models together, their loads added."""
    first = founds[0]
    if len(founds) == 1:
        return first
    load: dict[str, float | None] = {}
    for name in dict.fromkeys(key for each in founds for key in each.load):
        values = [value for each in founds if (value := each.load.get(name)) is not None]
        load[name] = (max(values) if name.endswith("_percent") else sum(values)) if values else None
    # The last of a name stands: one that is loaded, if any is.
    everywhere = sorted((model for each in founds for model in each.models), key=lambda model: model["loaded"] is True)
    models = {model["name"]: model for model in everywhere}
    return Found(first.engine, first.version, list(models.values()), load)


async def _refused(url: str) -> str | None:
    """Why there is no connection to an address of this machine; None when there is one, or the address is a name."""
    split = urlsplit(url)
    host, port = split.hostname or "", split.port or 80
    if not host.startswith("127."):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await asyncio.get_running_loop().sock_connect(probe, (host, port))
        except (OSError, TimeoutError):
            return f"nothing answers at {host}:{port}"
    return None
