"""The inverted index over sets of names: what it says of live sets, and that it does not grow with dead ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import columns
from registry.columns import _Sets

NAMES = st.frozensets(st.sampled_from("abcdefgh"), max_size=4)


@given(st.lists(st.tuples(st.booleans(), NAMES), max_size=60), NAMES)
def test_it_says_of_live_sets_what_they_hold(steps: list[tuple[bool, frozenset[str]]], wanted: frozenset[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_MOST_DEAD", 3)
        patch.setattr(columns, "_SWEPT_AT_LEAST", 1)
        patch.setattr(columns, "_SWEPT_A_NAME", 1)
        sets, live = _Sets(), dict[frozenset[str], list[int]]()
        for comes, names in steps:
            if comes:
                live.setdefault(names, []).append(sets.take(names))
            elif names in live:
                sets.drop(names)
                live[names].pop()
                if not live[names]:
                    del live[names]
            assert all(len(set(numbers)) == 1 for numbers in live.values())
            assert len({numbers[0] for numbers in live.values()}) == len(live)
            held = sets.holding(wanted)
            assert [bool(held[numbers[0]]) for numbers in live.values()] == [wanted <= names for names in live]
            assert all(sets.knows(names) for names in live)


def test_sets_that_come_and_go_leave_nothing_and_none_of_them_waits_for_all_to_be_looked_at() -> None:
    sets, swept = _Sets(), list[int]()
    for index in range(5_000):
        names = frozenset({"all", *(f"only-{index}-{number}" for number in range(10))})
        sets.take(names)
        before = len(sets._to_sweep)
        sets.drop(names)
        swept.append(before - len(sets._to_sweep))
    assert sets._next <= 4 * columns._MOST_DEAD
    assert len(sets._postings) <= 50 * columns._MOST_DEAD
    assert 0 < max(swept) <= 100
