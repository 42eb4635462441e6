"""What happened when, for whoever has to understand a failure."""

import time
from collections.abc import Callable


class Violation(AssertionError):
    """A promise was broken. The text begins with the promise's name. `node_id`: whose records tell more."""

    def __init__(self, text: str, node_id: str = "") -> None:
        super().__init__(text)
        self.node_id = node_id


class Timeline:
    """Notes with seconds since the beginning."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._began_s = time.monotonic()
        self._tell = tell
        self.notes: list[str] = []

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began_s

    def note(self, text: str) -> None:
        """Remember it."""
        line = f"{self.now_s:8.2f}  {text}"
        self.notes.append(line)
        if self._tell is not None:
            self._tell(line)
