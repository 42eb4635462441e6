"""What is asked of an item before it is joined, case by case."""

from random import Random

import pytest

from federation import guard as guard_module
from federation.clock import HLC_MAX, Now, hlc_of
from federation.config import Config
from federation.core import Core
from federation.effects import Alert
from federation.guard import FORGERIES_A_MINUTE, LINK_SHARES, Allowance, Guard, Holds, Verdict
from federation.record import MAX_LIFE, Item, Section, SectionKind
from federation.replica import Replica
from federation.seals import Seal, sealed
from tests.support.rosters import advert, registry_key
from tests.unit.federation.states import section

NOON_MS = 1_764_000_000_000
NOW = Now(1000.0, NOON_MS)
SPEC, INTENT, JUDGEMENT, END = SectionKind
ADMITTED, REFUSED, HELD = Verdict
GENERATION = 5


def guarded(*held: Item, burst: int = 2, reachable: tuple[str, ...] = (), seals: bool = False) -> Guard:
    replica = Replica("me")
    replica.generation = GENERATION
    for item in held:
        replica.apply(item)
    replica.vector[replica.chain] = 10
    config = Config("me", deletion_burst=burst, takeover_burst=burst)
    guard = Guard(Core(config, replica, Random(1), registry_key("me") if seals else None))
    guard.is_there = lambda owner, now: owner in reachable
    return guard


def judged(guard: Guard, item: Item, now: Now = NOW, peer: str = "p") -> tuple[Verdict, set[str]]:
    """The verdict, and what was told of."""
    verdict = guard.judge(item, guard.limits(now), now, peer)
    told = {effect.code for effect in guard._core.out if isinstance(effect, Alert)}
    guard._core.out.clear()
    return verdict, told


def stamped(ahead_ms: int, *, minor_ahead_ms: int | None = None) -> Section:
    minor = hlc_of(NOON_MS + minor_ahead_ms) if minor_ahead_ms is not None else 0
    return section(hlc_of(NOON_MS + ahead_ms), "a", minor)


@pytest.mark.parametrize(
    ("key", "admitted"),
    [("n:a", True), ("r:a", True), ("n:a b", False), ("n:a\tb", False), ("n:a\n", False), ("n:\x00", False),
     ("n:\xa0", False), ("n:é", False), ("", False)],
)  # fmt: skip
def test_a_key_is_one_visible_word(key: str, admitted: bool) -> None:
    item = Item(key, 1, 0, SPEC, stamped(0))
    assert judged(guarded(), item) == ((ADMITTED, set()) if admitted else (REFUSED, {"malformed"}))


HOUR_MS, DAY_MS = 3_600_000, 86_400_000
CLOCKS: dict[str, tuple[SectionKind, Section, Verdict, set[str]]] = {
    "of the past": (SPEC, stamped(-DAY_MS), ADMITTED, set()),
    "within the tolerance": (SPEC, stamped(10_000), ADMITTED, set()),
    "an hour ahead": (SPEC, stamped(HOUR_MS), ADMITTED, {"clock_ahead"}),
    "a word an hour ahead within its epoch": (JUDGEMENT, stamped(0, minor_ahead_ms=HOUR_MS), ADMITTED, {"clock_ahead"}),
    "a day ahead": (INTENT, stamped(DAY_MS), ADMITTED, {"clock_ahead"}),
    "nobody's clock": (SPEC, stamped(DAY_MS + 1), REFUSED, {"clock_ahead"}),
    "a word of nobody's clock": (JUDGEMENT, stamped(0, minor_ahead_ms=DAY_MS + 1), REFUSED, {"clock_ahead"}),
    "the last stamp that there is": (SPEC, section(HLC_MAX), REFUSED, {"clock_ahead"}),
    "a revocation, never by its clock": (END, section(HLC_MAX), ADMITTED, set()),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_stamps(case: str) -> None:
    kind, written, verdict, told = CLOCKS[case]
    assert judged(guarded(), Item("k:a", 1, 0, kind, written)) == (verdict, told)


def test_a_deletion_is_never_refused_by_its_clock() -> None:
    assert judged(guarded(), Item("n:a", 2, 0, END, section(HLC_MAX)))[0] is ADMITTED


NAMES: dict[str, tuple[Section, Verdict]] = {
    "another's write": (section(origin="a", generation=GENERATION, seq=99), ADMITTED),
    "ours, that comes back": (section(origin="me", generation=GENERATION, seq=10), ADMITTED),
    "ours, of an earlier start": (section(origin="me", generation=GENERATION - 1, seq=99), ADMITTED),
    "ours, that we have not written": (section(origin="me", generation=GENERATION, seq=11), REFUSED),
    "at no position": (section(origin="a", seq=0), REFUSED),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(case: str) -> None:
    written, verdict = NAMES[case]
    assert judged(guarded(), Item("n:a", 1, 0, SPEC, written))[0] is verdict


@pytest.mark.parametrize("kind", SectionKind)
def test_a_life_that_is_over_says_only_that(kind: SectionKind) -> None:
    """Anything else of an even life would delete what stands, uncounted, and could never be collected."""
    verdict, told = judged(guarded(burst=100), Item("n:a", 2, 0, kind, section(9, "a")))
    assert (verdict, told) == ((ADMITTED, set()) if kind is END else (REFUSED, {"malformed"}))


SECOND_LIVES: dict[str, tuple[Item, bool]] = {
    "a key": (Item("k:a", 1, 0, SPEC, section(9)), True),
    "its revocation": (Item("k:a", 1, 0, END, section(9)), True),
    "its deletion": (Item("k:a", 2, 0, END, section(9)), True),
    "a greater incarnation of it": (Item("k:a", 1, 1, SPEC, section(9)), False),
    "a later life of it": (Item("k:a", 3, 0, SPEC, section(9)), False),
    "a later deletion of it": (Item("k:a", 4, 0, END, section(9)), False),
    "a revocation of a greater incarnation": (Item("k:a", 1, 1, END, section(9)), False),
    "a later life of a node": (Item("n:a", 3, 1, SPEC, section(9)), True),
}


@pytest.mark.parametrize("case", SECOND_LIVES)
def test_keys_have_one_life_so_nothing_replaces_a_revocation(case: str) -> None:
    item, joined = SECOND_LIVES[case]
    assert judged(guarded(), item) == ((ADMITTED, set()) if joined else (REFUSED, {"malformed"}))


# What destroys is rationed

OURS = Item("n:a", 1, 0, JUDGEMENT, section(5, "me"))
THEIRS = Item("n:a", 1, 0, JUDGEMENT, section(5, "b"))
TOMBSTONE = Item("n:a", 2, 0, END, section(5, "b"))
KEYED = Item("n:a", 1, 0, SPEC, section(5, "b"))
WISH = Item("n:a", 1, 0, INTENT, section(5, "b"))
DELETION = Item("n:a", 2, 0, END, section(9, "a"))
TAKEOVER = Item("n:a", 1, 0, JUDGEMENT, section(9, "a"))

RATIONED: dict[str, tuple[Item | None, Item, tuple[str, ...], bool]] = {
    "a deletion of what exists": (OURS, DELETION, (), True),
    "a later deletion of what exists": (OURS, DELETION._replace(life=4), (), True),
    "a deletion of what is not known": (None, DELETION, (), False),
    "a deletion of what is deleted": (TOMBSTONE, DELETION, (), False),
    "a deletion of an earlier life": (OURS._replace(life=3), DELETION, (), False),
    "a revocation": (OURS, DELETION._replace(life=1), (), False),
    "a takeover from us": (OURS, TAKEOVER, (), True),
    "a takeover from an owner that can be heard": (THEIRS, TAKEOVER, ("b",), True),
    "a takeover from an owner that cannot": (THEIRS, TAKEOVER, (), False),
    "a takeover that comes too late": (OURS, TAKEOVER._replace(section=section(4, "a")), (), False),
    "an owner's own later word": (THEIRS, Item("n:a", 1, 0, JUDGEMENT, section(9, "b")), ("b",), False),
    "a first registration": (OURS, Item("n:a", 1, 0, SPEC, section(9, "a")), (), False),
    "a registration over another's, who can be heard": (KEYED, Item("n:a", 1, 0, SPEC, section(9, "a")), ("b",), True),
    "a registration over another's, who cannot": (KEYED, Item("n:a", 1, 0, SPEC, section(9, "a")), (), False),
    "a registration that comes too late": (KEYED, Item("n:a", 1, 0, SPEC, section(4, "a")), ("b",), False),
    "its writer's own later registration": (KEYED, Item("n:a", 1, 0, SPEC, section(9, "b")), ("b",), False),
    "an intent": (WISH, WISH._replace(section=section(9, "a")), ("b",), False),
    # A later life or incarnation leaves nothing of what stood, whatever part of it comes first
    "a registration of a later life": (OURS, Item("n:a", 3, 0, SPEC, section(1, "a")), (), True),
    "a registration of a greater incarnation": (OURS, Item("n:a", 1, 1, SPEC, section(1, "a")), (), True),
    "an intent of a later life": (OURS, Item("n:a", 3, 0, INTENT, section(1, "a")), (), True),
    "a word of a later life, of any epoch": (OURS, Item("n:a", 3, 0, JUDGEMENT, section(1, "a")), (), True),
    "a revocation of a greater incarnation": (OURS, Item("n:a", 1, 1, END, section(1, "a")), (), True),
    "a later life, from an owner that can be heard": (THEIRS, Item("n:a", 3, 0, SPEC, section(1, "a")), ("b",), True),
    "a later life, from an owner that cannot": (THEIRS, Item("n:a", 3, 0, SPEC, section(1, "a")), (), False),
    "an owner's own later life": (THEIRS, Item("n:a", 3, 0, SPEC, section(1, "b")), ("b",), False),
    "a word on what has no owner yet": (KEYED, TAKEOVER, ("b",), False),
    "a greater incarnation of what has no owner": (KEYED, Item("n:a", 1, 1, SPEC, section(9, "a")), ("b",), True),
    "a word of a smaller incarnation": (OURS._replace(incarnation=1), TAKEOVER, (), False),
    "a registration after a deletion": (TOMBSTONE, Item("n:a", 3, 0, SPEC, section(9, "a")), ("b",), False),
}


@pytest.mark.parametrize("case", RATIONED)
def test_what_counts_as_destructive(case: str) -> None:
    held, item, reachable, rationed = RATIONED[case]
    guard = guarded(*([held] if held else []), burst=0, reachable=reachable)
    assert judged(guard, item) == ((HELD, {"quarantined"}) if rationed else (ADMITTED, set()))


def test_an_owners_registration_over_anothers_is_its_right() -> None:
    """A node that registered elsewhere has moved to b, and registers there."""
    registered, owned = Item("n:a", 1, 0, SPEC, section(5, "c")), THEIRS
    guard = guarded(registered, owned, burst=0, reachable=("b", "c"))
    assert judged(guard, KEYED._replace(section=section(9, "b")))[0] is ADMITTED


def deletion(number: int, origin: str) -> Item:
    return Item(f"n:{number}", 2, 0, END, section(9, origin, seq=number + 1))


def network(size: int, *registries: str) -> list[Item]:
    nodes = [Item(f"n:{number}", 1, 0, SPEC, section(5, "b", seq=number + 1)) for number in range(size)]
    return nodes + [Item(f"r:{name}", 1, 0, SPEC, section(5, name)) for name in registries]


def admitted(guard: Guard, origin: str, count: int, now: Now = NOW) -> int:
    return sum(judged(guard, deletion(number, origin), now)[0] is ADMITTED for number in range(count))


def test_an_origin_deletes_a_burst_at_once_and_then_waits_for_more() -> None:
    guard = guarded(*network(20, "a"), burst=4)
    assert admitted(guard, "a", 20) == 4
    assert admitted(guard, "a", 20, NOW._replace(mono_s=NOW.mono_s + 30)) == 2, "half of it comes in half a minute"
    assert admitted(guard, "a", 20, NOW._replace(mono_s=NOW.mono_s + 3_600)) == 4, "it does not pile up"


def test_in_a_large_network_the_share_counts() -> None:
    guard = guarded(*network(99, "a"), burst=2)
    assert admitted(guard, "a", 99) == 5


def test_more_may_be_taken_over_than_deleted() -> None:
    """A whole region's nodes have to move before anybody calls them offline."""
    guard = guarded(*network(99, "a"), burst=2, reachable=("b",))
    taken = [Item(f"n:{number}", 1, 0, SPEC, section(9, "a", seq=number + 1)) for number in range(99)]
    assert sum(judged(guard, item)[0] is ADMITTED for item in taken) == 25
    assert admitted(guard, "a", 99) == 5, "nor does the one use up the other"


def test_what_we_do_not_hear_ourselves_may_be_taken_over() -> None:
    """We were away, or cut off from our nodes, while they went elsewhere."""
    guard = guarded(OURS, burst=0)
    guard.is_heard = lambda key: False
    assert judged(guard, TAKEOVER) == (ADMITTED, set())
    assert judged(guard, DELETION)[0] is HELD


def test_one_origin_does_not_use_up_anothers_share() -> None:
    guard = guarded(*network(20, "a", "c"), burst=4)
    assert admitted(guard, "a", 20) == 4
    assert admitted(guard, "c", 20) == 4


def test_invented_origins_share_one_allowance() -> None:
    guard = guarded(*network(20, "a"), burst=4)
    assert sum(judged(guard, deletion(number, f"x{number}"))[0] is ADMITTED for number in range(20)) == 4
    assert admitted(guard, "a", 20) == 4, "nor do they use up a known one's"


def test_one_link_hands_over_a_few_shares_however_many_registries_it_invents() -> None:
    origins = [f"x{number}" for number in range(40)]
    guard = guarded(*network(40, *origins), burst=5)
    deletions = [deletion(number, origin) for number, origin in enumerate(origins)]
    assert sum(judged(guard, item, peer="p")[0] is ADMITTED for item in deletions) == 5 * LINK_SHARES < 40
    assert sum(judged(guard, item, peer="q")[0] is ADMITTED for item in deletions) == 5 * LINK_SHARES, "each link"


def test_an_allowance_shrinks_with_the_network() -> None:
    allowance = Allowance(100, 0.0)
    assert sum(allowance.take(3, 0.0) for _ in range(10)) == 3


def test_a_life_that_leaves_no_room_can_still_be_deleted() -> None:
    assert MAX_LIFE % 2 == 0


# Holds


def test_no_position_passes_a_hold_until_everything_was_given_again() -> None:
    chain, other = ("a", 1), ("b", 1)
    holds = Holds()
    assert holds.limit(chain, 9) == 9
    holds.hold(chain, 7, 0.0)
    holds.hold(chain, 5, 0.0)
    holds.hold(chain, 6, 0.0)
    assert (holds.limit(chain, 9), holds.limit(chain, 3), holds.limit(other, 9)) == (4, 3, 9)
    holds.given({chain: 4, other: 9})
    assert len(holds) == 1
    holds.given({chain: 5})
    assert (len(holds), holds.limit(chain, 9)) == (0, 9)


def test_a_hold_ends_that_nobody_renews() -> None:
    chain, other = ("a", 1), ("b", 1)
    holds = Holds()
    holds.hold(chain, 5, 100.0)
    holds.hold(other, 5, 100.0)
    holds.hold(other, 7, 200.0)
    holds.expire(101.0)
    assert (holds.limit(chain, 9), holds.limit(other, 9)) == (9, 4), "what was renewed begins where it did"


def test_holds_that_a_peer_invents_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "MAX_HELD", 10)
    holds = Holds()
    for generation in range(100):
        holds.hold(("a", generation), 5, 0.0)
        holds.hold(("a", 0), 5, 0.0)
    assert len(holds) == 10
    assert holds.limit(("a", 0), 9) == 4, "what is offered again stays longest"
    holds.hold(("a", 99), 5, 0.0)
    assert len(holds) == 10, "to offer it again displaces nothing"


A_S_ENTRY = sealed(Item("r:a", 1, 0, SPEC, section(1, "a", payload=advert("a"))), registry_key("a"))


def test_what_nobody_in_the_roster_has_sealed_waits_for_its_entry() -> None:
    """No position passes it: a registry's first writes may overtake its entry."""
    write = sealed(Item("k:1", 1, 0, SPEC, stamped(0)), registry_key("a"))
    guard = guarded(seals=True)
    assert judged(guard, write) == (HELD, set())
    guard._core.replica.apply(A_S_ENTRY)
    assert judged(guard, write) == (ADMITTED, set())


def test_whoever_forges_often_is_not_listened_to_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def seal_of(item: Item, roster: object) -> Seal:
        checked.append(item)
        return real(item, roster)  # type: ignore[arg-type]  # it is handed on as it came

    real = guard_module.seal_of
    monkeypatch.setattr(guard_module, "seal_of", seal_of)
    guard = guarded(A_S_ENTRY, seals=True)
    forged = Item("k:1", 1, 0, SPEC, stamped(0)._replace(seal=bytes(64)))
    genuine = sealed(forged, registry_key("a"))
    assert judged(guard, genuine) == (ADMITTED, set())
    for _ in range(10 * FORGERIES_A_MINUTE):
        assert judged(guard, forged) == (REFUSED, {"forged"})
    assert len(checked) == FORGERIES_A_MINUTE + 2
    assert judged(guard, genuine) == (REFUSED, {"forged"})
    assert judged(guard, genuine, peer="another") == (ADMITTED, set())
    assert judged(guard, genuine, NOW._replace(mono_s=NOW.mono_s + 61)) == (ADMITTED, set())
