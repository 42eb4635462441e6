"""How far two nodes are from each other, from what each measured: its round trips to the registries.

Every node measures its round trips to the registries it knows, and sends them with its heartbeats: its *vector*.
Of vectors x and y two things are made (chosen on measured round trips between 490 hosts, benchmarks/latency.py):

    to rank by    sqrt(mean |x_i - y_i| * min(x_i + y_i))
    to show       min(x_i + y_i), the way by the registry that is best for both

The mean of the differences is small for nodes that see the world alike, the sum says how far even those are; each
alone ranks worse. Network coordinates did worse still. A pair that was measured beats both.

Where somebody has not measured a registry, the way to it by another that was measured, and on by what registries
measure of each other (backbone.py), is an upper bound: it is shown where it is the least, and ranked by itself where
nothing else is known. To take it for a measurement in the differences ranked worse.

A node that lies about its round trips moves itself and nobody else: no other node's distance uses its numbers.
Round trips that no network has are left out, and counted.
"""

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.names import LONGEST_RTT_MS

Floats = NDArray[np.float32]

MOST_REGISTRIES = 32  # a vector; more registries than that tell nothing new about where a node is
MOST_COMPARED = 8  # registries of it, the nearest: each costs a pass over all nodes
MOST_PAIRS = 32  # nodes that one node has measured itself: the first ten of some answers
AT_HOME_MS = 10.0  # to its home registry, of a node whose round trips are not known here


def believed(values: Any, most: int, names: Container[str] | None = None) -> tuple[dict[str, float], int]:
    """The round trips in what a node reported, by name, and how many were left out. `names`: there are no others."""
    if not isinstance(values, dict):
        return {}, int(values is not None)
    found: dict[str, float] = {}
    left_out = 0
    for name, value in values.items():
        fine = type(value) in (int, float) and 0 <= value <= LONGEST_RTT_MS and len(name) <= 255
        if fine and (names is None or name in names) and len(found) < most:
            found[name] = float(value)
        else:
            left_out += 1
    return found, left_out


class Vectors:
    """The vectors of all rows: one array a registry, NaN where nothing is known."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._of: dict[str, Floats] = {}
        self._used: dict[str, int] = {}  # rows that have measured it
        self._known = bytearray(rows)  # of how many registries, by row

    def set(self, row: int, vector: Mapping[str, float]) -> int:
        """A node's vector as it is now; how many of its registries there was no room for."""
        for name, column in list(self._of.items()):
            if column[row] == column[row] and name not in vector:
                column[row] = np.nan
                self._used[name] -= 1
                if not self._used[name]:
                    del self._of[name], self._used[name]
        left_out = 0
        for name, value in vector.items():
            if name not in self._of:
                if len(self._of) >= MOST_REGISTRIES:
                    left_out += 1
                    continue
                self._of[name], self._used[name] = np.full(self._rows, np.nan, np.float32), 0
            column = self._of[name]
            self._used[name] += bool(column[row] != column[row])
            column[row] = value
        self._known[row] = len(vector) - left_out
        return left_out

    def of(self, row: int) -> dict[str, float]:
        """A node's vector."""
        if not self._known[row]:
            return {}
        found = {name: float(column[row]) for name, column in self._of.items()}
        return {name: value for name, value in found.items() if value == value}

    def grow(self, rows: int) -> None:
        """There is room for so many rows."""
        for name, column in self._of.items():
            self._of[name] = np.concatenate((column, np.full(rows - self._rows, np.nan, np.float32)))
        self._known += bytes(rows - self._rows)
        self._rows = rows

    def column(self, name: str) -> Floats | None:
        """The round trips of all rows to one registry."""
        return self._of.get(name)


def estimates(
    vectors: Mapping[str, Floats],
    there: Mapping[str, float],
    count: int,
    beyond: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Floats, Floats]:
    """(what to rank by, what to show) between each of `count` nodes and one whose vector is `there`, in
    milliseconds; NaN where nothing is known. `vectors`: the nodes' round trips by registry. `beyond`: how far that
    one is from registries which it has not measured."""
    least = np.full(count, np.inf, np.float32)
    apart, common, nothing = np.zeros(count, np.float32), np.zeros(count, np.uint8), np.zeros(count, np.float32)
    difference, total = np.empty(count, np.float32), np.empty(count, np.float32)
    for name in sorted(there, key=there.__getitem__)[:MOST_COMPARED]:
        column = vectors.get(name)
        if column is None:
            continue
        np.subtract(column, np.float32(there[name]), out=difference)
        np.add(column, np.float32(there[name]), out=total)
        np.fmin(least, total, out=least)
        common += (difference == difference).view(np.uint8)
        np.abs(difference, out=difference)
        np.fmax(difference, nothing, out=difference)  # NaN is 0: to add only where it is none takes ten times as long
        apart += difference
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.where(common > 0, least, np.float32(np.nan))
        ranked = np.sqrt(apart / common * shown)
    for name in sorted(beyond, key=beyond.__getitem__)[:MOST_COMPARED]:
        if name in vectors:
            np.fmin(shown, vectors[name] + np.float32(beyond[name]), out=shown)
    if beyond:
        ranked = np.where(np.isnan(ranked), shown, ranked)
    return ranked, shown
