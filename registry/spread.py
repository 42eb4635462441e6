"""What was decided a class, spread over the rows, kept for questions that come again. Pure.

To spread a verdict is a gather over all rows, which costs ten times what comparing a column does, and most questions
ask for the same few things: what is online, what is in a region, what has a model. So the rows' verdicts are kept, the
ones that were asked for last, and brought up to date when they are asked for again: of rows that have changed their
class since, only those are looked at anew. A write costs one entry in a list.
"""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES_A_ROW = 96  # of all that is kept: a verdict takes one, a cost four
_MOST_MOVES = 8_192  # rows that changed their class: what has missed more of them is spread anew


class Spread:
    """The newest spreads by key."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[NDArray[Any], int]] = {}
        self._bytes_a_row = 0
        self._moved: list[int] = []
        self._forgotten = 0  # moves that are no longer in the list

    def moved(self, row: int) -> None:
        """A row is of another class now."""
        if not self._kept:
            return
        self._moved.append(row)
        if len(self._moved) > 2 * _MOST_MOVES:
            del self._moved[:_MOST_MOVES]
            self._forgotten += _MOST_MOVES

    def of(self, key: Hashable, by_class: Callable[[], NDArray[Any]], class_of: NDArray[np.intp]) -> NDArray[Any]:
        """A number or a verdict of each row, not to be written to. `by_class`: the same of each class; what it says
        of a class may change only when `key` does. `class_of`: of all rows that there is room for."""
        kept = self._kept.pop(key, None)
        moves = self._forgotten + len(self._moved)
        if kept is None:
            values = self._anew(by_class(), class_of)
        else:
            values, upto = kept
            missed = moves - upto
            if len(values) != len(class_of) or upto < self._forgotten or missed * 8 > len(values):
                self._bytes_a_row -= values.itemsize
                values = self._anew(by_class(), class_of)
            elif missed:
                rows = np.array(self._moved[upto - self._forgotten :], np.intp)
                values[rows] = by_class().take(class_of.take(rows))
        self._kept[key] = values, moves
        return values

    def _anew(self, by_class: NDArray[Any], class_of: NDArray[np.intp]) -> NDArray[Any]:
        while self._kept and self._bytes_a_row + by_class.itemsize > MOST_BYTES_A_ROW:
            oldest, _ = self._kept.pop(next(iter(self._kept)))
            self._bytes_a_row -= oldest.itemsize
        self._bytes_a_row += by_class.itemsize
        return by_class.take(class_of)
