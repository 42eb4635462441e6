"""What filters and ranking look at: one array a fact, one row a node.

Nodes that are alike in everything that is no number (status, region, role, type, home, labels, capabilities,
models) are of one *class*, and a fleet has few of those. A filter on such a thing is decided for each class and
spread over the rows by one gather, which is kept for the next question (spread.py); numbers are compared row by row,
in the array. Names among labels, capabilities and models are found by an inverted index over the distinct sets of
them.

Every change costs the same whatever there is already, and every question a few passes over arrays: nothing is
rebuilt for a write, and no question can be made slow by what it asks for. Memory: 72 bytes a row, as much again of
spreads, and what the distinct classes and sets take.
"""

import math
from array import array
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.latency import Vectors
from registry.spread import Spread

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

FEW_ROWS, FEW_CLASSES = 1_024, 64  # arrays begin with so many places, and double
_MOST_DEAD = 1_024  # sets that nobody has any more; of many live ones as many as those
_SWEPT_AT_LEAST, _SWEPT_A_NAME = 16, 4  # names swept for each set that dies, and for each name in it
_BEYOND = 1e30  # no number is, and float32 can tell it
_UNKNOWN = np.float32(np.nan)


class Kind(NamedTuple):
    """Everything about a node that is no number. `home`: whose word its status is, and of which start of that
    registry. `models`: their names, and by themselves their families."""

    status: str
    region: str
    role: str
    type: str | None
    home: tuple[str, int]
    labels: frozenset[str]
    capabilities: frozenset[str]
    models: frozenset[Hashable]
    signed: bool | None = None  # True: by the node; False: what is held of it is not that; None: nobody has


PLAIN = ("status", "region", "role", "type", "home", "signed")  # those of its fields that are compared whole
SETS = ("labels", "capabilities", "models")
NUMBERS = ("vram_gb", "free_vram_gb", "ram_gb", "cpu_cores", "load")


class _Codes:
    """Small numbers for the values of one field, used again once no class has the value."""

    def __init__(self) -> None:
        self._codes: dict[Hashable, int] = {}
        self._values: list[Hashable] = []
        self._uses: list[int] = []
        self._free: list[int] = []

    def take(self, value: Hashable) -> int:
        code = self._codes.get(value)
        if code is None:
            if self._free:
                code = self._free.pop()
                self._values[code], self._uses[code] = value, 0
            else:
                code = len(self._values)
                self._values.append(value)
                self._uses.append(0)
            self._codes[value] = code
        self._uses[code] += 1
        return code

    def drop(self, code: int) -> None:
        self._uses[code] -= 1
        if not self._uses[code]:
            del self._codes[self._values[code]]
            self._values[code] = None
            self._free.append(code)

    def of(self, values: Iterable[Hashable]) -> list[int]:
        """The codes of those values that there are."""
        return [code for value in values if (code := self._codes.get(value)) is not None]

    def items(self) -> Iterable[tuple[Hashable, int]]:
        return self._codes.items()

    def __len__(self) -> int:
        return len(self._values)


class _Sets:
    """Numbers for the distinct sets of one field, and by each name the sets that hold it.

    A set that nobody has any more stays in the index: to find its number among those of a name that many have would
    take long. When there are more dead sets than live ones they are swept out, some names with each set that dies, so
    that no write waits for it; then their numbers are used again.
    """

    def __init__(self) -> None:
        self._ids: dict[frozenset[Hashable], int] = {}
        self._uses: dict[int, int] = {}
        self._postings: dict[Hashable, array[int]] = {}
        self._live = np.zeros(FEW_CLASSES, np.bool_)  # by number
        self._next = 0
        self._free: list[int] = []
        self._dead: list[int] = []
        self._to_sweep: list[Hashable] = []
        self._swept: list[int] = []  # those that are in no posting any more once all names are swept

    def take(self, names: frozenset[Hashable]) -> int:
        number = self._ids.get(names)
        if number is None:
            number = self._ids[names] = self._new_number()
            self._uses[number] = 0
            for name in names:
                self._postings.setdefault(name, array("i")).append(number)
        self._uses[number] += 1
        return number

    def drop(self, names: frozenset[Hashable]) -> None:
        number = self._ids[names]
        self._uses[number] -= 1
        if self._uses[number]:
            return
        del self._ids[names], self._uses[number]
        self._live[number] = False
        self._dead.append(number)
        self._sweep(_SWEPT_AT_LEAST + _SWEPT_A_NAME * len(names))

    def holding(self, wanted: Iterable[Hashable]) -> Mask:
        """By number, whether a set holds all of these names. Of dead ones it says anything."""
        held = np.ones(self._next, np.bool_)
        for name in wanted:
            found = np.zeros(self._next, np.bool_)
            if name in self._postings:
                found[np.frombuffer(self._postings[name], np.int32)] = True
            held &= found
        return held

    def knows(self, names: Iterable[Hashable]) -> bool:
        return all(name in self._postings for name in names)

    def _new_number(self) -> int:
        if self._free:
            number = self._free.pop()
        else:
            number, self._next = self._next, self._next + 1
            if number == len(self._live):
                self._live = _doubled(self._live, False)
        self._live[number] = True
        return number

    def _sweep(self, names: int) -> None:
        """Sweep so many names, when there is something to be swept out."""
        if not self._to_sweep:
            if len(self._dead) < max(_MOST_DEAD, len(self._ids)):
                return
            self._to_sweep, self._swept, self._dead = list(self._postings), self._dead, []
        for _ in range(min(names, len(self._to_sweep))):
            name = self._to_sweep.pop()
            numbers = np.frombuffer(self._postings[name], np.int32)
            left = numbers.compress(self._live.take(numbers))
            if len(left) == len(numbers):
                continue
            if len(left):
                self._postings[name] = array("i", left.tobytes())
            else:
                del self._postings[name]
        if not self._to_sweep:
            self._free += self._swept
            self._swept = []


class Columns:
    """All rows. Row 0 and class 0 are nobody's: a row that is free is of class 0."""

    def __init__(self) -> None:
        self.size = 1  # rows in use lie below
        self.class_of = np.zeros(FEW_ROWS, np.intp)
        self.numbers: dict[str, Floats] = {name: np.full(FEW_ROWS, _UNKNOWN) for name in NUMBERS}
        self.base = np.zeros(FEW_ROWS, np.float32)  # what ranking adds to a node's latency: see ranking.py
        self.settled_load = np.full(FEW_ROWS, _UNKNOWN)  # the load that `base` was made of
        self.held = np.zeros(FEW_ROWS, np.float32)  # the share of the node that callers hold
        self.heard_s = np.zeros(FEW_ROWS, np.float64)  # monotonic, of the last heartbeat
        self.vectors = Vectors(FEW_ROWS)
        self._spread = Spread()
        self.address = np.zeros(FEW_ROWS, np.int64)  # a number for where it was last seen; 0: it tells nothing
        self.said_seq = np.zeros(FEW_ROWS, np.int64)  # the position of the word on it, in its home's chain
        self._free_rows: list[int] = []
        self._classes: dict[Kind, int] = {}
        self._kinds: list[Kind | None] = [None]
        self._free_classes: list[int] = []
        self.count = np.zeros(FEW_CLASSES, np.int32)  # nodes of each class
        self._plain = {name: np.zeros(FEW_CLASSES, np.intp) for name in PLAIN}
        self._set_of = {name: np.zeros(FEW_CLASSES, np.intp) for name in SETS}
        self._codes = {name: _Codes() for name in PLAIN}
        self._sets = {name: _Sets() for name in SETS}

    # changes

    def add(self) -> int:
        """A row for a node; its class and numbers are to be set."""
        if self._free_rows:
            return self._free_rows.pop()
        row = self.size
        if row == len(self.class_of):
            self._grow_rows()
        self.size += 1
        return row

    def remove(self, row: int) -> None:
        """The node is no more."""
        self._leave(int(self.class_of[row]))
        self.class_of[row] = 0
        self._spread.moved(row)
        for column in self.numbers.values():
            column[row] = _UNKNOWN
        self.base[row], self.settled_load[row], self.held[row] = 0, _UNKNOWN, 0
        self.vectors.set(row, {})
        self.address[row] = 0
        self._free_rows.append(row)

    def classify(self, row: int, kind: Kind, said_seq: int) -> None:
        """Everything about the node that is no number."""
        self.said_seq[row] = said_seq
        before, after = int(self.class_of[row]), self._classes.get(kind)
        if before == after:
            return
        if after is None:
            after = self._new_class(kind)
        self.count[after] += 1
        self.class_of[row] = after
        self._spread.moved(row)
        self._leave(before)

    def describe(self, row: int, vram_gb: float | None, ram_gb: float | None, cpu_cores: float | None) -> None:
        """What a registration tells in numbers."""
        numbers = self.numbers
        numbers["vram_gb"][row] = _told(vram_gb)
        numbers["ram_gb"][row] = _told(ram_gb)
        numbers["cpu_cores"][row] = _told(cpu_cores)

    def load_settled(self, row: int) -> float | None:
        """The load that its base was made of."""
        load = float(self.settled_load[row])
        return load if load == load else None

    def measure(
        self, row: int, load: float | None, free_vram_gb: float | None, settled: float | None, base: float
    ) -> None:
        """What a heartbeat tells."""
        self.numbers["load"][row] = _told(load)
        self.numbers["free_vram_gb"][row] = _told(free_vram_gb)
        self.settled_load[row] = _told(settled)
        self.base[row] = _told(base)

    # questions, by class

    @property
    def classes(self) -> int:
        """Classes in use have numbers below."""
        return len(self._kinds)

    def among(self, field: str, values: Iterable[Hashable]) -> Mask:
        """Classes whose field is one of these values."""
        chosen = np.zeros(len(self._codes[field]) + 1, np.bool_)
        chosen[self._codes[field].of(values)] = True
        return self._somebodys(chosen.take(self._plain[field][: self.classes]))

    def holding(self, field: str, names: Iterable[Hashable]) -> Mask:
        """Classes whose set has all of these names."""
        held = self._sets[field].holding(names)
        if not len(held):
            return np.zeros(self.classes, np.bool_)
        return self._somebodys(held.take(self._set_of[field][: self.classes]))

    def knows_one(self, field: str, values: Iterable[Hashable]) -> bool:
        """Whether a node has one of these values, at all."""
        return bool(self._codes[field].of(values))

    def knows_all(self, field: str, names: Iterable[Hashable]) -> bool:
        """Whether each of these names is in a set of some node; or was, not long ago."""
        return self._sets[field].knows(names)

    def nodes(self) -> Mask:
        """The rows that nodes have; not to be written to."""
        found: Mask = self.spread("nodes", lambda: self.count[: self.classes] > 0)
        return found

    def spread(self, key: Hashable, by_class: Callable[[], Any]) -> Any:
        """What classes have, for all rows; not to be written to. See Spread.of."""
        return self._spread.of(key, by_class, self.class_of)[: self.size]

    def table(self, field: str, number: Callable[[Any], float], otherwise: float, dtype: Any = np.float32) -> Any:
        """The number that each value of a field stands for, as `by_class` and `by_row` take it; `otherwise`: of what
        nobody has. For fields of few values."""
        table = np.full(len(self._codes[field]) + 1, otherwise, dtype)
        for value, code in self._codes[field].items():
            table[code] = number(value)
        return table

    def chosen(self, field: str, values: Iterable[Hashable], number: float, otherwise: float) -> Floats:
        """The same where some values stand for one number and all others for another."""
        table = np.full(len(self._codes[field]) + 1, otherwise, np.float32)
        table[self._codes[field].of(values)] = number
        return table

    def by_class(self, field: str, table: Any) -> Any:
        """For each class, the number of its value."""
        return table.take(self._plain[field][: self.classes])

    def by_row(self, field: str, table: Any, rows: Any) -> Any:
        """For some rows, the numbers of their values."""
        return table.take(self._plain[field].take(self.class_of.take(rows)))

    def kind(self, number: int) -> Kind:
        """What the nodes of a class have in common."""
        found = self._kinds[number]
        assert found is not None
        return found

    def counted(self, field: str) -> dict[Any, int]:
        """How many nodes there are by each value of a field."""
        codes = self._plain[field][: self.classes]
        sums = np.bincount(codes, self.count[: self.classes], len(self._codes[field]))
        return {value: int(sums[code]) for value, code in self._codes[field].items()}

    # parts

    def _somebodys(self, classes: Mask) -> Mask:
        classes[0] = False
        return classes

    def _new_class(self, kind: Kind) -> int:
        if self._free_classes:
            number = self._free_classes.pop()
            self._kinds[number] = kind
        else:
            number = len(self._kinds)
            self._kinds.append(kind)
            if number == len(self.count):
                self._grow_classes()
        self._classes[kind] = number
        for name in PLAIN:
            self._plain[name][number] = self._codes[name].take(getattr(kind, name))
        for name in SETS:
            self._set_of[name][number] = self._sets[name].take(getattr(kind, name))
        return number

    def _leave(self, number: int) -> None:
        """One node fewer is of that class; the last one takes it along."""
        if not number:
            return
        self.count[number] -= 1
        if self.count[number]:
            return
        kind = self.kind(number)
        del self._classes[kind]
        self._kinds[number] = None
        self._free_classes.append(number)
        for name in PLAIN:
            self._codes[name].drop(int(self._plain[name][number]))
        for name in SETS:
            self._sets[name].drop(getattr(kind, name))

    def _grow_rows(self) -> None:
        self.class_of = _doubled(self.class_of, 0)
        self.vectors.grow(len(self.class_of))
        self.base = _doubled(self.base, 0)
        self.settled_load = _doubled(self.settled_load, _UNKNOWN)
        self.held = _doubled(self.held, 0)
        self.heard_s = _doubled(self.heard_s, 0)
        self.said_seq = _doubled(self.said_seq, 0)
        self.address = _doubled(self.address, 0)
        self.numbers = {name: _doubled(column, _UNKNOWN) for name, column in self.numbers.items()}

    def _grow_classes(self) -> None:
        self.count = _doubled(self.count, 0)
        self._plain = {name: _doubled(column, 0) for name, column in self._plain.items()}
        self._set_of = {name: _doubled(column, 0) for name, column in self._set_of.items()}


def _told(value: float | None) -> float:
    """A number as a column takes it: nodes may say anything."""
    if value is None:
        return math.nan
    return value if -_BEYOND < value < _BEYOND else math.copysign(_BEYOND, value)


def _doubled(column: NDArray[Any], filling: Any) -> NDArray[Any]:
    return np.concatenate((column, np.full(len(column), filling, column.dtype)))
