"""Everything that was ever written, by whom and when, and whether its caller was told so."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from federation.clock import Dot, Vector
from federation.record import Record, Section, SectionKind, section_of

State = tuple[Any, ...]
_SECTIONS_AT = 3  # where Record.state() has its sections


class Violation(AssertionError):
    """A promise was broken. The text begins with the name of the check."""


@dataclass
class Write:
    """One section that one registry wrote."""

    serial: int
    action: str  # register | heartbeat | judge | amend | put | delete | revoke | engine
    key: str
    life: int
    incarnation: int
    kind: int
    section: Section
    registry: str
    at_s: float
    acked_s: float | None = None
    lost_s: float | None = None  # the only stores that had it were lost

    def __str__(self) -> str:
        acked = "never" if self.acked_s is None else f"{self.acked_s:.3f}"
        return (
            f"write {self.serial} ({self.action} {self.key} life {self.life} {SectionKind(self.kind).name} "
            f"{self.section.payload!r} {tuple(self.section.dot)} major {self.section.major}, at {self.at_s:.3f} by "
            f"{self.registry}, acknowledged {acked})"
        )

    @property
    def revocation(self) -> bool:
        """Whether it ended a key that stays in sight."""
        return self.kind == SectionKind.END and self.life % 2 == 1


def has(state: State | None, write: Write) -> bool:
    """Whether a state holds that write or something greater in its place."""
    if state is None:
        return False
    if state[1] != write.life or state[2] != write.incarnation:
        return bool((state[1], state[2]) > (write.life, write.incarnation))
    held = state[_SECTIONS_AT + write.kind]
    return held is not None and bool(held >= write.section)


def knows(state: State | None, floor: Vector, write: Write) -> bool:
    """Whether somebody of that state and floor has the write, or what replaced it, or has collected it: a deletion."""
    is_collected = state is None and write.kind == SectionKind.END
    return has(state, write) or (is_collected and floor.get(write.section.dot.chain, 0) >= write.section.seq)


class Ledger:
    """The history of a run."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.by_dot: dict[Dot, Write] = {}
        self.by_key: dict[str, list[Write]] = {}
        self.last_beat_s: dict[str, float] = {}  # when any registry last took a heartbeat or registration

    def written(self, action: str, record: Record, registry: str, generation: int, t: float) -> list[Write]:
        """Note the sections of that record that this registry has written and that are not known yet."""
        new = []
        for kind in SectionKind:
            section = section_of[kind](record)
            if section is None or section.origin != registry or section.generation != generation:
                continue
            dot = section.dot
            known = self.by_dot.get(dot)
            if known is None:
                known = Write(
                    len(self.writes), action, record.key, record.life, record.incarnation, kind, section, registry, t
                )
                self.writes.append(known)
                self.by_dot[dot] = known
                self.by_key.setdefault(record.key, []).append(known)
                new.append(known)
            elif known.section != section or known.key != record.key:
                raise Violation(f"one write a dot: {known} and {record.key} {section} have the same one")
        return new

    def acknowledge(self, writes: Iterable[Write], t: float) -> None:
        """Their callers were told that they hold."""
        for write in writes:
            write.acked_s = t

    def due(self) -> Iterator[Write]:
        """Writes that must not be lost."""
        return (w for w in self.writes if w.acked_s is not None and w.lost_s is None)

    def ended(self, key: str, life: int) -> bool:
        """Whether a deletion at or after that life was ever written: then nothing at all is a right answer too."""
        return any(w.kind == SectionKind.END and w.life % 2 == 0 and w.life >= life for w in self.by_key.get(key, ()))
