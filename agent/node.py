"""One node's life: detect, register, heartbeat until told to stop."""

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from agent.client import RegistryClient
from agent.config import AgentSettings
from agent.detect.inventory import LIMIT_S, detect_capabilities, in_thread, measure, models_changed
from agent.detect.network import local_ip
from agent.failover import Registry
from agent.identity import Credentials, Home, machine_id, new_instance_id, new_node_id
from agent.session import Outcome, Plan, Session, Step
from agent.wire import adverts, interval_s, kept_adverts, not_a_registry, registration, secret, to_keep

FINISH_S = 2.0  # a registration cut off could lose the key that it was given
LEAVE_S = 3.0
DEFAULT_INTERVAL_S = 30.0
Json = Any


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # nobody reads any more, or the log's disk is full: nodes live on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Agent:
    """One node's life with its registries. Every fault is told and survived."""

    def __init__(self, settings: AgentSettings, home: Home | None = None, say: Callable[[str], None] = _print) -> None:
        self.settings = settings
        self.home = home or Home()
        self.client = RegistryClient(
            settings.node_registry_url,
            ca_cert=settings.ca_cert,
            cert=settings.node_cert,
            key=settings.node_key,
            known=kept_adverts(self.home.registries(), settings.node_registry_url),
        )
        self.session = Session(settings.heartbeat_interval or DEFAULT_INTERVAL_S)
        self._say = say
        self._instance_id = new_instance_id()
        self._capabilities: dict[str, Json] | None = None
        self._metrics: dict[str, Json] = {}
        self._paced = asyncio.Event()
        self._node_id: str | None = None
        self._credentials: Credentials | None = None

    @property
    def node_id(self) -> str:
        """This node's id, read or made at first use; one that cannot be kept lasts as long as the agent."""
        if self._node_id is None:
            try:
                self._node_id = self.home.node_id()
            except OSError as error:
                self._node_id = new_node_id()
                self._say(_not_kept(error))
            kept = self.home.credentials()
            self._credentials = kept if kept and kept.node_id == self._node_id else None
        return self._node_id

    async def capabilities(self) -> dict[str, Json]:
        """What this machine has, detected once and again when its models change."""
        if self._capabilities is None:
            self._capabilities = await detect_capabilities(self.settings.ollama_url, self.settings.node_engine_urls)
        return self._capabilities

    async def register(self) -> tuple[Outcome, Json]:
        """Register once, with the nearest registry; keep what it gives."""
        await asyncio.gather(self.capabilities(), self.client.look_around())
        outcome, node = await self._register()
        if outcome.status == 409 and self._has_no_key:
            self._say(f"{self.node_id} is another node's; this machine takes a new id")
            self._node_id = new_node_id()
            outcome, node = await self._register()
        return outcome, node

    async def _register(self) -> tuple[Outcome, Json]:
        body = await self._report()
        outcome, node = await self.client.call("POST", "/api/v1/nodes/register", key=self._key(), body=body)
        if outcome.status != 200:
            return outcome, node
        given = registration(node)
        if given is None:
            return not_a_registry(self.client.url), None
        own = self._credentials
        self._keep(Credentials(given.node_id, given.api_key or (own.api_key if own else None), given.token))
        self._obey(node.get("config"))
        self._say(f"registered as {given.node_id} with {self._registered_with()}")
        return outcome, node

    async def heartbeat(self, status: str = "online") -> Outcome:
        """Tell the registry that this node lives, and what it measured last."""
        body: dict[str, Json] = {"node_id": self.node_id, "status": status}
        rtts_ms = self.client.registries.rtts_ms()
        if self._metrics or rtts_ms:
            body["metrics"] = {**self._metrics, "registry_rtt_ms": rtts_ms}
        if self._credentials and self._credentials.token:
            body["token"] = self._credentials.token
        outcome, answer = await self.client.call("POST", "/api/v1/nodes/heartbeat", key=self._key(), body=body)
        if outcome.status != 200:
            return outcome
        if answer.get("node_id") != self.node_id:
            return not_a_registry(self.client.url)
        if self.client.change:
            self._say(f"heartbeats go to {_place(self.client.change.to)} now: {self.client.change.why}")
        own, token = self._credentials, secret(answer.get("token"))
        if own and token and token != own.token:
            self._keep(replace(own, token=token))
        self._obey(answer.get("config"))
        return outcome

    async def leave(self) -> Outcome:
        """Report that this node is stopping; its record stays."""
        try:
            async with asyncio.timeout(LEAVE_S):
                return await self.heartbeat("leaving")
        except TimeoutError:
            return Outcome(None, f"{self.client.url} did not answer within {LEAVE_S:g} s")

    async def forget(self) -> Outcome:
        """Deregister, and remove the identity here. Raises OSError when it cannot be removed."""
        outcome, _ = await self.client.call("DELETE", f"/api/v1/nodes/{self.node_id}", key=self._key())
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
        try:
            if once:
                return await self._run_once()
            await self._run_until(stop)
            return 0
        finally:
            await self.client.close()

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
            while not await _told(stop, plan.wait_s):
                step: Step = "register" if self._outdated() else plan.step
                outcome = await _unless(stop, self._perform(step))
                registered = registered or outcome.status == 200
                plan = self.session.after(step, outcome, rng)
                if plan.say and not stop.is_set():
                    self._say(plan.say)
            await self._stop(registered)
        finally:
            for task in (looking, measuring):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _stop(self, registered: bool) -> None:
        if not registered:
            self._say("stopped; it was not registered")
            return
        outcome = await self.leave()
        told = "shown as draining until it comes back"
        self._say(f"stopped; {told if outcome.status == 200 else f'no registry could be told: {outcome.detail}'}")

    async def _perform(self, step: Step) -> Outcome:
        try:
            return (await self.register())[0] if step == "register" else await self.heartbeat()
        except Exception as error:  # a fault of ours must cost one try, not the node
            return Outcome(None, f"a fault of this agent, please report it: {type(error).__name__}: {error}")

    async def _keep_measuring(self) -> None:
        """Apart from the heartbeat: a detector that hangs never makes it late."""
        while True:
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
        token = self._credentials.token if self._credentials else None
        report = {
            "node_id": self.node_id,
            "node_name": settings.node_name or capabilities["system"].get("hostname"),
            "role": settings.node_role,
            "node_type": settings.node_type,
            "labels": list(settings.node_labels),
            "region": settings.node_region,
            "hostname": capabilities["system"].get("hostname"),
            "ip_address": settings.node_advertise_addr,
            "local_ip": await self._local_ip(),
            "machine_id": machine_id(),
            "instance_id": self._instance_id,
            "status": "online",
            "token": token,
            "capabilities": capabilities,
        }
        return {name: value for name, value in report.items() if value is not None}

    async def _local_ip(self) -> str | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_S):  # looking up a name can take long
                found: str | None = await in_thread(local_ip, self.client.url)
                return found
        return None

    @property
    def _has_no_key(self) -> bool:
        """Whether nothing here could prove that the id is this machine's."""
        return self._credentials is None and self.settings.node_api_key is None

    def _key(self) -> str | None:
        """The key in use: one that was set stands over the one kept, so that a wrong one can be mended."""
        own = self._credentials.api_key if self._credentials else None
        set_key, join = self.settings.node_api_key, self.settings.node_join_token
        if set_key:
            return set_key.get_secret_value()
        return own or (join.get_secret_value() if join else None)

    def _keep(self, credentials: Credentials) -> None:
        self._node_id, self._credentials = credentials.node_id, credentials
        try:
            self.home.keep_id(credentials.node_id)
            self.home.keep_credentials(credentials)
        except OSError as error:
            self._say(_not_kept(error))

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
            try:
                self.home.keep_registries(to_keep(registries.adverts(), self.settings.node_registry_url))
            except OSError as error:
                self._say(f"other registries cannot be kept for the next start: {error.strerror or error}")

    def _obey(self, config: Json) -> None:
        self._learn(config)
        interval = interval_s(config)
        if self.settings.heartbeat_interval is None and interval is not None:
            if interval != self.session.interval_s:
                self._paced.set()  # measuring may be asleep for as long as the old pace said
            self.session.interval_s = interval


def _place(registry: Registry) -> str:
    return f"{registry.registry_id} at {registry.url}" if registry.registry_id else registry.url


def _not_kept(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"the identity cannot be kept ({where}{error.strerror or error}); this node will be a new one after a "
        "restart unless DAGI_HOME names a folder that can be read and written"
    )


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
