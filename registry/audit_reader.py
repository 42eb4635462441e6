"""Reading the audit log: pages of it, and what somebody asks of it. Used by the route and by the offline commands."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from registry.audit_files import read_lines

LOOKED_AT = 50_000  # lines a page looks through: a third of a second; the next one goes on


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries. `since`: ISO 8601, or the beginning of it. `actor`: a kind, a key's id or a node's."""

    since: str = ""
    action: str = ""
    actor: str = ""

    def has(self, entry: Mapping[str, Any]) -> bool:
        """Whether that is one of them."""
        if self.since and str(entry.get("at", "")) < self.since:
            return False
        if self.action and not str(entry.get("action", "")).startswith(self.action):
            return False
        by = entry.get("by")
        return not self.actor or (isinstance(by, dict) and self.actor in map(str, by.values()))


class Page(NamedTuple):
    """Lines as they stand. `after`: where the next page goes on; None: there is no more."""

    lines: list[bytes]
    after: int | None


def page(folder: Path, after: int, limit: int, wanted: Wanted) -> Page:
    """The next `limit` of the lines that are wanted. Raises OSError."""
    found: list[bytes] = []
    at = after
    for looked_at, (seq, raw, entry) in enumerate(decoded(read_lines(folder, after))):
        if looked_at >= LOOKED_AT or len(found) >= limit:
            return Page(found, at)
        at = seq if seq is not None else at
        if entry is not None and wanted.has(entry):
            found.append(raw)
    return Page(found, None)


def decoded(lines: Iterable[bytes]) -> Iterator[tuple[int | None, bytes, Mapping[str, Any] | None]]:
    """Number, line, and what it says; None where it is no JSON object. What is torn is left out."""
    for raw in lines:
        if not raw.endswith(b"\n"):
            return
        try:
            entry = orjson.loads(raw)
        except ValueError:
            entry = None
        known = isinstance(entry, dict) and isinstance(entry.get("seq"), int)
        yield (entry["seq"] if known else None), raw.rstrip(b"\n"), entry if known else None
