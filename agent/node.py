"""One node's life: detect, register, heartbeat until told to stop."""

import asyncio
import contextlib
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from agent.client import RegistryClient
from agent.config import AgentSettings, ConfigurationError, at_home
from agent.detect.inventory import LIMIT_S, detect_capabilities, in_thread, measure, models_changed
from agent.detect.network import local_ip
from agent.failover import Registry
from agent.identity import Home, new_instance_id
from agent.notify import Notifier, notifier
from agent.own_identity import OwnIdentity
from agent.session import Outcome, Plan, Session, Step
from agent.wake import SLICE_S, Watch, read
from agent.wire import (
    adverts,
    has_other_signer,
    interval_s,
    is_replaced,
    kept_adverts,
    not_a_registry,
    region_called,
    registration,
    secret,
    to_keep,
)
from federation.tls import node_of

FINISH_S = 2.0  # a registration cut off could lose the key that it was given
LEAVE_S = 3.0
DEFAULT_INTERVAL_S = 30.0
ALONE_S = 1.0
Json = Any


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # nobody reads any more, or the log's disk is full: nodes live on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Agent:
    """One node's life with its registries. Every fault is told and survived."""

    def __init__(self, settings: AgentSettings, home: Home | None = None, say: Callable[[str], None] = _print) -> None:
        self.home = home or Home()
        self.settings = settings = at_home(settings, self.home.registries())
        certified = node_of(settings.node_cert) if settings.node_cert else None
        _check_certified(certified, self.home)
        self.client = RegistryClient(
            settings.node_registry_url,
            ca_cert=settings.ca_cert,
            cert=settings.node_cert,
            key=settings.node_key,
            known=kept_adverts(self.home.registries(), settings.node_registry_url),
        )
        self.session = Session(settings.heartbeat_interval or DEFAULT_INTERVAL_S)
        self._print = say
        self.client.certificates.told = lambda _event, detail: say(f"certificate: {detail}")
        self._manager = Notifier({}, 0)
        self._watch = Watch(read())
        self.identity = OwnIdentity(
            self.home,
            set_key=_plain(settings.node_api_key),
            join_token=_plain(settings.node_join_token),
            certified=certified,
            say=self._say,
        )
        self._instance_id = new_instance_id()
        self._region = settings.node_region.strip().casefold() if settings.node_region else None
        self._capabilities: dict[str, Json] | None = None
        self._metrics: dict[str, Json] = {}
        self._paced = asyncio.Event()

    @property
    def node_id(self) -> str:
        """This node's id, read or made at first use."""
        return self.identity.node_id

    async def capabilities(self) -> dict[str, Json]:
        """What this machine has, detected once and again when its models change."""
        if self._capabilities is None:
            self._capabilities = await detect_capabilities(self.settings.ollama_url, self.settings.node_engine_urls)
        return self._capabilities

    async def register(self) -> tuple[Outcome, Json]:
        """Register once, with the nearest registry; keep what it gives."""
        await asyncio.gather(self.capabilities(), self.client.look_around())
        outcome, node = await self._register()
        renamed = region_called(outcome, node)
        if renamed is not None and renamed != self._region:
            self._say(f"the region {self._region} is called {renamed} there; signed as that")
            self._region = renamed
            outcome, node = await self._register()
        if outcome.status == 409 and self._becomes_another(outcome, node):
            outcome, node = await self._register()
        return outcome, node

    def _becomes_another(self, outcome: Outcome, answer: Json) -> bool:
        """A registry said that the id is not this machine's: whether that is taken at its word."""
        if has_other_signer(outcome, answer):
            return self.identity.has_other_signer()
        if self.identity.has_no_key:
            self.identity.is_anothers()
            return True
        return False

    async def _register(self) -> tuple[Outcome, Json]:
        body = self.identity.signed(await self._report(), time.time_ns() // 1_000_000)
        outcome, node = await self._ask("/api/v1/nodes/register", body)
        if outcome.status != 200:
            return outcome, node
        given = registration(node)
        if given is None:
            return not_a_registry(self.client.url), None
        self.identity.registered(given)
        self._obey(node.get("config"))
        self._keep_registries()
        self._say(f"registered as {given.node_id} with {self._registered_with()}")
        return outcome, node

    async def heartbeat(self, status: str = "online") -> Outcome:
        """Tell the registry that this node lives, and what it measured last."""
        body: dict[str, Json] = {"node_id": self.node_id, "status": status, "instance_id": self._instance_id}
        rtts_ms = self.client.registries.rtts_ms()
        if self._metrics or rtts_ms:
            body["metrics"] = {**self._metrics, "registry_rtt_ms": rtts_ms}
        if self.identity.token:
            body["token"] = self.identity.token
        outcome, answer = await self._ask("/api/v1/nodes/heartbeat", body)
        if is_replaced(outcome, answer) and status != "leaving":
            self.identity.is_replaced(time.monotonic(), self.session.interval_s)
        if outcome.status != 200:
            return outcome
        if answer.get("node_id") != self.node_id:
            return not_a_registry(self.client.url)
        if self.client.change:
            self._say(f"heartbeats go to {_place(self.client.change.to)} now: {self.client.change.why}")
        self.identity.heard(secret(answer.get("token")))
        self._obey(answer.get("config"))
        return outcome

    async def leave(self) -> Outcome:
        """Report that this node is stopping; its record stays."""
        try:
            async with asyncio.timeout(LEAVE_S):
                return await self.heartbeat("leaving")
        except TimeoutError:
            return Outcome(None, f"{self.client.url} did not answer within {LEAVE_S:g} s")

    async def rotate_key(self, overlap_s: int) -> Outcome:
        """Have the registry replace this node's key, and keep the new one. The old one is good for `overlap_s` more."""
        path = f"/api/v1/nodes/{self.node_id}/key"
        outcome, answer = await self._ask(path, {"overlap_s": overlap_s})
        if outcome.status != 200:
            return outcome
        key = secret(answer.get("api_key"))
        if key is None:
            return not_a_registry(self.client.url)
        self.identity.rekeyed(key)
        return outcome

    async def _ask(self, path: str, body: Json) -> tuple[Outcome, Json]:
        """POST with this node's key. One that is refused may have been replaced meanwhile; else what to do is said."""
        outcome, answer = await self.client.call("POST", path, key=self.identity.key, body=body)
        if outcome.status == 401 and self.identity.look_again():
            outcome, answer = await self.client.call("POST", path, key=self.identity.key, body=body)
        if outcome.status == 401:
            outcome = replace(outcome, detail=f"{outcome.detail}; {self.identity.way_out}")
        return outcome, answer

    async def forget(self) -> Outcome:
        """Deregister, and remove the identity here. Raises OSError when it cannot be removed."""
        outcome, _ = await self.client.call("DELETE", f"/api/v1/nodes/{self.node_id}", key=self.identity.key)
        if outcome.status in (200, 404):
            self.home.forget()
        return outcome

    async def measure(self) -> None:
        """Refresh what the next heartbeat tells."""
        settings = self.settings
        self._metrics = await measure(settings.ollama_url, settings.node_agents, settings.node_engine_urls)

    async def run(self, *, once: bool = False) -> int:
        """Register and heartbeat until SIGTERM or SIGINT (or once); the exit status."""
        stop = asyncio.Event()
        if threading.current_thread() is threading.main_thread():  # others get no signals
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
        self._manager = notifier()
        try:
            if not await self._alone(stop, once=once):
                return 1 if once else 0
            if once:
                return await self._run_once()
            await self._run_until(stop)
            return 0
        finally:
            self.home.unlock()
            await self.client.close()

    async def _alone(self, stop: asyncio.Event, *, once: bool) -> bool:
        """Wait until no other agent runs for this home; False: told to stop, or not to wait (`once`)."""
        if self.home.lock():
            return True
        end = "" if once else "; waiting for it to end"
        self._say(f"another agent runs for {self.home.folder}; a second node needs a DAGI_HOME of its own{end}")
        while not once and not await self._pause(stop, ALONE_S):
            if self.home.lock():
                return True
        return False

    async def _run_once(self) -> int:
        outcome = await self._perform("register")
        if outcome.status == 200:
            await self.measure()
            outcome = await self._perform("beat")
        if outcome.status != 200:
            self._say(f"failed: {outcome.detail}")
        return 0 if outcome.status == 200 else 1

    async def _run_until(self, stop: asyncio.Event) -> None:
        rng = random.Random()  # noqa: S311 - spreads load, guards nothing
        self._paced = asyncio.Event()  # of this run's loop
        looking = asyncio.create_task(self.client.keep_looking())
        measuring = asyncio.create_task(self._keep_measuring())
        plan = Plan("register", 0.0)
        registered = False
        try:
            while not await self._pause(stop, plan.wait_s):
                step: Step = "register" if self._outdated() else plan.step
                outcome = await _unless(stop, self._perform(step))
                self._manager.progress(time.monotonic())
                if outcome.status == 200 and not registered:
                    registered = True
                    self._manager.ready()
                plan = self.session.after(step, outcome, rng)
                if plan.say and not stop.is_set():
                    self._say(plan.say)
            await self._stop(registered)
        finally:
            for task in (looking, measuring):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _pause(self, stop: asyncio.Event, wait_s: float) -> bool:
        """Wait for the next step; whether told to stop. After sleep, on another network or with the clock set anew it
        is due at once, over fresh connections. A wait that goes as planned is progress."""
        self._watch.look(read(), math.inf)  # the step before may have taken long
        ends_s = time.monotonic() + wait_s
        while (left_s := ends_s - time.monotonic()) > 0:
            slice_s = min(left_s, SLICE_S)
            if await _told(stop, slice_s):
                return True
            surprise = self._watch.look(read(), slice_s)
            if surprise is not None:
                self._say(f"{surprise.said}; asking the registries again at once")
                await self.client.close()  # what is open may lead nowhere by now
                self.client.registries.moved()
                break
            self._manager.progress(time.monotonic())
        return stop.is_set()

    async def _stop(self, registered: bool) -> None:
        self._manager.stopping()
        if not registered:
            self._say("stopped; it was not registered")
            return
        outcome = await self.leave()
        told = "shown as draining until it comes back"
        self._say(f"stopped; {told if outcome.status == 200 else f'no registry could be told: {outcome.detail}'}")

    def _say(self, line: str) -> None:
        self._print(line)
        self._manager.status(line)

    async def _perform(self, step: Step) -> Outcome:
        try:
            return (await self.register())[0] if step == "register" else await self.heartbeat()
        except Exception as error:  # a fault of ours must cost one try, not the node
            return Outcome(None, f"a fault of this agent, please report it: {type(error).__name__}: {error}")

    async def _keep_measuring(self) -> None:
        """Apart from the heartbeat: a detector that hangs never makes it late."""
        while True:
            self.client.certificates.look()
            self.client.certificates.warn(time.time())
            await self.measure()
            await _told(self._paced, self.session.interval_s)
            self._paced.clear()

    def _outdated(self) -> bool:
        """Whether the engines have other models than were registered."""
        if self._capabilities is None or not models_changed(self._capabilities, self._metrics):
            return False
        self._capabilities = None
        return True

    async def _report(self) -> dict[str, Json]:
        settings, capabilities = self.settings, await self.capabilities()
        report = {
            "node_id": self.node_id,
            "node_name": settings.node_name or capabilities["system"].get("hostname"),
            "role": settings.node_role,
            "node_type": settings.node_type,
            "labels": list(settings.node_labels),
            "region": self._region,
            "hostname": capabilities["system"].get("hostname"),
            "ip_address": settings.node_advertise_addr,
            "local_ip": await self._local_ip(),
            "machine_id": self.identity.machine_id,
            "instance_id": self._instance_id,
            "status": "online",
            "token": self.identity.token,
            "claim": self.identity.approval_claim,
            "capabilities": capabilities,
        }
        return {name: value for name, value in report.items() if value is not None}

    async def _local_ip(self) -> str | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_S):  # looking up a name can take long
                found: str | None = await in_thread(local_ip, self.client.url)
                return found
        return None

    def _registered_with(self) -> str:
        """The registry in use, how far it is, and what there is to say of the others."""
        registries = self.client.registries
        current, others = registries.current, registries.others()
        rtt_ms = current.rtt_ms if current.rtt_ms is not None else self.client.last_ms or 0.0
        return f"{_place(current)} ({rtt_ms:.0f} ms)" + (f"; {others}" if others else "")

    def _learn(self, config: Json) -> None:
        """Other registries, for the day when none of the list answers."""
        listed = adverts(config.get("registries")) if isinstance(config, dict) else []
        registries = self.client.registries
        if listed and registries.learn(listed, registries.current):
            self.client.look()
            self._keep_registries()

    def _keep_registries(self) -> None:
        """For the next start, and for commands that nobody tells which registry to ask."""
        try:
            self.home.keep_registries(to_keep(self.client.registries.adverts(), self.settings.node_registry_url))
        except OSError as error:
            self._say(f"the registries cannot be kept for the next start: {error.strerror or error}")

    def _obey(self, config: Json) -> None:
        self._learn(config)
        interval = interval_s(config)
        if self.settings.heartbeat_interval is None and interval is not None:
            if interval != self.session.interval_s:
                self._paced.set()  # measuring may be asleep for as long as the old pace said
            self.session.interval_s = interval


def _check_certified(certified: str | None, home: Home) -> None:
    """Raise ConfigurationError where this machine is another node than its certificate says."""
    try:
        kept = home.peek_id()
    except OSError:  # told where the identity is read
        return
    if certified is not None and kept is not None and kept != certified and home.credentials() is not None:
        raise ConfigurationError(
            f"NODE_CERT is node {certified}'s, and {home.folder} is {kept}'s: give it a certificate of its own "
            f"(dagi-registry ca issue --node {kept}), or name another folder with DAGI_HOME to become {certified}"
        )


def _place(registry: Registry) -> str:
    return f"{registry.registry_id} at {registry.url}" if registry.registry_id else registry.url


def _plain(set_secret: SecretStr | None) -> str | None:
    return set_secret.get_secret_value() if set_secret else None


async def _unless(stop: asyncio.Event, step: Coroutine[Any, Any, Outcome]) -> Outcome:
    """The step's outcome; once told to stop, it has a moment to finish."""
    doing, stopping = asyncio.create_task(step), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((doing,), timeout=FINISH_S)
        return doing.result() if doing.done() else Outcome(None, "told to stop")
    finally:
        doing.cancel()
        stopping.cancel()


async def _told(event: asyncio.Event, wait_s: float) -> bool:
    """Wait that long, or until the event; whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await event.wait()
    return event.is_set()
