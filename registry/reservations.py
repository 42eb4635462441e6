"""Reservations: who calls a node in a moment says so, and others are led elsewhere. See holds.py."""

import secrets
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from registry import holds as core
from registry.clock import Clock
from registry.directory import Entry
from registry.errors import ApiError
from registry.holds import HOLDS_PREFIX, Bucket, Hold, Holds, Standing, bucket_of, packed, read
from registry.keys import Principal
from registry.model import ReservationRequest
from registry.node import iso
from registry.positions import Position
from registry.service import Registry, Role
from registry.tables import Table
from registry.writer import Writer

_SAME_MS = 1_000
Sight = Callable[[Entry], None]
_NO_KEY = "~"  # callers without a key are told apart by their address, as long as nothing hangs on it


class Reservations:
    """Commands on holds. Raises ApiError, NotWriter, or StoreUnavailable."""

    def __init__(self, registry: Registry, role: Role, clock: Clock) -> None:
        self._registry = registry
        self._role = role
        self._clock = clock
        self._us = registry.place.registry_id
        self.holds = Holds(registry.directory.reserve)
        table = registry.directory.tables.add(Table(HOLDS_PREFIX, read))
        table.on_change = self._changed

    def expire(self) -> None:
        """End what is over; before anything is told of nodes."""
        self.holds.expire(self._clock.monotonic())

    def listed(self, node_id: str, see: Sight) -> dict[str, Any]:
        """What is held of a node, as callers see it. `see` raises for a node that this one may not."""
        entry = self._registry.require(node_id)
        see(entry)
        self.expire()
        return {
            "node_id": node_id,
            "slots": entry.slots,
            "reserved_slots": self.holds.slots(node_id),
            "reservations": [self._shown(standing) for standing in self.holds.of(node_id)],
        }

    def explained(self, told: dict[str, Any]) -> dict[str, Any]:
        """With what is held: it left nobody out, but it orders."""
        nodes, slots = self.holds.held()
        told = {**told, "reserved": {"nodes": nodes, "slots": slots}}
        entry = self._registry.directory.get(told["node"]["node_id"]) if "node" in told else None
        if entry is not None:
            told["node"] = {**told["node"], "slots": entry.slots, "reserved_slots": self.holds.slots(entry.node_id)}
        return told

    async def reserve(
        self, who: Principal, address: str, node_id: str, asked: ReservationRequest, see: Sight
    ) -> dict[str, Any]:
        """Hold slots of a node."""
        writer = self._ready_writer()
        entry = self._registry.require(node_id)
        see(entry)
        by, bucket = _caller(who, address), bucket_of(self._us, node_id)
        self.expire()
        self._require_room(node_id, entry.slots, asked.slots)
        kept = self._kept(writer, bucket)
        self._require_measure(by)
        _require_place(kept)
        hold = Hold(secrets.token_hex(8), node_id, asked.slots, self._clock.wall_ms() + round(asked.ttl_s * 1000), by)
        position = await self._write(writer, bucket, (*kept, hold))
        return {
            "reservation_id": hold.hold_id,
            "node_id": node_id,
            "slots": hold.slots,
            "ttl_s": asked.ttl_s,
            "expires_at": iso(hold.until_ms),
            "registry_id": self._us,
            "reserved_slots": self.holds.slots(node_id),
            "version": str(position),
        }

    async def release(self, who: Principal, node_id: str, hold_id: str, see: Sight) -> dict[str, Any]:
        """End a hold before its time: whoever took it, the node itself, or an admin."""
        writer = self._ready_writer()
        see(self._registry.require(node_id))
        self.expire()
        standing = next((each for each in self.holds.of(node_id) if each.hold.hold_id == hold_id), None)
        if standing is None:
            raise ApiError(
                "no_such_reservation",
                f"No reservation of {node_id} has that id; it may be over. Nothing is left to do.",
            )
        hold = standing.hold
        auth = self._registry.auth
        if not hold.by.startswith(_NO_KEY) and hold.by != _caller(who, "") and not auth.owns(who, node_id):
            auth.require(who, "operate")
        kept = self._kept(writer, bucket_of(self._us, node_id))
        left = tuple(each for each in kept if each.hold_id != hold_id)
        if len(left) == len(kept):  # another registry took it
            _require_place(kept)
            left = (*kept, hold.released())
        position = await self._write(writer, bucket_of(self._us, node_id), left)
        return {
            "success": True, "node_id": node_id, "reservation_id": hold_id,
            "reserved_slots": self.holds.slots(node_id), "version": str(position),
        }  # fmt: skip

    # parts

    def _ready_writer(self) -> Writer:
        writer = self._registry.writer
        self._role.check()
        writer.check()
        return writer

    def _require_room(self, node_id: str, capacity: int | None, slots: int) -> None:
        held, standing = self.holds.slots(node_id), self.holds.of(node_id)
        full = capacity is not None and held + slots > capacity
        if not full and len(standing) < core.MOST_A_NODE:
            return
        if capacity is not None and slots > capacity:
            raise ApiError("fully_reserved", f"{node_id} has {capacity} slots in all; ask for fewer, or another node.")
        left = f"{max(0, capacity - held)} of {capacity} slots are left" if capacity is not None else "too many hold it"
        until_s = standing[0].until_s if standing else self._clock.monotonic()
        raise ApiError(
            "fully_reserved",
            f"{node_id} is reserved by others: {left}. Take another node, or wait until a reservation ends.",
            retry_after_s=1 + int(max(0.0, until_s - self._clock.monotonic())),
        )

    def _require_measure(self, by: str) -> None:
        if self.holds.taken(self._us, by) >= core.MOST_A_CALLER:
            raise ApiError(
                "too_many_reservations",
                f"You hold {core.MOST_A_CALLER} reservations here; release some, or ask for shorter ones.",
                retry_after_s=1,
            )
        if self.holds.taken(self._us) >= core.MOST_HERE:
            raise _crowded()

    def _kept(self, writer: Writer, bucket: str) -> Bucket:
        """What our bucket holds, kept or about to be, without what is over."""
        now_ms = self._clock.wall_ms()
        return tuple(hold for hold in _written(writer, bucket) if hold.stands(now_ms))

    async def _write(self, writer: Writer, bucket: str, holds: Bucket) -> Position:
        """Whoever asks next sees it at once: it cannot be taken back, only be kept late."""
        self.holds.take(bucket, holds, self._clock.monotonic(), self._clock.wall_ms())
        return await writer.put(HOLDS_PREFIX + bucket, packed(holds))

    def _changed(self, bucket: str, holds: Bucket | None) -> None:
        """The store or another registry has it. Of our own we may have written more meanwhile."""
        writer = self._role.writer
        if writer is not None and bucket.rpartition("/")[0] == self._us:
            holds = _written(writer, bucket)
        self.holds.take(bucket, holds, self._clock.monotonic(), self._clock.wall_ms())

    def _shown(self, standing: Standing) -> dict[str, Any]:
        until_ms = self._clock.wall_ms() + round((standing.until_s - self._clock.monotonic()) * 1000)
        told_ms = standing.hold.until_ms  # the same, where the clocks are right
        return {
            "reservation_id": standing.hold.hold_id,
            "slots": standing.hold.slots,
            "expires_at": iso(told_ms if abs(told_ms - until_ms) < _SAME_MS else until_ms),
            "registry_id": standing.registry_id,
        }


def _require_place(kept: Bucket) -> None:
    if len(kept) >= core.MOST_A_BUCKET:
        raise _crowded()


def _crowded() -> ApiError:
    return ApiError(
        "too_many_reservations", "Too many reservations stand here; try again in a moment.", retry_after_s=1, status=503
    )


def _written(writer: Writer, bucket: str) -> Bucket:
    record = writer.engine.replica.get(HOLDS_PREFIX + bucket)
    return (read(record) if record is not None else None) or ()


def _caller(who: Principal, address: str) -> str:
    """The caller, as holds name it: who knows it learns nothing of the key. With mutual TLS a node may have none."""
    if who.key or who.node_id:
        kind, known = "", who.key_hash or f"node {who.node_id}".encode()
    else:
        kind, known = _NO_KEY, address.encode()
    return kind + blake2b(known, digest_size=8, person=b"dagi-holder").hexdigest()
