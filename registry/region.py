"""This worker's role in its region: the one that writes and holds the links, or one that follows.

The writer holds a lease in the store, and every commit of its is checked against it there: a worker that was
deposed while it stood still changes nothing any more.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from federation.clock import Now, Vector, reaches
from federation.config import Config
from federation.ed25519 import PrivateKey
from federation.engine import Engine
from federation.links import Links
from federation.replica import Replica
from registry import backbone
from registry.audit import Audit
from registry.audit_chain import START, BrokenLine, Head, read
from registry.audit_log import AuditLog
from registry.clock import Clock
from registry.commits import Beat
from registry.directory import Directory
from registry.errors import ApiError
from registry.follower import Follower
from registry.lifecycle import Windows
from registry.logs import event
from registry.node import NODE_PREFIX
from registry.ports import Change, Fenced, Lease, Store, StoreUnavailable
from registry.stored import unpack_meta
from registry.writer import Writer

LEASE_S = 1.5  # a writer that died is replaced after this and what loading takes: within 3 s
RENEW_S = 0.3
LEFT_S = 3.0  # how long the lease is left to a worker that knows more than the store
BOOTSTRAP_ALONE_S = 3.0  # how long a start waits for a first link before it serves what it has
BOOTSTRAP_S = 60.0  # and for a peer to give it everything
PUBLISH_S = 1.0
BACKBONE_S = 3.0  # a link has been measured by then
OWNERS = "owners"

Json = Any


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes this registry a member of a federation. `make_links`: None when it is in none. `region`: its own.
    `key`: what it seals its writes with."""

    config: Config
    make_links: Callable[[Writer], Links] | None
    expects_peers: bool
    region: str = ""
    key: PrivateKey | None = None


class Region:
    """See the module. `writer`: set while this worker is the one."""

    def __init__(
        self,
        membership: Membership,
        store: Store,
        directory: Directory,
        follower: Follower,
        windows: Windows,
        clock: Clock,
        *,
        address: str,
        alone: bool,
        audit: Audit | None = None,
    ) -> None:
        """`address`: where other workers reach this one. `alone`: there are no other workers."""
        self.audit = audit or Audit(clock)
        self.audit_filed: Callable[[], Head] = lambda: START  # where the log's file has come to
        self._membership = membership
        self._store = store
        self._directory = directory
        self._follower = follower
        self._windows = windows
        self._clock = clock
        self._address = address
        self._alone = alone
        self._token = ""
        self._tasks: list[asyncio.Task[Any]] = []
        self._campaign: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[None] | None = None
        self._began_s = clock.monotonic()
        self._linked = False
        self._bootstrapped = False
        self._caught_up_to: Vector | None = None  # what peers had given us when they had given us everything
        self._beats_to_publish: list[Beat] = []
        self._sweep_every_s = min(1.0, windows.degraded_after_s / 20)
        self.writer: Writer | None = None
        self.links: Links | None = None
        self.writer_address: str | None = None
        self.serving = False  # whether this worker can be reached at its address
        self.on_writer: Callable[[Writer], None] = lambda writer: None
        self.on_registries: Callable[[list[Json]], None] = lambda registries: None
        self._registries: list[Json] = []
        self._words: list[Json] = []  # how owners stand, as the writer published it
        self._words_at_s = clock.monotonic()
        self._unsure = False  # whether something of another writer may have been missed
        self._left_since_s: float | None = None  # since when the lease is left to who knows more
        follower.on_beat = self._other_worker_heard

    # state

    @property
    def registry_id(self) -> str:
        """Whose region it is."""
        return self._membership.config.registry_id

    @property
    def reasons(self) -> list[str]:
        """Why the region must not be written yet."""
        if self.writer is None:
            return [] if self.writer_address else ["no worker writes for this region at the moment"]
        return [] if self._has_bootstrapped(self.writer) else ["catching up with the federation"]

    def check(self) -> None:
        """Raise 503 while a start has not yet been given what its peers have."""
        if self.writer is not None and self.reasons:
            raise ApiError("catching_up", "This registry is catching up with its peers; try again.", retry_after_s=1)

    def _has_bootstrapped(self, writer: Writer) -> bool:
        """What a lost or old store lacks must be here before anything is built on it; where nobody can be
        reached, waiting would help nobody."""
        if self._bootstrapped:
            return True
        others = self._membership.expects_peers or len(writer.engine.replica.roster) > 1
        waited_s = self._clock.monotonic() - self._began_s
        self._linked = self._linked or any(link.greeted for link in writer.engine.links.values())
        patience_s = BOOTSTRAP_S if self._linked else BOOTSTRAP_ALONE_S
        if writer.engine.caught_up and self._caught_up_to is None:
            self._caught_up_to = dict(writer.engine.replica.vector)
        shown = self._caught_up_to is not None and reaches(writer.visible.vector, self._caught_up_to)
        self._bootstrapped = self.links is None or not others or shown or waited_s >= patience_s
        return self._bootstrapped

    def tell(self, registries: list[Json]) -> None:
        """Where else nodes may go, for this worker and the others."""
        self._registries = registries
        self.on_registries(registries)

    # life

    async def start(self) -> None:
        """Become the writer, or find who is. Raises StoreUnavailable."""
        self._failed = asyncio.get_running_loop().create_future()
        position = await self._store.position()
        while True:
            await self._run_for_it()
            if self.writer is not None:
                self._follower.follow(position)
                break
            if not self._alone:
                await self._follower.start()
                await self._wait_for_writer()
                break
            await asyncio.sleep(RENEW_S / 3)  # the lease of a start that was killed runs out
        self._campaign = asyncio.create_task(self._campaign_for_ever(), name="lease")

    async def _wait_for_writer(self) -> None:
        """Who cannot pass on what needs writing leaves the port to the one that writes, but not for long: reads
        it could answer."""
        until_s = self._clock.monotonic() + BOOTSTRAP_ALONE_S
        while self.writer is None and not self.writer_address and self._clock.monotonic() < until_s:
            await asyncio.sleep(RENEW_S / 3)
            await self._run_for_it()

    async def failed(self) -> None:
        """Return only when a task has died, which is a fault of ours: raise it."""
        assert self._failed is not None
        await self._failed

    async def stop(self) -> None:
        """Give up the role."""
        await _ended(self._campaign)
        token = self._token
        await self._resign()
        if token:
            with contextlib.suppress(StoreUnavailable):
                await self._store.release(token)  # else the next start waits until it runs out

    async def _campaign_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._run_for_it()
            except StoreUnavailable:
                self._tell_owners()  # they grow older meanwhile
                continue
            except Exception as fault:
                if self._failed is not None and not self._failed.done():
                    self._failed.set_exception(fault)
                raise

    async def _run_for_it(self) -> None:
        """Take or renew the lease, and the role that goes with the answer."""
        if self.writer is not None and self.writer.deposed.is_set():
            await self._resign()
        if self.writer is None and not self._token:
            self._token = secrets.token_hex(12)
        if self.writer is None and await self._leaves_it():
            return
        lease = await self._lease()
        if lease.token == self._token:
            if self.writer is None and await self._leaves_it():
                token, self._token = self._token, ""
                await self._store.release(token)
                return
            self.writer_address = None
            if self.writer is None:
                await self._begin()
                await self._lease()  # with our address
            return
        self.writer_address = lease.address
        if self.writer is not None:
            event("deposed", logging.WARNING, action="following the region's other writer")
            await self._resign()
        elif not self._alone:
            if self._unsure:
                await self._follower.load_again()
                self._unsure = False
            await self._hear_owners()

    async def _leaves_it(self) -> bool:
        """A store that was emptied, or is an old copy, has lost its lease with the rest. The worker that wrote has
        everything in memory, and takes it back; we would begin with what is left. Where it does not, it is gone."""
        if self._alone or await self._store.version() >= self._directory.newest:
            self._left_since_s = None
            return False
        now = self._clock.monotonic()
        if self._left_since_s is None:
            self._left_since_s = now
            event("store_lost_commits", logging.ERROR, action="leaving the lease to the worker that wrote")
        return now - self._left_since_s < LEFT_S

    async def _begin(self) -> None:
        """Take over: everything from the store, a new generation, links."""
        version, meta = await self._store.version(), await self._store.meta()
        keeping = asyncio.create_task(self._keep_lease(), name="keep-lease")
        try:
            records = [record async for chunk in self._follower.records() for record in chunk]
            config = self._membership.config
            kept = unpack_meta(meta) if meta is not None else None
            replica = await asyncio.to_thread(Replica.restore, config.registry_id, records, kept, config.digest_key)
        finally:
            await _ended(keeping)
        log = AuditLog(self.audit, await self._audit_head())
        rng = random.Random(secrets.randbits(64))  # noqa: S311 - whom to ask and when, never a secret
        now = Now(self._clock.monotonic(), self._clock.wall_ms())
        engine = Engine(config, replica, rng, now, self._membership.key)
        self.audit.note("writer.began", None, target=config.registry_id, generation=replica.chain[1])
        writer = Writer(engine, self._store, self._directory, self._clock, self._token, version, log)
        try:
            writer.perform(writer.engine.tick(writer.now))
            await self._lease()  # the first look at everything may have taken longer than it lasts
            await writer.flushed()  # the new generation is kept before anything is written in it
        except StoreUnavailable:
            await writer.stop()  # the next try has a writer of its own
            raise
        self.writer = writer
        self._follower.on_replaced = writer.store_lost
        self.on_writer(writer)
        if self._membership.make_links is not None:
            self.links = self._membership.make_links(writer)
            writer.attach(self.links)
            await self.links.start()
        if not self._alone:
            writer.on_beats = self._beats_to_publish.extend
        self._began_s, self._linked = self._clock.monotonic(), False
        links = self.links
        self._tasks = [self._run(writer.tick_for_ever(), "tick"), self._run(self._sweep(writer), "sweep")]
        if links is not None:
            self._tasks.append(self._run(self._tell_backbone(writer, links), "backbone"))
        if not self._alone:
            self._tasks.append(self._run(self._publish_for_ever(writer), "publish"))

    async def _audit_head(self) -> Head:
        """Where the audit log goes on. A store that lost it, or is an old copy, knows less than the log's file."""
        last = await self._store.audit_last()
        held = START
        if last is not None:
            try:
                held = read(last).head
            except BrokenLine as fault:
                event("audit_broken", logging.ERROR, where="store", why=str(fault))
        return max(held, self.audit_filed())

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(StoreUnavailable):
                await self._lease()

    async def _lease(self) -> Lease:
        """Take or renew the lease. The others are told where to send what is to be written once it can be."""
        address = self._address if self.serving and self.writer is not None else ""
        return await self._store.lease(self._token, address, int(LEASE_S * 1000))

    def _run(self, work: Awaitable[None], name: str) -> "asyncio.Task[None]":
        async def watched() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as fault:
                event("task_failed", logging.ERROR, exc_info=True, task=name)
                if self._failed is not None and not self._failed.done():
                    self._failed.set_exception(fault)

        return asyncio.create_task(watched(), name=name)

    async def _resign(self) -> None:
        writer, self.writer = self.writer, None
        # As a writer we skipped what broke the change stream; another one may have written meanwhile.
        self._unsure = self._unsure or writer is not None
        self._token = "" if writer is not None else self._token
        self._follower.on_replaced = None
        for task in self._tasks:
            await _ended(task)
        self._tasks = []
        if self.links is not None:
            await self.links.stop()
            self.links = None
        if writer is not None:
            await writer.stop()

    # the writer's work

    async def _sweep(self, writer: Writer) -> None:
        """Judge silent nodes; after a stall of ours, silence counts from its end."""
        expected = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            if now - expected > max(1.0, self._windows.degraded_after_s / 3):
                event("stalled", logging.WARNING, seconds=round(now - expected, 1))
                self._directory.restart_counting(now)
            elif self._follower.store_fault is None and writer.available:
                # Not later: heartbeats after it may be failing, and no probe has told us yet.
                await self._judge(writer, min(now, self._follower.heard_until_s))
            expected = now + self._sweep_every_s  # from before the judging: a stall may fall into it
            await asyncio.sleep(self._sweep_every_s)

    async def _judge(self, writer: Writer, now: float) -> None:
        held = self._directory.hold_left_s(now)
        due = self._directory.due(now)
        left = self._directory.hold_left_s(now)
        if held is None and left is not None:
            writer.alert(
                "expiry_held",
                f"many nodes fell silent at once: none is called offline for {left:.0f} s; check our own network",
            )
        offline = [NODE_PREFIX + item.node_id for item in due if item.word.liveness == "offline"]
        with contextlib.suppress(StoreUnavailable, Fenced):
            silent = set(await self._store.unheard(offline)) if offline else set()
            await writer.judge(
                item for item in due if item.word.liveness != "offline" or NODE_PREFIX + item.node_id in silent
            )

    def _other_worker_heard(self, change: Change) -> None:
        """Another worker took a heartbeat; its numbers go to the federation from here."""
        writer = self.writer
        if writer is not None:
            writer.confirm(change.key[len(NODE_PREFIX) :])
        if writer is not None and writer.engine.links:
            with contextlib.suppress(ValueError):
                writer.measured(change.key[len(NODE_PREFIX) :], orjson.loads(change.data))

    async def _tell_backbone(self, writer: Writer, links: Links) -> None:
        """Tell how far the other registries are, and where we are ourselves: see backbone.py."""
        key = backbone.BACKBONE_PREFIX + self._membership.config.registry_id
        while True:
            await asyncio.sleep(BACKBONE_S)
            record = writer.engine.replica.get(key)
            measured = {peer.registry_id: peer.rtt_ms for peer in links.peers() if peer.registry_id is not None}
            told = backbone.read(record) if record is not None else None
            news = backbone.news(told, self._membership.region, measured)
            if news is not None and not self.reasons:
                with contextlib.suppress(StoreUnavailable, ValueError):
                    await writer.put(key, backbone.packed(news))

    # what the other workers cannot see for themselves

    async def _publish_for_ever(self, writer: Writer) -> None:
        while True:
            await asyncio.sleep(PUBLISH_S)
            words = [
                [word.owner, word.reachable, word.age_s, word.generation, word.known]
                for word in writer.engine.words(writer.now)
            ]
            beats = self._beats_to_publish[:]
            self._beats_to_publish.clear()
            batch = b"".join(b"%b %d %d\n%b" % (key.encode(), at, len(data), data) for key, data, at in beats)
            with contextlib.suppress(StoreUnavailable):
                await self._store.publish(OWNERS, orjson.dumps([self._clock.wall_ms(), words, self._registries]), batch)

    async def _hear_owners(self) -> None:
        published = await self._store.published(OWNERS)
        if published is None:
            return
        at_ms, words, registries = orjson.loads(published)
        self.tell(registries)
        self._words = words
        self._words_at_s = self._clock.monotonic() - max(0.0, (self._clock.wall_ms() - at_ms) / 1000)
        self._tell_owners()

    def _tell_owners(self) -> None:
        """How owners stand by what was published last, which may have been a while ago."""
        if self.writer is not None:
            return  # it knows itself
        now_ms, since_s = self._clock.wall_ms(), self._clock.monotonic() - self._words_at_s
        reach_s = self._membership.config.reach_s
        for owner, reachable, age_s, generation, known in self._words:
            self._directory.hear(
                owner,
                reachable=reachable and age_s + since_s <= reach_s,
                age_s=age_s + since_s,
                now_ms=now_ms,
                generation=generation,
                known=[(start, seq) for start, seq in known],
            )


async def _ended(task: "asyncio.Task[Any] | None") -> None:
    """End a task. redis-py swallows a cancellation that arrives while it connects: ask again."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
