"""The agent's end of the registry's HTTP contract: one request, one Outcome, over a list of registries.

The list and its order are `agent.failover`'s. A request goes to the registry in use; where that gives no answer, the
next gets the same at once.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from agent.connection import Reply, ask, open_session, open_stream, tls
from agent.failover import Registries, Registry, goes_on
from agent.session import Outcome
from agent.wire import Advert, name, not_a_registry

LOOK_S = 0.5  # what a start waits at most to learn which registry is near; detection takes about as long
SMALL_BYTES = 4096  # an answer of few packets: its round trip is the network's
FIRST_SAMPLES = 3
ROUTE = "/healthz"
Json = Any


@dataclass(frozen=True, slots=True)
class Change:
    """A request went to another registry than the one before. `why` for people."""

    to: Registry
    why: str


class RegistryClient:
    """Talks to the registries of a list."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        ca_cert: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        known: Iterable[Advert] = (),
    ) -> None:
        self.registries = Registries(urls, known)
        self._rng = random.Random()  # noqa: S311 - spreads load, guards nothing
        self.certificates = tls(ca_cert, cert, key)
        self._session: aiohttp.ClientSession | None = None
        self._looking: dict[Registry, asyncio.Task[None]] = {}
        self.last_ms: float | None = None
        self.change: Change | None = None  # of the last call

    @property
    def url(self) -> str:
        """The registry in use, or the first to be tried."""
        return self.registries.current.url

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        body: Json = None,
        params: Json = None,
        spare: bool = False,
    ) -> tuple[Outcome, Json]:
        """One request; where a registry gives no answer, or one that is none, the next in the list is asked.

        `spare`: the caller can do without, so registries that are known to fail are left in peace.
        """
        registries, tried, failures = self.registries, list[Registry](), list[Outcome]()
        before = registries.current if registries.settled else None
        left = registries.go_home(_now_s())
        while (registry := registries.next_attempt(tried, _now_s(), spare=spare)) is not None:
            tried.append(registry)
            reply = await self._ask(registry, method, path, key, body, params)
            if not goes_on(reply.outcome):
                self._took(registry, reply, before, left, failures)
                return reply.outcome, reply.data
            registries.failed(registry, reply.outcome, _now_s(), self._rng)
            failures.append(reply.outcome)
        self.change = None
        return self._nobody(failures), None

    async def _ask(
        self, registry: Registry, method: str, path: str, key: str | None, body: Json, params: Json
    ) -> Reply:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        send = {"json": body, "params": params, "headers": headers}
        reply = await ask(self.session(), method, registry.url, path, **send)
        if reply.dropped:  # a kept connection that was closed meanwhile tells nothing of the registry
            reply = await ask(self.session(), method, registry.url, path, **send)
        return reply

    def _took(
        self, registry: Registry, reply: Reply, before: Registry | None, left: Registry | None, failures: list[Outcome]
    ) -> None:
        self.last_ms = reply.took_ms
        self.registries.succeeded(registry, _now_s())
        if reply.warm and reply.size <= SMALL_BYTES:
            self.registries.sampled(registry, reply.rtt_ms)
        why = _joined(failures)
        if left is not None and not failures:
            why = f"it is nearer than {left.name} ({_ms(left.rtt_ms)})"
        elif not why and before is not None:
            why = before.why
        self.change = Change(registry, why) if before is not None and registry is not before else None

    def _nobody(self, failures: list[Outcome]) -> Outcome:
        """The outcome where no registry answered: a refusal says most, then how long to wait."""
        registries = self.registries
        wait_s = registries.wait_s(_now_s())
        if not failures:
            reasons = dict.fromkeys(each.why for each in registries.all if each.why)
            return Outcome(None, "; ".join(reasons) or "no registry is known", wait_s)
        pending = next((each for each in failures if each.is_pending), None)
        if pending is not None:  # one that lets it wait is enough
            return pending
        refusal = next((each for each in failures if each.status in (401, 403)), None)
        worst = refusal or failures[-1]
        return replace(worst, detail=_joined(failures), retry_after_s=None if refusal else wait_s)

    def note_failure(self, registry: Registry, outcome: Outcome) -> None:
        """It failed after it had answered."""
        self.registries.failed(registry, outcome, _now_s(), self._rng)

    async def stream(
        self, path: str, params: Mapping[str, str], key: str | None, after: tuple[Registry, str] | None
    ) -> tuple[Outcome, Registry | None, aiohttp.ClientResponse | None]:
        """Open a stream of events at the first registry that has one; the caller closes it.

        `after`: the last event seen, and of which registry. Without a stream, the outcome says why; 200 is an answer
        of another kind.
        """
        registries, tried, failures = self.registries, list[Registry](), list[Outcome]()
        registries.go_home(_now_s())
        while (registry := registries.next_attempt(tried, _now_s())) is not None:
            tried.append(registry)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            if after is not None and after[0] is registry:
                headers["Last-Event-ID"] = after[1]
            outcome, response = await open_stream(self.session(), registry.url, path, params, headers)
            if not goes_on(outcome):
                registries.succeeded(registry, _now_s())
                return outcome, registry, response
            registries.failed(registry, outcome, _now_s(), self._rng)
            failures.append(outcome)
        return self._nobody(failures), None, None

    # looking at registries: are they there, and how far

    def look(self) -> None:
        """Start looking at each registry that is due; nobody waits for it."""
        for registry in self.registries.due(_now_s()):
            if registry not in self._looking:
                task = asyncio.create_task(self._look_at(registry), name="look")
                self._looking[registry] = task
                task.add_done_callback(partial(self._looked, registry))

    def _looked(self, registry: Registry, _task: asyncio.Task[None]) -> None:
        self._looking.pop(registry, None)

    async def look_around(self) -> None:
        """Look at all that are due; returns when all have been seen, or after half a second. One has no rival."""
        self.look()
        if len(self.registries.all) > 1 and self._looking:
            await asyncio.wait(self._looking.values(), timeout=LOOK_S)

    async def keep_looking(self) -> None:
        """Look at each whenever it is due, for ever."""
        while True:
            self.look()
            # A registry that rests or is being looked at may be due already: once a second is soon enough.
            await asyncio.sleep(min(max(self.registries.next_due_s() - _now_s(), 1.0), 60.0))

    async def _look_at(self, registry: Registry) -> None:
        rtts_ms: list[float] = []
        wanted = 1 if registry.rtts_ms else FIRST_SAMPLES
        for _ in range(wanted + 1):  # the first has to connect, mostly
            reply = await ask(self.session(), "GET", registry.url, ROUTE)
            fault = _fault(registry, reply)
            if fault is not None:
                self.registries.failed(registry, fault, _now_s(), self._rng)
                return
            self.registries.responded(registry)
            self.registries.identified(registry, name(reply.data.get("registry_id")), name(reply.data.get("region")))
            if reply.warm:
                rtts_ms.append(reply.rtt_ms)
            if len(rtts_ms) == wanted:
                break
        self.registries.measured(registry, rtts_ms, _now_s(), self._rng)

    # connections

    def session(self) -> aiohttp.ClientSession:
        """The connections, opened at first use."""
        if self._session is None:
            self._session = open_session(self.certificates.client)
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        for task in list(self._looking.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._session is not None:
            await self._session.close()
            self._session = None


def _fault(registry: Registry, reply: Reply) -> Outcome | None:
    if reply.outcome.status != 200:
        return reply.outcome
    return None if reply.data.get("status") == "healthy" else not_a_registry(registry.url)


def _now_s() -> float:
    return time.monotonic()


def _joined(failures: Iterable[Outcome]) -> str:
    return "; ".join(failure.detail for failure in failures)


def _ms(rtt_ms: float | None) -> str:
    return "not measured" if rtt_ms is None else f"{rtt_ms:.0f} ms"
