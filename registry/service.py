"""The registry's commands: each looks at what stands, lets the core decide, and has it written."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import orjson

from federation.record import KEY_PREFIX
from federation.signed import incarnation_of
from federation.writes import Token
from registry import measurements, signing
from registry.admission import Admission, Asker, beat_refused
from registry.allowlist import UNLISTED, identities_of
from registry.audit import Audit
from registry.auth import Authenticator
from registry.clock import Clock
from registry.directory import Directory, Entry
from registry.doubts import Doubts
from registry.errors import ApiError, instance_replaced, no_such_node
from registry.keys import ANYONE, Principal
from registry.model import HeartbeatRequest, PatchRequest, RegisterRequest, check_shape
from registry.node import (
    Origin,
    Record,
    Word,
    admitted,
    candidate_id,
    fingerprint_of,
    iso,
    node_key,
    parse_token,
    patched,
    registered,
    replaced,
    token_text,
)
from registry.ports import Store, StoreUnavailable
from registry.positions import Position
from registry.writer import Writer

SEEN_WITHIN_S = 2.0  # how long a read waits for the write that it asks for
_RTTS, _RTTS_JSON = "registry_rtt_ms", b'"registry_rtt_ms":{'
_NOTABLE = frozenset({"leaving", "draining", "maintenance", "degraded"})


class NotWriter(Exception):
    """This worker does not write for the region: the one that does has to be asked."""


class Role(Protocol):
    """What this worker is to its region."""

    writer: Writer | None
    audit: Audit

    def check(self) -> None:
        """Raise ApiError while the region must not be written yet."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which registry this is, and what it tells its nodes."""

    registry_id: str
    region: str
    aliases: Mapping[str, str]
    config: Mapping[str, Any]


class Registry:
    """Commands on nodes. Raises ApiError, NotWriter, or StoreUnavailable."""

    def __init__(
        self,
        place: Place,
        store: Store,
        directory: Directory,
        auth: Authenticator,
        admission: Admission,
        clock: Clock,
        role: Role,
    ) -> None:
        self.place = place
        self.directory = directory
        self.auth = auth
        self._store = store
        self.admission = admission
        self._clock = clock
        self._role = role
        self._config = orjson.dumps(dict(place.config))
        self._told: set[str] = set()
        self._doubts = Doubts()
        self._taking_back: asyncio.Task[None] | None = None

    # reads

    def require(self, node_id: str) -> Entry:
        """The node, or a 404."""
        entry = self.directory.get(node_id)
        if entry is None:
            raise no_such_node(node_id[:255])
        return entry

    async def seen(self, min_version: str | None) -> None:
        """Wait, not for long, until that write is visible here."""
        if min_version is None:
            return
        try:
            position = Position.parse(min_version)
        except ValueError:
            raise ApiError("invalid", "min_version: send it as an answer to a write gave it.") from None
        try:
            async with asyncio.timeout(SEEN_WITHIN_S):
                await self.writer.visible.reached(position)
        except TimeoutError:
            raise ApiError(
                "not_yet_visible",
                f"That write of {position.chain[0]} has not arrived here; try again, or ask {position.chain[0]}.",
                retry_after_s=1,
            ) from None

    @property
    def writer(self) -> Writer:
        """The region's writer, if it is this worker."""
        if self._role.writer is None:
            raise NotWriter
        return self._role.writer

    # commands

    async def register(self, who: Principal, request: RegisterRequest, observed_ip: str) -> bytes:
        """Register or register again; the answer's JSON."""
        writer = self.ready_writer()
        signing.proven(request)
        fingerprint = fingerprint_of(request, observed_ip)
        asked = request.node_id or who.node_id
        for attempt in count():
            node_id = asked or candidate_id(request, fingerprint, attempt)
            stored = None if self._is_doubted(writer, node_id) else writer.node(node_id)
            if asked is not None or stored is None or stored.fingerprint == fingerprint:
                break  # else another machine of that name has these eight digits
        key = await self._admit(who, node_id, stored, request, observed_ip)
        held = writer.engine.replica.get(node_key(node_id))
        signing.require_key(request, held if stored is not None else None, is_admin=who.kind == "admin")
        record = registered(stored, node_id, request, self._origin(observed_ip, identities_of(who.certificate)))
        if key is not None:
            record = admitted(replace(record, key_hash=key[1]), who.key_id if who.kind == "join" else None)
        incarnation = _incarnation(record, request.signing_key)
        token = signing.token_for(parse_token(request.token), incarnation)
        noted = None
        try:
            beat = self._metrics_of(node_id), self._clock.wall_ms()
            with self.auth.use.admission(who if key is not None else ANYONE):
                noted = self._note("node.registered", who, node_id) if stored is None else None
                self.directory.signatures.vouch(record)
                anew = signing.begins_anew(held, incarnation)
                made, position = await writer.register(record, incarnation, token, beat, anew=anew)
            self.directory.beat(node_id, *beat, self._clock.monotonic(), now_ms=beat[1])
        except StoreUnavailable:
            if key is not None and key[0] is not None:  # else its caller has the key, and may have the node elsewhere
                self._doubts.note(node_id, record.encode_spec())
            raise
        except ValueError as fault:
            self._role.audit.withdraw(noted)
            raise ApiError("node_id_taken", f"{fault}.") from None
        self._doubts.forget(node_id)
        self._told.add(node_id)
        if key is not None and who.kind == "join" and who.key_id is not None:
            await self._write_use(writer, who.key_id)
        return self._registration_answer(node_id, key[0] if key else None, made, position)

    async def heartbeat(self, who: Principal, beat: HeartbeatRequest, rtt_ms: float | None = None) -> bytes:
        """Note that a node lives, and what it measured; the answer's JSON. `rtt_ms`: to the node, where its
        connection has told: it counts where the node tells nothing."""
        node_id = beat.node_id
        self.auth.require(who, "own", node_id)
        entry = self.directory.get(node_id)
        if entry is not None:
            if not self.admission.allowlist.admits(entry):
                await self._turn_away(entry)
            metrics, decoded = self._beat_metrics(entry, beat, rtt_ms)
            token = entry.token  # of now: another run may register while this one's heartbeat is kept
            if self._is_plain(entry, beat) and await self._beat(node_id, metrics, decoded):
                return self._beat_answer(entry, token)
        return await self._notable_beat(entry, beat)

    async def patch(self, who: Principal, node_id: str, patch: PatchRequest) -> bytes:
        """Change the operator's intent; the node's JSON."""
        own = patch.status in (None, "draining", "online") and not patch.labels_add and not patch.labels_remove
        self.auth.require(who, "own" if own else "operate", node_id)
        writer = self.ready_writer()
        # What is to be taken back takes no operator's will along.
        node = None if self._is_doubted(writer, node_id) else writer.unread(node_id)
        if node is None:
            raise no_such_node(node_id[:255])
        word = None
        if patch.status == "online" and node.word.reported == "draining":
            word = replace(node.word, reported=None)
        change = {"status": patch.status, "labels_add": patch.labels_add, "labels_remove": patch.labels_remove}
        self._note("node.patched", who, node_id, **{name: value for name, value in change.items() if value})
        position = await writer.amend(node_id, patched(node.intent, patch, self._clock.wall_ms()).encode(), word)
        return b'%b,"version":"%b"}' % (self.require(node_id).fragment(), str(position).encode())

    async def deregister(self, who: Principal, node_id: str) -> str:
        """Remove a node; its key stays good for registering it again. The version to read it by."""
        self.auth.require(who, "own", node_id)
        writer = self.ready_writer()
        if writer.node(node_id) is None:
            raise no_such_node(node_id[:255])
        self._note("node.deregistered", who, node_id)
        reason = f"asked for by a caller with a {who.kind} key" if who.key else "asked for"
        return str(await writer.delete(node_id, reason))

    async def clean_up(self, who: Principal, older_than_s: float) -> list[str]:
        """Remove nodes that are offline and were last heard longer ago than that; their ids."""
        self.auth.require(who, "operate")
        self.ready_writer()
        limit_ms = self._clock.wall_ms() - older_than_s * 1000
        stale = [
            entry.node_id
            for entry in self.directory.entries()
            if entry.liveness == "offline" and entry.reachable and (entry.beat_at_ms or 0) <= limit_ms
        ]
        removed = []
        for node_id in stale:
            try:
                await self.deregister(who, node_id)
            except ApiError:
                continue  # somebody else removed it first
            removed.append(node_id)
        self._note("maintenance.cleaned", who, older_than_s=older_than_s, removed=len(removed))
        return removed

    def told_config(self, config: Mapping[str, Any]) -> None:
        """What nodes are told has changed: each hears of it with its next heartbeat."""
        encoded = orjson.dumps(dict(config))
        if encoded != self._config:
            self._config = encoded
            self._told.clear()

    def recovered(self) -> None:
        """The store takes writes again: take back what nobody was told of."""
        if self._taking_back is None or self._taking_back.done():
            self._taking_back = asyncio.create_task(self._take_back(), name="doubts")

    # parts

    def ready_writer(self) -> Writer:
        """The region's writer, which may write now. Raises NotWriter, StoreUnavailable, or ApiError."""
        writer = self.writer
        self._role.check()
        writer.check()
        return writer

    def _is_plain(self, entry: Entry, beat: HeartbeatRequest) -> bool:
        """Whether the heartbeat changes nothing but when the node was last heard, and its numbers."""
        writer = self._role.writer
        return (
            entry.owner.is_us
            and not entry.must_register
            and (writer is None or entry.node_id not in writer.unconfirmed)
            and entry.word.liveness == "online"
            and (beat.token is None or beat.token == entry.token)
            and not self._changes_report(entry.word.reported, beat.status)
        )

    async def _notable_beat(self, entry: Entry | None, beat: HeartbeatRequest) -> bytes:
        """A heartbeat that makes a node ours, or changes the word on it."""
        node_id, writer = beat.node_id, self.ready_writer()
        node = writer.node(node_id)
        if node is None:
            raise no_such_node(node_id)
        if entry is not None and entry.must_register:
            raise ApiError("no_such_node", f"What is held of {node_id} is not what it signed last; register it again.")
        token = parse_token(beat.token)
        if replaced(node, beat.instance_id, token):
            raise instance_replaced(node_id)
        if signing.is_losers(token, node.token):
            raise signing.signing_key_differs(node_id, signed=True)
        entry = entry or self.directory.get(node_id)
        reported = node.reported
        if self._changes_report(reported, beat.status):
            reported = beat.status
        metrics, decoded = self._beat_metrics(entry, beat) if entry is not None else (b"{}", None)
        packed = measurements.pack(decoded) if decoded else b""
        made = await writer.heard(node_id, Word(reported=reported), packed, token)
        if made is None:
            raise no_such_node(node_id)
        told, position = made
        if not await self._beat(node_id, metrics, decoded):
            await writer.store_lost()
            if not await self._beat(node_id, metrics, decoded):
                raise no_such_node(node_id)
        return self._beat_answer(self.require(node_id), token_text(told), position)

    async def _beat(self, node_id: str, metrics: bytes, decoded: dict[str, Any] | None = None) -> bool:
        """Renew a node's expiry; False: the store has no record of it."""
        at_ms = self._clock.wall_ms()
        if not await self._store.beat(node_key(node_id), metrics, at_ms):
            return False
        self.directory.beat(node_id, metrics, at_ms, self._clock.monotonic(), decoded, now_ms=at_ms)
        writer = self._role.writer
        if decoded and writer is not None and writer.engine.links:
            writer.measured(node_id, decoded)
        return True

    async def _write_use(self, writer: Writer, key_id: str) -> None:
        """Tell the others that a join key was used. What cannot be written now is, with the next use or minute."""
        used = self.auth.use.updated(key_id)
        if used is not None:
            with contextlib.suppress(StoreUnavailable):
                await writer.annotate(KEY_PREFIX + key_id, used.encode_use())

    def _note(self, action: str, who: Principal, target: str = "", **detail: Any) -> bytes | None:
        """For the audit log; right before the write, so that one commit keeps both."""
        return self._role.audit.note(action, who, target, **detail)

    async def _turn_away(self, entry: Entry) -> None:
        """A heartbeat of a node that is not on the allowlist. Most have been told so in their status already."""
        if entry.word.why != UNLISTED and (entry.owner.is_us or not entry.owner.reachable):
            await self.admission.turn_away(entry, self.ready_writer())
        raise beat_refused(entry.node_id)

    async def _admit(
        self, who: Principal, node_id: str, stored: Record | None, request: RegisterRequest, observed_ip: str
    ) -> tuple[str | None, str] | None:
        """May the caller register this id? Gives (key to show, its hash) when the record gets a key."""
        self.auth.require_named(who, node_id)
        if stored is not None:
            self.auth.require_may_replace(who, node_id)
        asker = Asker(who, node_id, request, observed_ip, known=stored is not None)
        approved = await self.admission.admit(asker, self.writer)  # waits for nothing where it lets in
        if stored is not None:
            return None
        if not approved or who.kind != "none":
            self.auth.require_may_join(who)
        if who.key and self.auth.owns(who, node_id):
            return None, who.key_hash.hex()
        key = self.auth.mint(node_id)
        return key, self.auth.hash_of(key).hex()

    def _is_doubted(self, writer: Writer, node_id: str) -> bool:
        """Whether its registration had failed: callers do not have to reckon with it."""
        return self._doubts.holds(node_id, writer.engine.replica.get(node_key(node_id)))

    async def _take_back(self) -> None:
        with contextlib.suppress(StoreUnavailable, NotWriter):  # the next recovery, or writer, goes on
            for node_id in self._doubts.open():
                if self._is_doubted(self.writer, node_id):
                    await self.writer.delete(node_id, "its registration was never confirmed")
                self._doubts.forget(node_id)

    def _metrics_of(self, node_id: str) -> bytes:
        entry = self.directory.get(node_id)
        return entry.metrics if entry is not None else b"{}"

    def _beat_metrics(
        self, entry: Entry, beat: HeartbeatRequest, rtt_ms: float | None = None
    ) -> tuple[bytes, dict[str, Any] | None]:
        """What to keep of a heartbeat, encoded and decoded; what is kept already when it says nothing."""
        extra = beat.model_extra
        values = {**extra, **(beat.metrics or {})} if extra else beat.metrics
        if values is None and rtt_ms is None:
            return entry.metrics, None
        if values is None or _RTTS not in values:
            values = self._with_round_trips(entry, values, rtt_ms)
        encoded = orjson.dumps(values)
        if encoded.count(b"{") + encoded.count(b"[") > 16:  # cannot be too deep with fewer
            check_shape(values)
        return bytes(memoryview(encoded)), values

    def _with_round_trips(self, entry: Entry, values: dict[str, Any] | None, rtt_ms: float | None) -> dict[str, Any]:
        """A heartbeat's numbers, with the node's round trips that are known: what it told itself, else what the
        connection tells now and then."""
        if rtt_ms is None and _RTTS_JSON not in entry.metrics:
            return values or {}
        kept = orjson.loads(entry.metrics)
        told = kept.get(_RTTS)
        known = told if isinstance(told, dict) else {}
        if rtt_ms is not None and not known.keys() - {self.place.registry_id}:
            known = {self.place.registry_id: round(rtt_ms, 2)}
        values = kept if values is None else values
        return {**values, _RTTS: known} if known else values

    @staticmethod
    def _changes_report(known: str | None, reported: str | None) -> bool:
        """Leaving stays until the next registration: a late heartbeat must not undo it."""
        if reported is None or known == "leaving":
            return False
        before = known if known in _NOTABLE else None
        return (reported if reported in _NOTABLE else None) != before

    def _origin(self, observed_ip: str, identities: tuple[str, ...]) -> Origin:
        place = self.place
        return Origin(place.registry_id, place.region, observed_ip, self._clock.wall_ms(), place.aliases, identities)

    def _registration_answer(self, node_id: str, api_key: str | None, token: Token, position: Position) -> bytes:
        entry = self.require(node_id)
        return b'%b,"api_key":%b,"config":%b,"token":"%b","version":"%b"}' % (
            entry.fragment(),
            orjson.dumps(api_key),
            self._config,
            token_text(token).encode(),
            str(position).encode(),
        )

    def _beat_answer(self, entry: Entry, token: str, position: Position | None = None) -> bytes:
        """Nodes that registered before this process started are told its configuration once. `token`: the one of
        this heartbeat, never one that came to be since. `position`: when the heartbeat wrote something."""
        more = b""
        if entry.node_id not in self._told:
            self._told.add(entry.node_id)
            more = b',"config":' + self._config
        if position is not None:
            more += b',"version":"%b"' % str(position).encode()
        return (
            b'{"success":true,"node_id":"%b","status":"%b","timestamp":"%b","message":"heartbeat accepted",'
            b'"token":"%b"%b}'
            % (
                entry.node_id.encode(),
                entry.status.encode(),
                iso(entry.beat_at_ms or 0).encode(),
                token.encode(),
                more,
            )
        )


def _incarnation(record: Record, signing_key: bytes | None) -> int:
    """Of the node's signing key, or of the record's key: two first registrations of one id are told apart, and
    ordered, by it."""
    if signing_key is not None:
        return incarnation_of(signing_key)
    if record.key_hash:
        return int(record.key_hash[:16], 16) >> 2
    return 0 if signing.is_bound(record.incarnation) else record.incarnation
