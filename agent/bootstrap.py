"""Joins this machine to the network: detect, register, heartbeat until told to stop."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable
from typing import Any

from agent.client import RegistryClient
from agent.config import AgentSettings, load
from agent.detect.inventory import detect_capabilities, measure
from agent.detect.network import local_ip
from agent.identity import Credentials, Home, machine_id, new_instance_id
from agent.session import Outcome, Plan, Session, Step

LEAVE_S = 3.0
DEFAULT_INTERVAL_S = 30.0
Json = Any


def _print(line: str) -> None:
    print(line, flush=True)


class Agent:
    """One node's life with its registries. Every fault is told and survived."""

    def __init__(self, settings: AgentSettings, home: Home | None = None, say: Callable[[str], None] = _print) -> None:
        self.settings = settings
        self.home = home or Home()
        self.client = RegistryClient(
            settings.node_registry_url, ca_cert=settings.ca_cert, cert=settings.node_cert, key=settings.node_key
        )
        self.session = Session(settings.heartbeat_interval or DEFAULT_INTERVAL_S)
        self._say = say
        self._instance_id = new_instance_id()
        self._capabilities: dict[str, Json] | None = None
        self._metrics: dict[str, Json] = {}
        self._node_id: str | None = None
        self._credentials: Credentials | None = None

    @property
    def node_id(self) -> str:
        """This node's id, read or made at first use."""
        if self._node_id is None:
            self._node_id = self.home.node_id()
            kept = self.home.credentials()
            self._credentials = kept if kept and kept.node_id == self._node_id else None
        return self._node_id

    async def capabilities(self) -> dict[str, Json]:
        """What this machine has, detected once."""
        if self._capabilities is None:
            self._capabilities = await detect_capabilities(self.settings.ollama_base_url)
        return self._capabilities

    async def register(self) -> tuple[Outcome, Json]:
        """Register once; keep what the registry gives."""
        body = await self._report()
        outcome, node = await self.client.call("POST", "/api/v1/nodes/register", key=self._key(), body=body)
        if outcome.status == 200:
            self._keep(node)
            self._obey(node.get("config"))
            self._say(f"registered as {node['node_id']} with {self.client.url} ({self.client.last_ms:.0f} ms)")
        return outcome, node

    async def heartbeat(self, status: str = "online") -> Outcome:
        """Tell the registry that this node lives, and what it measured last."""
        body = {"node_id": self.node_id, "status": status, "metrics": self._metrics}
        if self._credentials and self._credentials.token:
            body["token"] = self._credentials.token
        outcome, answer = await self.client.call("POST", "/api/v1/nodes/heartbeat", key=self._key(), body=body)
        if outcome.status == 200:
            self._obey(answer.get("config"))
        return outcome

    async def leave(self) -> None:
        """Report that this node is stopping; its record stays."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self.heartbeat("leaving")

    async def forget(self) -> Outcome:
        """Deregister, and remove the identity here."""
        outcome, _ = await self.client.call("DELETE", f"/api/v1/nodes/{self.node_id}", key=self._key())
        if outcome.status in (200, 404):
            self.home.forget()
        return outcome

    async def measure(self) -> None:
        """Refresh what the next heartbeat tells."""
        self._metrics = await measure(self.settings.ollama_base_url, self.settings.node_agents)

    async def run(self, *, once: bool = False) -> int:
        """Register and heartbeat until SIGTERM or SIGINT (or once); the exit status."""
        stop = asyncio.Event()
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
        for outcome in ((await self.register())[0], await self._first_beat()):
            if outcome.status != 200:
                self._say(f"failed: {outcome.detail}")
                return 1
        return 0

    async def _first_beat(self) -> Outcome:
        await self.measure()
        return await self.heartbeat()

    async def _run_until(self, stop: asyncio.Event) -> None:
        rng = random.Random()  # noqa: S311 - spreads load, guards nothing
        measuring = asyncio.create_task(self._keep_measuring())
        plan = Plan("register", 0.0)
        registered = False
        try:
            while not await _stopped(stop, plan.wait_s):
                outcome = await self._perform(plan.step)
                registered = registered or outcome.status == 200
                plan = self.session.after(plan.step, outcome, rng)
                if plan.say:
                    self._say(plan.say)
            if registered:
                await self.leave()
                self._say("stopped; shown as draining until it comes back")
        finally:
            measuring.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await measuring

    async def _perform(self, step: Step) -> Outcome:
        if step == "register":
            return (await self.register())[0]
        return await self.heartbeat()

    async def _keep_measuring(self) -> None:
        """Apart from the heartbeat: a detector that hangs never makes it late."""
        while True:
            await self.measure()
            await asyncio.sleep(self.session.interval_s)

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
            "local_ip": local_ip(self.client.url),
            "machine_id": machine_id(),
            "instance_id": self._instance_id,
            "status": "online",
            "token": token,
            "capabilities": capabilities,
        }
        return {name: value for name, value in report.items() if value is not None}

    def _key(self) -> str | None:
        own = self._credentials.api_key if self._credentials else None
        given = self.settings.node_api_key or self.settings.node_join_token
        return own or (given.get_secret_value() if given else None)

    def _keep(self, node: dict[str, Json]) -> None:
        given = self.settings.node_api_key
        key = node.get("api_key") or (self._credentials.api_key if self._credentials else None)
        key = key or (given.get_secret_value() if given else None)
        self._node_id = str(node["node_id"])
        self._credentials = Credentials(self._node_id, key, node.get("token"))
        try:
            self.home.keep_id(self._node_id)
            self.home.keep_credentials(self._credentials)
        except OSError as error:
            self._say(f"the identity cannot be kept in {self.home.folder} ({error.strerror}): free or unlock the disk")

    def _obey(self, config: Json) -> None:
        interval = config.get("heartbeat_interval_s") if isinstance(config, dict) else None
        if self.settings.heartbeat_interval is None and isinstance(interval, int | float) and interval > 0:
            self.session.interval_s = float(interval)


async def _stopped(stop: asyncio.Event, wait_s: float) -> bool:
    """Wait that long, or until told to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await stop.wait()
    return stop.is_set()


class NodeBootstrap:
    """The documented way in from Python: make an id, look around, register, heartbeat."""

    def __init__(self, registry_url: str) -> None:
        self.registry_url = registry_url
        self._settings = load({"node_registry_url": registry_url}, None)
        self._home = Home()

    @property
    def node_id(self) -> str:
        """This node's id."""
        return self.generate_node_id()

    def generate_node_id(self) -> str:
        """The id kept on this machine, or a new one that is kept from now on."""
        return self._home.node_id()

    def collect_capabilities(self) -> dict[str, Json]:
        """What this machine has."""
        return asyncio.run(detect_capabilities(self._settings.ollama_base_url))

    def register(self) -> dict[str, Json]:
        """Register; the registry's answer. Raises ConnectionError or PermissionError that says why."""

        async def once() -> tuple[Outcome, Json]:
            agent = Agent(self._settings, self._home, say=lambda line: None)
            try:
                return await agent.register()
            finally:
                await agent.client.close()

        outcome, node = asyncio.run(once())
        if outcome.status != 200:
            raise (ConnectionError if outcome.status is None else PermissionError)(outcome.detail)
        registered: dict[str, Json] = node
        return registered

    def start_heartbeat(self) -> None:
        """Heartbeat until the process is told to stop."""
        asyncio.run(Agent(self._settings, self._home).run())
