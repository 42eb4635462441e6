"""Fresh writes, pushed at once: each link follows the logs of the chains that it gets from us.

There is no queue to overflow: what waits for a slow link is the distance between its cursor and our
position, and what is sent is what stands in the log when there is room. A link that falls further
behind than the log is whole pulls instead (drains.py).
"""

from federation.clock import Chain, Now
from federation.core import Core, Link
from federation.intake import Intake
from federation.messages import Ack, Entry, Push, Segment


class Streams:
    """See the module."""

    def __init__(self, core: Core, intake: Intake) -> None:
        self._core = core
        self._intake = intake

    def advanced(self, chain: Chain) -> None:
        """Our position in the chain has moved on."""
        for link in self._core.links.values():
            if link.greeted and (chain[0] == self._core.me or self._core.needs_relay(link, chain[0])):
                link.behind[chain] = None

    def greeted(self, link: Link) -> None:
        """The link is new: it knows our position from our Hello, and pulls what it lacks up to there."""
        link.cursor = dict(link.announced)
        link.behind = dict.fromkeys(self._core.replica.vector)

    def flush(self, now: Now) -> None:
        """Send what there is to every link that has room."""
        for link in self._core.greeted():
            while link.behind and self._core.credit(link) > 0:
                segments = self._collect(link)
                if segments:
                    self._core.send(link, Push(self._core.frame(link, now), tuple(segments)))

    def received(self, link: Link, push: Push, now: Now) -> None:
        """Take in a push. What a stale registry says is not joined; a stale one that we are
        ourselves joins, but believes no position."""
        if self._core.is_stale(link):
            return
        believed = not self._core.am_stale(link)
        for segment in push.segments:
            self._intake.segment(segment, now, believed=believed)
            # It has what it gave us.
            if link.cursor.get(segment.chain, -1) < segment.upto:
                link.cursor[segment.chain] = segment.upto

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

    def _collect(self, link: Link) -> list[Segment]:
        config = self._core.config
        room_items, room_bytes = config.frame_items, config.frame_bytes
        segments: list[Segment] = []
        for chain in list(link.behind):
            if room_items <= 0 or room_bytes <= 0:
                break
            del link.behind[chain]
            if chain[0] != self._core.me and not self._core.needs_relay(link, chain[0]):
                continue
            segment, done = self._segment(link, chain, room_items, room_bytes)
            if segment is None:
                continue
            link.cursor[chain] = segment.upto
            segments.append(segment)
            room_items -= len(segment.entries)
            room_bytes -= sum(len(entry.item.section.payload) for entry in segment.entries)
            if not done:
                link.behind[chain] = None
        return segments

    def _segment(self, link: Link, chain: Chain, room_items: int, room_bytes: int) -> tuple[Segment | None, bool]:
        """The next stretch of a chain, and whether it reaches our position."""
        replica = self._core.replica
        log, position = replica.log(chain), replica.vector.get(chain, 0)
        cursor = max(link.cursor.get(chain, 0), link.vector.get(chain, 0), log.whole_after)
        if cursor >= position:
            return None, True
        entries: list[Entry] = []
        sent: set[tuple[int, int]] = set()
        upto, done = position, True
        for seq, record, kind in log.after(cursor, position):
            if len(entries) >= room_items or room_bytes <= 0:
                upto, done = seq - 1, False
                break
            if (id(record), kind) in sent:
                continue  # what stands there went with an earlier position
            item = record.resolve(kind)
            if item is not None:
                sent.add((id(record), kind))
                entries.append(Entry(seq, item))
                room_bytes -= len(item.section.payload)
        return Segment(chain, cursor, upto, tuple(entries)), done
