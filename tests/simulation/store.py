"""A durable store as a registry's shell keeps one, and the ways in which stores lose things."""

import pickle
from dataclasses import dataclass, field
from typing import Any

from federation.clock import Vector

State = tuple[Any, ...]
_UNDO_LIMIT = 400
_META = ""


@dataclass(frozen=True)
class Backup:
    """A copy of a store, taken at some moment."""

    records: dict[str, State]
    meta: bytes | None


@dataclass
class DurableStore:
    """Performed writes. `undo` remembers what the latest of them replaced."""

    records: dict[str, State] = field(default_factory=dict)
    meta: bytes | None = None
    undo: list[tuple[str, Any]] = field(default_factory=list)
    backups: list[Backup] = field(default_factory=list)

    def put(self, key: str, state: State | None) -> None:
        """Keep a record's state; None removes it."""
        self.undo.append((key, self.records.get(key)))
        del self.undo[:-_UNDO_LIMIT]
        self._set(key, state)

    def put_meta(self, meta: object) -> None:
        """Keep the opaque value beside the records."""
        self.undo.append((_META, self.meta))
        self.meta = pickle.dumps(meta)

    def load_meta(self) -> Any:
        """What was kept last, a value of its own."""
        return None if self.meta is None else pickle.loads(self.meta)

    @property
    def floor(self) -> Vector:
        """The floor that was kept last."""
        meta = self.load_meta()
        return {} if meta is None else meta.floor

    def lose_tail(self, count: int) -> None:
        """The latest writes never reached the disk."""
        for key, old in reversed(self.undo[len(self.undo) - count :]):
            if key == _META:
                self.meta = old
            else:
                self._set(key, old)
        del self.undo[len(self.undo) - count :]

    def wipe(self) -> None:
        """Everything is gone, the backups are not."""
        self.records, self.meta, self.undo = {}, None, []

    def back_up(self) -> None:
        """Take a copy."""
        self.backups.append(Backup(dict(self.records), self.meta))

    def restore(self, backup: Backup) -> None:
        """Be as that copy was."""
        self.records, self.meta, self.undo = dict(backup.records), backup.meta, []

    def _set(self, key: str, state: State | None) -> None:
        if state is None:
            self.records.pop(key, None)
        else:
            self.records[key] = state
