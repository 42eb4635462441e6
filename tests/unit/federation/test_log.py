"""Logs: what stands where, in order, compacted without losing what still stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import log as log_module
from federation.log import Log
from federation.record import SECTION_NAMES, Record, SectionKind
from tests.unit.federation.states import section

CHAIN = ("a", 1)
SPEC = SectionKind.SPEC
RECORDS = {key: Record(key) for key in ("n:0", "n:1", "n:2")}

Entry = tuple[int, str, int]
ENTRIES = st.lists(st.tuples(st.integers(1, 60), st.sampled_from(sorted(RECORDS)), st.integers(0, 3)), max_size=40)


def made(entries: list[Entry]) -> Log:
    log = Log(CHAIN)
    for seq, key, kind in entries:
        log.add(seq, RECORDS[key], kind)
    return log


def told(log: Log, after: int = 0, upto: int = 1_000_000) -> list[Entry]:
    return [(seq, record.key, kind) for seq, record, kind in log.after(after, upto)]


@pytest.fixture(params=[0, 64], ids=["merged", "put in one by one"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which what comes out of order finds its place."""
    monkeypatch.setattr(log_module, "_FEW", request.param)


@pytest.mark.usefixtures("few")
def test_any_order_of_adding_is_the_same_log() -> None:
    @given(ENTRIES, st.integers(0, 60), st.integers(0, 60), st.integers(0, 40))
    def law(entries: list[Entry], after: int, upto: int, middle: int) -> None:
        newest = {seq: (key, kind) for seq, key, kind in entries}
        log = made(entries[:middle])
        assert [seq for seq, _, _ in told(log)] == sorted({seq for seq, _, _ in entries[:middle]})
        for entry in entries[middle:]:
            log.add(entry[0], RECORDS[entry[1]], entry[2])
        for seq in range(62):
            entry_at = log.at(seq)
            assert (entry_at and (entry_at[0].key, entry_at[1])) == newest.get(seq)
        assert told(log, after, upto) == [(seq, *newest[seq]) for seq in sorted(newest) if after < seq <= upto]
        assert len(log) == len(newest)
        assert log.last == max(newest, default=0)

    law()


def test_a_great_many_out_of_order_are_in_order() -> None:
    seqs = [(index * 7919) % 10_007 + 1 for index in range(10_007)]
    log = made([(seq, "n:0", 0) for seq in seqs])
    assert [seq for seq, _, _ in told(log)] == list(range(1, 10_008))


# Compaction

WRITES = st.lists(st.tuples(st.sampled_from(["n:0", "n:1"]), st.sampled_from(SectionKind)), min_size=20, max_size=60)


@given(WRITES)
def test_after_any_writes_every_position_is_kept_or_told_to_be_gone(writes: list[tuple[str, SectionKind]]) -> None:
    """`whole_after`: above it every position has its entry. Below it at least all that still stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "KEPT_POSITIONS", 3)
        records = {key: Record(key) for key, _ in writes}
        log = Log(CHAIN)
        for seq, (key, kind) in enumerate(writes, 1):
            record, name = records[key], SECTION_NAMES[kind]
            if getattr(record, name) is not None:
                log.replaced += 1
            setattr(record, name, section(seq, seq=seq))
            log.add(seq, record, kind)
            kept = {seq for seq, _, _ in told(log)}
            assert kept >= set(range(log.whole_after + 1, seq + 1)), "above it nothing is missing"
            standing = {
                one.seq
                for record in records.values()
                for name in SECTION_NAMES
                if (one := getattr(record, name)) is not None
            }
            assert kept >= standing, "what still stands can be sent"


def test_what_was_replaced_goes_once_it_is_most_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "KEPT_POSITIONS", 3)
    log, record, other = Log(CHAIN), Record("n:0"), Record("n:1")
    other.spec = section(1, seq=1)
    log.add(1, other, SPEC)
    for seq in range(2, 1_000):
        record.spec = section(seq, seq=seq)
        log.replaced += 1
        log.add(seq, record, SPEC)
    assert len(log) < 20
    assert told(log)[0] == (1, "n:1", SPEC), "it stands, however old it is"
    assert 999 - 20 < log.whole_after < 999


@pytest.mark.parametrize(
    ("spec", "live"),
    [
        (section(seq=5), True),
        (section(seq=6), False),
        (section(seq=5, generation=2), False),
        (section(seq=5, origin="b"), False),
        (None, False),
    ],
)
def test_an_entry_lives_while_its_own_write_stands(spec: object, live: bool) -> None:
    record = Record("n:0")
    setattr(record, "spec", spec)  # noqa: B010 - any of the above
    assert Log(CHAIN).is_live(5, record, SPEC) is live
