"""What operators were told holds, and what of it a lost store may have taken with it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Vector = Mapping[str, Mapping[str, int]]

MOST_SKEW_S = 1.5  # a registry refuses to stamp by a clock that is 5 s from its peers'
PROMPT_S = 2.0  # what is answered is done within a client's time
LATE_S = 15.0  # what nobody answered may be done so much later: by a process that stood still meanwhile


@dataclass
class Write:
    """One request of an operator's. `acked_s` None: nobody knows whether it was done. `lost`: the only store
    that had it was lost before others could have it."""

    node_id: str
    site: str
    sent_s: float
    acked_s: float | None = None
    version: str = ""
    lost: bool = False

    @property
    def holds(self) -> bool:
        """Whether it must not be lost."""
        return self.acked_s is not None and not self.lost

    @property
    def when(self) -> str:
        """For people."""
        acked = "not answered" if self.acked_s is None else f"acknowledged {self.acked_s:.2f} as {self.version}"
        return f"sent {self.sent_s:.2f}, {acked}" + ", lost with its store" * self.lost

    def is_covered(self, vectors: Iterable[Vector]) -> bool:
        """Whether one of these registries has had everything up to it."""
        if not self.version:
            return True  # found to be done everywhere
        origin, generation, seq = self.version.rsplit(":", 2)
        return any(vector.get(origin, {}).get(generation, 0) >= int(seq) for vector in vectors)


@dataclass
class Patch(Write):
    """An operator's intent. It replaces the whole of the one before, whose label it takes away."""

    serial: int = 0
    status: str = "online"

    @property
    def label(self) -> str:
        """What tells it from the others of its node."""
        return f"op-{self.serial}"

    def __str__(self) -> str:
        return f"{self.label} ({self.status}) of {self.node_id} at {self.site}, {self.when}"


@dataclass
class Deletion(Write):
    """A node's, after its agent had stopped. `doubtful`: its agent had asked to register, and may be let in later."""

    doubtful: bool = False
    gone_at: dict[str, int] = field(default_factory=dict)  # sites that showed it gone, by their epoch then

    def __str__(self) -> str:
        return f"the deletion of {self.node_id} at {self.site}, {self.when}"


def _since_s(patch: Patch, last: Patch) -> float:
    """From when on that patch may be newer than the last acknowledged one, by the clocks that stamped them."""
    if not patch.holds:
        return last.sent_s - LATE_S
    return last.sent_s - 2 * MOST_SKEW_S - PROMPT_S if patch.site != last.site else last.sent_s


class Ledger:
    """All of it."""

    def __init__(self) -> None:
        self.patches: dict[str, list[Patch]] = defaultdict(list)
        self.deletions: dict[str, Deletion] = {}
        self.reborn: set[str] = set()  # nodes that were deleted while they lived: patches went with the first life
        self._serial = 0

    def next_patch(self, node_id: str, site: str, sent_s: float, status: str) -> Patch:
        """One that is about to be sent."""
        self._serial += 1
        return Patch(node_id, site, sent_s, serial=self._serial, status=status)

    def labels(self, node_id: str) -> list[str]:
        """What the next patch has to take away."""
        return [patch.label for patch in self.patches[node_id][-12:]]

    def writes(self) -> Iterator[Write]:
        """Whatever must not be lost."""
        for patches in self.patches.values():
            yield from (patch for patch in patches if patch.holds)
        yield from (deletion for deletion in self.deletions.values() if deletion.holds)

    def store_lost(self, site: str, others: Iterable[Write], survivors: list[Vector], at_s: float) -> list[Write]:
        """A site's store was gone then. What no other registry has may be gone with it: which of these, and of
        what operators wrote."""
        writes = [*self.writes(), *(write for write in others if write.holds)]
        before = [write for write in writes if write.site == site or (write.acked_s or at_s) < at_s]
        lost = [write for write in before if not write.is_covered(survivors)]
        for write in lost:
            write.lost = True
        return lost

    def standing(self, node_id: str) -> tuple[Patch | None, list[Patch]]:
        """The last patch that must stand, and those that may stand in its place: one of shortly before, by a
        registry whose clock is ahead; and whatever was not answered, or was lost with a store (which may have
        come back), and was sent later or not much earlier."""
        patches = self.patches.get(node_id, [])
        last = next((patch for patch in reversed(patches) if patch.holds), None)
        if last is None:
            return None, patches
        return last, [patch for patch in patches if patch is not last and patch.sent_s >= _since_s(patch, last)]

    def counts(self) -> dict[str, Any]:
        """For the summary."""
        patches = [patch for each in self.patches.values() for patch in each]
        return {
            "patches": len(patches),
            "patches not answered": sum(patch.acked_s is None for patch in patches),
            "patches lost with a store": sum(patch.lost for patch in patches),
            "deletions": sum(deletion.acked_s is not None for deletion in self.deletions.values()),
        }
