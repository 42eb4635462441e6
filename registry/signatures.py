"""Which registrations are known to be what their nodes signed. Pure; a worker's loop does the checking.

To check one takes a third of a millisecond, so it is never done while records come in, but afterwards and bit by bit:
the newest first, and those that were shown.
"""

from collections.abc import Callable
from hashlib import blake2b

from federation.signed import claimed
from registry.node import Record
from registry.signing import INVALID, UNVERIFIED, VERIFIED, first_look, is_bound

_MAX_VOUCHED = 4_096  # registrations between being checked and being shown; there are never so many


class Signatures:
    """See the module. `on_fault` hears of what somebody should know: a code, the node's id, and words."""

    def __init__(self) -> None:
        self.on_fault: Callable[[str, str, str], None] = lambda code, node_id, detail: None
        self._waiting: dict[str, None] = {}  # the next one last
        self._vouched: dict[bytes, None] = {}

    def __len__(self) -> int:
        """How many are still to be checked."""
        return len(self._waiting)

    def vouch(self, record: Record) -> None:
        """This registration was checked when it came in."""
        if record.proof is not None:
            self._vouched[_digest(record.encode_spec())] = None
            if len(self._vouched) > _MAX_VOUCHED:
                del self._vouched[next(iter(self._vouched))]

    def taken(self, node_id: str, payload: bytes, incarnation: int) -> str | None:
        """How a registration that came in stands: VERIFIED, UNVERIFIED, INVALID; None: nobody signed it."""
        state = first_look(payload, incarnation)
        self._waiting.pop(node_id, None)
        if state == UNVERIFIED:
            if self._vouched and _digest(payload) in self._vouched:
                return VERIFIED
            self._waiting[node_id] = None
        elif state == INVALID:
            self.invalid(node_id, "it is not signed with the node's key")
        return state

    def replaced(self, node_id: str, before: bytes, incarnation_before: int, after: bytes) -> bool:
        """A registration that was known to be the node's own has been replaced. Whether by an older one of its."""
        was, now = claimed(before), claimed(after)
        if was is None or not is_bound(incarnation_before):
            return False
        if now is None or now[0] != was[0]:
            what = "is not signed" if now is None else "is signed with another key"
            self.on_fault("signing_key_changed", node_id, f"what it registered was replaced by what {what}")
            return False
        if now[1] < was[1]:
            self.on_fault("registration_replayed", node_id, "an older registration of it has come in again")
        return now[1] < was[1]

    def invalid(self, node_id: str, why: str) -> None:
        """What is held of a node is not what it signed."""
        self.on_fault("signature_invalid", node_id, f"it is left out of discovery: {why}")

    def hurry(self, node_id: str) -> None:
        """Somebody was shown it: it is next."""
        if node_id in self._waiting:
            del self._waiting[node_id]
            self._waiting[node_id] = None

    def next(self) -> str | None:
        """The node to be checked now; it waits no more."""
        return self._waiting.popitem()[0] if self._waiting else None

    def gone(self, node_id: str) -> None:
        """The node is no more, or was checked otherwise."""
        self._waiting.pop(node_id, None)


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=16).digest()
