"""Verdicts on classes, spread over rows and kept: they are what a gather of now would give."""

from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from registry import spread
from registry.spread import MOST_BYTES_A_ROW, Spread

CLASSES = 5
WRITES = st.lists(st.tuples(st.integers(0, 39), st.integers(0, CLASSES - 1)), max_size=12)
VERDICTS = {key: np.arange(CLASSES) % 3 == key for key in range(3)}


@given(st.lists(st.tuples(WRITES, st.integers(0, 2)), max_size=12))
def test_what_is_kept_is_what_a_gather_gives(steps: list[tuple[list[tuple[int, int]], int]]) -> None:
    kept, class_of = Spread(), np.zeros(40, np.intp)
    for writes, key in steps:
        for row, number in writes:
            class_of[row] = number
            kept.moved(row)
        verdict = VERDICTS[key]
        assert kept.of(key, lambda verdict=verdict: verdict, class_of).tolist() == verdict.take(class_of).tolist()


def test_one_that_missed_too_much_is_made_anew() -> None:
    kept, class_of = Spread(), np.zeros(100_000, np.intp)
    verdict = VERDICTS[1]
    assert not kept.of("q", lambda: verdict, class_of).any()
    for row in range(2 * spread._MOST_MOVES + 1):
        class_of[row] = 1
        kept.moved(row)
    assert len(kept._moved) <= 2 * spread._MOST_MOVES
    assert np.count_nonzero(kept.of("q", lambda: verdict, class_of)) == 2 * spread._MOST_MOVES + 1


def test_rows_that_there_was_no_room_for_are_in_it() -> None:
    kept = Spread()
    kept.of("q", lambda: VERDICTS[0], np.ones(10, np.intp))
    assert kept.of("q", lambda: VERDICTS[0], np.zeros(20, np.intp)).tolist() == [True] * 20


def _noted(made: list[object], each: object) -> NDArray[np.bool_]:
    made.append(each)
    return VERDICTS[0]


def test_memory_is_bounded_and_what_is_asked_for_stays() -> None:
    kept, class_of = Spread(), np.zeros(100, np.intp)
    made: list[object] = []
    for key in range(10 * MOST_BYTES_A_ROW):
        for each in ("often", key):
            kept.of(each, partial(_noted, made, each), class_of)
    assert made.count("often") == 1
    assert sum(values.nbytes for values, _ in kept._kept.values()) <= MOST_BYTES_A_ROW * 100
