"""The registry's commands: each reads the record, lets the core decide, and commits."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from registry.auth import Allowlist, Authenticator
from registry.directory import Directory, Entry
from registry.doubts import Doubts
from registry.errors import ApiError, no_such_node
from registry.feed import Feed
from registry.keys import Principal
from registry.model import HeartbeatRequest, PatchRequest, RegisterRequest, check_shape
from registry.node import (
    Origin,
    Record,
    candidate_id,
    fingerprint_of,
    iso,
    patched,
    registered,
)
from registry.ports import Store, Stored, StoreUnavailable, VersionConflict

MAX_TRIES = 16  # concurrent writers of one node; each round one of them wins
_NOTABLE = frozenset({"leaving", "draining", "maintenance", "degraded"})


class Clock(Protocol):
    """The two clocks: monotonic seconds for ages, wall-clock milliseconds for what people read."""

    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """Which registry this is, and what it tells its nodes."""

    registry_id: str
    region: str
    aliases: Mapping[str, str]
    config: Mapping[str, Any]


class Registry:
    """Commands on the nodes of a region. Raises ApiError, or StoreUnavailable with nothing written."""

    def __init__(
        self,
        place: Place,
        store: Store,
        directory: Directory,
        auth: Authenticator,
        allowlist: Allowlist,
        clock: Clock,
        feed: Feed,
    ) -> None:
        self._feed = feed
        self.place = place
        self.directory = directory
        self.auth = auth
        self._store = store
        self._allowlist = allowlist
        self._clock = clock
        self._config = orjson.dumps(dict(place.config))
        self._told: set[str] = set()
        self._doubts = Doubts(store, clock.wall_ms)

    # reads

    def require(self, node_id: str) -> Entry:
        """The node, or a 404."""
        entry = self.directory.get(node_id)
        if entry is None:
            raise no_such_node(node_id[:255])
        return entry

    # commands

    async def register(self, who: Principal, request: RegisterRequest, observed_ip: str) -> bytes:
        """Register or register again; the answer's JSON."""
        fingerprint = fingerprint_of(request, observed_ip)
        asked = request.node_id or who.node_id
        attempt = 0
        for _ in range(MAX_TRIES):
            node_id = asked or candidate_id(request, fingerprint, attempt)
            found = await self._store.get(node_id)
            stored = self._standing(node_id, found)
            if asked is None and stored is not None and stored.fingerprint != fingerprint:
                attempt += 1  # another machine of that name has these eight digits
                continue
            key, stored = self._admit(who, node_id, stored, observed_ip)
            record = registered(stored, node_id, request, self._origin(observed_ip))
            if key is not None:
                record = replace(record, key_hash=key[1])
            beat = self._metrics_of(node_id)
            try:
                await self._commit(record, found.version if found else 0, beat)
            except VersionConflict:
                continue
            except StoreUnavailable:
                if key is not None:
                    self._doubts.note(node_id, record.encode())
                raise
            self._doubts.forget(node_id)
            self._told.add(node_id)
            return self._registration_answer(record, key[0] if key else None)
        raise StoreUnavailable("slow", f"{node_id} is being written by too many at once")

    async def heartbeat(self, who: Principal, beat: HeartbeatRequest) -> bytes:
        """Note that a node lives, and what it measured; the answer's JSON."""
        node_id = beat.node_id
        self.auth.require(who, "own", node_id)
        entry = self.directory.get(node_id) or await self._fetch(node_id)
        metrics, decoded = self._beat_metrics(entry, beat)
        if self._changes_report(entry.reported, beat.status):
            await self._report(node_id, beat.status, metrics)
        else:
            at_ms = self._clock.wall_ms()
            if not await self._store.beat(node_id, metrics, at_ms):
                self.directory.delete(node_id, entry.version)
                raise no_such_node(node_id)
            self._feed.publish(self.directory.beat(node_id, metrics, at_ms, self._clock.monotonic(), decoded))
        return self._beat_answer(entry)

    async def patch(self, who: Principal, node_id: str, patch: PatchRequest) -> bytes:
        """Change the operator's intent; the node's JSON."""
        own = patch.status in (None, "draining", "online") and not patch.labels_add and not patch.labels_remove
        self.auth.require(who, "own" if own else "operate", node_id)

        def change(stored: Record) -> Record:
            return patched(stored, patch, self._clock.wall_ms())

        await self._change(node_id, change, None)
        return self.require(node_id).fragment() + b"}"

    async def deregister(self, who: Principal, node_id: str) -> None:
        """Remove a node; its key stays good for registering it again."""
        self.auth.require(who, "own", node_id)
        for _ in range(MAX_TRIES):
            found = await self._found(node_id)
            try:
                version = await self._store.delete(node_id, expected=found.version, at_ms=self._clock.wall_ms())
            except VersionConflict:
                continue
            self.directory.delete(node_id, version)
            return
        raise StoreUnavailable("slow", f"{node_id} is being written by too many at once")

    async def clean_up(self, who: Principal, older_than_s: float) -> list[str]:
        """Remove nodes that are offline and were last heard longer ago than that; their ids."""
        self.auth.require(who, "operate")
        limit_ms = self._clock.wall_ms() - older_than_s * 1000
        stale = [
            entry.node_id
            for entry in self.directory.entries()
            if entry.liveness == "offline" and (entry.beat_at_ms or 0) <= limit_ms
        ]
        removed = []
        for node_id in stale:
            try:
                await self.deregister(who, node_id)
            except ApiError:
                continue  # somebody else removed it first
            removed.append(node_id)
        return removed

    # parts

    def _admit(
        self, who: Principal, node_id: str, stored: Record | None, observed_ip: str
    ) -> tuple[tuple[str | None, str] | None, Record | None]:
        """May the caller register this id? Gives (key to show, its hash) when the record gets a key."""
        self._allowlist.require(node_id, observed_ip)
        if stored is not None:
            self.auth.require_may_replace(who, node_id)
            return None, stored
        self.auth.require_may_join(who)
        if self.auth.owns(who, node_id):
            return (None, who.key_hash.hex()), None
        key = self.auth.mint(node_id)
        return (key, self.auth.hash_of(key).hex()), None

    def _standing(self, node_id: str, found: Stored | None) -> Record | None:
        """The record that the caller has to reckon with; none where its registration had failed."""
        if found is None or self._doubts.holds(node_id, found.data):
            return None
        return Record.decode(found.data)

    async def _change(self, node_id: str, change: Any, beat: bytes | None) -> None:
        for _ in range(MAX_TRIES):
            found = await self._found(node_id)
            try:
                await self._commit(change(Record.decode(found.data)), found.version, beat)
            except VersionConflict:
                continue
            return
        raise StoreUnavailable("slow", f"{node_id} is being written by too many at once")

    async def _report(self, node_id: str, status: str | None, metrics: bytes) -> None:
        await self._change(node_id, lambda stored: replace(stored, reported=status), metrics)

    async def _commit(self, record: Record, expected: int, beat: bytes | None) -> None:
        at_ms = self._clock.wall_ms()
        version = await self._store.put(record.node_id, record.encode(), expected=expected, at_ms=at_ms, beat=beat)
        now = self._clock.monotonic()
        self.directory.put(record, version, now)
        if beat is not None:
            self._feed.publish(self.directory.beat(record.node_id, beat, at_ms, now))

    async def _found(self, node_id: str) -> Stored:
        """The stored record, or a 404; the directory then forgets the node as the store did."""
        known = self.directory.get(node_id)
        found = await self._store.get(node_id)
        if found is None:
            if known is not None:
                self.directory.delete(node_id, known.version)
            raise no_such_node(node_id)
        return found

    async def _fetch(self, node_id: str) -> Entry:
        """A node that another worker registered a moment ago, before the news reached this one."""
        found = await self._found(node_id)
        self.directory.put(Record.decode(found.data), found.version, self._clock.monotonic())
        return self.require(node_id)

    def _metrics_of(self, node_id: str) -> bytes:
        entry = self.directory.get(node_id)
        return entry.metrics if entry is not None else b"{}"

    @staticmethod
    def _beat_metrics(entry: Entry, beat: HeartbeatRequest) -> tuple[bytes, dict[str, Any] | None]:
        """What to keep of a heartbeat, encoded and decoded; what is kept already when it says nothing."""
        extra = beat.model_extra
        if beat.metrics is None and not extra:
            return entry.metrics, None
        values = {**extra, **(beat.metrics or {})} if extra else beat.metrics
        encoded = orjson.dumps(values)
        if encoded.count(b"{") + encoded.count(b"[") > 16:  # cannot be too deep with fewer
            check_shape(values)
        return bytes(memoryview(encoded)), values

    @staticmethod
    def _changes_report(known: str | None, reported: str | None) -> bool:
        """Leaving stays until the next registration: a late heartbeat must not undo it."""
        if reported is None or known == "leaving":
            return False
        before = known if known in _NOTABLE else None
        return (reported if reported in _NOTABLE else None) != before

    def _origin(self, observed_ip: str) -> Origin:
        place = self.place
        return Origin(place.registry_id, place.region, observed_ip, self._clock.wall_ms(), place.aliases)

    def _registration_answer(self, record: Record, api_key: str | None) -> bytes:
        entry = self.require(record.node_id)
        return b'%b,"api_key":%b,"config":%b,"token":"%b"}' % (
            entry.fragment(),
            orjson.dumps(api_key),
            self._config,
            record.token.encode(),
        )

    def _beat_answer(self, entry: Entry) -> bytes:
        """Nodes that registered before this process started are told its configuration once."""
        config = b""
        if entry.node_id not in self._told:
            self._told.add(entry.node_id)
            config = b',"config":' + self._config
        return (
            b'{"success":true,"node_id":"%b","status":"%b","timestamp":"%b","message":"heartbeat accepted",'
            b'"token":"%b"%b}'
            % (
                entry.node_id.encode(),
                entry.status.encode(),
                iso(entry.beat_at_ms or 0).encode(),
                entry.token.encode(),
                config,
            )
        )
