"""A region's workers without their sockets: what serve.py puts together, over a store that fails when told to."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, cast

import orjson

from federation.clock import Now
from federation.config import Config
from federation.effects import Effect, Send
from federation.engine import Engine
from federation.links import Links, PeerState
from federation.messages import Message
from federation.replica import Replica
from federation.roster import Advert
from federation.wire import decode, encode
from registry.admission import Admission
from registry.allowlist import Allowlist
from registry.auth import Authenticator
from registry.clock import Clock, SystemClock
from registry.directory import Directory
from registry.follower import Follower
from registry.keys import Principal
from registry.lifecycle import Windows
from registry.model import HeartbeatRequest, PatchRequest, parse
from registry.ports import AuditBatch, Put, Store, StoreUnavailable
from registry.region import Membership, Region
from registry.service import Place, Registry
from registry.signing import parse_registration
from registry.store import RedisStore
from registry.stored import unpack_meta, unpack_record
from registry.writer import Writer
from tests.support.live import until
from tests.support.rosters import advert, registry_key
from tests.support.stores import LONG_MS, Bench

HERE, THERE = "here", "there"
WINDOWS = Windows(30, 90, 300)
ADMIN = Principal("admin", None, b"", "")
ANYONE = Principal("none", None, b"", "")


class Faulty(RedisStore):
    """Loses commits, or their answers, as `faults` says, one after another; keeps them waiting while `held`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.faults: deque[str | None] = deque()
        self.commits = 0
        self.is_down = False
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.on_commit: Callable[[int], None] = lambda number: None

    async def commit(
        self,
        token: str,
        expected: Collection[int] | None,
        version: int,
        puts: Sequence[Put],
        meta: bytes | None,
        audit: AuditBatch | None = None,
    ) -> None:
        """See ports.Store. `lost`: never made; `unanswered`: made, and nobody is told."""
        fault = self.faults.popleft() if self.faults else None
        await self.goes_on.wait()
        self.commits += 1
        self.on_commit(self.commits)
        if fault == "lost" or self.is_down:
            raise StoreUnavailable("down", "a test says so")
        await super().commit(token, expected, version, puts, meta, audit)
        if fault == "unanswered":
            raise StoreUnavailable("slow", "a test says so")


class FakeLinks:
    """writer.Links, and what Region asks beside: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.closed: list[tuple[str, str]] = []
        self.roster: dict[str, Advert] = {}
        self.paused: str | None = None
        self.started = False
        self.on_send: Callable[[str, Message], None] = lambda peer, message: None

    def send(self, peer: str, message: Message) -> None:
        """See writer.Links."""
        self.sent.append((peer, message))
        self.on_send(peer, message)

    def close(self, peer: str, reason: str) -> None:
        """See writer.Links."""
        self.closed.append((peer, reason))

    def know(self, roster: Mapping[str, Advert]) -> None:
        """See writer.Links."""
        self.roster = dict(roster)

    def pause(self, reason: str) -> None:
        """See writer.Links."""
        self.paused = reason

    def resume(self) -> None:
        """See writer.Links."""
        self.paused = None

    async def start(self) -> None:
        """See federation.links.Links."""
        self.started = True

    async def stop(self) -> None:
        """See federation.links.Links."""
        self.started = False

    def peers(self) -> list[PeerState]:
        """See federation.links.Links."""
        return []

    def kinds(self) -> list[str]:
        """The names of the messages sent."""
        return [type(message).__name__ for _, message in self.sent]


class Peer:
    """Another registry: its engine, and the messages between it and a writer, encoded as they would travel."""

    def __init__(self, writer: Writer, links: FakeLinks, registry_id: str = THERE) -> None:
        self.registry_id = registry_id
        self._writer, self._links = writer, links
        config = Config(registry_id, advert=advert(registry_id))
        self.engine = Engine(config, Replica(registry_id), Random(7), writer.now, registry_key(registry_id))

    @property
    def now(self) -> Now:
        """The writer's moment: both clocks are right."""
        return self._writer.now

    def connect(self) -> None:
        """A link is up, and both sides greet."""
        self._links.on_send = self._take
        self._writer.connected(self.registry_id)
        self.do(self.engine.connected(HERE, self.now))

    def relink(self, writer: Writer, links: FakeLinks) -> None:
        """A later start of the other side."""
        self.do(self.engine.disconnected(HERE, self.now))
        self._writer, self._links = writer, links
        self.connect()

    def tick(self) -> None:
        """Let it act on time."""
        self.do(self.engine.tick(self.now))

    def do(self, effects: list[Effect]) -> None:
        """Carry out what it asks for; nothing of it is kept."""
        for effect in effects:
            if isinstance(effect, Send):
                self._soon(partial(self._writer.received, self.registry_id), effect.message)

    def _take(self, peer: str, message: Message) -> None:
        if peer == self.registry_id:
            self._soon(self._receive, message)

    def _receive(self, message: Message) -> None:
        self.do(self.engine.receive(HERE, message, self.now))

    @staticmethod
    def _soon(call: Callable[[Message], None], message: Message) -> None:
        """Never from within a call of the other side; in order."""
        asyncio.get_running_loop().call_soon(call, decode(encode(message)))


async def begin_writer(store: Store, clock: Clock, token: str = "t1", *, directory: Directory | None = None) -> Writer:
    """A writer over what the store holds, its lease taken for long; what it begins with is kept."""
    assert (await store.lease(token, "", LONG_MS)).token == token
    version, meta = await store.version(), await store.meta()
    records = [unpack_record(record.key, record.data) async for chunk in store.load() for record in chunk]
    replica = Replica.restore(HERE, records, unpack_meta(meta) if meta else None)
    config = Config(HERE, advert=advert(HERE), push_when_asked=True)
    engine = Engine(config, replica, Random(1), Now(clock.monotonic(), clock.wall_ms()), registry_key(HERE))
    if directory is None:
        directory = Directory(WINDOWS, clock.monotonic(), HERE)
    writer = Writer(engine, store, directory, clock, token, version)
    writer.perform(writer.engine.tick(writer.now))
    with contextlib.suppress(StoreUnavailable):
        await writer.flushed()
    return writer


class Worker:
    """One worker of a region, and its commands."""

    def __init__(
        self,
        store: Store,
        *,
        windows: Windows = WINDOWS,
        clock: Clock | None = None,
        address: str = "",
        links: Callable[[Writer], FakeLinks] | None = None,
        expects_peers: bool = False,
    ) -> None:
        """`address`: there are other workers, and this one would be reached there."""
        self.store, self.clock = store, clock or SystemClock()
        self.directory = Directory(windows, self.clock.monotonic(), HERE)
        self.follower = Follower(store, self.directory, windows, self.clock, alone=not address)
        make_links = cast(Callable[[Writer], Links] | None, links)
        self.region = Region(
            Membership(
                Config(HERE, advert=advert(HERE), push_when_asked=True),
                make_links,
                expects_peers,
                key=registry_key(HERE),
            ),
            store,
            self.directory,
            self.follower,
            windows,
            self.clock,
            address=address,
            alone=not address,
        )
        auth = Authenticator("key", self.directory, b"s" * 32, [], True)
        place = Place(HERE, "eu", {}, {})
        self.allowlist = Allowlist(self.directory)
        self.registry = Registry(
            place,
            store,
            self.directory,
            auth,
            Admission(self.allowlist, auth, self.clock, HERE),
            self.clock,
            self.region,
        )
        self.region.on_writer = self._attend
        self.region.serving = True

    def _attend(self, writer: Writer) -> None:
        writer.on_recovered = self.registry.recovered

    @property
    def writer(self) -> Writer:
        """Its writer, which it has."""
        assert self.region.writer is not None
        return self.region.writer

    def statuses(self) -> dict[str, str]:
        """What callers would see."""
        return {entry.node_id: entry.status for entry in self.directory.entries()}

    async def register(self, node_id: str | None = None, who: Principal = ADMIN, **report: Any) -> dict[str, Any]:
        """The answer to a registration."""
        request = parse_registration({**report, **({"node_id": node_id} if node_id else {})}, {})
        answer: dict[str, Any] = orjson.loads(await self.registry.register(who, request, "192.0.2.7"))
        return answer

    async def beat(self, node_id: str, **report: Any) -> dict[str, Any]:
        """The answer to a heartbeat."""
        request = parse(HeartbeatRequest, {"node_id": node_id, **report})
        answer: dict[str, Any] = orjson.loads(await self.registry.heartbeat(ADMIN, request))
        return answer

    async def patch(self, node_id: str, **change: Any) -> dict[str, Any]:
        """The answer to a PATCH."""
        answer: dict[str, Any] = orjson.loads(await self.registry.patch(ADMIN, node_id, parse(PatchRequest, change)))
        return answer

    async def delete(self, node_id: str) -> str:
        """The version of a deletion."""
        return await self.registry.deregister(ADMIN, node_id)

    async def die(self) -> None:
        """End every task of it, and tell nobody: the lease runs out."""
        tasks = [*self.region._tasks, self.region._campaign, *self.follower._tasks]
        if self.region.writer is not None:
            tasks.append(self.region.writer._flusher)
        for task in tasks:
            while task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.1)

    async def stop(self) -> None:
        """As a worker that is told to."""
        await self.region.stop()
        await self.follower.stop()


@contextlib.asynccontextmanager
async def working(store: Store, **options: Any) -> AsyncIterator[Worker]:
    """A worker that has started, and is gone afterwards."""
    worker = Worker(store, **options)
    await worker.region.start()
    try:
        yield worker
    finally:
        await worker.stop()


class Copy:
    """An older copy of a region's store, to be restored."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._values: dict[str, Any] = {}

    async def take(self) -> None:
        """Copy records, meta and number."""
        raw = await self._bench.raw()
        self._values = {name: await raw.get(self._bench.key(name)) for name in ("meta", "seq")}
        self._values["records"] = await raw.hgetall(self._bench.key("records"))

    async def restore(self) -> None:
        """Nothing but the copy is there any more."""
        await emptied(self._bench)
        raw = await self._bench.raw()
        await raw.hset(self._bench.key("records"), mapping=self._values["records"])
        for name in ("meta", "seq"):
            await raw.set(self._bench.key(name), self._values[name])


async def emptied(bench: Bench) -> None:
    """FLUSHALL, of this region only: others share the server."""
    raw = await bench.raw()
    for key in await raw.keys(bench.key("*")):
        await raw.delete(key)


async def lease_lost(bench: Bench) -> None:
    """The writer's lease runs out."""
    await (await bench.raw()).delete(bench.key("lease"))


def in_store(loaded: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The states of what was loaded, by key."""
    return {key: unpack_record(key, record.data).state() for key, record in loaded.items()}


async def becomes(condition: Callable[[], Any], deadline_s: float = 10.0) -> None:
    """Wait for a condition."""

    async def asked() -> Any:
        return condition()

    await until(asked, deadline_s)
