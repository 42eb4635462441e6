"""The region's one writer: the federation's engine, and what it asks for performed over the store and the
links. Effects are performed in order: what is sent tells of nothing that a kill could take back.

Local writes are in the engine at once and answered when they are kept. What could not be kept is tried again
until it is; meanwhile nothing is sent, so that others hear of nothing that we could still lose.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import orjson

from federation.clock import Now
from federation.effects import Alert, Close, Effect, Send, StoreMeta
from federation.effects import Store as Keep
from federation.engine import Engine
from federation.messages import Message
from federation.record import REGISTRY_PREFIX
from federation.record import Record as Versioned
from federation.roster import Advert, unpack_advert
from federation.wire import MAX_METRICS_SIZE
from federation.writes import Token
from registry import measurements, round_trips
from registry.audit import Audit
from registry.audit_chain import START
from registry.audit_log import AuditLog
from registry.clock import Clock
from registry.commits import Beat, Commits, Records
from registry.directory import Directory, Due
from registry.latency import MOST_REGISTRIES, believed
from registry.logs import event
from registry.node import NODE_PREFIX, Record, Unread, Word, node_key
from registry.pace import Pace
from registry.ports import Fenced, Store, StoreUnavailable
from registry.positions import Position, Visible
from registry.stored import pack_meta

TICK_S = 0.1
HELD_BACK_S = 0.1  # at most, what peers say: a round in which everything is written again takes seconds
RETRY_S = 0.2
PAUSE_AFTER_S = 3.0  # without the store: others should not take us for alive when nobody can write here
TAKEN_OVER_AT_ONCE = 200  # of what a registry that is forgotten had sealed: some ten milliseconds
TAKEN_OVER_PASSES = 5  # it may go on writing, and some of it nothing can stand above
TELL_AGAIN_S = 600.0  # of new links: what was told of nodes' round trips before, they have not heard
LOUD_FAULTS = 10  # traces of one fault that may come with every tick
# Somebody is not who it says, or was stopped for what it did: these are in the audit log as well.
AUDITED = frozenset(
    {"identity_changed", "same_id", "wrong_secret", "wrong_signature", "wrong_certificate", "forged", "quarantined"}
)
LOUD_S = 60.0  # one cause is logged once in so long


def _deposed() -> StoreUnavailable:
    return StoreUnavailable("down", "another worker writes for this region now")


def _ended() -> StoreUnavailable:
    return StoreUnavailable("down", "this worker no longer writes")


class Links(Protocol):
    """What the writer asks of the links (federation/links.py)."""

    def send(self, peer: str, message: Message) -> None:
        """Queue a message."""

    def close(self, peer: str, reason: str) -> None:
        """End a link."""

    def know(self, roster: Mapping[str, Advert]) -> None:
        """The roster as it is now."""

    def pause(self, reason: str) -> None:
        """End all links, and make none."""

    def resume(self) -> None:
        """Make links again."""


class Writer:
    """See the module. `deposed` is set when another worker has written for the region: nothing of this
    one's state is of use any more."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        directory: Directory,
        clock: Clock,
        token: str,
        version: int,
        log: AuditLog | None = None,
    ) -> None:
        self.engine = engine
        self._directory = directory
        self._clock = clock
        self.log = log or AuditLog(Audit(clock), START)
        self.deposed = asyncio.Event()
        self._commits = Commits(
            store, engine.replica, self.log, clock, token, version,
            read=self._read, store_changed=self._tell_store_changed, overtaken=self.deposed.set,
        )  # fmt: skip
        self._links: Links | None = None
        self._dirty: dict[str, None] = {}
        self._meta_due = False
        self._behind: list[Send] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._beats_due: list[Beat] = []
        self._flusher: asyncio.Task[None] | None = None
        self._admits = asyncio.Event()  # set: messages are taken as they come
        self._admits.set()
        self._pace = Pace()
        self._failing_since_s: float | None = None
        self._paused = False
        self._loud: dict[tuple[str, str | None], float] = {}
        self.unconfirmed: set[str] = set()  # nodes of ours whose word is of a start that our store has lost
        self.visible = Visible(dict(engine.replica.vector))
        self.alerts: Counter[str] = Counter()
        self.last_alerts: dict[str, dict[str, Any]] = {}
        self.on_roster: Callable[[Mapping[str, Advert]], None] = lambda roster: None
        self.on_recovered: Callable[[], None] = lambda: None
        self.on_beats: Callable[[list[Beat]], None] | None = None  # for other workers
        self._beats: list[Beat] = []
        self._round_trips = round_trips.News()
        self._told_all_s = clock.monotonic()
        engine.on_measured(self._measured)
        engine.ask_heard(self._is_heard)
        self._roster_seen: dict[str, bytes] = {}
        for held in engine.replica.records():
            self._note_confirmation(held.key, held)

    # time and links

    @property
    def now(self) -> Now:
        """Both clocks."""
        return Now(self._clock.monotonic(), self._clock.wall_ms())

    def attach(self, links: Links) -> None:
        """From now on there are links."""
        self._links = links
        self._tell_roster()

    async def tick_for_ever(self) -> None:
        """Let the engine act on time."""
        while True:
            if self._flusher is not None and self._flusher.done():
                self._flusher.result()  # a fault of ours ends us
            try:
                self._tick()
            except Exception:  # a fault of ours in one part of what time brings: the others go on
                if self.alerts["tick_failed"] < LOUD_FAULTS:
                    event("tick_failed", logging.ERROR, exc_info=True)
                self.alert("tick_failed", "a fault of ours; the log has its trace")
            await asyncio.sleep(TICK_S)

    def _tick(self) -> None:
        self.perform(self.engine.tick(self.now))
        self._hear_owners()
        self._tell_roster()
        if self.log.waiting:
            self._wake()
        if self._beats and self.on_beats is not None:
            beats, self._beats = self._beats, []
            self.on_beats(beats)

    def connected(self, peer: str) -> None:
        """A link is up (federation/links.py calls these)."""
        now_s = self._clock.monotonic()
        if now_s - self._told_all_s >= TELL_AGAIN_S:  # where links come and go, not each time
            self._round_trips.again()
            self._told_all_s = now_s
        self.perform(self.engine.connected(peer, self.now))

    def disconnected(self, peer: str) -> None:
        """A link is down."""
        self.perform(self.engine.disconnected(peer, self.now))

    async def ready(self) -> None:
        """See federation/links.py."""
        if not self._admits.is_set():
            await self._admits.wait()

    def received(self, peer: str, message: Message) -> None:
        """A message came in. A fault of ours that a peer's message brings out ends that link, and nothing else."""
        try:
            effects = self.engine.receive(peer, message, self.now)
        except Exception:
            event("message_failed", logging.ERROR, exc_info=True, peer=peer, message=type(message).__name__)
            effects = [Alert("message_failed", f"a {type(message).__name__} of it could not be handled", peer)]
            effects.append(Close(peer, "a message of it could not be handled"))
        self.perform(effects)

    def alert(self, code: str, detail: str, peer: str | None = None) -> None:
        """Count what somebody should know, and log it: once a cause and minute."""
        self.alerts[code] += 1
        if code in AUDITED:
            self.log.note_alert(code, detail, peer)
        now = self._clock.monotonic()
        self.last_alerts[code] = {"detail": detail, "peer": peer, "at_ms": self._clock.wall_ms()}
        if now - self._loud.get((code, peer), float("-inf")) >= LOUD_S:
            if len(self._loud) > 1_000:  # causes that peers invented
                self._loud.clear()
            self._loud[code, peer] = now
            event("federation_alert", logging.WARNING, code=code, peer=peer, detail=detail)

    def pinned(self, registry_id: str) -> bytes | None:
        """The identity that the roster has of a registry."""
        entry = self._entry(registry_id)
        advert = unpack_advert(entry.spec.payload) if entry is not None and entry.spec is not None else None
        return advert.identity if advert is not None else None

    # reading

    def node(self, node_id: str) -> Record | None:
        """A node as it stands, kept or about to be."""
        record = self.engine.replica.get(node_key(node_id))
        return Record.of(record) if record is not None else None

    def unread(self, node_id: str) -> Unread | None:
        """The same without its registration, which is read only where nobody has found yet that it is one."""
        record = self.engine.replica.get(node_key(node_id))
        unread = Unread.of(record) if record is not None else None
        if unread is None or self._directory.shows(unread) or unread.read() is not None:
            return unread
        return None

    @property
    def position(self) -> Position:
        """Where our own writes have come to."""
        replica = self.engine.replica
        return Position(replica.chain, replica.vector.get(replica.chain, 0))

    @property
    def available(self) -> bool:
        """Whether writes can be taken."""
        return self._failing_since_s is None and not self.deposed.is_set()

    # writing

    def check(self) -> None:
        """Raise StoreUnavailable when a write could not be kept now: so that it is not begun."""
        if self.deposed.is_set():
            raise _deposed()
        if self._failing_since_s is not None:
            raise StoreUnavailable("down", "the last commit failed")

    async def register(
        self, record: Record, incarnation: int, token: Token | None, beat: tuple[bytes, int], *, anew: bool = False
    ) -> tuple[Token, Position]:
        """A node registers here; it counts as heard (`beat`: its measurements, and the wall clock). `anew`: in a life
        of its own. Its token, and the place of that write."""
        self.check()
        self._beats_due.append((node_key(record.node_id), *beat))
        made, effects = self.engine.register(
            node_key(record.node_id),
            record.encode_spec(),
            self.now,
            incarnation=incarnation,
            judgement=record.word.encode(),
            token=token,
            anew=anew,
        )
        return made, await self._kept(effects)

    async def heard(
        self, node_id: str, word: Word, metrics: bytes, token: Token | None
    ) -> tuple[Token, Position] | None:
        """A node beats here: it is ours from now on, and fares as `word` says. Its token, and the place of that write;
        None: it has to register."""
        self.check()
        key, now = node_key(node_id), self.now
        made, effects = self.engine.heartbeat(key, now, judgement=word.encode(), metrics=metrics, token=token)
        if made is not None:
            effects += self.engine.judge(key, word.encode(), now)
        position = await self._kept(effects)
        return (made, position) if made is not None else None

    def measured(self, node_id: str, values: Mapping[str, Any]) -> None:
        """A node of ours reported numbers; nothing about it changed."""
        numbers, vector = measurements.pack(values), values.get("registry_rtt_ms")
        if vector:
            vector, _ = believed(vector, MOST_REGISTRIES, self._directory.registries)
            numbers = self._round_trips.beat(node_id, numbers, vector, MAX_METRICS_SIZE)
        self.engine.measured(node_key(node_id), numbers, self.now)

    async def amend(self, node_id: str, intent: bytes, word: Word | None) -> Position:
        """An operator's will, and (of a node of ours) another word on it. Where that was written."""
        self.check()
        key, now = node_key(node_id), self.now
        effects = self.engine.amend(key, intent, now)
        if word is not None:
            effects += self.engine.judge(key, word.encode(), now)
        return await self._kept(effects)

    async def delete(self, node_id: str, reason: str) -> Position:
        """A node is no more. Where that was written."""
        self.check()
        return await self._kept(self.engine.delete(node_key(node_id), reason.encode(), self.now))

    async def judge(self, due: Iterable[Due]) -> None:
        """Say how silent nodes fare."""
        self.check()
        effects: list[Effect] = []
        for item in due:
            if not self._has_changed(item):
                effects += self.engine.judge(node_key(item.node_id), item.word.encode(), self.now)
        await self._kept(effects)

    def _has_changed(self, due: Due) -> bool:
        """Whether something newer was said of the node since it came due: it was heard."""
        record = self.engine.replica.get(node_key(due.node_id))
        judgement = record.judgement if record is not None else None
        return due.basis is not None and (judgement is None or Word.decode(judgement.payload) != due.basis)

    def confirm(self, node_id: str) -> None:
        """Another worker hears a node of ours: what only a lost store had said of it is said again."""
        node = self.node(node_id) if node_id in self.unconfirmed and self.available else None
        if node is not None and node.word.liveness == "online":
            self.perform(self.engine.judge(node_key(node_id), node.word.encode(), self.now))

    async def put(self, key: str, payload: bytes) -> Position:
        """Keep a thing that is no node. Where it was written. ValueError: its key has been deleted, and cannot be used
        again."""
        self.check()
        return await self._kept(self.engine.put(key, payload, self.now))

    async def put_all(self, puts: Mapping[str, bytes], revoked: Iterable[str] = (), reason: str = "") -> Position:
        """Keep several things, and revoke API keys, in one commit. Where the last was written."""
        self.check()
        effects: list[Effect] = []
        for key, payload in puts.items():
            effects += self.engine.put(key, payload, self.now)
        for key in revoked:
            effects += self.engine.revoke(key, reason.encode(), self.now)
        return await self._kept(effects)

    async def annotate(self, key: str, payload: bytes) -> None:
        """Write beside a thing that is no node, what stands there staying as it is. KeyError: it is not there."""
        self.check()
        await self._kept(self.engine.amend(key, payload, self.now))

    async def remove(self, key: str, reason: str) -> bool:
        """A thing that is no node is no more. False: it is not there."""
        self.check()
        record = self.engine.replica.get(key)
        if record is None or not record.exists:
            return False
        await self._kept(self.engine.delete(key, reason.encode(), self.now))
        return True

    async def revoke(self, key: str, reason: str) -> None:
        """An API key is good no more, whether or not it is known here yet."""
        self.check()
        await self._kept(self.engine.revoke(key, reason.encode(), self.now))

    async def forget_registry(self, registry_id: str, note: Callable[[], object] = lambda: None) -> bool:
        """Take a registry out of the roster: its pinned identity with it. What it had sealed is ours from then on, and
        kept before, bit by bit. `note`: right before its entry is removed. False: it is not there."""
        self.check()
        entry = self._entry(registry_id)
        if entry is None:
            return False
        life = entry.life
        for _ in range(TAKEN_OVER_PASSES):
            if await self._take_over(registry_id) <= 1:
                break  # so what it may have written meanwhile is little
        entry = self._entry(registry_id)
        if entry is not None and entry.life == life:
            note()
            await self._kept(self.engine.forget(registry_id, b"removed by an operator", self.now))
        else:  # somebody else has taken it out meanwhile; if it is back, it is another entry
            await self.flushed()
        return True

    def _entry(self, registry_id: str) -> Versioned | None:
        """A registry's entry in the roster. Of a new one its other parts may come first: it is none before its own."""
        record = self.engine.replica.roster.get(REGISTRY_PREFIX + registry_id)
        return record if record is not None and record.spec is not None else None

    async def _take_over(self, registry_id: str) -> int:
        """What it has sealed is ours; in how many steps."""
        steps = self.engine.taking_over(registry_id, TAKEN_OVER_AT_ONCE, lambda: self.now)
        count = 0
        while (effects := next(steps, None)) is not None:
            await self._kept(effects)
            count += 1
        return count

    async def _kept(self, effects: list[Effect]) -> Position:
        """Perform them; once they are kept, where our writes had come to with them. What others have written since is
        kept a round later: whoever reads by this place should not have to wait for that."""
        position = self.position
        self.perform(effects)
        await self.flushed()
        return position

    async def flushed(self) -> None:
        """Return when everything up to now is in the store. Raises StoreUnavailable when it is not yet."""
        if self.deposed.is_set():
            raise _deposed()
        if self._dirty or self._meta_due or self.log.waiting or self._busy:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(done)
            self._wake()
            await done

    # effects

    def perform(self, effects: list[Effect]) -> None:
        """Do what the engine asks."""
        for effect in effects:
            if isinstance(effect, Send):
                if self._dirty or self._meta_due or self._busy:
                    self._behind.append(effect)
                else:
                    self._send(effect)
            elif isinstance(effect, Keep):
                self._dirty[effect.key] = None
            elif isinstance(effect, StoreMeta):
                self._meta_due = True
            elif isinstance(effect, Alert):
                self.alert(effect.code, effect.detail, effect.peer)
            elif isinstance(effect, Close) and self._links is not None:
                self.alert("link_closed", effect.reason, effect.peer)
                self._links.close(effect.peer, effect.reason)
        if self._dirty or self._meta_due:
            self._wake()
        elif not self._busy:
            self._push()

    def _push(self) -> None:
        """Ask for what may be pushed. A fault of ours there keeps nobody's write, and no peer's message, waiting."""
        if not self.engine.may_push:
            return
        try:
            effects = self.engine.push(self.now)
        except Exception:
            if self.alerts["push_failed"] < LOUD_FAULTS:
                event("push_failed", logging.ERROR, exc_info=True)
            self.alert("push_failed", "a fault of ours; the log has its trace")
        else:
            self.perform(effects)

    def _send(self, effect: Send) -> None:
        if self._links is not None and not self._paused:
            self._links.send(effect.peer, effect.message)

    @property
    def _busy(self) -> bool:
        return self._flusher is not None and not self._flusher.done()

    def _wake(self) -> None:
        if not self._busy and not self.deposed.is_set():
            self._flusher = asyncio.create_task(self._flush(), name="commit")

    async def _flush(self) -> None:
        """Commit until nothing is left. What arrives meanwhile waits for the next round, so that what is sent after a
        round tells only of what that round kept. Messages wait on their links, for HELD_BACK_S at most: nothing of
        them could be kept before the next round, and taken together they cost less than one by one."""
        loop = asyncio.get_running_loop()
        self._admits.clear()
        try:
            while self._has_work:
                wait_s = self._pace.begin(loop.time())
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                await self._admit()
                self._push()  # what this round keeps goes out after it, in one piece
                admitting = loop.call_later(HELD_BACK_S, self._admits.set)
                began_s, writes = loop.time(), len(self._dirty)
                try:
                    kept = await self._round()
                finally:
                    admitting.cancel()
                self._pace.took(loop.time() - began_s, writes)
                if not kept:
                    if self.deposed.is_set():
                        return
                    self._admits.set()
                    await asyncio.sleep(RETRY_S)
                    self._admits.clear()
        finally:
            self._admits.set()

    @property
    def _has_work(self) -> bool:
        return bool(
            self._dirty or self._meta_due or self._behind or self._waiting or self.log.waiting or self.engine.may_push
        )

    async def _round(self) -> bool:
        """One round; whether it was kept."""
        dirty, self._dirty = self._dirty, {}
        meta_due, self._meta_due = self._meta_due, False
        behind, self._behind = self._behind, []
        waiting, self._waiting = self._waiting, []
        beats, self._beats_due = self._beats_due, []
        try:
            await self._commit_round(list(dirty), meta_due, beats)
        except (StoreUnavailable, Fenced) as error:
            self._dirty = {**dirty, **self._dirty}
            self._meta_due = True
            self._behind = behind + self._behind
            self._failed(error, waiting)
            return False
        except BaseException:  # the end, or a fault of ours: nobody must wait for it, and nothing is left out
            self._dirty, self._meta_due = {**dirty, **self._dirty}, True
            self._behind = behind + self._behind
            self._give_up(waiting)
            raise
        self._succeeded()
        for effect in behind:
            self._send(effect)
        for done in waiting:
            if not done.done():
                done.set_result(None)
        return True

    async def _admit(self) -> None:
        """Let the messages in that have come: one turn of the loop for those that wait, one for what sockets hold."""
        self._admits.set()
        for _ in range(2):
            await asyncio.sleep(0)
        self._admits.clear()

    async def _commit_round(self, keys: list[str], meta_due: bool, beats: list[Beat]) -> None:
        replica = self.engine.replica
        vector = dict(replica.vector) if meta_due else None  # before anything else comes in: `keys` has none of that
        await self._commits.keep(keys, pack_meta(replica.meta()) if meta_due else None, beats)
        if vector is not None:
            self.visible.advance(vector)

    def _read(self, records: Records) -> Callable[[int], None]:
        """See commits.py."""
        nodes = [
            (key, record, Unread.of(record) if record is not None else None)
            for key, record in records
            if key.startswith(NODE_PREFIX)
        ]
        others = [
            (key, self._directory.tables.read(record) if record is not None else None)
            for key, record in records
            if not key.startswith(NODE_PREFIX)
        ]

        def show(version: int) -> None:
            self._show(nodes, version)
            for key, reading in others:
                if reading is not None:
                    reading.show(version)
                else:
                    self._directory.tables.drop(key, version)

        return show

    def _show(self, nodes: list[tuple[str, Versioned | None, Unread | None]], version: int) -> None:
        now, now_ms = self._clock.monotonic(), self._clock.wall_ms()
        for key, record, node in nodes:
            self._note_confirmation(key, record)
            if node is None:
                self._directory.delete(key[len(NODE_PREFIX) :], version)
            elif not (self._directory.knows_better(node, now) and self._take_back(key, node)):
                self._directory.show(node, version, now, now_ms)

    def _take_back(self, key: str, node: Unread) -> bool:
        """A node of ours that is heard here is not offline, whoever says so: it is ours again. Whether it was."""
        if not self._directory.shows(node) and node.read() is None:
            return False
        word = Word(reported=node.word.reported).encode()
        made, effects = self.engine.heartbeat(key, self.now, judgement=word, metrics=b"", token=None)
        self.perform(effects)
        return made is not None

    def _note_confirmation(self, key: str, record: Versioned | None) -> None:
        """Whether our watermarks vouch for our word on that node. Where not, others take it for out of date,
        until it is said again: with the node's next heartbeat."""
        replica, judgement = self.engine.replica, record.judgement if record is not None else None
        ours = judgement is not None and judgement.origin == replica.registry_id and key.startswith(NODE_PREFIX)
        if ours and judgement is not None and not replica.vouches_for(judgement):
            self.unconfirmed.add(key[len(NODE_PREFIX) :])
        else:
            self.unconfirmed.discard(key[len(NODE_PREFIX) :])

    def _tell_store_changed(self) -> None:
        self.alert("store_changed", "the store was emptied, replaced or is an old copy; everything is written again")

    def _failed(self, error: StoreUnavailable | Fenced, waiting: list[asyncio.Future[None]]) -> None:
        now = self._clock.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now
        why = error if isinstance(error, StoreUnavailable) else StoreUnavailable("down", "the lease was lost")
        self._give_up(waiting, why)
        self._commits.forget_old_doubts()
        if now - self._failing_since_s >= PAUSE_AFTER_S and not self._paused and self._links is not None:
            self._paused = True
            self._behind = []
            self._links.pause("the store is away")

    def _give_up(self, waiting: list[asyncio.Future[None]], why: Exception | None = None) -> None:
        """Tell who waits that nothing is known to be kept."""
        for done in (*waiting, *self._waiting):
            if not done.done():
                done.set_exception(why or _ended())
        self._waiting = []

    def _succeeded(self) -> None:
        if self._failing_since_s is None:
            return
        self._failing_since_s = None
        if self._paused and self._links is not None:
            self._paused = False
            self._links.resume()
        self.on_recovered()

    async def store_lost(self) -> None:
        """The store has no record that we hold: find out what happened to it."""
        self._meta_due = True
        self._wake()
        await self.flushed()

    # what others say

    def _measured(self, record: Versioned) -> None:
        """Another registry's node reported numbers."""
        numbers, rtts = round_trips.split(record.metrics)
        values = measurements.unpack(numbers)
        if not (values or rtts) or not record.key.startswith(NODE_PREFIX):
            return
        known = round_trips.unpacked(rtts, self._directory.registries) if rtts else self._known(record)
        if known:
            values["registry_rtt_ms"] = known
        metrics = bytes(memoryview(orjson.dumps(values)))  # a copy to keep: orjson's own buffer is oversized
        at_ms = self._clock.wall_ms() - int((self._clock.monotonic() - record.metrics_at_s) * 1000)
        node_id, now_ms = record.key[len(NODE_PREFIX) :], self._clock.wall_ms()
        self._directory.beat(node_id, metrics, at_ms, record.metrics_at_s, values, now_ms=now_ms)
        if self.on_beats is not None:
            self._beats.append((record.key, metrics, at_ms))

    def _known(self, record: Versioned) -> Any:
        """The round trips that came with an earlier heartbeat: they do not come with each."""
        entry = self._directory.get(record.key[len(NODE_PREFIX) :])
        if entry is None or b'"registry_rtt_ms"' not in entry.metrics:
            return None
        return orjson.loads(entry.metrics).get("registry_rtt_ms")

    def _is_heard(self, key: str) -> bool:
        """Whether a node of ours is alive by what we know."""
        entry = self._directory.get(key[len(NODE_PREFIX) :]) if key.startswith(NODE_PREFIX) else None
        return entry is not None and self._directory.is_heard(entry, self._clock.monotonic())

    def _hear_owners(self) -> None:
        now = self.now
        for word in self.engine.words(now):
            self._directory.hear(
                word.owner,
                reachable=word.reachable,
                age_s=word.age_s,
                now_ms=now.wall_ms,
                generation=word.generation,
                known=word.known,
            )

    def roster(self) -> dict[str, Advert]:
        """Every registry of the federation that says how to find it, ours among them."""
        adverts = {}
        for key, record in self.engine.replica.roster.items():
            advert = unpack_advert(record.spec.payload) if record.spec is not None else None
            if advert is not None:
                adverts[key[len(REGISTRY_PREFIX) :]] = advert
        return adverts

    def _tell_roster(self) -> None:
        seen = {
            key: record.spec.payload for key, record in self.engine.replica.roster.items() if record.spec is not None
        }
        if seen != self._roster_seen:
            self._roster_seen = seen
            roster = self.roster()
            if self._links is not None:
                self._links.know(roster)
            self.on_roster(roster)

    async def stop(self) -> None:
        """Finish the commit under way."""
        if self._flusher is not None and not self._flusher.done():
            await asyncio.wait([self._flusher], timeout=1.0)
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
        self.log.give_up()
        self.deposed.set()  # whoever still holds this writer begins nothing any more
        self._give_up([])
        self.visible.end(_ended())
