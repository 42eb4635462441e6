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

from federation.clock import Now, Vector, covers
from federation.core import Core, Link
from federation.digest import BUCKETS, differing, group_of
from federation.intake import Intake
from federation.messages import DigestRecords, DigestRequest, DigestSums, Repair, Want
from federation.record import Item, Record, SectionKind, birth_of, weight

BUCKETS_A_REQUEST = 32
KEYS_A_REQUEST = 500
KEYS_A_LISTING = 2_000  # whoever chooses ids may fill one bucket: its listing comes in parts
_RETRY_S = 3.0


@dataclass(slots=True)
class _Walk:
    """A walk of ours. `context`: not a plain join. `complete`: it looks at every difference."""

    peer: str
    walk_id: int
    progress_s: float
    releases: int
    context: bool
    theirs_stale: bool
    complete: bool
    position: Vector = field(default_factory=dict)
    floor: Vector = field(default_factory=dict)
    life_floor: int = 0
    our_position: Vector = field(default_factory=dict)
    topped: bool = False
    buckets: list[int] = field(default_factory=list)
    answers_due: int = 0
    listing: dict[str, int] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)
    repairs_due: int = 0


class Walks:
    """See the module. `resyncs` counts the walks that carried context to their end."""

    def __init__(self, core: Core, intake: Intake, now: Now) -> None:
        self._core = core
        self._intake = intake
        self._walk: _Walk | None = None
        self._next_id = core.rng.getrandbits(31)
        self._due_s = now.mono_s + core.config.digest_interval_s * core.rng.random()
        self._resync_s = now.mono_s
        self.resyncs = 0

    # walking

    def tick(self, now: Now) -> None:
        """Begin a walk when one is due: at once where somebody is stale, else now and then."""
        walk = self._walk
        if walk is not None:
            if now.mono_s - walk.progress_s < self._core.config.walk_timeout_s:
                return
            self._walk = None
        links = list(self._core.greeted())
        stale = [link for link in links if self._core.am_stale(link) or self._core.is_stale(link)]
        if stale and now.mono_s >= self._resync_s:
            self._resync_s = now.mono_s + _RETRY_S * (0.5 + self._core.rng.random())
            self.begin(self._core.rng.choice(stale), now, complete=True)
        elif links and now.mono_s >= self._due_s:
            self._due_s = now.mono_s + self._core.config.digest_interval_s * (0.75 + self._core.rng.random() / 2)
            self.begin(self._core.rng.choice(links), now, complete=False)

    def begin(self, link: Link, now: Now, *, complete: bool) -> None:
        """Ask for the top."""
        self._next_id += 1
        theirs_stale = self._core.is_stale(link)
        context = theirs_stale or self._core.am_stale(link)
        releases = self._intake.holds.releases
        self._walk = _Walk(link.peer, self._next_id, now.mono_s, releases, context, theirs_stale, complete)
        self._core.send(link, DigestRequest(self._next_id))

    def forget(self, peer: str) -> None:
        """The link is down."""
        if self._walk is not None and self._walk.peer == peer:
            self._walk = None

    def sums(self, link: Link, message: DigestSums, now: Now) -> None:
        """The other side's sums of a level."""
        walk = self._of(link, message.walk_id, now)
        digest = self._core.replica.digest
        if message.top:
            link.vector.update({c: max(s, link.vector.get(c, 0)) for c, s in message.vector.items()})
            link.floor, link.life_floor = message.floor, max(link.life_floor, message.life_floor)
        if walk is None or message.top == walk.topped:
            return
        if message.top:
            walk.topped = True
            walk.position, walk.floor, walk.life_floor = message.vector, message.floor, message.life_floor
            walk.our_position = dict(self._core.replica.vector)
            groups = differing(digest.groups(), message.sums)
            if groups:
                self._core.send(link, DigestRequest(walk.walk_id, groups=tuple(groups)))
            else:
                self._finish(link, walk)
            return
        told = {group_of(bucket) for bucket in message.sums}
        walk.buckets = differing(digest.buckets(sorted(told)), message.sums)
        if not walk.complete and len(walk.buckets) > self._core.config.walk_buckets:
            walk.buckets = sorted(self._core.rng.sample(walk.buckets, self._core.config.walk_buckets))
        self._go_on(link, walk)

    def records(self, link: Link, message: DigestRecords, now: Now) -> None:
        """The records of one of the other side's buckets."""
        walk = self._of(link, message.walk_id, now)
        if walk is None or walk.answers_due == 0:
            return
        walk.listing.update(message.records)
        if not message.last:
            return
        self._core.replica.digest.settle()
        ours = self._core.replica.bucket(message.bucket % BUCKETS)
        theirs, walk.listing = walk.listing, {}
        for key, value in theirs.items():
            held = ours.get(key)
            if held is None or held.fingerprint != value:
                walk.wanted.append(key)
        if walk.context:
            self._bury([record for key, record in ours.items() if key not in theirs], walk)
        walk.answers_due -= 1
        if walk.answers_due == 0:
            self._go_on(link, walk)

    def repair(self, link: Link, message: Repair, now: Now) -> None:
        """Records that differ."""
        walk = self._of(link, message.walk_id, now)
        if walk is None or walk.repairs_due == 0:
            return
        self._intake.items(self._not_collected(message.items, walk), now, repairing=True)
        if message.last:
            walk.repairs_due -= 1
            if walk.repairs_due == 0:
                self._go_on(link, walk)

    def _of(self, link: Link, walk_id: int, now: Now) -> _Walk | None:
        walk = self._walk
        if walk is None or walk.peer != link.peer or walk.walk_id != walk_id:
            return None
        walk.progress_s = now.mono_s
        return walk

    def _go_on(self, link: Link, walk: _Walk) -> None:
        """The next request: records first that are known to differ, then buckets."""
        if walk.wanted:
            keys, walk.wanted = walk.wanted[:KEYS_A_REQUEST], walk.wanted[KEYS_A_REQUEST:]
            walk.repairs_due = 1
            self._core.send(link, Want(walk.walk_id, tuple(keys)))
        elif walk.buckets:
            some, walk.buckets = walk.buckets[:BUCKETS_A_REQUEST], walk.buckets[BUCKETS_A_REQUEST:]
            walk.answers_due = len(some)
            self._core.send(link, DigestRequest(walk.walk_id, buckets=tuple(some)))
        else:
            self._finish(link, walk)

    def _finish(self, link: Link, walk: _Walk) -> None:
        """All that the other side had when the walk began, we have, unless something was held."""
        self._walk = None
        if not walk.complete or walk.releases != self._intake.holds.releases:
            return
        self._intake.claim(walk.position)
        if walk.context and not self._core.am_stale(link):
            self._intake.adopt_floor(walk.floor, walk.life_floor)
            self.resyncs += 1

    def _bury(self, missing: Iterable[Record], walk: _Walk) -> None:
        """Living records that the other side has seen born and has no more were deleted there."""
        for record in missing:
            birth = record.birth
            if not record.deleted and birth is not None and covers(walk.position, birth):
                key = record.key
                self._core.replica.remove(record)
                self._core.stored_key(key)

    def _not_collected(self, items: Iterable[Item], walk: _Walk) -> list[Item]:
        """What a stale registry offers, but for what we have seen born and collected."""
        if not walk.theirs_stale:
            return list(items)
        replica = self._core.replica
        births = {
            item.key: birth_of(item.section, is_spec=item.kind == SectionKind.SPEC)
            for item in items
            if item.kind in (SectionKind.SPEC, SectionKind.END)
        }
        kept = []
        for item in items:
            birth = births.get(item.key)
            seen = birth is not None and covers(walk.our_position, birth)
            if replica.get(item.key) is not None or not seen:
                kept.append(item)
        return kept

    # answering

    def asked(self, link: Link, request: DigestRequest) -> None:
        """Answer a level."""
        replica = self._core.replica
        digest, walk_id = replica.digest, request.walk_id
        if request.buckets:
            digest.settle()
            for bucket in request.buckets:
                records = [(key, record.fingerprint) for key, record in replica.bucket(bucket % BUCKETS).items()]
                for start in range(0, max(1, len(records)), KEYS_A_LISTING):
                    part, last = dict(records[start : start + KEYS_A_LISTING]), start + KEYS_A_LISTING >= len(records)
                    self._core.send(link, DigestRecords(walk_id, bucket, part, last))
        elif request.groups:
            self._core.send(link, DigestSums(walk_id, digest.buckets(request.groups), top=False))
        else:
            meta = replica.meta()
            top = DigestSums(walk_id, digest.groups(), True, meta.vector, meta.floor, meta.life_floor)
            self._core.send(link, top)

    def wanted(self, link: Link, want: Want, now: Now) -> None:
        """Send records whole, in frames of the usual size."""
        config = self._core.config
        items: list[Item] = []
        room = config.frame_bytes
        for key in want.keys:
            record = self._core.replica.get(key)
            for item in record.items() if record is not None else ():
                room -= weight(item)
                if items and (room < 0 or len(items) >= config.frame_items):
                    self._core.send(link, Repair(self._core.frame(link, now), want.walk_id, tuple(items), last=False))
                    items, room = [], config.frame_bytes - weight(item)
                items.append(item)
        self._core.send(link, Repair(self._core.frame(link, now), want.walk_id, tuple(items), last=True))
