"""The writer's end of the region's audit log: gives each entry its place, and hands lines to the commits.

A line that was handed to a commit is never made anew: where nobody knows what became of that commit, the next one
carries the same bytes, and the store keeps each number once.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from registry import audit_chain
from registry.audit import Audit, actor
from registry.audit_chain import Head
from registry.ports import AuditBatch

MAX_LINES = 1_000  # a commit: 400 KB, which the store takes in some milliseconds
KEPT_LINES = 1_000  # in memory, for a store that lost what it had

_CHECKPOINT = b'"action":"checkpoint.'


class _Placed(NamedTuple):
    head: Head
    entry: bytes
    line: bytes


class AuditLog:
    """See the module. `head`: where the chain has come to. Only lines that are `kept` are in the store."""

    def __init__(self, audit: Audit, head: Head) -> None:
        self._audit = audit
        self._head = head
        self._placed: deque[_Placed] = deque()
        self._recent: deque[_Placed] = deque(maxlen=KEPT_LINES)
        self._left: tuple[int, int] | None = None  # of other workers' entries: how many, and the last one's number
        self.kept = head
        self.news = 0  # entries kept that are about more than checkpoints, since it was set to 0

    @property
    def waiting(self) -> bool:
        """Whether there is something for a commit."""
        return bool(self._placed) or self._audit.waiting

    @property
    def crowded(self) -> bool:
        """Whether there is more than a commit takes: to be kept before what it tells of."""
        self._place(self._audit.take())
        return len(self._placed) > MAX_LINES

    def batch(self) -> AuditBatch | None:
        """What the next commit keeps; the same again until `keep` says that it did."""
        self._place(self._audit.take())
        if not self._placed:
            return None
        lines = [placed.line for placed in self._placed][:MAX_LINES]
        first = self._placed[0].head.seq
        taken, by = self._left or (0, 0)
        if by >= first + len(lines):  # their last one comes with a later batch
            taken, by = 0, 0
        return AuditBatch(first - 1, lines, taken, by)

    def keep(self, batch: AuditBatch) -> None:
        """That batch is in the store."""
        last = batch.after + len(batch.lines)
        while self._placed and self._placed[0].head.seq <= last:
            placed = self._placed.popleft()
            self._recent.append(placed)
            if placed.head > self.kept:
                self.kept = placed.head
                self.news += _CHECKPOINT not in placed.entry
        if self._left is not None and self._left[1] <= last:
            self._left = None

    def store_lost(self) -> None:
        """The store is not as we left it: it gets what we remember. What it still has it keeps once."""
        self._placed.extendleft(reversed(self._recent))
        self._recent.clear()

    def note_alert(self, code: str, detail: str, peer: str | None) -> None:
        """A peer was refused, or is kept out: counted by peer and minute."""
        self._audit.note(f"peer.{code}", None, peer or "", outcome="refused", why=detail)

    @property
    def takes(self) -> bool:
        """Whether entries of other workers may be taken: those that were taken last are kept."""
        return self._left is None

    def take_left(self, entries: Sequence[bytes]) -> None:
        """What other workers left in the store for the log. It goes from there with the commit that keeps it."""
        why = {"why": "what another worker left cannot be read"}
        foreign = audit_chain.body(at=self._audit.now, action="audit.lost", by=actor(None), detail=why)
        self._place([entry if audit_chain.is_body(entry) else foreign for entry in entries])
        if entries:
            self._left = len(entries), self._head.seq

    def give_up(self) -> None:
        """We write no more: what is not known to be kept is for the next writer, maybe once more."""
        self._audit.give_back([placed.entry for placed in self._placed if placed.head > self.kept])
        self._placed.clear()

    def _place(self, entries: Sequence[bytes]) -> None:
        for entry in entries:
            self._head, line = audit_chain.link(self._head, entry)
            self._placed.append(_Placed(self._head, entry, line))
