"""Sums for anti-entropy: kept by difference, equal to those made anew, and where they differ."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.digest import BUCKETS, GROUPS, PER_GROUP, DigestTree, bucket_of, differing, fingerprint, group_of
from federation.record import Record
from tests.unit.federation.states import section

KEYS = [f"n:{number}" for number in range(5)]
ACTIONS = st.sampled_from(["write", "remove", "settle", "settle one"])
STEPS = st.lists(st.tuples(ACTIONS, st.sampled_from(KEYS[:2]), st.integers(1, 4)), min_size=5, max_size=30)


def anew(records: list[Record], key: bytes = b"") -> dict[int, int]:
    sums = dict.fromkeys(range(BUCKETS), 0)
    for record in records:
        sums[bucket_of(record.key)] += fingerprint(record, key)
    return {bucket: total % 2**64 for bucket, total in sums.items()}


@given(STEPS)
def test_sums_kept_by_difference_are_those_made_anew(steps: list[tuple[str, str, int]]) -> None:
    tree, records = DigestTree(), dict[str, Record]()
    for step, key, stamp in steps:
        match step:
            case "write":
                record = records.setdefault(key, Record(key))
                record.spec = section(stamp)
                tree.touch(record)
            case "remove" if key in records:
                tree.remove(records.pop(key))
            case "settle":
                tree.settle()
            case "settle one":
                waiting = len(tree)
                tree.settle(1)
                assert len(tree) == max(0, waiting - 1)
    expected = anew(list(records.values()))
    assert tree.buckets(range(GROUPS)) == expected
    by_group = dict.fromkeys(range(GROUPS), 0)
    for bucket, total in expected.items():
        by_group[group_of(bucket)] += total
    assert tree.groups() == {group: total % 2**64 for group, total in by_group.items()}


def test_a_difference_is_found_from_the_top_down() -> None:
    ours, theirs = DigestTree(), DigestTree()
    for tree, stamp in ((ours, 1), (theirs, 2)):
        for key in KEYS:
            record = Record(key)
            record.spec = section(stamp if key == "n:3" else 1)
            tree.touch(record)
    bucket = bucket_of("n:3")
    assert differing(ours.groups(), theirs.groups()) == [group_of(bucket)]
    assert differing(ours.buckets([group_of(bucket)]), theirs.buckets([group_of(bucket)])) == [bucket]


def test_every_bucket_is_in_one_group() -> None:
    tree = DigestTree()
    assert [bucket for group in range(GROUPS) for bucket in tree.buckets([group])] == list(range(BUCKETS))
    assert {group_of(bucket) for bucket in range(BUCKETS)} == set(range(GROUPS))
    assert len(tree.buckets([3])) == PER_GROUP


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ({1: 5, 2: 6}, {1: 5, 2: 6}, []),
        ({1: 5, 2: 6}, {1: 5, 2: 7}, [2]),
        ({2: 0, 1: 0}, {2: 1, 1: 1}, [1, 2]),
        ({1: 5, 2: 6}, {1: 9}, [1]),
        ({1: 5}, {1: 5, 99: 1}, []),  # a number that does not exist is not asked for
    ],
)
def test_differing(ours: dict[int, int], theirs: dict[int, int], found: list[int]) -> None:
    assert differing(ours, theirs) == found


def test_who_has_not_the_key_cannot_make_sums() -> None:
    record = Record("n:0")
    record.spec = section()
    assert fingerprint(record, b"one key") != fingerprint(record, b"another")
