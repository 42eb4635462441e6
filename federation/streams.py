"""Fresh writes, pushed at once, or when asked for: each link follows the logs of the chains that it gets from us.

There is no queue to overflow: what waits for a slow link is the distance between its cursor and our
position, and what is sent is what stands in the log when there is room. A link that falls further
behind than the log is whole pulls instead (drains.py).
"""

from collections.abc import Iterable

from federation.clock import Chain, Now
from federation.core import Core, Link
from federation.intake import Intake
from federation.messages import Ack, Entry, Graft, Prune, Push, Segment
from federation.record import weight

MANY_HOPS = 1_000

_Made = dict[tuple[Chain, int, int, int], tuple[Segment | None, bool]]
"""By chain, cursor and room, what was put together in this turn: most links get the same."""


class Streams:
    """See the module."""

    def __init__(self, core: Core, intake: Intake) -> None:
        self._core = core
        self._intake = intake
        self._fed_by: dict[Chain, tuple[str, int]] = {}  # whose push last moved us on, and its hops

    def advanced(self, chain: Chain) -> None:
        """Our position in the chain has moved on."""
        for link in self._core.links.values():
            if link.greeted and self._core.follows(link, chain[0]):
                link.behind[chain] = None

    def greeted(self, link: Link) -> None:
        """The link is new: it knows our position from our Hello, and pulls what it lacks up to there."""
        link.cursor = dict(link.announced)
        link.behind = dict.fromkeys(self._core.replica.vector)

    def flush(self, now: Now) -> None:
        """Send what there is to every link that has room."""
        made: _Made = {}
        pushes: dict[tuple[int, ...], Push] = {}  # by their segments: links that get the same get one
        for link in self._core.greeted():
            while self._may_push(link):
                segments = self._collect(link, made)
                if not segments:
                    continue
                same = tuple(map(id, segments))
                push = pushes.get(same)
                if push is not None and push.frame > link.last_frame:
                    self._core.sent(link, push.frame, now)
                else:
                    push = pushes[same] = Push(self._core.frame(link, now), tuple(segments))
                self._core.send(link, push)

    @property
    def waiting(self) -> bool:
        """Whether there is something to send, and a link that has room for it."""
        return any(self._may_push(link) for link in self._core.greeted())

    def _may_push(self, link: Link) -> bool:
        """A stale registry has missed a deletion that is in no log any more: a walk comes first."""
        return bool(link.behind) and self._core.credit(link) > 0 and not self._core.is_stale(link)

    def received(self, link: Link, push: Push, now: Now) -> None:
        """Take in a push. What a stale registry says is not joined; a stale one that we are
        ourselves joins, but believes no position."""
        if self._core.is_stale(link):
            return
        believed = not self._core.am_stale(link)
        vector, late = self._core.replica.vector, set()
        for segment in push.segments:
            chain, before = segment.chain, vector.get(segment.chain, 0)
            self._intake.segment(segment, now, peer=link.peer, believed=believed)
            if vector.get(chain, 0) > before:
                self._fed_by[chain] = link.peer, segment.hops
            elif before >= segment.upto and self._comes_shorter(link, segment):
                late.add(chain[0])
            # It has what it gave us.
            if chain in vector and link.cursor.get(chain, -1) < segment.upto:
                link.cursor[chain] = segment.upto
        if late:
            link.pruned_by_us |= late
            self._core.send(link, Prune(tuple(sorted(late))))

    def pruned(self, link: Link, origins: Iterable[str]) -> None:
        """It gets these sooner from others. What we write ourselves it gets from us, whatever it says."""
        link.pruned.update({origin for origin, _ in self._core.replica.vector}.intersection(origins))

    def grafted(self, link: Link, origins: Iterable[str]) -> None:
        """It wants these from us again, from now on; what it lacks up to here it pulls."""
        link.pruned.difference_update(origins)
        wanted = set(origins)
        for chain, position in self._core.replica.vector.items():
            if chain[0] in wanted:
                link.cursor[chain] = position

    def graft(self, link: Link, origins: Iterable[str]) -> None:
        """Ask for these again, where we had asked not to have them."""
        wanted = link.pruned_by_us.intersection(origins)
        if wanted:
            link.pruned_by_us -= wanted
            self._core.send(link, Graft(tuple(sorted(wanted))))

    def link_lost(self) -> None:
        """What came over it has to come by other ways, and nobody knows yet by which."""
        for link in self._core.greeted():
            self.graft(link, list(link.pruned_by_us))

    def acknowledge(self, link: Link, frame: int, size: int, *, at_once: bool = False) -> None:
        """A data frame came: tell the sender, for several at once unless they are large."""
        link.ack_due = max(link.ack_due, frame)
        link.frames_unacked += 1
        if at_once or link.frames_unacked >= self._core.config.ack_every_frames or size > 100:
            self.send_ack(link)

    def send_ack(self, link: Link) -> None:
        """Acknowledge what came since the last time."""
        if link.frames_unacked:
            link.frames_unacked = 0
            self._core.send(link, Ack(link.ack_due))

    def acked(self, link: Link, frame: int) -> None:
        """The other side has these frames."""
        while link.in_flight and link.in_flight[0][0] <= frame:
            link.in_flight.popleft()

    def expire(self, now: Now) -> None:
        """Frames whose acknowledgement never comes were lost with a link or on the way."""
        for link in self._core.links.values():
            while link.in_flight and now.mono_s - link.in_flight[0][1] > self._core.config.frame_lost_s:
                link.in_flight.popleft()

    def _comes_shorter(self, link: Link, segment: Segment) -> bool:
        """Whether the chain comes by another link, over no more hops, and this is not the origin's own.
        Counting hops keeps two registries from each relying on the other. And a link that was asked to stop
        feeds nobody: in a burst the first may be asked to for the second, and the second for what the
        first had under way."""
        origin = segment.chain[0]
        feeder, hops = self._fed_by.get(segment.chain, ("", 0))
        other = self._core.links.get(feeder) if feeder != link.peer else None
        return other is not None and origin not in other.pruned_by_us and origin != link.peer and hops <= segment.hops

    def _collect(self, link: Link, made: _Made) -> list[Segment]:
        config = self._core.config
        room_items, room_bytes = config.frame_items, config.frame_bytes
        segments: list[Segment] = []
        for chain in list(link.behind):
            if room_items <= 0 or room_bytes <= 0:
                break
            del link.behind[chain]
            if not self._core.follows(link, chain[0]):
                continue
            cursor = self._cursor(link, chain)
            segment, done = made.get((chain, cursor, room_items, room_bytes), (None, False))
            if segment is None:
                segment, done = self._segment(chain, cursor, room_items, room_bytes)
                made[chain, cursor, room_items, room_bytes] = segment, done
            if segment is None:
                continue
            link.cursor[chain] = segment.upto
            segments.append(segment)
            room_items -= len(segment.entries)
            room_bytes -= sum(weight(entry.item) for entry in segment.entries)
            if not done:
                link.behind[chain] = None
        return segments

    def _cursor(self, link: Link, chain: Chain) -> int:
        """From where on the link is to get the chain."""
        return max(link.cursor.get(chain, 0), link.vector.get(chain, 0), self._core.replica.log(chain).whole_after)

    def _segment(self, chain: Chain, cursor: int, room_items: int, room_bytes: int) -> tuple[Segment | None, bool]:
        """The stretch of a chain that follows `cursor`, and whether it reaches our position."""
        replica = self._core.replica
        log, position = replica.log(chain), replica.vector.get(chain, 0)
        if cursor >= position:
            return None, True
        entries: list[Entry] = []
        sent: set[tuple[int, int]] = set()
        upto, done = position, True
        for seq, record, kind in log.after(cursor, position):
            if (id(record), kind) in sent:
                continue  # what stands there went with an earlier position
            item = record.resolve(kind)
            if item is None:
                continue
            room_bytes -= weight(item)
            if len(entries) >= room_items or (room_bytes < 0 and entries):
                upto, done = seq - 1, False
                break
            sent.add((id(record), kind))
            entries.append(Entry(seq, item))
        return Segment(chain, cursor, upto, tuple(entries), self._hops(chain)), done

    def _hops(self, chain: Chain) -> int:
        """How many registries pass it on, us included; many when we cannot tell."""
        if chain[0] == self._core.me:
            return 0
        fed = self._fed_by.get(chain)
        return min(fed[1] + 1, MANY_HOPS) if fed is not None else MANY_HOPS
