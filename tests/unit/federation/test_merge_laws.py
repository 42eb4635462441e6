"""The merge is a join semilattice, whatever states it is given: hostile ones too."""

from itertools import permutations
from typing import Any, NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from federation.clock import HLC_MAX, Dot, Vector, pack_vector, unpack_vector
from federation.digest import fingerprint
from federation.merge import absorb
from federation.record import Item, Record, Section, SectionKind
from federation.replica import Replica
from tests.unit.federation.states import KEY, PAYLOADS, RECORDS, SECTIONS, items, join, joined, section

ITEMS = st.lists(items(), max_size=12)

# Of two states


@given(RECORDS, RECORDS)
def test_join_is_commutative(a: Record, b: Record) -> None:
    assert join(a, b).state() == join(b, a).state()


@given(RECORDS, RECORDS, RECORDS)
def test_join_is_associative(a: Record, b: Record, c: Record) -> None:
    assert join(join(a, b), c).state() == join(a, join(b, c)).state()


@given(RECORDS)
def test_join_is_idempotent_and_says_that_nothing_was_new(a: Record) -> None:
    twice = join(a, a)
    assert twice.state() == a.state()
    assert not [item for item in a.items() if absorb(twice, item)]


@given(RECORDS)
def test_nothing_is_the_identity(a: Record) -> None:
    nothing = Record(KEY)
    assert join(a, nothing).state() == join(nothing, a).state() == a.state()


@given(RECORDS, RECORDS)
def test_a_join_absorbs_what_it_was_made_of(a: Record, b: Record) -> None:
    both = join(a, b)
    assert join(a, both).state() == join(both, b).state() == both.state()


@given(RECORDS, items(st.just(KEY)))
def test_news_is_told_exactly_when_the_state_changed(a: Record, item: Item) -> None:
    before = a.state()
    assert absorb(a, item) == (a.state() != before)


@given(SECTIONS, SECTIONS)
def test_any_two_sections_are_ordered(a: Section, b: Section) -> None:
    assert (a < b) + (a == b) + (a > b) == 1


# Deltas


@given(RECORDS, RECORDS, items(st.just(KEY)))
def test_the_delta_of_a_write_does_what_the_whole_state_would(theirs: Record, ours: Record, write: Item) -> None:
    written = joined(ours.items(), [write])
    assert join(theirs, written).state() == joined(theirs.items(), ours.items(), [write]).state()


@given(RECORDS, RECORDS)
def test_what_is_news_does_what_everything_would(theirs: Record, ours: Record) -> None:
    news = [item for item in ours.items() if absorb(join(theirs), item)]
    assert joined(theirs.items(), news).state() == join(theirs, ours).state()


# Items of many writers and records


def applied(items: list[Item]) -> Replica:
    replica = Replica("z")
    for item in items:
        replica.apply(item)
    return replica


def states(replica: Replica) -> list[tuple[object, ...]]:
    return sorted(record.state() for record in replica.records())


@given(ITEMS, st.data())
def test_order_and_repetition_of_items_do_not_matter(written: list[Item], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(written), max_size=4)) if written else []
    a, b = applied(written), applied(data.draw(st.permutations(written + again)))
    assert states(a) == states(b)
    assert a.digest.groups() == b.digest.groups()


@given(ITEMS, st.data())
def test_grouping_of_items_does_not_matter(written: list[Item], data: st.DataObject) -> None:
    """Each of three registries is given a part; then they tell each other what they made of it."""
    parts: list[list[Item]] = [[], [], []]
    for item in written:
        parts[data.draw(st.integers(0, 2))].append(item)
    made = [[item for record in applied(part).records() for item in record.items()] for part in parts]
    whole = states(applied(written))
    for order in permutations(made):
        assert states(applied([item for part in order for item in part])) == whole


# Canonical encodings


@given(RECORDS, RECORDS)
@example(  # what one payload says, the other says in two sections
    joined([Item(KEY, 1, 0, 0, section(payload=b"\x001 a 0 1 1  x"))]),
    joined([Item(KEY, 1, 0, 0, section(payload=b"")), Item(KEY, 1, 0, 1, section(payload=b"x\0-"))]),
)
def test_equal_states_and_only_they_have_equal_fingerprints(a: Record, b: Record) -> None:
    for one, other in ((a, b), (a, join(a))):
        assert (fingerprint(one, b"") == fingerprint(other, b"")) == (one.state() == other.state())


@given(SECTIONS, st.sampled_from(Section._fields), st.data())
def test_every_part_of_a_section_is_in_the_fingerprint(held: Section, name: str, data: st.DataObject) -> None:
    """Also a birth: whoever holds another one collects at another time."""
    other = held._replace(**{name: getattr(data.draw(SECTIONS), name)})
    one, two = (joined([Item(KEY, 1, 0, SectionKind.SPEC, spec)]) for spec in (held, other))
    assert (fingerprint(one, b"") == fingerprint(two, b"")) == (held == other)


def test_what_a_section_belongs_to_is_in_the_fingerprint() -> None:
    named = [
        Item(key, life, incarnation, kind, section())
        for key in ("n:a", "n:b") for life in (1, 3) for incarnation in (0, 1) for kind in SectionKind
    ]  # fmt: skip
    assert len({fingerprint(joined([item], key=item.key), b"") for item in named}) == len(named)


def test_a_birth_has_one_fingerprint_before_and_after_its_journey() -> None:
    births: list[Any] = [Dot("a", 1, 1), ("a", 1, 1)]  # as writes.py takes it, and as the wire brings it
    made = [joined([Item(KEY, 1, 0, SectionKind.SPEC, section(seq=2, birth=birth))]) for birth in births]
    assert len({fingerprint(record, b"") for record in made}) == 1


VECTORS = st.dictionaries(
    st.tuples(st.sampled_from(["a", "B-1", "o" * 63]), st.integers(0, HLC_MAX)), st.integers(0, HLC_MAX), max_size=5
)


@given(VECTORS)
def test_equal_vectors_are_packed_alike_and_come_back(vector: Vector) -> None:
    packed = pack_vector(vector)
    assert packed == pack_vector(dict(reversed(vector.items())))
    assert unpack_vector(packed) == vector


@given(st.binary(max_size=20) | st.text("ab 0123456789\n-+_\u0661", max_size=20).map(str.encode))
@example(b"a 1 01")
@example(b"a 1 +1")
@example(b"a 1 1_0")
@example(b"b 1 1\na 1 1")
@example(b"a 1 1\na 1 2")
@example(b"a 1 1\n")
@example("a 1 \u0661".encode())
def test_a_packed_vector_is_what_pack_would_write_or_nothing(packed: bytes) -> None:
    vector = unpack_vector(packed)
    assert not vector or pack_vector(vector) == packed


# Why not the obvious rule


class Naive(NamedTuple):
    """A value under "the dominating vector wins, else the later wall clock"."""

    value: str
    vector: frozenset[str]  # the writes that it has seen; of each registry at most one here
    time: int

    def __or__(self, other: "Naive") -> "Naive":
        seen = self.vector | other.vector
        winner = other if self.vector < other.vector else self
        if not (self.vector <= other.vector or other.vector <= self.vector):
            winner = max(self, other, key=lambda naive: naive.time)
        return winner._replace(vector=seen)


A = Naive("A", frozenset({"a1"}), 10)
B = Naive("B", frozenset({"a1", "b1"}), 5)  # written after A, by a registry whose clock is slow
C = Naive("C", frozenset({"c1"}), 7)


def test_the_naive_rule_diverges_where_no_vector_shows_it() -> None:
    one, other = (A | B) | C, (A | C) | B
    assert one.vector == other.vector, "to both it seems that they hold the same"
    assert (one.value, other.value) == ("C", "A"), "and they do not, for ever"


def test_minted_above_what_it_replaces_the_same_writes_converge() -> None:
    """B was written after A, so its stamp is above A's, whatever its clock says."""
    writes = [
        Item(KEY, 1, 0, SectionKind.SPEC, section(major, origin, payload=value))
        for major, origin, value in ((10, "a", b"A"), (11, "b", b"B"), (7, "c", b"C"))
    ]
    for order in permutations(writes):
        assert joined(order).spec == writes[1].section


@given(st.lists(st.tuples(st.integers(0, 3), PAYLOADS), min_size=2, max_size=4))
def test_one_dot_with_several_contents_still_converges(contents: list[tuple[int, bytes]]) -> None:
    """A registry that got an old store back, before generations were salted, or a lying one."""
    written = [Item(KEY, 1, 0, SectionKind.SPEC, section(major, payload=payload)) for major, payload in contents]
    assert len({joined(order).state() for order in permutations(written)}) == 1
