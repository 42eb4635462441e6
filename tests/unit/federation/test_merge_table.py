"""The merge table: the rule as data. Each row is executed, both ways round and in every order of items."""

from itertools import permutations
from typing import NamedTuple

import pytest

from federation.record import Item, Section, SectionKind
from tests.unit.federation.states import KEY, joined, section

SPEC, INTENT, JUDGEMENT, END = SectionKind


class State(NamedTuple):
    """A record, or one item of it."""

    life: int
    incarnation: int = 0
    spec: Section | None = None
    intent: Section | None = None
    judgement: Section | None = None
    end: Section | None = None

    def items(self) -> list[Item]:
        """What makes it."""
        sections = zip(SectionKind, self[2:], strict=True)
        return [Item(KEY, self.life, self.incarnation, kind, one) for kind, one in sections if one is not None]


class Row(NamedTuple):
    """`covers`: the cells of the completeness table that it stands for."""

    held: State
    arriving: State
    result: State
    why: str
    covers: tuple[tuple[SectionKind, str], ...] = ()


S, S2, S3 = section(1), section(2), section(3)
AIM, AIM2 = section(1, payload=b"draining"), section(2, payload=b"maintenance")
WORD, WORD2 = section(5, minor=1, payload=b"online"), section(5, minor=2, payload=b"offline")
ADOPTED = section(6, "b", payload=b"online", seq=3)
ENDED = section(4, payload=b"deregistered", seq=4)
ENDED2 = section(5, payload=b"deregistered", seq=5)
REVOKED = section(2, payload=b"leaked", seq=2)

TABLE: dict[str, Row] = {
    # One section, newer and older
    "a later registration": Row(
        State(1, spec=S), State(1, spec=S2), State(1, spec=S2), "the later stamp", ((SPEC, "newer"),)
    ),
    "an earlier registration": Row(
        State(1, spec=S2), State(1, spec=S), State(1, spec=S2), "the later stamp stays", ((SPEC, "older"),)
    ),
    "the same registration": Row(
        State(1, spec=S), State(1, spec=S), State(1, spec=S), "said before", ((SPEC, "equal"),)
    ),
    "a later intent": Row(
        State(1, spec=S, intent=AIM),
        State(1, intent=AIM2),
        State(1, spec=S, intent=AIM2),
        "the later stamp",
        ((INTENT, "newer"),),
    ),
    "an earlier intent": Row(
        State(1, spec=S, intent=AIM2),
        State(1, intent=AIM),
        State(1, spec=S, intent=AIM2),
        "the later stays",
        ((INTENT, "older"),),
    ),
    "the same intent": Row(
        State(1, intent=AIM), State(1, intent=AIM), State(1, intent=AIM), "said before", ((INTENT, "equal"),)
    ),
    "the owner's later word": Row(
        State(1, spec=S, judgement=WORD),
        State(1, judgement=WORD2),
        State(1, spec=S, judgement=WORD2),
        "one epoch: the later word",
        ((JUDGEMENT, "newer"),),
    ),
    "the owner's earlier word": Row(
        State(1, spec=S, judgement=WORD2),
        State(1, judgement=WORD),
        State(1, spec=S, judgement=WORD2),
        "one epoch: the later word stays",
        ((JUDGEMENT, "older"),),
    ),
    "the owner's same word": Row(
        State(1, judgement=WORD),
        State(1, judgement=WORD),
        State(1, judgement=WORD),
        "said before",
        ((JUDGEMENT, "equal"),),
    ),
    "a later deletion of the same life": Row(
        State(2, end=ENDED), State(2, end=ENDED2), State(2, end=ENDED2), "the later stamp", ((END, "newer"),)
    ),
    "an earlier deletion of the same life": Row(
        State(2, end=ENDED2), State(2, end=ENDED), State(2, end=ENDED2), "the later stamp stays", ((END, "older"),)
    ),
    "the same deletion": Row(
        State(2, end=ENDED), State(2, end=ENDED), State(2, end=ENDED), "said before", ((END, "equal"),)
    ),
    # Sections beside each other
    "an intent beside a registration": Row(
        State(1, spec=S), State(1, intent=AIM), State(1, spec=S, intent=AIM), "each section for itself"
    ),
    "an intent that came before its registration": Row(
        State(1, intent=AIM), State(1, spec=S), State(1, spec=S, intent=AIM), "messages may come in any order"
    ),
    "a word that came before its registration": Row(
        State(1, judgement=WORD), State(1, spec=S), State(1, spec=S, judgement=WORD), "messages may come in any order"
    ),
    "a registration later than the intent": Row(
        State(1, spec=S, intent=AIM),
        State(1, spec=S3),
        State(1, spec=S3, intent=AIM),
        "re-registering leaves what operators want",
    ),
    # Judgement: the epoch first
    "adoption": Row(
        State(1, spec=S, judgement=WORD),
        State(1, judgement=ADOPTED),
        State(1, spec=S, judgement=ADOPTED),
        "whom the node beats at now mints a higher epoch",
    ),
    "a late word of who has lost the node": Row(
        State(1, spec=S, judgement=ADOPTED),
        State(1, judgement=section(5, minor=99, payload=b"offline")),
        State(1, spec=S, judgement=ADOPTED),
        "however late within its epoch: the epoch is over",
    ),
    "two adoptions with one stamp": Row(
        State(1, judgement=section(6, "b")),
        State(1, judgement=section(6, "c")),
        State(1, judgement=section(6, "c")),
        "the greater origin, at everybody",
    ),
    # Life
    "deletion": Row(
        State(1, spec=S, intent=AIM, judgement=WORD),
        State(2, end=ENDED),
        State(2, end=ENDED),
        "a later life replaces the record whole",
        ((END, "other life"),),
    ),
    "deletion with a slow clock": Row(
        State(1, spec=S3, judgement=ADOPTED),
        State(2, end=section(0)),
        State(2, end=section(0)),
        "life decides, no clock",
    ),
    "an update concurrent with a deletion": Row(
        State(2, end=ENDED),
        State(1, spec=section(99)),
        State(2, end=ENDED),
        "what was written to a life that is over is over",
        ((SPEC, "other life"),),
    ),
    "a heartbeat after a deletion": Row(
        State(2, end=ENDED),
        State(1, judgement=section(99, "b")),
        State(2, end=ENDED),
        "no skewed heartbeat resurrects",
        ((JUDGEMENT, "other life"),),
    ),
    "an operator's word after a deletion": Row(
        State(2, end=ENDED),
        State(1, intent=section(99)),
        State(2, end=ENDED),
        "what was written to a life that is over is over",
        ((INTENT, "other life"),),
    ),
    "registration after a deletion": Row(
        State(2, end=ENDED), State(3, spec=S), State(3, spec=S), "the next odd life, whatever the clock"
    ),
    "a deletion of the life before": Row(
        State(3, spec=S), State(2, end=section(99)), State(3, spec=S), "it ended another life"
    ),
    "the first word of a later life": Row(
        State(1, spec=S, intent=AIM),
        State(3, judgement=WORD),
        State(3, judgement=WORD),
        "it exists once its registration comes; nothing of the earlier life mixes in",
    ),
    # Incarnation
    "two first registrations, the greater key": Row(
        State(1, 1, spec=S3, intent=AIM),
        State(1, 2, spec=S),
        State(1, 2, spec=S),
        "the incarnation orders them whole",
        ((SPEC, "other incarnation"),),
    ),
    "two first registrations, the smaller key": Row(
        State(1, 2, spec=S), State(1, 1, spec=S3), State(1, 2, spec=S), "the incarnation orders them whole"
    ),
    "an intent for the smaller key's node": Row(
        State(1, 2, spec=S),
        State(1, 1, intent=AIM2),
        State(1, 2, spec=S),
        "sections of two incarnations never mix",
        ((INTENT, "other incarnation"),),
    ),
    "a word on the smaller key's node": Row(
        State(1, 2, spec=S),
        State(1, 1, judgement=ADOPTED),
        State(1, 2, spec=S),
        "sections of two incarnations never mix",
        ((JUDGEMENT, "other incarnation"),),
    ),
    "deletions of two incarnations": Row(
        State(2, 1, end=ENDED2),
        State(2, 2, end=ENDED),
        State(2, 2, end=ENDED),
        "the incarnation orders them whole",
        ((END, "other incarnation"),),
    ),
    "a later life of the smaller key": Row(
        State(1, 2, spec=S3), State(3, 1, spec=S), State(3, 1, spec=S), "life before incarnation"
    ),
    # Revocation: an END beside a living SPEC
    "a key is revoked": Row(
        State(1, spec=S), State(1, end=REVOKED), State(1, spec=S, end=REVOKED), "no other section takes it away"
    ),
    "a revoked key is put again": Row(
        State(1, spec=S, end=REVOKED),
        State(1, spec=section(99)),
        State(1, spec=section(99), end=REVOKED),
        "its END stays, whatever is written beside it",
    ),
    "a key that is revoked before it is known": Row(
        State(1, end=REVOKED),
        State(1, spec=section(99)),
        State(1, spec=section(99), end=REVOKED),
        "order does not matter",
    ),
    "two revocations": Row(
        State(1, end=REVOKED),
        State(1, end=section(3, "b", payload=b"old")),
        State(1, end=section(3, "b", payload=b"old")),
        "the later reason; revoked it is with either",
    ),
    # Equal stamps
    "one stamp, two origins": Row(
        State(1, spec=section(1, "a")),
        State(1, spec=section(1, "b")),
        State(1, spec=section(1, "b")),
        "the greater origin",
    ),
    "an earlier stamp of a greater origin": Row(
        State(1, spec=section(2, "a")), State(1, spec=section(1, "b")), State(1, spec=section(2, "a")), "stamps first"
    ),
    "an earlier epoch of a greater origin": Row(
        State(1, judgement=section(2, "a")),
        State(1, judgement=section(1, "b", minor=9)),
        State(1, judgement=section(2, "a")),
        "the epoch first",
    ),
    "one stamp, one origin, two payloads": Row(
        State(1, spec=section(payload=b"x")),
        State(1, spec=section(payload=b"y")),
        State(1, spec=section(payload=b"y")),
        "only a lying or restored registry writes so; still everybody chooses the same",
    ),
    "a payload that begins like the other": Row(
        State(1, spec=section(payload=b"x")),
        State(1, spec=section(payload=b"x\0")),
        State(1, spec=section(payload=b"x\0")),
        "bytes are ordered, the longer after its beginning",
    ),
    "one stamp and payload, two generations": Row(
        State(1, spec=section(generation=1, seq=9)),
        State(1, spec=section(generation=2)),
        State(1, spec=section(generation=2)),
        "the later start's dot",
    ),
    "one stamp and payload, two positions": Row(
        State(1, spec=section(seq=1)), State(1, spec=section(seq=2)), State(1, spec=section(seq=2)), "the later dot"
    ),
    "one dot, two stamps": Row(
        State(1, spec=section(2)), State(1, spec=section(1)), State(1, spec=section(2)), "dots name, stamps decide"
    ),
    "one dot, two births": Row(
        State(1, spec=section(birth=("a", 1, 1))),
        State(1, spec=section()),
        State(1, spec=section(birth=("a", 1, 1))),
        "the order is total",
    ),
    # What no registry writes
    "a tombstone with a stray registration": Row(
        State(2, end=ENDED),
        State(2, spec=section(99)),
        State(2, spec=section(99), end=ENDED),
        "it is deleted: life alone tells, and all hold the same",
    ),
    "a stray registration that waits for its tombstone": Row(
        State(2, spec=section(99)), State(2, end=ENDED), State(2, spec=section(99), end=ENDED), "order does not matter"
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_table(case: str) -> None:
    held, arriving, result, why, _ = TABLE[case]
    expected = joined(result.items()).state()
    assert joined(held.items(), arriving.items()).state() == expected, why
    assert joined(arriving.items(), held.items()).state() == expected, f"the other way round: {why}"
    for order in permutations(held.items() + arriving.items()):
        assert joined(order).state() == expected, f"in any order: {why}"


def test_in_one_epoch_of_two_owners_the_origin_decides_before_the_later_word() -> None:
    """Nobody mints that; a peer can. The order of a section's fields is the law."""
    later = State(1, 0)._replace(judgement=section(5, "a", 9))
    greater = State(1, 0)._replace(judgement=section(5, "b", 1))
    for order in permutations(later.items() + greater.items()):
        assert joined(order).state() == joined(greater.items()).state()


def test_every_kind_of_section_meets_every_other() -> None:
    relations = ("older", "equal", "newer", "other life", "other incarnation")
    cells = {(kind, relation) for kind in SectionKind for relation in relations}
    assert {cell for row in TABLE.values() for cell in row.covers} == cells


@pytest.mark.parametrize("case", [case for case, row in TABLE.items() if row.covers])
def test_a_row_is_of_the_cells_that_it_names(case: str) -> None:
    held, arriving, *_, covers = TABLE[case]
    for kind, relation in covers:
        ours, theirs = held[2 + kind], arriving[2 + kind]
        actual = (
            "other life" if held.life != arriving.life
            else "other incarnation" if held.incarnation != arriving.incarnation
            else "equal" if ours == theirs
            else "newer" if theirs > ours
            else "older"
        )  # fmt: skip
        assert theirs is not None
        assert actual == relation


@pytest.mark.parametrize("arriving_kind", SectionKind)
@pytest.mark.parametrize("held_kind", SectionKind)
def test_every_pair_of_kinds_in_every_relation(held_kind: SectionKind, arriving_kind: SectionKind) -> None:
    def one(life: int, incarnation: int, kind: SectionKind, stamp: int) -> State:
        return State(life, incarnation)._replace(**{State._fields[2 + kind]: section(stamp)})

    held = one(3, 1, held_kind, 5)
    for life, incarnation in ((2, 9), (4, 0), (3, 0), (3, 2)):
        arriving = one(life, incarnation, arriving_kind, 5)
        whole = arriving if (life, incarnation) > (3, 1) else held
        assert joined(held.items(), arriving.items()).state() == joined(whole.items()).state()
    for stamp in (4, 5, 6):
        arriving = one(3, 1, arriving_kind, stamp)
        beside = held._replace(**{State._fields[2 + arriving_kind]: section(stamp)})
        stands = held if arriving_kind == held_kind and stamp < 5 else beside
        assert joined(held.items(), arriving.items()).state() == joined(stands.items()).state()
