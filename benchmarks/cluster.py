"""Real registries for benchmarks of the federation: processes with a Valkey each, in a full mesh by way of proxies.

Each registry is given the others' proxies as peers and advertises its own proxy, so every link between any two
leads through exactly one, whoever dials. Benchmarks themselves ask the registries directly. Nothing is pinned to
cores: there are more processes than cores. All of a cluster's files, sockets included, lie in one folder.
"""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop

from benchmarks.fleet import request_bytes
from benchmarks.harness import ADMIN_KEY
from benchmarks.load import Exchange, exchange
from tests.support.live import Process
from tests.support.proxy import Network
from tests.support.valkey import free_port

SECRET = "a secret of benchmarks, of 32 characters and more"
READY_S, LINKED_S, STOP_S = 300.0, 120.0, 15.0
POLL_S = 0.01
_HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


class Failed(Exception):
    """The benchmark cannot go on; says what did not happen."""


class Member:
    """One registry. `url` is where peers dial it, `port` where the benchmark asks it."""

    def __init__(self, name: str, folder: Path, network: Network, client: aiohttp.ClientSession) -> None:
        self.name = name
        self.folder = folder / name
        self.port = free_port()
        self.url = ""
        self.peers: list[str] = []
        self.flags: list[str] = []
        self.started_s = 0.0
        self._temporary = folder / "t"
        self._network = network
        self._client = client
        self._process: Process | None = None
        self._killed: list[psutil.Process] = []

    @property
    def direct(self) -> str:
        """Where clients ask it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.popen.poll() is None

    def start(self) -> None:
        """Start its process; see `ready`."""
        psutil.wait_procs(self._killed, STOP_S)
        self._temporary.mkdir(exist_ok=True)
        flags = ["--region", self.name, "--advertise-url", self.url, *self.flags]
        for peer in self.peers:
            flags += ["--peer", peer]
        self.started_s = time.monotonic()
        env: dict[str, str | None] = {
            "REGISTRY_ADMIN_KEY": ADMIN_KEY,
            "REGISTRY_FEDERATION_SECRET": SECRET,
            "TMPDIR": str(self._temporary),
        }
        self._process = Process(self.folder, *flags, port=self.port, env=env)
        self._network.runs_as(self.name, self._process.popen.pid)

    async def ready(self, within_s: float = READY_S) -> float:
        """The moment at which it first said that it is ready."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._client.get(self.direct + "/readyz", timeout=aiohttp.ClientTimeout(2)) as answer:
                    if answer.status == 200:
                        return time.monotonic()
            if not self.running or time.monotonic() - self.started_s > within_s:
                raise Failed(f"{self.name} was not ready within {within_s:g} s: {self.log()[-2000:]}")
            await asyncio.sleep(POLL_S)

    def log(self) -> str:
        """What it printed."""
        return self._process.output() if self._process is not None else ""

    def processes(self) -> list[psutil.Process]:
        """Its own process and its Valkey."""
        if self._process is None or not self.running:
            return []
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self._process.popen.pid)
            return [found, *found.children(recursive=True)]
        return []

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of its own process, and of its Valkey."""
        used = [0.0, 0.0]
        for index, process in enumerate(self.processes()):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[min(index, 1)] += times.user + times.system
        return used[0], used[1]

    def kill(self) -> float:
        """SIGKILL it and its Valkey, as if the machine was gone; the moment."""
        stores = self.processes()[1:]
        moment_s = time.monotonic()
        if self._process is not None:
            self._process.kill()
        for store in stores:
            with contextlib.suppress(psutil.Error):
                store.kill()
        self._killed = stores
        return moment_s

    def stop(self) -> None:
        """Ask it to stop, and make sure that it and its Valkey are gone."""
        psutil.wait_procs(self._killed, STOP_S)
        if self._process is None or not self.running:
            return
        stores = self.processes()[1:]
        try:
            self._process.stop()
        except subprocess.TimeoutExpired:
            self._process.popen.kill()
            self._process.popen.wait()
        for store in psutil.wait_procs(stores, 1.0)[1]:
            with contextlib.suppress(psutil.Error):
                store.kill()

    async def get(self, path: str) -> Any:
        """The JSON that it answers."""
        return await self.call("GET", path)

    async def call(self, method: str, path: str, body: object = None, key: str | None = None) -> Any:
        """The JSON of a 200; anything else ends the benchmark."""
        headers = _HEADERS if key is None else {"Authorization": f"Bearer {key}"}
        async with self._client.request(method, self.direct + path, json=body, headers=headers) as answer:
            if answer.status != 200:
                raise Failed(f"{self.name} answered {method} {path} with {answer.status}: {await answer.text()}")
            return await answer.json()

    async def connect(self) -> Exchange:
        """A connection for one request at a time."""
        return await exchange("127.0.0.1", self.port)


class Cluster:
    """Registries of these names; none is started."""

    def __init__(self, folder: Path, network: Network, client: aiohttp.ClientSession, flags: Sequence[str]) -> None:
        self.network = network
        self.members: list[Member] = []
        self._folder = folder
        self._client = client
        self._flags = list(flags)

    async def add(self, name: str) -> Member:
        """A new one, with all others as its peers; they do not know of it."""
        member = Member(name, self._folder, self.network, self._client)
        member.url = await self.network.add(name, member.port)
        member.peers = [other.url for other in self.members]
        member.flags = self._flags
        self.members.append(member)
        return member

    def introduce(self) -> None:
        """Each is given all others as its peers."""
        for member in self.members:
            member.peers = [other.url for other in self.members if other is not member]

    async def start(self) -> None:
        """Start all, and wait until all are ready and linked to each other."""
        for member in self.members:
            member.start()
        for member in self.members:
            await member.ready()
        await self.settled()

    async def settled(self, within_s: float = LINKED_S) -> None:
        """Wait until those that run are linked to each other and have the same."""
        running = [member for member in self.members if member.running]
        names = {member.name for member in running}
        deadline_s = time.monotonic() + within_s
        while True:
            views = [await member.get("/api/v1/federation") for member in running]
            missing = [
                f"{view['self']['registry_id']} to {name}"
                for view in views
                for name in names - {view["self"]["registry_id"]} - _linked(view)
            ]
            if not missing and all(view["vector"] == views[0]["vector"] for view in views):
                if self.network.strangers:
                    raise Failed(f"{self.network.strangers} links are of nobody known: no delay would reach them")
                return
            if time.monotonic() > deadline_s:
                what = f"no link from {', '.join(missing)}" if missing else f"they differ: {_differing(views)}"
                raise Failed(f"after {within_s:g} s: {what}")
            await asyncio.sleep(0.2)

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of all registries, and of all their Valkeys."""
        used = [member.cpu_s() for member in self.members]
        return sum(each[0] for each in used), sum(each[1] for each in used)

    def delay(self, seconds: float) -> None:
        """Every way between registries takes so long from now on."""
        for way in self.network.ways():
            way.delay_s = seconds


@contextlib.asynccontextmanager
async def cluster(folder: Path, names: Iterable[str], flags: Sequence[str] = ()) -> AsyncIterator[Cluster]:
    """A cluster of which nothing is left afterwards."""
    network = Network()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        found = Cluster(folder, network, client, flags)
        try:
            for name in names:
                await found.add(name)
            found.introduce()
            yield found
        finally:
            for member in found.members:
                if member.running:  # all at once: they wait for each other's links else
                    for process in member.processes()[:1]:
                        process.terminate()
            for member in found.members:
                member.stop()
            await network.close()


def request(method: str, path: str, body: object = None, key: str = ADMIN_KEY) -> bytes:
    """A request's bytes."""
    return request_bytes(method, path, key, body)


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run a benchmark so that Ctrl-C and SIGTERM end it in order; its exit status."""

    async def watched() -> int:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        gc.freeze()
        return await main

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(watched())
    except Failed as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped", flush=True)
        return 130


class Lag:
    """How late this process's own event loop is: what it adds to what it measures."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self._task = asyncio.create_task(self._watch())

    def stop(self) -> list[float]:
        """What was seen, sorted."""
        self._task.cancel()
        return sorted(self.late_ms)

    async def _watch(self) -> None:
        while True:
            due_s = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self.late_ms.append((time.monotonic() - due_s) * 1000)


async def until(condition: Callable[[], Coroutine[Any, Any, bool]], what: str, within_s: float) -> float:
    """Ask again and again; the moment at which it came true."""
    deadline_s = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline_s:
            raise Failed(f"{what} within {within_s:g} s")
        await asyncio.sleep(POLL_S)
    return time.monotonic()


def at(values: Sequence[float], share: float) -> float:
    """A quantile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]


def own_cpu_s() -> float:
    """CPU seconds of this process: the client and the proxies."""
    times = os.times()
    return times.user + times.system


def _linked(view: dict[str, Any]) -> set[str]:
    return {peer["registry_id"] for peer in view["peers"] if peer["state"] == "up"}


def _differing(views: list[dict[str, Any]]) -> str:
    return "; ".join(f"{view['self']['registry_id']} {view['vector']}" for view in views)[:2000]
