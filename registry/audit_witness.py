"""Cross-signing: the writer signs where its audit log has come to, and keeps in it what other registries signed."""

from typing import Any

import orjson

from federation.ed25519 import PrivateKey
from registry.audit import Audit
from registry.audit_checkpoint import CHECKPOINT_PREFIX, Checkpoint, checkpoint_of, signed
from registry.clock import Clock
from registry.node import iso
from registry.ports import Store
from registry.tables import Table
from registry.writer import Writer

SIGN_ENTRIES = 1_000  # or after so many: what lies between two checkpoints nobody else can vouch for
WITNESS_GAP_S = 5.0  # between two checkpoints of one registry: a hostile one must not fill our log
WITNESSED = "audit_witnessed"


class Witness:
    """What one worker does of it while it writes. `every_s`: between two checkpoints while there is something new."""

    def __init__(
        self,
        registry_id: str,
        key: PrivateKey,
        table: Table[Checkpoint],
        audit: Audit,
        store: Store,
        clock: Clock,
        every_s: float,
    ) -> None:
        self._id = registry_id
        self._key = key
        self._identity = key.public
        self._table = table
        self._audit = audit
        self._store = store
        self._clock = clock
        self._every_s = every_s
        self._writer: Writer | None = None  # that `_witnessed` was read for
        self._signed_s = float("-inf")
        self._witnessed: dict[str, tuple[Checkpoint, str]] = {}  # newest of each registry, and by which identity
        self._witnessed_s: dict[str, float] = {}

    async def step(self, writer: Writer) -> None:
        """Sign what is due, keep what has come. Raises StoreUnavailable."""
        if writer is not self._writer:
            await self._recall()
            self._writer = writer
        if await self._keep_others(writer):
            await self._store.publish(WITNESSED, self._remembered())
        await self._sign(writer)

    async def _sign(self, writer: Writer) -> None:
        now_s, log = self._clock.monotonic(), writer.log
        if not log.news or (now_s - self._signed_s < self._every_s and log.news < SIGN_ENTRIES):
            return
        made = signed(self._key, self._id, log.kept, iso(self._clock.wall_ms()))
        log.news, self._signed_s = 0, now_s
        self._note("checkpoint.signed", made, self._identity.hex())
        await writer.put(CHECKPOINT_PREFIX + self._id, made.encode())

    async def _keep_others(self, writer: Writer) -> bool:
        found = False
        now_s = self._clock.monotonic()
        for registry_id, checkpoint in list(self._table.items()):
            before = self._witnessed.get(registry_id)
            identity = writer.pinned(registry_id)
            if registry_id == self._id or identity is None or (before is not None and before[0] == checkpoint):
                continue
            if now_s - self._witnessed_s.get(registry_id, float("-inf")) < WITNESS_GAP_S:
                continue
            self._witnessed_s[registry_id] = now_s
            found = self._take(writer, checkpoint, identity, before) or found
        return found

    def _take(
        self, writer: Writer, checkpoint: Checkpoint, identity: bytes, before: tuple[Checkpoint, str] | None
    ) -> bool:
        """A registry signed a new checkpoint, or somebody says so."""
        registry_id = checkpoint.registry_id
        if not checkpoint.is_by(identity):
            self._audit.note("checkpoint.witnessed", None, registry_id, outcome="not_signed_by_it")
            writer.alert("audit_forged", f"a checkpoint of {registry_id}'s audit log is not signed by it", registry_id)
            return False
        if before is not None and before[1] == identity.hex() and _goes_back(checkpoint, before[0]):
            detail = f"its audit log stood at entry {before[0].head.seq}, and now at {checkpoint.head.seq}, otherwise"
            self._note("checkpoint.contradicts", checkpoint, identity.hex(), before=list(before[0].head))
            writer.alert("audit_rewritten", f"{detail}: history was changed there, or lost", registry_id)
        else:
            self._note("checkpoint.witnessed", checkpoint, identity.hex())
        self._witnessed[registry_id] = checkpoint, identity.hex()
        return True

    def _note(self, action: str, checkpoint: Checkpoint, identity: str, **more: Any) -> None:
        head = checkpoint.head
        self._audit.note(
            action, None, checkpoint.registry_id, seq=head.seq, hash=head.hash, signed_at=checkpoint.at,
            signature=checkpoint.signature, identity=identity, **more,
        )  # fmt: skip

    def _remembered(self) -> bytes:
        return orjson.dumps({name: [orjson.loads(c.encode()), by] for name, (c, by) in self._witnessed.items()})

    async def _recall(self) -> None:
        """What this region's writer before us had witnessed."""
        known = await self._store.published(WITNESSED)
        for name, (fields, identity) in (orjson.loads(known) if known else {}).items():
            checkpoint = checkpoint_of(name, fields)
            if checkpoint is not None:
                self._witnessed.setdefault(name, (checkpoint, identity))


def _goes_back(new: Checkpoint, old: Checkpoint) -> bool:
    return new.head.seq < old.head.seq or (new.head.seq == old.head.seq and new.head.hash != old.head.hash)
