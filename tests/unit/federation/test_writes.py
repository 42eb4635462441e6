"""This registry's own writes: what is minted, above what, and what a node's token does."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from federation.clock import HLC_MAX, Now, hlc_of
from federation.config import Config
from federation.core import Core
from federation.record import MAX_INCARNATION, MAX_LIFE, Item, Record, Section, SectionKind, section_of
from federation.replica import Replica
from federation.writes import Token, Writes
from tests.unit.federation.states import section

NOON_MS = 1_764_000_000_000
NOW = Now(1000.0, NOON_MS)
SPEC, INTENT, JUDGEMENT, END = SectionKind
FUTURE = hlc_of(NOON_MS + 3_600_000)


def writing(*held: Item, life_floor: int = 0, name: str = "me") -> Writes:
    replica = Replica(name)
    replica.begin_generation(10, 0)
    replica.life_floor = life_floor
    for item in held:
        replica.apply(item)
    return Writes(Core(Config(name), replica, Random(1)))


def replica_of(writes: Writes) -> Replica:
    return writes._core.replica


def registered(writes: Writes, token: Token | None = None, *, incarnation: int = 1, word: bytes = b"online") -> Token:
    return writes.register("n:a", b"spec", NOW, incarnation=incarnation, judgement=word, token=token)


def record_of(writes: Writes, key: str = "n:a") -> Record:
    record = replica_of(writes).get(key)
    assert record is not None
    return record


# Which life and incarnation a registration takes

LIVING = Item("n:a", 3, 5, SPEC, section(7, "b"))
OURS = Item("n:a", 3, 5, JUDGEMENT, section(9, "me", payload=b"online", generation=10))
TOMBSTONE = Item("n:a", 4, 5, END, section(7, "b"))
BELOW = LIVING._replace(life=1)

LIVES: dict[str, tuple[Item | None, int, Token | None, tuple[int, int]]] = {
    # held, life floor, token -> (life, incarnation)
    "first": (None, 0, None, (1, 1)),
    "first, above an even floor": (None, 4, None, (5, 1)),
    "first, above an odd floor": (None, 5, None, (7, 1)),
    "again": (LIVING, 0, None, (3, 5)),
    "after its deletion": (TOMBSTONE, 0, None, (5, 1)),
    "unknown here, with the token of a later life": (None, 0, Token(7, 9, 0), (7, 9)),
    "here of an earlier life than its token": (LIVING, 0, Token(5, 2, 0), (5, 2)),
    "here of a later life than its token": (LIVING, 0, Token(1, 9, 0), (3, 5)),
    "here of another incarnation than its token": (LIVING, 0, Token(3, 8, 0), (3, 8)),
    "deleted, with the token of the life that ended": (TOMBSTONE, 0, Token(3, 5, 0), (5, 1)),
    "deleted, with the token of a later life": (TOMBSTONE, 0, Token(7, 5, 0), (7, 5)),
    "deleted, with the token of the very next life": (TOMBSTONE, 0, Token(5, 9, 0), (5, 9)),
    "here of a life below the floor, with a token below it too": (BELOW, 6, Token(5, 9, 0), (1, 5)),
    "a token at the floor": (None, 6, Token(5, 9, 0), (7, 1)),
    "a token of a deletion": (None, 0, Token(2, 9, 0), (1, 1)),
    "a token of no life that can be": (None, 0, Token(MAX_LIFE + 1, 9, 0), (1, 1)),
    "a token below all lives": (None, 0, Token(-3, 9, 0), (1, 1)),
    "a token of no incarnation that can be": (None, 0, Token(3, MAX_INCARNATION + 1, 0), (3, MAX_INCARNATION)),
    "a token of an incarnation below all": (None, 0, Token(3, -1, 0), (3, 0)),
}


@pytest.mark.parametrize("case", LIVES)
def test_the_life_that_a_registration_takes(case: str) -> None:
    held, life_floor, token, expected = LIVES[case]
    writes = writing(*([held] if held else []), life_floor=life_floor)
    made = registered(writes, token)
    record = record_of(writes)
    assert (record.life, record.incarnation) == expected == made[:2]
    assert record.exists


def test_a_key_of_an_api_has_one_life_whatever_was_collected() -> None:
    writes = writing(life_floor=8)
    writes.put("k:a", b"key", NOW)
    assert record_of(writes, "k:a").life == 1


def test_a_name_whose_lives_are_used_up_is_refused() -> None:
    writes = writing(Item("n:a", MAX_LIFE, 0, END, section()))
    with pytest.raises(ValueError, match="use another id"):
        registered(writes)


def test_the_last_life_can_be_deleted() -> None:
    writes = writing(Item("n:a", MAX_LIFE - 1, 0, SPEC, section()))
    writes.delete("n:a", b"gone", NOW)
    assert record_of(writes).life == MAX_LIFE


# What a token does to stamps


@pytest.mark.parametrize("held", [[], [LIVING], [LIVING, OURS]], ids=["unknown here", "known here", "ours"])
def test_a_registration_is_minted_above_its_token(held: list[Item]) -> None:
    writes = writing(*held)
    made = registered(writes, Token(3, 5, FUTURE))
    record = record_of(writes)
    assert record.spec is not None
    assert record.judgement is not None
    assert record.spec.major > FUTURE
    assert record.judgement.major > FUTURE
    assert made.epoch == max(record.spec.major, record.judgement.major), "the next registry mints above both"


@pytest.mark.parametrize("epoch", [HLC_MAX, hlc_of(NOON_MS + 86_400_001), -1])
def test_a_stamp_of_nobodys_clock_in_a_token_is_not_minted_above(epoch: int) -> None:
    """A node may claim anything; there has to be room above what it makes us write."""
    writes = writing()
    token = registered(writes, Token(1, 1, epoch))
    record = record_of(writes)
    for payload in (b"", b"z", b""):
        writes.register("n:a", payload, NOW, incarnation=1, judgement=payload, token=token._replace(epoch=epoch))
        assert writes.heartbeat("n:a", b"online", NOW, token._replace(epoch=epoch)) is not None
        assert record.spec is not None
        assert record.spec.payload == payload
        assert record.spec.major < hlc_of(NOON_MS + 1)


def test_registering_again_with_its_owner_keeps_the_epoch() -> None:
    writes = writing()
    token = registered(writes)
    before = record_of(writes).judgement
    registered(writes, token)
    assert record_of(writes).judgement is before, "the same word is not said again"
    again = registered(writes, token, word=b"leaving")
    after, spec = record_of(writes).judgement, record_of(writes).spec
    assert before is not None
    assert spec is not None
    assert again.epoch == spec.major > before.major, "a token carries the registration's stamp too"
    assert after is not None
    assert (after.major, after.payload) == (before.major, b"leaving")
    assert after.minor > before.minor


def test_a_birth_is_kept_while_the_life_lasts_and_new_with_the_next() -> None:
    writes = writing()
    registered(writes)
    record = record_of(writes)
    born = record.birth
    registered(writes)
    assert record.birth == born
    assert record.spec is not None
    assert record.spec.dot != born
    writes.delete("n:a", b"gone", NOW)
    assert record.birth == born, "who collects it asks whether all have seen it"
    registered(writes)
    assert record.birth == record.spec.dot != born


OWN = Item("n:a", 1, 1, JUDGEMENT, section(9, "me", payload=b"offline", generation=10))
OTHERS = Item("n:a", 1, 1, JUDGEMENT, section(9, "b", payload=b"offline"))
AHEAD = Item("n:a", 1, 1, JUDGEMENT, section(FUTURE, "b", payload=b"offline"))
BORN = Item("n:a", 1, 1, SPEC, section(7, "b"))
UNBORN = Item("n:a", 1, 1, INTENT, section(7, "b"))

HEARTBEATS: dict[str, tuple[list[Item], Token | None, str]] = {
    "unknown": ([], None, "register"),
    "deleted": ([TOMBSTONE], None, "register"),
    "its registration has not come": ([UNBORN], None, "register"),
    "of a later life than is known": ([BORN, OWN], Token(3, 1, 0), "register"),
    "of another incarnation than is known": ([BORN, OWN], Token(1, 2, 0), "register"),
    "of an earlier life": ([BORN._replace(life=3)], Token(1, 1, 0), "adopt"),
    "nobody's": ([BORN], None, "adopt"),
    "another's": ([BORN, OTHERS], None, "adopt"),
    "another's, minted by a clock ahead": ([BORN, AHEAD], None, "adopt"),
    "ours": ([BORN, OWN], None, "nothing"),
    "ours, with our token": ([BORN, OWN], Token(1, 1, 9), "nothing"),
    "ours, but it was elsewhere since": ([BORN, OWN], Token(1, 1, 10), "adopt"),
}


@pytest.mark.parametrize("case", HEARTBEATS)
def test_what_a_heartbeat_does(case: str) -> None:
    held, token, expected = HEARTBEATS[case]
    writes = writing(*held)
    seq = replica_of(writes).next_seq
    made = writes.heartbeat("n:a", b"online", NOW, token)
    if expected == "register":
        assert made is None
        assert replica_of(writes).next_seq == seq
        return
    assert made is not None
    judgement = made[1].judgement
    assert judgement is not None
    assert (judgement.origin, replica_of(writes).next_seq) == ("me", seq + (expected == "adopt"))
    if expected == "adopt":
        assert (judgement.payload, judgement.minor) == (b"online", 0)
        taken = max(item.section.major for item in held)
        assert judgement.major > max(taken, token.epoch if token else 0), "a higher epoch"


# Words of operators and owners


@pytest.mark.parametrize("held", [[], [TOMBSTONE]], ids=["unknown", "deleted"])
def test_what_does_not_exist_is_not_written_to(held: list[Item]) -> None:
    writes = writing(*held)
    for act in (writes.amend, writes.delete, writes.judge_own):
        with pytest.raises(KeyError):
            act("n:a", b"x", NOW)
    assert not writes.judge("n:a", b"offline", NOW)


def test_only_the_owner_judges() -> None:
    writes = writing(BORN, OTHERS)
    assert not writes.judge("n:a", b"leaving", NOW)
    assert record_of(writes).judgement == OTHERS.section


def test_a_revocation_stands_for_ever_and_is_said_once() -> None:
    writes = writing()
    writes.revoke("k:a", b"leaked", NOW)
    said = record_of(writes, "k:a").end
    writes.put("k:a", b"key", NOW)
    writes.revoke("k:a", b"again", NOW)
    record = record_of(writes, "k:a")
    assert record.exists
    assert record.end == said


def test_a_key_that_was_deleted_is_not_made_again() -> None:
    writes = writing()
    writes.put("k:a", b"key", NOW)
    writes.delete("k:a", b"expired", NOW)
    with pytest.raises(ValueError, match="another id"):
        writes.put("k:a", b"key", NOW)


@given(st.lists(st.sampled_from(["put", "amend", "revoke", "judge"]), max_size=8))
def test_own_writes_take_one_position_each(acts: list[str]) -> None:
    writes = writing()
    registered(writes)
    start = replica_of(writes).next_seq
    for count, act in enumerate(acts):
        before = replica_of(writes).next_seq
        match act:
            case "put":
                writes.put("k:a", b"%d" % count, NOW)
            case "amend":
                writes.amend("n:a", b"%d" % count, NOW)
            case "judge":
                writes.judge("n:a", b"%d" % count, NOW)
            case "revoke":
                writes.revoke("k:b", b"leaked", NOW)
        assert replica_of(writes).next_seq - before in (0, 1)
    log = replica_of(writes).log(replica_of(writes).chain)
    assert [seq for seq, _, _ in log.after(start - 1, 10**6)] == list(range(start, replica_of(writes).next_seq))


# Stamps grow along causality, whatever the clocks say


class Causality(RuleBasedStateMachine):
    """Registries with wrong clocks write and tell each other: every write is above what it replaced."""

    NAMES = ("a", "b", "c")
    KEYS = ("n:0", "n:1")

    @initialize(skews_ms=st.tuples(*[st.sampled_from([-7_200_000, -1, 0, 1, 7_200_000])] * 3))
    def begin(self, skews_ms: tuple[int, ...]) -> None:
        self.registries = {name: writing(name=name) for name in self.NAMES}
        self.skews_ms = dict(zip(self.NAMES, skews_ms, strict=True))
        self.tokens: dict[str, Token] = {}
        self.second = 0.0

    def written(self, name: str, key: str, act: str, *, carried: bool) -> None:
        writes, now = self.registries[name], Now(self.second, NOON_MS + int(self.second * 1000) + self.skews_ms[name])
        token = self.tokens.get(key) if carried else None
        match act:
            case "register":
                self.tokens[key] = writes.register(key, b"x", now, incarnation=1, judgement=b"online", token=token)
            case "heartbeat":
                if (made := writes.heartbeat(key, b"online", now, token)) is not None:
                    self.tokens[key] = max(made[0], token or made[0])
            case "amend":
                writes.amend(key, b"x", now)
            case "judge":
                writes.judge(key, b"offline %d" % self.second, now)
            case "delete":
                writes.delete(key, b"gone", now)

    @rule(
        name=st.sampled_from(NAMES),
        key=st.sampled_from(KEYS),
        act=st.sampled_from(["register", "heartbeat", "amend", "judge", "delete"]),
        carried=st.booleans(),
    )
    def write(self, name: str, key: str, act: str, carried: bool) -> None:
        self.second += 1
        replica = replica_of(self.registries[name])
        before, token = state(replica, key), self.tokens.get(key) if carried else None
        existed = (record := replica.get(key)) is not None and record.exists
        if act in ("amend", "judge", "delete") and not existed:
            return
        self.written(name, key, act, carried=carried)
        after = state(replica, key)
        assert after[0] >= before[0], "lives and incarnations only grow"
        if after[0] == before[0]:
            assert_above(before[1], after[1])
        if act == "register" and token is not None and token.life == after[0][0]:
            spec = after[1][SPEC]
            assert spec is not None
            assert spec.major > token.epoch, "above what the node carried from elsewhere"

    @rule(source=st.sampled_from(NAMES), listener=st.sampled_from(NAMES), key=st.sampled_from(KEYS))
    def tell(self, source: str, listener: str, key: str) -> None:
        record = replica_of(self.registries[source]).get(key)
        for item in record.items() if record is not None else ():
            replica_of(self.registries[listener]).apply(item, repairing=True)


State = tuple[tuple[int, int], tuple[Section | None, ...]]


def state(replica: Replica, key: str) -> State:
    record = replica.get(key) or Record(key)
    return (record.life, record.incarnation), tuple(get(record) for get in section_of)


def assert_above(before: tuple[Section | None, ...], after: tuple[Section | None, ...]) -> None:
    for old, new in zip(before, after, strict=True):
        if old is not None and new != old:
            assert new is not None
            assert new > old
            assert (new.major, new.minor) > (old.major, old.minor), "by its stamp, not by its name"


TestCausality = Causality.TestCase
TestCausality.settings = settings(stateful_step_count=25)


# A life of its own


def test_a_registration_anew_begins_a_life_and_keeps_what_operators_want() -> None:
    writes = writing(LIVING, OURS)
    writes.amend("n:a", b"maintenance", NOW)
    token = writes.register("n:a", b"signed", NOW, incarnation=2, judgement=b"online", token=None, anew=True)
    record = record_of(writes)
    assert (token.life, token.incarnation) == (record.life, record.incarnation) == (5, 2)
    assert record.spec is not None
    assert record.intent is not None
    assert record.judgement is not None
    assert (record.spec.payload, record.intent.payload, record.judgement.origin) == (b"signed", b"maintenance", "me")
    assert record.birth == record.spec.dot


def test_a_registration_anew_of_what_is_not_there_is_a_first_one() -> None:
    for held, lives in (((), (1, 7)), ((TOMBSTONE,), (5, 7))):
        token = writing(*held).register("n:a", b"", NOW, incarnation=7, judgement=b"", token=None, anew=True)
        assert (token.life, token.incarnation) == lives


def test_a_registration_anew_stands_above_a_token_of_the_life_before() -> None:
    brought = Token(3, 9, FUTURE)
    token = writing(LIVING).register("n:a", b"", NOW, incarnation=2, judgement=b"", token=brought, anew=True)
    assert (token.life, token.incarnation) == (5, 2)
