"""Anti-entropy by content: sums are compared, and a difference is walked down to the records.

Vectors cannot see what was lost from a store behind their back; sums can. The walker asks, the other
side answers without keeping anything. It compares 64 groups, then the buckets of those that differ, then
the records of those, and asks for what differs.

A walk between two registries that know all of each other's collected deletions is a plain join.
Otherwise it carries causal context: a living record that only one side has, and whose birth the
other side has seen, was deleted there, and the deletion collected. So a registry that was away for
long, or got an old store back, becomes current without bringing anything back to life.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from federation.clock import Dot, Now, Vector, covers, raise_to
from federation.core import Core, Link
from federation.digest import BUCKETS, bucket_of, differing, group_of
from federation.intake import Intake
from federation.messages import DigestRecords, DigestRequest, DigestSums, Repair, Want
from federation.record import KEY_PREFIX, REGISTRY_PREFIX, Item, Record, SectionKind, birth_of, weight

BUCKETS_A_REQUEST = 32
KEYS_A_REQUEST = 500
MAX_LISTED = 2**18  # keys that one request may bring: thirty times what buckets of a million records hold
KEYS_A_LISTING = 2_000  # whoever chooses ids may fill one bucket: its listing comes in parts
_RETRY_S = 3.0


class _Step(IntEnum):
    """What a walk waits for."""

    TOP = 0
    GROUPS = 1
    RECORDS = 2
    CLOSE = 3


@dataclass(slots=True)
class _Walk:
    """A walk of ours. `context`: not a plain join. `complete`: it looks at every difference."""

    peer: str
    walk_id: int
    progress_s: float
    context: bool
    theirs_stale: bool
    bounded: bool
    step: _Step = _Step.TOP
    complete: bool = True
    whole: bool = True  # nothing was held
    position: Vector = field(default_factory=dict)
    floor: Vector = field(default_factory=dict)
    our_position: Vector = field(default_factory=dict)
    our_floor: Vector = field(default_factory=dict)
    buckets: list[int] = field(default_factory=list)
    listings: dict[int, dict[str, int]] = field(default_factory=dict)  # of the buckets that were asked for
    parts: dict[int, int] = field(default_factory=dict)  # and the next part of each
    wanted: list[str] = field(default_factory=list)
    births: dict[str, Dot | None] = field(default_factory=dict)  # of records that a Want brings, in several frames
    repair_index: int = 0
    closing_id: int = 0


class Walks:
    """See the module."""

    def __init__(self, core: Core, intake: Intake, now: Now) -> None:
        self._core = core
        self._intake = intake
        self._walk: _Walk | None = None
        self._next_id = core.rng.getrandbits(31)
        self._due_s = now.mono_s + core.config.digest_interval_s * core.rng.random()
        self._resync_s = self._retry_s = now.mono_s
        self._resynced_with: str | None = None
        self._due_with: str | None = None  # rather than with anybody

    # walking

    def tick(self, now: Now) -> None:
        """Begin a walk when one is due: at once where we are stale, soon where something was held, else
        now and then. Who is stale to us walks by itself."""
        walk, config, rng = self._walk, self._core.config, self._core.rng
        if walk is not None:
            if now.mono_s - walk.progress_s < config.walk_timeout_s:
                return
            self._walk = None
        links = list(self._core.greeted())
        stale = [link for link in links if self._core.am_stale(link)]
        if stale and now.mono_s >= self._resync_s:
            self._resync_s = now.mono_s + _RETRY_S * (0.5 + rng.random())
            others = [link for link in stale if link.peer != self._resynced_with]
            self.begin(rng.choice(others or stale), now, bounded=False)
            self._resynced_with = self._walk.peer if self._walk else None
        elif links and self._intake.holding(now) and now.mono_s >= self._retry_s:
            self._retry_s = now.mono_s + config.hold_retry_s * (0.75 + rng.random() / 2)
            self.begin(max(links, key=lambda link: len(self._intake.lacking(link))), now, bounded=False)
        elif links and now.mono_s >= self._due_s:
            self._due_s = now.mono_s + config.digest_interval_s * (0.75 + rng.random() / 2)
            chosen = next((link for link in links if link.peer == self._due_with), None)
            self._due_with = None
            self.begin(chosen or rng.choice(links), now, bounded=True)

    def enrolled(self, origin: str, is_another: bool) -> None:
        """Its entry is here: what was held for want of it is asked for at once; and where it has another identity now,
        what was taken for forged until then."""
        if self._intake.holds.of(origin):
            self._retry_s = float("-inf")
        if is_another:
            self._due_s, self._due_with = float("-inf"), origin

    def begin(self, link: Link, now: Now, *, bounded: bool) -> None:
        """Ask for the top."""
        self._next_id += 1
        theirs_stale = self._core.is_stale(link)
        context = theirs_stale or self._core.am_stale(link)
        self._walk = _Walk(link.peer, self._next_id, now.mono_s, context, theirs_stale, bounded and not context)
        self._walk.our_floor = dict(self._core.replica.floor)
        self._core.send(link, DigestRequest(self._next_id))

    def forget(self, peer: str) -> None:
        """The link is down."""
        if self._walk is not None and self._walk.peer == peer:
            self._walk = None

    def sums(self, link: Link, message: DigestSums, now: Now) -> None:
        """The other side's sums of a level."""
        if message.top:
            raise_to(link.vector, message.vector)
            link.floor, link.life_floor = dict(message.floor), max(link.life_floor, message.life_floor)
        walk = self._walk
        if walk is None or walk.peer != link.peer:
            return
        if walk.step is _Step.CLOSE and message.top and message.walk_id == walk.closing_id:
            self._close(link, walk, message.floor)
        elif message.walk_id != walk.walk_id:
            return
        elif walk.step is _Step.TOP and message.top:
            self._compare_groups(link, walk, message)
        elif walk.step is _Step.GROUPS and not message.top:
            self._compare_buckets(link, walk, message)
        walk.progress_s = now.mono_s

    def records(self, link: Link, message: DigestRecords, now: Now) -> None:
        """Records of one of the other side's buckets."""
        walk, bucket = self._of(link, message.walk_id, now), message.bucket % BUCKETS
        if walk is None or bucket not in walk.listings or message.index < walk.parts[bucket]:
            return
        if message.index > walk.parts[bucket]:
            self._walk = None  # a part is missing: what is not listed is not known to be absent
            return
        walk.parts[bucket] += 1
        walk.listings[bucket].update(message.records)
        if sum(map(len, walk.listings.values())) > MAX_LISTED:
            self._core.alert("endless_listing", f"{link.peer} lists more than {MAX_LISTED} records", link.peer)
            self._walk = None
            return
        if message.last:
            del walk.parts[bucket]
            self._compare_records(bucket, walk.listings.pop(bucket), walk, now)
            if not walk.listings:
                self._go_on(link, walk)

    def repair(self, link: Link, message: Repair, now: Now) -> None:
        """Records that differ."""
        walk = self._of(link, message.walk_id, now)
        if walk is None or message.index < walk.repair_index:
            return
        if message.index > walk.repair_index or self._has_collected(walk):
            self._walk = None
            return
        walk.repair_index += 1
        items = self._not_collected(message.items, walk)
        whole = self._intake.items(items, now, peer=link.peer, repairing=True)
        walk.whole = walk.whole and whole
        if message.last:
            walk.births = {}
            self._go_on(link, walk)

    def _of(self, link: Link, walk_id: int, now: Now) -> _Walk | None:
        walk = self._walk
        if walk is None or walk.peer != link.peer or walk.walk_id != walk_id or walk.step is not _Step.RECORDS:
            return None
        walk.progress_s = now.mono_s
        return walk

    def _has_collected(self, walk: _Walk) -> bool:
        """Whether we have collected something since the walk began, which the other side then was not known to
        have missed: what it sends may bring that back."""
        return not walk.theirs_stale and self._core.replica.floor != walk.our_floor

    def _compare_groups(self, link: Link, walk: _Walk, message: DigestSums) -> None:
        walk.position, walk.floor = message.vector, message.floor
        if walk.context:
            # At once: from now on others who missed the same deletions cannot bring back what we bury.
            self._intake.adopt_floor(message.floor, message.life_floor)
            walk.our_floor = dict(self._core.replica.floor)
        walk.our_position = dict(self._core.replica.vector)
        groups = differing(self._core.replica.digest.groups(), message.sums)
        if groups:
            walk.step = _Step.GROUPS
            self._core.send(link, DigestRequest(walk.walk_id, groups=tuple(groups)))
        else:
            self._ask_to_close(link, walk)

    def _compare_buckets(self, link: Link, walk: _Walk, message: DigestSums) -> None:
        told = sorted({group_of(bucket) for bucket in message.sums})
        walk.buckets = differing(self._core.replica.digest.buckets(told), message.sums)
        if walk.bounded and len(walk.buckets) > self._core.config.walk_buckets:
            walk.buckets = sorted(self._core.rng.sample(walk.buckets, self._core.config.walk_buckets))
            walk.complete = False
        # The roster first: what is sealed with an identity that we hear of later would be refused, and claimed.
        entries = {bucket_of(key) for key in self._core.replica.roster}
        walk.buckets.sort(key=lambda bucket: bucket not in entries)
        walk.step = _Step.RECORDS
        self._go_on(link, walk)

    def _compare_records(self, bucket: int, theirs: dict[str, int], walk: _Walk, now: Now) -> None:
        self._core.replica.digest.settle()
        ours = self._core.replica.bucket(bucket)
        for key, value in theirs.items():
            held = ours.get(key)
            if held is None or held.fingerprint != value:
                walk.wanted.insert(0 if key.startswith(REGISTRY_PREFIX) else len(walk.wanted), key)
        if walk.context:
            self._bury([record for key, record in ours.items() if key not in theirs], walk, now)

    def _go_on(self, link: Link, walk: _Walk) -> None:
        """The next request: records first that are known to differ, then buckets."""
        if walk.wanted:
            keys, walk.wanted = walk.wanted[:KEYS_A_REQUEST], walk.wanted[KEYS_A_REQUEST:]
            self._core.send(link, Want(walk.walk_id, walk.repair_index, tuple(keys)))
        elif walk.buckets:
            some, walk.buckets = walk.buckets[:BUCKETS_A_REQUEST], walk.buckets[BUCKETS_A_REQUEST:]
            walk.listings = {bucket: {} for bucket in some}
            walk.parts = dict.fromkeys(some, 0)
            self._core.send(link, DigestRequest(walk.walk_id, buckets=tuple(some)))
        elif walk.complete and walk.whole:
            self._ask_to_close(link, walk)
        else:
            self._walk = None

    def _ask_to_close(self, link: Link, walk: _Walk) -> None:
        """Was anything collected there while we walked? Its tombstone may have slipped by."""
        walk.step = _Step.CLOSE
        self._next_id += 1
        walk.closing_id = self._next_id
        self._core.send(link, DigestRequest(walk.closing_id))

    def _close(self, link: Link, walk: _Walk, floor: Vector) -> None:
        """All that the other side had when the walk began, we have."""
        self._walk = None
        if floor != walk.floor:
            return
        self._intake.claim(walk.position)

    def _bury(self, missing: Iterable[Record], walk: _Walk, now: Now) -> None:
        """Living records that the other side has seen born and has no more were deleted there. So it says: it deletes
        no more than its share that way, and we stay stale until the rest has followed. A key's record is never
        collected, nor with it that the key was revoked."""
        for record in missing:
            birth, key = record.birth, record.key
            if record.deleted or birth is None or key.startswith(KEY_PREFIX) or not covers(walk.position, birth):
                continue
            if self._intake.may_bury(walk.peer, now):
                self._core.replica.remove(record)
                self._core.stored_key(key)
            else:
                walk.whole = False

    def _not_collected(self, items: Iterable[Item], walk: _Walk) -> list[Item]:
        """What a stale registry offers, but for what we have seen born and collected."""
        if not walk.theirs_stale:
            return list(items)
        replica = self._core.replica
        walk.births |= {
            item.key: birth_of(item.section, is_spec=item.kind == SectionKind.SPEC)
            for item in items
            if item.kind in (SectionKind.SPEC, SectionKind.END)
        }
        kept = []
        for item in items:
            birth = walk.births.get(item.key)
            seen = birth is not None and covers(walk.our_position, birth)
            if replica.get(item.key) is not None or not seen:
                kept.append(item)
        return kept

    # answering

    def asked(self, link: Link, request: DigestRequest) -> None:
        """Answer a level. Who asks for more at once than we would is not answered."""
        if len(request.buckets) > BUCKETS_A_REQUEST:
            return
        replica = self._core.replica
        digest, walk_id = replica.digest, request.walk_id
        if request.buckets:
            digest.settle()
            for bucket in dict.fromkeys(request.buckets):
                records = [(key, record.fingerprint) for key, record in replica.bucket(bucket % BUCKETS).items()]
                for index, start in enumerate(range(0, max(1, len(records)), KEYS_A_LISTING)):
                    part, last = dict(records[start : start + KEYS_A_LISTING]), start + KEYS_A_LISTING >= len(records)
                    self._core.send(link, DigestRecords(walk_id, bucket, index, part, last))
        elif request.groups:
            self._core.send(link, DigestSums(walk_id, digest.buckets(request.groups), top=False))
        else:
            meta = replica.meta()
            top = DigestSums(walk_id, digest.groups(), True, meta.vector, meta.floor, meta.life_floor)
            self._core.send(link, top)

    def wanted(self, link: Link, want: Want, now: Now) -> None:
        """Send records whole, in frames of the usual size. Who asks for more than we would is not answered."""
        if len(want.keys) > KEYS_A_REQUEST:
            return
        config = self._core.config
        items: list[Item] = []
        room, index = config.frame_bytes, want.index
        for key in dict.fromkeys(want.keys):
            record = self._core.replica.get(key)
            for item in record.items() if record is not None else ():
                room -= weight(item)
                if items and (room < 0 or len(items) >= config.frame_items):
                    self._send_repair(link, want.walk_id, index, items, now)
                    items, room, index = [], config.frame_bytes - weight(item), index + 1
                items.append(item)
        self._send_repair(link, want.walk_id, index, items, now, last=True)

    def _send_repair(
        self, link: Link, walk_id: int, index: int, items: list[Item], now: Now, *, last: bool = False
    ) -> None:
        self._core.send(link, Repair(self._core.frame(link, now), walk_id, index, tuple(items), last))
