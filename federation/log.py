"""One chain's log: which sections stand at which positions, in order, compacted.

An entry points at a record and a kind of section, and is looked up when it is sent: what travels is
what stands there now. While the section's own dot is the entry's position the entry is live. The
others are kept for a while, so that a receiver that only lacks the newest writes can be given every
position or its replacement; `whole_after` is where that begins.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping

from federation.clock import Chain
from federation.record import Record, section_of

KEPT_POSITIONS = 16_384  # fifteen seconds of 1,000 writes/s: a link that lags more drains instead
_FEW = 64  # entries out of order that are put in one by one; more are merged


class Log:
    """See the module. 17 bytes an entry. What comes out of order (a walk brings records by their names)
    waits beside until somebody reads on, so that its place is not made one entry at a time."""

    __slots__ = ("_kinds", "_late", "_records", "_seqs", "chain", "replaced", "whole_after")

    def __init__(self, chain: Chain, whole_after: int = 0) -> None:
        self.chain = chain
        self.whole_after = whole_after
        self.replaced = 0  # entries that are not live, about
        self._seqs = array("Q")
        self._records: list[Record] = []
        self._kinds = bytearray()
        self._late: dict[int, tuple[Record, int]] = {}

    def __len__(self) -> int:
        self._settle()
        return len(self._seqs)

    @property
    def last(self) -> int:
        """The newest position."""
        return self._seqs[-1] if self._seqs else 0

    def add(self, seq: int, record: Record, kind: int) -> None:
        """Note that this section stands at this position (again, perhaps)."""
        seqs = self._seqs
        if not seqs or seq > seqs[-1]:
            seqs.append(seq)
            self._records.append(record)
            self._kinds.append(kind)
            if self.replaced > KEPT_POSITIONS and self.replaced > len(seqs) // 2:
                self._compact()
            return
        self._late[seq] = record, kind
        if len(self._late) > max(_FEW, len(seqs) // 2):
            self._settle()

    def after(self, seq: int, upto: int) -> Iterator[tuple[int, Record, int]]:
        """Entries at positions above `seq` and not above `upto`: (position, record, kind)."""
        self._settle()
        start, end = bisect_right(self._seqs, seq), bisect_right(self._seqs, upto)
        for at in range(start, end):
            yield self._seqs[at], self._records[at], self._kinds[at]

    def at(self, seq: int) -> tuple[Record, int] | None:
        """The entry at this position."""
        late = self._late.get(seq)
        if late is not None:
            return late
        at = bisect_left(self._seqs, seq)
        if at < len(self._seqs) and self._seqs[at] == seq:
            return self._records[at], self._kinds[at]
        return None

    def is_live(self, seq: int, record: Record, kind: int) -> bool:
        """Whether the write named by this position still stands."""
        section = section_of[kind](record)
        return section is not None and section.seq == seq and (section.origin, section.generation) == self.chain

    def _settle(self) -> None:
        """Put what came out of order into its place."""
        late, self._late = self._late, {}
        if len(late) <= _FEW:
            for seq, (record, kind) in late.items():
                self._place(seq, record, kind)
            return
        entries = {
            seq: (record, kind) for seq, record, kind in zip(self._seqs, self._records, self._kinds, strict=True)
        }
        entries.update(late)
        self.fill(entries)

    def _place(self, seq: int, record: Record, kind: int) -> None:
        at = bisect_left(self._seqs, seq)
        if self._seqs[at] == seq:
            self._records[at], self._kinds[at] = record, kind
            return
        self._seqs.insert(at, seq)
        self._records.insert(at, record)
        self._kinds.insert(at, kind)

    def fill(self, entries: Mapping[int, tuple[Record, int]]) -> None:
        """Have these entries, by position, and no others."""
        seqs = sorted(entries)
        self._seqs = array("Q", seqs)
        self._records = [entries[seq][0] for seq in seqs]
        self._kinds = bytearray([entries[seq][1] for seq in seqs])

    def _compact(self) -> None:
        """Drop what was replaced, but for the newest positions."""
        limit = self._seqs[-1] - KEPT_POSITIONS
        kept = {
            seq: (record, kind)
            for seq, record, kind in self.after(0, self._seqs[-1])
            if seq > limit or self.is_live(seq, record, kind)
        }
        self.whole_after = max(self.whole_after, limit)
        self.replaced = sum(1 for seq, entry in kept.items() if not self.is_live(seq, *entry))
        self.fill(kept)
