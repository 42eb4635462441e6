"""What one worker holds in memory of the records that are no nodes, one table a kind: API keys, the allowlist, ..."""

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from federation.record import Record

Value = TypeVar("Value")


class _Row(NamedTuple, Generic[Value]):
    value: Value
    version: int


class Table(Generic[Value]):
    """The records whose keys begin with `prefix`, by name: the key without it.

    `read` tells what a record says, also one of something deleted; None: nothing that is to be held. It must not
    raise, whatever a peer wrote.
    """

    def __init__(self, prefix: str, read: Callable[[Record], Value | None]) -> None:
        self.prefix = prefix
        self.read = read
        self.on_change: Callable[[str, Value | None], None] = lambda name, value: None
        self._rows: dict[str, _Row[Value]] = {}

    def get(self, name: str) -> Value | None:
        """What is held under that name."""
        row = self._rows.get(name)
        return row.value if row is not None else None

    def items(self) -> Iterator[tuple[str, Value]]:
        """Everything that is held. Not to be changed meanwhile."""
        return ((name, row.value) for name, row in self._rows.items())

    def __len__(self) -> int:
        return len(self._rows)

    def versions(self) -> dict[str, int]:
        """By name, of which commit each value is."""
        return {name: row.version for name, row in self._rows.items()}

    def put(self, name: str, value: Value | None, version: int) -> None:
        """Hold that from now on, None: nothing, unless something newer is held. `version`: the commit's number."""
        held = self._rows.get(name)
        if held is not None and held.version > version:
            return
        if value is None:
            self._rows.pop(name, None)
        else:
            self._rows[name] = _Row(value, version)
        if value != (held.value if held is not None else None):
            self.on_change(name, value)


class Tables:
    """A worker's tables."""

    def __init__(self) -> None:
        self._by_prefix: dict[str, Table[object]] = {}

    def add(self, table: "Table[Value]") -> "Table[Value]":
        """Keep this table in step with the store from now on; before the store is read."""
        self._by_prefix[table.prefix] = table  # type: ignore[assignment]  # each reads what it holds
        return table

    def of(self, key: str) -> "tuple[Table[object], str] | None":
        """The table that a record belongs to, and its name there."""
        prefix, colon, name = key.partition(":")
        table = self._by_prefix.get(prefix + colon)
        return (table, name) if table is not None else None

    def versions(self) -> dict[str, int]:
        """By key, of which commit each record is that is held."""
        return {
            prefix + name: version
            for prefix, table in self._by_prefix.items()
            for name, version in table.versions().items()
        }

    def read(self, record: Record) -> "Reading | None":
        """What a record says, to be shown once it is kept; None: no table has its kind."""
        found = self.of(record.key)
        return Reading(*found, found[0].read(record)) if found is not None else None

    def drop(self, key: str, version: int) -> None:
        """That record is there no more."""
        found = self.of(key)
        if found is not None:
            found[0].put(found[1], None, version)


class Reading(NamedTuple):
    """What a record said when it was read."""

    table: Table[object]
    name: str
    value: object | None

    def show(self, version: int) -> None:
        """It is kept, by that commit: hold it from now on."""
        self.table.put(self.name, self.value, version)
