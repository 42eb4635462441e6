"""Registrations that failed without an answer from the store: it may have taken them all the same.

The caller was told to try again, and the key minted for it was shown to nobody: were the record left standing,
nobody could ever use that node id. So it does not count, and is taken back once the store answers again.
"""

from federation.record import Record

MAX_DOUBTS = 1_000  # an outage under load; the callers beyond it may need an operator


class Doubts:
    """Remembers such registrations by node id, with what they said."""

    def __init__(self) -> None:
        self._open: dict[str, bytes] = {}

    def note(self, node_id: str, spec: bytes) -> None:
        """Nobody knows whether this registration stands."""
        self._open.pop(node_id, None)
        self._open[node_id] = spec
        if len(self._open) > MAX_DOUBTS:
            del self._open[next(iter(self._open))]

    def forget(self, node_id: str) -> None:
        """The node has registered with a key that was shown."""
        self._open.pop(node_id, None)

    def holds(self, node_id: str, record: Record | None) -> bool:
        """Whether what stands there is such a registration."""
        said = self._open.get(node_id)
        return said is not None and record is not None and record.spec is not None and record.spec.payload == said

    def open(self) -> list[str]:
        """The node ids in doubt."""
        return list(self._open)
