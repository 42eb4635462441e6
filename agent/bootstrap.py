"""The documented way in from Python; the command line is `agent.cli`."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agent.config import load
from agent.detect.network import local_ip
from agent.discovery import demand
from agent.node import Agent
from agent.session import Outcome

Json = Any
T = TypeVar("T")


class NodeBootstrap:
    """The documented way in from Python: make an id, look around, register, heartbeat."""

    def __init__(self, registry_url: str) -> None:
        self.registry_url = registry_url
        self._agent = Agent(load({"node_registry_url": registry_url}, None))

    @property
    def node_id(self) -> str:
        """This node's id."""
        return self.generate_node_id()

    def generate_node_id(self) -> str:
        """The id kept on this machine, or a new one that is kept from now on."""
        return self._agent.node_id

    def collect_capabilities(self) -> dict[str, Json]:
        """What this machine has: the system's facts by name, `gpu`, `ollama`; unknown is null."""
        found = _finish(self._agent.capabilities())
        settings = self._agent.settings
        addresses = {"ip_address": settings.node_advertise_addr, "local_ip": local_ip(self._agent.client.url)}
        return {**found["system"], **addresses, "gpu": found["gpu"], "ollama": found["ollama"]}

    def register(self) -> dict[str, Json]:
        """Register; the registry's answer. Raises RegistryUnreachable or RequestRefused that says why."""

        async def once() -> tuple[Outcome, Json]:
            try:
                return await self._agent.register()
            finally:
                await self._agent.client.close()

        outcome, node = _finish(once())
        demand(outcome)
        registered: dict[str, Json] = node
        return registered

    def start_heartbeat(self) -> None:
        """Heartbeat until the process is told to stop."""
        asyncio.run(self._agent.run())


def _finish(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where the caller's thread runs a loop already, as notebooks do."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, call).result()
