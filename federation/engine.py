"""The federation core as one machine without I/O: calls in, effects out.

Every method takes `now` and returns the effects to perform, in their order. Nothing here reads a
clock, draws from anything but the generator it was given, or waits.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from federation.clock import MAX_CHAINS, Now, Vector
from federation.config import Config
from federation.core import Core, Link
from federation.drains import Drains
from federation.ed25519 import PrivateKey
from federation.effects import Close, Effect
from federation.guard import Guard
from federation.intake import Intake
from federation.liveness import Liveness, OwnerWord, Standing
from federation.messages import (
    PROTOCOL_VERSION,
    Ack,
    Announce,
    Beats,
    DigestRecords,
    DigestRequest,
    DigestSums,
    Drain,
    Graft,
    Hello,
    Message,
    Prune,
    Pull,
    Push,
    Repair,
    Want,
    Watermarks,
)
from federation.ports import Rng
from federation.record import REGISTRY_PREFIX, Item, Record, Section, SectionKind
from federation.replica import Replica
from federation.roster import unpack_advert
from federation.seals import is_sealed_by
from federation.streams import Streams
from federation.succession import Succession
from federation.tombstones import Collector
from federation.walks import Walks
from federation.writes import Token, Writes

_GENERATION_BITS = 20  # random ones below the milliseconds: two starts in one are told apart
_HELLO_EVERY_S = 2.0
_SETTLE_A_TICK = 2_000  # fingerprints: about 15 ms of work
_ANNOUNCE_AGAIN_S = 60.0
_THERE_S = 3.0  # three watermarks
_ENROL_AGAIN_S = 1.0  # somebody took us out: until we are back, what we seal is held elsewhere
_ENROL_OVER_S = 60.0  # somebody has our name: two of one name would fight


class Engine:
    """One registry's part in the federation. A start takes a new generation, always: what a lost or
    old store would have us write again gets new names."""

    def __init__(self, config: Config, replica: Replica, rng: Rng, now: Now, key: PrivateKey | None = None) -> None:
        """`key`: of the identity in `config.advert`, by which others check what we seal. None: nothing is sealed."""
        self.config = config
        self.replica = replica
        replica.begin_generation(now.wall_ms << _GENERATION_BITS, rng.getrandbits(_GENERATION_BITS))
        replica.restate_early()
        self._core = core = Core(config, replica, rng, key)
        self._guard = Guard(core)
        self._intake = Intake(core, self._guard)
        self._streams = Streams(core, self._intake)
        self._drains = Drains(core, self._intake)
        self._walks = Walks(core, self._intake, now)
        self._writes = Writes(core)
        self._liveness = Liveness(core, now)
        self._collector = Collector(core, self._writes, self._liveness, now)
        self._guard.is_there = self._is_there
        replica.seen_by = self._seen_by
        self._intake.on_advanced = self._streams.advanced
        self._intake.on_claimed = self._announce_soon
        self._drains.on_lack = self._streams.graft
        self._flushed_seq = 0
        self._next_announce_s = self._next_enrol_s = now.mono_s
        self._enrolled: Section | None = None
        if key is not None and not self._is_entry_ours(key):
            for _ in self._writes.restating(config.registry_id):  # before the entry: until that is kept, at each start
                pass
        self._enrol(now)
        self._next_enrol_s = now.mono_s  # a start has told nobody yet
        self._succession = Succession(core, self._writes, now)
        self._succession.on_enrolled = self._walks.enrolled

    # links

    def connected(self, peer: str, now: Now) -> list[Effect]:
        """An authenticated link to that registry is up."""
        self._drop(peer)
        link = self._core.links[peer] = Link(peer, heard_s=now.mono_s)
        self._greet(link, now)
        return self._effects(now)

    def disconnected(self, peer: str, now: Now) -> list[Effect]:
        """The link is down."""
        self._drop(peer)
        return self._effects(now)

    def receive(self, peer: str, message: Message, now: Now) -> list[Effect]:
        """A message came over the link to that registry."""
        link = self._core.links.get(peer)
        if link is None:
            return []
        link.heard_s = now.mono_s
        if isinstance(message, Hello):
            self._hello(link, message, now)
        elif not link.greeted:
            self._greet(link, now)  # its Hello was lost, or is late: nothing can be judged without
        else:
            self._dispatch(link, message, now)
        return self._effects(now)

    def tick(self, now: Now) -> list[Effect]:
        """Time has passed. Call it several times a second."""
        for link in self._core.links.values():
            self._streams.send_ack(link)
            if not link.greeted:
                self._greet(link, now)
        self._streams.expire(now)
        self._enrol(now)
        self._announce(now)
        self._drains.tick(now)
        self._succession.tick(now)
        self._walks.tick(now)
        self._liveness.tick(now)
        self._collector.tick(now)
        self._liveness.flush_beats(now)
        self.replica.digest.settle(_SETTLE_A_TICK)
        return self._effects(now)

    def push(self, now: Now) -> list[Effect]:
        """Push everything that is new, where it waits to be asked for: whoever keeps writes in rounds sends what one
        has kept in one piece, as a message costs ten times what a record in it does."""
        self._streams.flush(now)
        return self._effects(now)

    @property
    def may_push(self) -> bool:
        """Whether something waits, and not for its receiver."""
        return self._streams.waiting

    # local writes

    def register(
        self,
        key: str,
        payload: bytes,
        now: Now,
        *,
        incarnation: int,
        judgement: bytes,
        token: Token | None = None,
        anew: bool = False,
    ) -> tuple[Token, list[Effect]]:
        """A node registers here. `incarnation` is of its key's id; `judgement` what we say of it; `anew`: in a life
        of its own. ValueError: its id has had all the lives that there are."""
        made = self._writes.register(
            key, payload, now, incarnation=incarnation, judgement=judgement, token=token, anew=anew
        )
        return made, self._effects(now)

    def heartbeat(
        self, key: str, now: Now, *, judgement: bytes, metrics: bytes = b"", token: Token | None = None
    ) -> tuple[Token | None, list[Effect]]:
        """A node beats here: it becomes ours, if it was not. None: unknown here, it has to register."""
        made = self._writes.heartbeat(key, judgement, now, token)
        if made is None:
            return None, self._effects(now)
        self._liveness.measured(made[1], metrics, now)
        return made[0], self._effects(now)

    def measured(self, key: str, metrics: bytes, now: Now) -> None:
        """A node of ours reported numbers. They go out with the next tick, as far as they are news."""
        record = self.replica.get(key)
        if record is not None:
            self._liveness.measured(record, metrics, now)

    def judge(self, key: str, value: bytes, now: Now) -> list[Effect]:
        """What we say of a node of ours; nothing if it is not (any more) ours, or was said. Call it in every
        sweep: a word that only a lost store had said is said again."""
        self._writes.judge(key, value, now)
        return self._effects(now)

    def amend(self, key: str, payload: bytes, now: Now) -> list[Effect]:
        """What operators want of a node. Raises KeyError."""
        self._writes.amend(key, payload, now)
        return self._effects(now)

    def delete(self, key: str, reason: bytes, now: Now) -> list[Effect]:
        """It exists no more. Raises KeyError."""
        self._writes.delete(key, reason, now)
        return self._effects(now)

    def put(self, key: str, payload: bytes, now: Now) -> list[Effect]:
        """A thing without an owner: an API key (`k:`), an entry of a list. ValueError: see `register`."""
        self._writes.put(key, payload, now)
        return self._effects(now)

    def revoke(self, key: str, reason: bytes, now: Now) -> list[Effect]:
        """An API key is good no more, whether or not it is known here yet."""
        self._writes.revoke(key, reason, now)
        return self._effects(now)

    def taking_over(self, registry_id: str, at_once: int, now: Callable[[], Now]) -> Iterator[list[Effect]]:
        """Take what another registry has sealed upon us, so many writes at once, as it may be much: what is to be done
        for them. Others may be made between."""
        steps = self._writes.restating(registry_id)
        for _ in steps:
            for _ in islice(steps, at_once - 1):
                pass
            yield self._effects(now())

    def forget(self, registry_id: str, reason: bytes, now: Now) -> list[Effect]:
        """Take another registry out of the roster, and what it had sealed upon us: its identity is forgotten, too.
        Raises KeyError."""
        for _ in self._writes.restating(registry_id):
            pass
        self._writes.delete(REGISTRY_PREFIX + registry_id, reason, now)
        return self._effects(now)

    # views

    def owns(self, key: str) -> bool:
        """Whether we are the one who judges this node."""
        record = self.replica.get(key)
        judgement = record.judgement if record is not None and record.exists else None
        return judgement is not None and judgement.origin == self.config.registry_id

    def standing(self, key: str, now: Now) -> Standing | None:
        """What is known of a node's liveness; None for what has no owner."""
        self._liveness.settle()
        record = self.replica.get(key)
        return self._liveness.standing(record, now) if record is not None else None

    def words(self, now: Now) -> Iterator[OwnerWord]:
        """How every other owner stands, as far as we hold all of its words."""
        self._liveness.settle()
        return self._liveness.words(now)

    @property
    def conflicts(self) -> int:
        """How many writes were replaced by others which did not know of them, as far as can be told here: what
        a peer has seen of ours it says once a second."""
        return self.replica.conflicts

    def ask_heard(self, is_heard: Callable[[str], bool]) -> None:
        """`is_heard` tells whether a node of ours is being heard: whoever takes over one that is not does no harm."""
        self._guard.is_heard = is_heard

    def on_measured(self, hear: Callable[[Record], None]) -> None:
        """Call `hear` with every record of which another registry's numbers have come in."""
        self._liveness.on_measured = hear

    def reachable(self, registry_id: str, now: Now) -> bool:
        """Whether that registry's watermark advances, directly or through anybody."""
        return self._liveness.reachable(registry_id, now)

    @property
    def caught_up(self) -> bool:
        """Whether we have had everything that some peer had, since we started."""
        return self._intake.caught_up

    @property
    def links(self) -> Mapping[str, Link]:
        """The links that are up."""
        return self._core.links

    # parts

    def _is_there(self, owner: str, now: Now) -> bool:
        """Whether the owner was heard of a moment ago. Of one that was killed nodes move away within a second."""
        last_s = self._liveness.last_heard_s(owner)
        return last_s is not None and now.mono_s - last_s <= _THERE_S

    def _seen_by(self, registry_id: str) -> int:
        """Our own chain, as far as that registry says that it has it; all of it where it says nothing."""
        link, chain = self._core.links.get(registry_id), self.replica.chain
        return link.vector.get(chain, 0) if link is not None and link.greeted else self.replica.vector.get(chain, 0)

    def _enrol(self, now: Now) -> None:
        """Our own entry in the roster, written when it is not there (any more) or says something else. One with
        another identity than ours gives way to one of the next life, which brings its own."""
        own, seal_key = self.replica.get(REGISTRY_PREFIX + self.config.registry_id), self._core.key
        spec = own.spec if own is not None and own.exists else None
        if (spec is not None and spec is self._enrolled) or now.mono_s < self._next_enrol_s:
            return
        is_told = spec is not None and spec.payload == self.config.advert
        if is_told and (seal_key is None or self._is_entry_ours(seal_key)):
            self._enrolled = spec
            return
        other = seal_key is not None and spec is not None and _is_of_another(spec, seal_key)
        self._next_enrol_s = now.mono_s + (_ENROL_AGAIN_S if spec is None else _ENROL_OVER_S)
        if other:
            self._core.alert("identity_replaced", "our entry in the roster had another identity than ours")
        try:
            self._writes.put(REGISTRY_PREFIX + self.config.registry_id, self.config.advert, now, anew=other)
        except ValueError as fault:
            self._core.alert("not_enrolled", str(fault))

    def _is_entry_ours(self, key: PrivateKey) -> bool:
        """Whether our own entry in the roster is sealed with that key."""
        own = self.replica.get(REGISTRY_PREFIX + self.config.registry_id)
        if own is None or own.spec is None:
            return False
        item = Item(own.key, own.life, own.incarnation, SectionKind.SPEC, own.spec)
        return is_sealed_by(item, key.public)

    def _effects(self, now: Now) -> list[Effect]:
        """Push what is new, unless that waits to be asked for, and hand over everything to be done."""
        core = self._core
        own = self.replica.vector.get(self.replica.chain, 0)
        if own != self._flushed_seq:
            self._flushed_seq = own
            self._streams.advanced(self.replica.chain)
        if not self.config.push_when_asked:
            self._streams.flush(now)
        self._drains.flush(now)
        effects, core.out = core.out, []
        return effects

    def _drop(self, peer: str) -> None:
        if self._core.links.pop(peer, None) is not None:
            self._drains.forget(peer)
            self._walks.forget(peer)
            self._streams.link_lost()

    def _greet(self, link: Link, now: Now) -> None:
        if now.mono_s - link.hello_sent_s < _HELLO_EVERY_S:
            return
        link.hello_sent_s = now.mono_s
        meta = self.replica.meta()
        link.announced = meta.vector
        hello = Hello(
            self.config.registry_id, self.replica.generation, meta.vector, meta.floor, meta.life_floor,
            self._core.direct(now), now.wall_ms,
        )  # fmt: skip
        self._core.send(link, hello)

    def _hello(self, link: Link, hello: Hello, now: Now) -> None:
        if hello.version != PROTOCOL_VERSION or hello.registry_id != link.peer:
            self._core.out.append(Close(link.peer, f"it speaks version {hello.version} as {hello.registry_id}"))
            return
        if hello.generation < link.generation:
            return  # of a start that is over
        if link.greeted:
            self._greet(link, now)  # it asks again: ours did not arrive
        self._renew(hello.vector, now)
        link.vector = dict(hello.vector)
        link.floor, link.life_floor = dict(hello.floor), hello.life_floor
        link.direct = frozenset(hello.direct)
        link.wall_ms, link.wall_at_s = hello.wall_ms, now.mono_s
        known, link.greeted, link.generation = link.greeted, True, hello.generation
        if not known:
            self._liveness.greeted(link, now)
        self._streams.greeted(link)
        self._drains.greeted(link, now)

    def _renew(self, vector: Vector, now: Now) -> None:
        """Somebody knows a later start of ours: our clock went backwards, and our store was lost.
        What we write from now on must have names of its own."""
        known = max(self.replica.starts_known(vector), default=0)
        if known > self.replica.generation:
            self.replica.begin_generation(known + 1, self._core.rng.getrandbits(_GENERATION_BITS))
            self._flushed_seq = 0
            self._core.stored_meta()

    def _dispatch(self, link: Link, message: Message, now: Now) -> None:
        match message:
            case Push():
                self._streams.received(link, message, now)
                size = sum(len(segment.entries) for segment in message.segments)
                self._streams.acknowledge(link, message.frame, size)
            case Drain():
                self._drains.received(link, message, now)
                self._streams.acknowledge(link, message.frame, 0, at_once=True)
            case Repair():
                self._walks.repair(link, message, now)
                self._streams.acknowledge(link, message.frame, 0, at_once=True)
            case Ack():
                self._streams.acked(link, message.frame)
            case Prune():
                self._streams.pruned(link, message.origins)
            case Graft():
                self._streams.grafted(link, message.origins)
            case Announce():
                self._renew(message.vector, now)
                link.vector.update(message.vector)
                link.floor.update(message.floor)
                link.life_floor = max(link.life_floor, message.life_floor)
                link.direct = frozenset(message.direct)
            case Pull():
                self._drains.asked(link, message)
            case Watermarks():
                self._liveness.heard(link, message, now)
            case Beats():
                self._liveness.beats(link, message, now)
            case DigestRequest():
                self._walks.asked(link, message)
            case DigestSums():
                self._walks.sums(link, message, now)
            case DigestRecords():
                self._walks.records(link, message, now)
            case Want():
                self._walks.wanted(link, message, now)
            case Hello():
                raise AssertionError("greetings are not dispatched")
        if max(len(link.vector), len(link.floor)) > MAX_CHAINS:
            self._core.out.append(Close(link.peer, f"it tells of more than {MAX_CHAINS} chains"))

    def _announce_soon(self) -> None:
        """What we were given in one piece is not pushed on: whoever hears it from us has to ask."""
        self._next_announce_s = float("-inf")

    def _announce(self, now: Now) -> None:
        """Tell where we are: what changed at once, everything now and then, as announcements get lost."""
        if now.mono_s < self._next_announce_s:
            return
        self._next_announce_s = now.mono_s + self.config.watermark_interval_s
        replica, direct = self.replica, self._core.direct(now)
        rest = (dict(replica.floor), replica.life_floor, direct)
        for link in self._core.greeted():
            silent_s = now.mono_s - link.announced_whole_s
            whole = silent_s >= _ANNOUNCE_AGAIN_S or (
                silent_s >= self.config.sync_interval_s and link.announced != link.announced_whole
            )
            told: Vector = {} if whole else link.announced
            news = {chain: seq for chain, seq in replica.vector.items() if told.get(chain) != seq}
            if not news and rest == link.announced_rest:
                continue
            link.announced, link.announced_rest = dict(replica.vector), rest
            if whole:
                link.announced_whole, link.announced_whole_s = link.announced, now.mono_s
            self._core.send(link, Announce(news, dict(replica.floor), replica.life_floor, direct))


def _is_of_another(entry: Section, key: PrivateKey) -> bool:
    advert = unpack_advert(entry.payload)
    return advert is not None and advert.identity != key.public
