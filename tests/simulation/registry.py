"""One registry: an engine, the durable store it asks for, and a simple owner of nodes. A shell like the
real one, in virtual time."""

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from federation.clock import Now
from federation.ed25519 import PrivateKey
from federation.effects import Alert, Close, Effect, Send, Store, StoreMeta
from federation.engine import Engine
from federation.messages import Message
from federation.record import Record
from federation.replica import Replica
from federation.writes import Token
from tests.simulation.clocks import Clocks
from tests.simulation.ledger import Violation, Write
from tests.simulation.store import DurableStore
from tests.support.rosters import registry_key
from tests.support.states import record_of

if TYPE_CHECKING:
    from tests.simulation.world import World

ONLINE, OFFLINE = b"online", b"offline"
TICK_S = 0.1
SWEEP_S = 1.0
READ_S = 1.0  # until an operator has read an alert
TAKEN_OVER_AT_ONCE, TAKE_OVER_GAP_S = 2, 0.02

Reply = Callable[..., None]


class SimulatedRegistry:
    """`running`: its process is up and not frozen."""

    def __init__(self, world: "World", registry_id: str, clocks: Clocks) -> None:
        self.id = registry_id
        self.world = world
        self.clocks = clocks
        self.store = DurableStore()
        self.key = registry_key(registry_id)
        self.engine: Engine | None = None
        self.starts = 0
        self.started_s = 0.0  # of this start, or of the end of the latest freeze
        self.down_since_s: float | None = 0.0
        self.left = False
        self.frozen = False
        self.store_lost_s = float("-inf")  # when it last lost writes, all or the latest, and the positions with them
        self.moved_s: dict[str, float] = {}  # when it learnt that a node of its own is another's now
        self._owned: set[str] = set()
        self.alerts: dict[str, int] = {}
        self.taken_in_s: dict[str, float] = {}  # by registry, when its other identity came in here
        self._backlog: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self._life = 0  # of the process
        self._pending: dict[str, None] = {}
        self._pending_meta = False
        self._behind_store: list[Send | Callable[[], None]] = []
        self._flushing = False
        self._last_beat_s: dict[str, float] = {}

    # its process

    @property
    def up(self) -> bool:
        """Whether there is a process."""
        return self.engine is not None

    @property
    def running(self) -> bool:
        """Whether the process does anything."""
        return self.engine is not None and not self.frozen

    @property
    def now(self) -> Now:
        """What its clocks say."""
        return self.clocks.read(self.world.now)

    def start(self) -> None:
        """A new process over whatever the store has."""
        world = self.world
        self._life += 1
        self.starts += 1
        self.clocks.mono_base_s = world.rng.uniform(0, 1e6)
        self.started_s, self.down_since_s = world.now, None
        replica = Replica.restore(self.id, map(record_of, self.store.records.values()), self.store.load_meta())
        rng = random.Random(world.rng.getrandbits(64))
        self.engine = Engine(world.config(self.id, self.key), replica, rng, self.now, self.key)
        for record in self.held():
            if self.live.owns(record.key):  # that it had moved away, this start does not know: its store has lost it
                self._note_owner(record.key, record)
        world.note("start", self.id, len(self.store.records))
        world.after(world.rng.uniform(0.0, TICK_S), self._tick, self._life)
        world.after(world.rng.uniform(0.0, SWEEP_S), self._sweep, self._life)

    def crash(self, kind: str) -> None:
        """The process is killed, and its store is left as `kind` says."""
        world = self.world
        self.world.note("crash", self.id, kind)
        before, floor = {record.key: record.state() for record in self.held()}, dict(self.live.replica.floor)
        if world.rng.random() < 0.3:  # killed in the middle of a commit
            for key in list(self._pending)[: world.rng.randint(0, len(self._pending))]:
                self.store.put(key, before.get(key))
        self.engine, self.frozen, self.down_since_s = None, False, world.now
        self._backlog, self._pending, self._pending_meta, self._behind_store = [], {}, False, []
        self._flushing, self._last_beat_s = False, {}
        world.network.died(self.id)
        self._damage(kind)
        world.store_lost(self, before, floor)

    def _damage(self, kind: str) -> None:
        rng, store = self.world.rng, self.store
        if kind in ("tail", "wipe", "backup"):
            self.store_lost_s = self.world.now
        if kind == "tail":
            store.lose_tail(rng.randint(1, max(1, min(60, len(store.undo)))))
        elif kind == "wipe":
            store.wipe()
        elif kind == "backup" and store.backups:
            store.restore(rng.choice(store.backups))
        elif kind == "silent" and store.records:
            for key in rng.sample(sorted(store.records), min(len(store.records), rng.choice((1, 1, 3)))):
                store.put(key, None)
                self.world.note("silently lost", self.id, key)
                self.world.silently_lost.add(key)

    def lose_key(self) -> None:
        """From its next start on it has another."""
        self.key = PrivateKey(self.world.rng.randbytes(32))
        self.world.keys_lost_s.setdefault(self.id, self.world.now)
        self.world.note("lost its key", self.id)

    def freeze(self) -> None:
        """The process stops (SIGSTOP, a full disk, a pause of the machine)."""
        self.frozen = True

    def thaw(self) -> None:
        """It goes on; what had arrived is handled now."""
        if not self.frozen:
            return
        self.frozen = False
        self.started_s = self.world.now
        self._last_beat_s = {}  # the guard: nobody expires for one full window after a stall
        backlog, self._backlog = self._backlog, []
        for fn, args in backlog:
            fn(*args)

    @property
    def live(self) -> Engine:
        """The engine of a registry that is up."""
        assert self.engine is not None
        return self.engine

    def held(self) -> Iterator[Record]:
        """Its record of every key that anybody ever wrote. (The replica's own iterator visits 4096
        buckets, which is much for a dozen records.)"""
        get = self.live.replica.get
        return (record for key in self.world.ledger.by_key if (record := get(key)) is not None)

    def _held_up(self, fn: Callable[..., None], *args: object) -> bool:
        if self.frozen:
            self._backlog.append((fn, args))
        return self.frozen or self.engine is None

    # its links

    def connected(self, peer: str) -> None:
        """The link to that peer is up."""
        if not self._held_up(self.connected, peer):
            self.perform(self.live.connected(peer, self.now))

    def disconnected(self, peer: str) -> None:
        """It is gone."""
        if not self._held_up(self.disconnected, peer):
            self.perform(self.live.disconnected(peer, self.now))

    def receive(self, peer: str, message: Message) -> None:
        """A message came in."""
        if not self._held_up(self.receive, peer, message):
            self.perform(self.live.receive(peer, message, self.now))

    # effects and the store

    def perform(self, effects: list[Effect]) -> None:
        """Do what the engine asks, in order: what is sent after a Store waits until that is kept."""
        for effect in effects:
            if isinstance(effect, Store):
                self._note_own(effect.key, "engine")
                self._pending[effect.key] = None
            elif isinstance(effect, StoreMeta):
                self._pending_meta = True
            elif isinstance(effect, Send):
                if self._pending or self._pending_meta:
                    self._behind_store.append(effect)
                else:
                    self.world.network.send(self.id, effect.peer, effect.message)
            elif isinstance(effect, Alert):
                if effect.code == "forged" and not self.world.keys_lost_s:
                    raise Violation(f"nobody forges here: {self.id} was told so by {effect.peer}: {effect.detail}")
                self._read(effect)
                self.alerts[effect.code] = self.alerts.get(effect.code, 0) + 1
                if effect.code == "identity_replaced" and effect.peer is not None:
                    self.taken_in_s[effect.peer] = self.world.now
                self.world.note("alert", self.id, effect.code, effect.detail, effect.peer)
            elif isinstance(effect, Close):
                self.world.note("close", self.id, effect.peer, effect.reason)
                self.world.network.close(self.id, effect.peer)
        if not (self._pending or self._pending_meta):
            self._push()
        elif not self._flushing:
            self._flushing = True
            delay = self.world.rng.random() * self.world.scenario.store_delay_s
            self.world.after(delay, self._flush, self._life)

    def _push(self) -> None:
        if self.live.config.push_when_asked and self.live.may_push:
            self.perform(self.live.push(self.now))

    def _flush(self, life: int) -> None:
        """Group commit: records first, then the positions that speak of them, then who waited for it."""
        if life != self._life or self.engine is None:
            return
        self._push()  # it is sent once this is kept
        for key in self._pending:
            record = self.engine.replica.get(key)
            self.store.put(key, None if record is None else record.state())
        if self._pending_meta:
            self.store.put_meta(self.engine.replica.meta())
        waiting, self._behind_store = self._behind_store, []
        self._pending, self._pending_meta, self._flushing = {}, False, False
        for item in waiting:
            if isinstance(item, Send):
                self.world.network.send(self.id, item.peer, item.message)
            else:
                item()

    def _once_kept(self, fn: Callable[[], None]) -> None:
        if self._pending or self._pending_meta:
            self._behind_store.append(fn)
        else:
            fn()

    def _note_own(self, key: str, action: str) -> list[Write]:
        record = self.live.replica.get(key)
        self._note_owner(key, record)
        if record is None:
            return []
        return self.world.ledger.written(action, record, self.id, self.live.replica.generation, self.world.now)

    def _note_owner(self, key: str, record: Record | None) -> None:
        if self.live.owns(key):
            self._owned.add(key)
            self.moved_s.pop(key, None)
        elif key in self._owned:
            self._owned.discard(key)
            if record is not None and record.exists:
                self.moved_s[key] = self.world.now

    def _local(self, action: str, key: str, effects: list[Effect], done: Callable[[], None] | None = None) -> None:
        """Note a local write and perform it; its caller hears of it once it is kept."""
        writes = self._note_own(key, action)
        for write in writes:
            self.world.note("write", self.id, action, key, write.life, write.kind, write.section.payload)
        self.perform(effects)

        def kept() -> None:
            self.world.ledger.acknowledge(writes, self.world.now)
            if done is not None:
                done()

        self._once_kept(kept)

    def _read(self, alert: Alert) -> None:
        """An operator reads of a forged entry. Where links are few, nothing else tells that a registry which has lost
        its key is kept out here."""
        for other in self.world.keys_lost_s:
            if alert.code == "forged" and alert.detail.startswith(f"r:{other}: "):
                self.world.after(READ_S, self._forget_another, other, self._life)

    def _forget_another(self, other: str, life: int) -> None:
        if life == self._life and self.running and self.world.network.is_another(self.id, other):
            self.forget(other)

    # what callers ask for

    def forget(self, registry_id: str) -> None:
        """An operator takes another registry out of the roster."""
        entry = self.live.replica.roster.get(f"r:{registry_id}")
        if entry is not None and entry.spec is not None:
            self.world.note("forget", self.id, registry_id)
            batches = self.live.taking_over(registry_id, TAKEN_OVER_AT_ONCE, lambda: self.now)
            self._take_over(registry_id, entry.life, batches, self._life)

    def _take_over(self, registry_id: str, entry_life: int, batches: Iterator[list[Effect]], life: int) -> None:
        """As the writer does it: bit by bit, and its entry goes last."""
        if life != self._life or not self.running:
            return
        key = f"r:{registry_id}"
        effects = next(batches, None)
        if effects is not None:
            self._local("forget", key, effects)
            self.world.after(TAKE_OVER_GAP_S, self._take_over, registry_id, entry_life, batches, life)
            return
        entry = self.live.replica.roster.get(key)
        if entry is not None and entry.life == entry_life:
            self._local("forget", key, self.live.forget(registry_id, b"", self.now))

    def register(self, key: str, incarnation: int, payload: bytes, token: Token | None, reply: Reply) -> None:
        """A node registers. `reply(outcome, token)`: ok, or conflict (it is somebody else's)."""
        if self._held_up(self.register, key, incarnation, payload, token, reply):
            return
        record = self.live.replica.get(key)
        if record is not None and record.exists and record.incarnation != incarnation:
            reply("conflict", None)
            return
        new, effects = self.live.register(
            key, payload, self.now, incarnation=incarnation, judgement=ONLINE, token=token
        )
        held = self.live.replica.get(key)
        if held is None or held.spec is None or held.spec.payload != payload or held.deleted:
            raise Violation(f"accepted writes stand: {self.id} accepted the registration {payload!r} and holds {held}")
        self._beaten(key)
        self._local("register", key, effects, lambda: reply("ok", new))
        self._check_online(key)

    def heartbeat(self, key: str, incarnation: int, token: Token | None, reply: Reply) -> None:
        """A node's heartbeat. `reply(outcome, token)`: ok, unknown or conflict."""
        if self._held_up(self.heartbeat, key, incarnation, token, reply):
            return
        record = self.live.replica.get(key)
        if record is not None and record.exists and record.incarnation != incarnation:
            reply("conflict", None)
            return
        metrics = b"%05d" % self.world.rng.randrange(100_000)
        new, effects = self.live.heartbeat(key, self.now, judgement=ONLINE, metrics=metrics, token=token)
        if new is None:
            self.perform(effects)
            reply("unknown", None)
            return
        effects += self.live.judge(key, ONLINE, self.now)  # it may be ours, and have been offline
        self._beaten(key)
        self._local("heartbeat", key, effects, lambda: reply("ok", new))
        self._check_online(key)

    def _beaten(self, key: str) -> None:
        self._last_beat_s[key] = self.world.ledger.last_beat_s[key] = self.world.now

    def _check_online(self, key: str) -> None:
        standing = self.live.standing(key, self.now)
        if (
            standing is None
            or standing.owner != self.id
            or standing.judgement != ONLINE
            or not standing.reachable
            or not self.live.owns(key)
        ):
            raise Violation(f"read your writes: {key} was heard by {self.id}, which now shows {standing}")

    def amend(self, key: str, payload: bytes) -> None:
        """An operator's PATCH."""
        if not self._held_up(self.amend, key, payload) and self._shown(key):
            self._local("amend", key, self.live.amend(key, payload, self.now))

    def delete(self, key: str, reason: bytes) -> None:
        """An operator's DELETE."""
        if not self._held_up(self.delete, key, reason) and self._shown(key):
            self._local("delete", key, self.live.delete(key, reason, self.now))

    def put(self, key: str, payload: bytes) -> None:
        """A thing without an owner is written."""
        if not self._held_up(self.put, key, payload):
            self._local("put", key, self.live.put(key, payload, self.now))

    def revoke(self, key: str, reason: bytes) -> None:
        """A key is revoked; it need not be known here."""
        if not self._held_up(self.revoke, key, reason):
            self._local("revoke", key, self.live.revoke(key, reason, self.now))

    def _shown(self, key: str) -> bool:
        record = self.live.replica.get(key)
        return record is not None and record.exists

    # time

    def _tick(self, life: int) -> None:
        if life != self._life or self.engine is None:
            return
        if not self.frozen:
            self.perform(self.engine.tick(self.now))
        self.world.after(TICK_S, self._tick, life)

    def _sweep(self, life: int) -> None:
        """The owner's judgement of its nodes: offline after a window without a heartbeat. One that it
        finds itself owning (a start, a repair) has a full window to be heard."""
        if life != self._life or self.engine is None:
            return
        if not self.frozen and not self.world.resting:
            for key in list(self.world.ledger.last_beat_s):
                self._judge(key)
        self.world.after(SWEEP_S, self._sweep, life)

    def counting_since_s(self, key: str) -> float:
        """Since when a node has been silent, by what we know: when we last heard it, or found that it is ours, which
        we do with the next sweep."""
        found_s = self.world.now if self.engine is not None and self.engine.owns(key) else 0.0
        return self._last_beat_s.get(key, found_s)

    def _judge(self, key: str) -> None:
        engine = self.live
        if not engine.owns(key):
            self._last_beat_s.pop(key, None)
            return
        heard_s = self._last_beat_s.setdefault(key, self.world.now)
        if self.world.now - heard_s > self.world.scenario.window_s:
            self._local("judge", key, engine.judge(key, OFFLINE, self.now))
