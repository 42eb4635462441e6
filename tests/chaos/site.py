"""One region: a registry's process, its Valkey, and what is wrong with them at the moment."""

import asyncio
import contextlib
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import RedisError

from registry.node import node_key
from registry.stored import unpack_record
from tests.chaos.client import Answer, Client, Unanswered
from tests.chaos.started import SKEW_MS
from tests.chaos.timeline import Timeline, Violation
from tests.support.live import ADMIN_KEY, Process
from tests.support.proxy import Network
from tests.support.valkey import Valkey, free_port

HEARTBEAT_S, DEGRADED_S, OFFLINE_S = 0.5, 3.0, 6.0
SECRET = "the secret of a federation that is being broken"
START_S = 60.0  # five at once on two cores that others use too; one that hangs is found all the same
PRINT_S = 0.5
READY_S = 30.0  # after its last fault: loading, links that are found dead (5 s) and dialled again, catching up
FAULT_WORDS = ("Traceback", "message_failed", "task_failed", "by our fault")

_VERSION_DIGITS = 16  # before each record in the store
_ROOT = Path(__file__).parents[2]
_WINDOWS = ("--heartbeat-interval-s", HEARTBEAT_S, "--degraded-after-s", DEGRADED_S, "--offline-after-s", OFFLINE_S)
_APPEND_ONLY = ("appendonly yes", "auto-aof-rewrite-percentage 0")  # so that a copy of its files is one moment's


@dataclass(frozen=True)
class Hearing:
    """A time in which one registry heard another without a break. `until_s`: the last moment known of."""

    since_s: float
    until_s: float
    goes_on: bool = True


class Site:
    """See the module. `epoch` grows whenever its process is stopped, frozen or started. `turn`: one fault at a time."""

    def __init__(
        self, name: str, folder: Path, client: Client, timeline: Timeline, network: Network, skew_s: float
    ) -> None:
        """`skew_s`: by how much its clock is ahead."""
        self.name = name
        self.folder = folder
        self.port = free_port()
        self.direct = f"http://127.0.0.1:{self.port}"
        self.advertised = ""
        self.peers: list[str] = []
        self.store = Valkey(folder / "store", *_APPEND_ONLY)
        self.epoch = 0
        self.listening = False
        self.dead = False
        self.caught_up = False  # since its start: what it lacks before that, it is only about to be given
        self.turn = asyncio.Lock()
        self.hears: dict[str, Hearing] = {}  # other sites, since it was last started or stood still
        self._client, self._timeline, self._network, self._skew_s = client, timeline, network, skew_s
        self._process: Process | None = None
        self._backup = folder / "backup"

    def url(self, path: str) -> str:
        """A route of it, not by way of the network between registries."""
        return self.direct + path

    async def read(self, path: str, key: str = ADMIN_KEY) -> Answer:
        """GET. Raises Unanswered."""
        return await self._client.read(self.url(path), key)

    # life

    async def start_store(self) -> None:
        """Start its Valkey; it answers when this returns."""
        await asyncio.to_thread(self.store.start)

    async def start_registry(self) -> None:
        """Start its registry; it answers reads when this returns."""
        flags = ["--region", self.name, "--redis-url", self.store.url, "--advertise-url", self.advertised]
        flags += [str(flag) for flag in _WINDOWS]
        for peer in self.peers:
            flags += ["--peer", peer]
        env: dict[str, str | None] = {
            "REGISTRY_FEDERATION_SECRET": SECRET,
            "PYTHONPATH": str(_ROOT),
            SKEW_MS: str(round(self._skew_s * 1000)),
        }
        self._process = Process(self.folder / "data", *flags, port=self.port, env=env, module="tests.chaos.started")
        self.dead = self.caught_up = False
        self._network.runs_as(self.name, self._process.popen.pid)
        deadline_s = self._timeline.now_s + START_S
        while not await self._answers("/healthz"):
            self.check_alive()
            if self._timeline.now_s > deadline_s:
                await self.print_tasks()
                raise Violation(f"starts: {self.name} did not answer within {START_S:g} s of its start")
            await asyncio.sleep(0.05)
        self.epoch += 1
        self.listening = True

    async def ready(self, within_s: float = READY_S) -> None:
        """Wait for /readyz to say so."""
        deadline_s = self._timeline.now_s + within_s
        said = ""
        while True:
            with contextlib.suppress(Unanswered):
                answer = await self.read("/readyz")
                if answer.ok:
                    self.caught_up = True
                    return
                said = ", ".join(answer.body.get("reasons", []))
            self.check_alive()
            if self._timeline.now_s > deadline_s:
                await self.print_tasks()
                raise Violation(f"heals: {self.name} was not ready {within_s:g} s after its fault ended: {said}")
            await asyncio.sleep(0.1)

    def check_alive(self) -> None:
        """It must not end by itself."""
        if not self.dead and self._process is not None and self._process.popen.poll() is not None:
            raise Violation(f"no registry ends by itself: {self.name} did, with {self._process.popen.returncode}")

    def kill_registry(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self.listening, self.dead = False, True
        self.epoch += 1
        self._process.kill()

    def freeze_registry(self) -> None:
        """SIGSTOP."""
        assert self._process is not None
        self.listening = False
        self.epoch += 1
        self._process.popen.send_signal(signal.SIGSTOP)

    def thaw_registry(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.popen.send_signal(signal.SIGCONT)
        self.epoch += 1
        self.listening = True

    def close(self) -> None:
        """Leave no process and no socket."""
        try:
            if self._process is not None and not self.dead:
                self.kill_registry()
        finally:
            self.store.close()

    # the store's files

    def copy_store(self) -> None:
        """Keep its files as they are now."""
        shutil.rmtree(self._backup, ignore_errors=True)
        shutil.copytree(self.store.folder / "appendonlydir", self._backup)

    def lose_store(self, *, restore: bool) -> None:
        """SIGKILL the store, and let its files be gone, or what they were when they were copied."""
        self.store.kill()
        shutil.rmtree(self.store.folder / "appendonlydir")
        if restore:
            shutil.copytree(self._backup, self.store.folder / "appendonlydir")

    def stored(self, node_id: str) -> str:
        """What its store has of a node, for people: life, incarnation and sections, with all their stamps."""
        try:
            data = self.store.ask("HGET", f"dagi:{{{self.name}}}:records", node_key(node_id))
        except RedisError as fault:
            return f"its store cannot be asked: {fault}"
        return repr(unpack_record(node_key(node_id), data[_VERSION_DIGITS:]).state()) if data else "nothing"

    # its log

    async def print_tasks(self) -> None:
        """Have it print what it waits for: why it does not get on."""
        if self._process is not None and self._process.popen.poll() is None:
            self._process.popen.send_signal(signal.SIGUSR1)
            await asyncio.sleep(PRINT_S)

    def log(self) -> str:
        """Everything it printed since the beginning."""
        return self._process.output() if self._process is not None else ""

    def faults_logged(self) -> list[str]:
        """Lines that tell of a fault of its own."""
        return [line for line in self.log().splitlines() if any(word in line for word in FAULT_WORDS)]

    async def _answers(self, path: str) -> bool:
        try:
            answer = await self._client.read(self.url(path), ADMIN_KEY, 1.0)
        except Unanswered:
            return False
        return answer.ok

    def __repr__(self) -> str:
        return self.name


async def listed(site: Site) -> dict[str, dict[str, Any]]:
    """Every node as it shows it. Raises Unanswered."""
    answer = await site.read("/api/v1/nodes?limit=1000")
    if not answer.ok:
        raise Unanswered(f"{answer.status}", sent=True)
    return {node["node_id"]: node for node in answer.body["nodes"]}
