"""What changed among the nodes, for whoever watches: numbered, kept for a while, told to each audience once.

A *change* is a write: a node came, is described or fares otherwise, or is gone. Heartbeats that bring only numbers
are none. Watchers with the same filters are one *audience*, so that a change is looked at once for all of them, and
encoded once for everybody.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import orjson

from registry.directory import Directory, Entry
from registry.discovery import ByNumber, Filter, Matching, admits, in_order_of_ids, matching
from registry.scopes import EVERYTHING, Scope

KEPT = 20_000  # changes; at 500 a second what a watcher may miss in forty seconds
SNAPSHOT_NODES, SNAPSHOT_BYTES = 100, 2**18  # at most in one event, but for one node that is larger


Place = tuple[str, str]  # a node's region and role


@dataclass(frozen=True, slots=True)
class Batch:
    """Nodes that changed since the last batch, each with the number of its newest change, and what it was before."""

    numbers: Mapping[str, int]
    was: Mapping[str, frozenset[Place]]

    def first(self, count: int) -> "Batch":
        """So many of them, the oldest ones."""
        return Batch(dict(islice(self.numbers.items(), count)), self.was)


class Changes:
    """The newest changes. A *cursor* is a place among them; `epoch` tells those of other processes apart."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._kept: deque[tuple[int, str, Place | None]] = deque(maxlen=KEPT)
        self._number = 0
        self._told = 0

    def note(self, node_id: str, was: Place | None) -> None:
        """A node changed, or is gone. `was`: its region and role before; None: there was none."""
        self._number += 1
        self._kept.append((self._number, node_id, was))

    @property
    def number(self) -> int:
        """How many there were."""
        return self._number

    def cursor(self, number: int) -> str:
        """A place, as watchers keep it."""
        return f"{self._epoch}-{number}"

    def place(self, cursor: str) -> int | None:
        """The number of a cursor; None: of another process, or what followed it is no longer kept."""
        epoch, _, text = cursor.rpartition("-")
        if epoch != self._epoch or not text.isascii() or not text.isdecimal() or len(text) > 18:
            return None
        number = int(text)
        oldest = self._kept[0][0] if self._kept else self._number + 1
        return number if oldest - 1 <= number <= self._number else None

    def after(self, number: int) -> Batch:
        """What changed after a place that is still kept."""
        found: dict[str, int] = {}
        before: dict[str, frozenset[Place]] = {}
        for at, node_id, was in islice(reversed(self._kept), self._number - number):
            found.setdefault(node_id, at)
            known = before.get(node_id, _NOWHERE)
            if was is not None and was not in known:
                before[node_id] = known | {was}
        # By the newest change of each: who has seen the first of them lacks just the rest.
        return Batch(dict(reversed(found.items())), before)

    def batch(self) -> Batch:
        """What changed since this was asked the last time."""
        found = self.after(self._told)
        self._told = self._number
        return found


class Audience:
    """Those who watch with the same filters; which nodes one of them may have been shown."""

    def __init__(self, directory: Directory, filters: Sequence[Filter], within: Scope = EVERYTHING) -> None:
        """`within`: the regions and roles that were asked for. A key may see no others, and of a node that was never
        among them nobody is told that it is gone."""
        self._directory = directory
        self._filters = filters
        self._within = within
        self._shares = not any(isinstance(each, ByNumber) for each in filters)  # numbers change without a change
        self._members: set[str] | None = None
        self._snapshot: tuple[int, list[Entry]] | None = None

    def snapshot(self, number: int) -> Sequence[Entry]:
        """Everything that matches now, by id. `number`: of the newest change; many who come at once share one."""
        if self._snapshot is None or self._snapshot[0] != number or not self._shares:
            found = matching(self._directory.columns, self._filters)
            self._snapshot = number, in_order_of_ids(self._directory, found, found.total)
            self._shown().update([entry.node_id for entry in self._snapshot[1]])
        return self._snapshot[1]

    def told(self, batch: Batch, changes: Changes, encoded: dict[str, bytes]) -> bytes:
        """A batch as this audience's events; what nobody else has needed yet is encoded here."""
        events = []
        self._snapshot = None
        members = self._shown()
        for node_id, number in batch.numbers.items():
            entry = self._directory.get(node_id)
            if entry is not None and admits(self._directory.columns, self._filters, entry.row):
                members.add(node_id)
                event = encoded.get(node_id)
                if event is None:
                    event = encoded[node_id] = upsert(entry, changes.cursor(number))
                events.append(event)
            elif node_id in members:
                members.discard(node_id)
                events.append(removal(node_id, changes.cursor(number)))
        return b"".join(events)

    def missed(self, batch: Batch, changes: Changes) -> Iterator[bytes]:
        """What a watcher that comes back has missed: of each node how it stands, or that it is not among them. In
        pieces; nothing of it is looked at before its piece is asked for."""
        self._shown()  # now: what changes meanwhile is told of those that it has been shown
        ids = list(batch.numbers)
        for start in range(0, len(ids), SNAPSHOT_NODES):
            part = Batch(
                {node_id: batch.numbers[node_id] for node_id in ids[start : start + SNAPSHOT_NODES]}, batch.was
            )
            standing, gone = self.split(part)
            self._shown().update([entry.node_id for entry in standing])
            events = {each.node_id: upsert(each, changes.cursor(part.numbers[each.node_id])) for each in standing}
            events |= {node_id: removal(node_id, changes.cursor(part.numbers[node_id])) for node_id in gone}
            yield b"".join([events[node_id] for node_id in part.numbers if node_id in events])

    def split(self, batch: Batch) -> tuple[list[Entry], list[str]]:
        """The same for who asks now and then: what stands, and the ids of what does not, and may have stood."""
        standing: list[Entry] = []
        gone: list[str] = []
        for node_id in batch.numbers:
            entry = self._directory.get(node_id)
            if entry is not None and admits(self._directory.columns, self._filters, entry.row):
                standing.append(entry)
            elif not self._within.is_narrow or any(self._within.admits(*was) for was in batch.was.get(node_id, ())):
                gone.append(node_id)
        return standing, gone

    def total(self) -> int:
        """How many match now."""
        return matching(self._directory.columns, self._filters).total

    def _shown(self) -> set[str]:
        if self._members is None:
            self._members = {entry.node_id for entry in self._entries(matching(self._directory.columns, self._filters))}
        return self._members

    def _entries(self, found: Matching) -> Iterable[Entry]:
        return map(self._directory.at, found.rows().tolist())


_NOWHERE: frozenset[Place] = frozenset()


def upsert(entry: Entry, cursor: str) -> bytes:
    """A node as it stands now."""
    return b"event: upsert\nid: %b\ndata: %b}\n\n" % (cursor.encode(), entry.fragment())


def removal(node_id: str, cursor: str) -> bytes:
    """A node that is gone, or no longer holds the filters."""
    return b"event: remove\nid: %b\ndata: %b\n\n" % (cursor.encode(), orjson.dumps({"node_id": node_id}))


def snapshots(entries: Sequence[Entry], cursor: str) -> Iterator[bytes]:
    """Nodes that match, in as many events as it takes; the last of them has the cursor."""
    pieces: list[bytes] = []
    size = 0
    for entry in entries:
        piece = entry.fragment() + b"}"
        if pieces and (len(pieces) == SNAPSHOT_NODES or size + len(piece) > SNAPSHOT_BYTES):
            yield b'event: snapshot\ndata: {"nodes":[%b],"more":true}\n\n' % b",".join(pieces)
            pieces, size = [], 0
        pieces.append(piece)
        size += len(piece)
    yield b'event: snapshot\nid: %b\ndata: {"nodes":[%b],"more":false}\n\n' % (cursor.encode(), b",".join(pieces))


def resync(cursor: str) -> bytes:
    """What followed the watcher's cursor is no longer kept: a snapshot comes next."""
    return (
        b'event: resync\ndata: {"reason":"too far behind, or of another process","cursor":"%b"}\n\n' % cursor.encode()
    )
