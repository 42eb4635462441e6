"""Whom to dial, and when: never twice at once, never in vain for long, and nobody is left out."""

from collections.abc import Iterable, Mapping
from random import Random

import pytest

from federation.dialling import DOWN_AFTER, FULL_MESH, MAX_MEMBERS, STEADY_S, Dialling, keeps

SEED, OTHER = "http://seed:9205", "http://other:9205"


class Top:
    """Dice that always show the most, so that delays are the longest there are."""

    def random(self) -> float:
        return 1.0

    getrandbits = choice = sample = None


def dialling(*seeds: str, me: str = "me", rng: object = None) -> Dialling:
    return Dialling(me, seeds, rng or Random(1))  # type: ignore[arg-type]  # or one that never chooses


def url(name: str) -> str:
    return f"http://{name}"


def everybody(names: Iterable[str]) -> dict[str, str | None]:
    return {name: url(name) for name in names}


def test_a_seed_is_dialled_at_once_and_not_twice() -> None:
    it = dialling(SEED + "/", SEED)
    assert it.due(0, {}) == [SEED]
    assert it.due(100, {}) == []


def longest_delay_s(it: Dialling, now_s: float) -> float:
    """How long after a failure at that moment it dials again."""
    it.due(1e9, {})
    it.over(SEED, now_s)
    return next(tenths / 10 for tenths in range(1_000) if it.due(now_s + tenths / 10 + 1e-6, {}))


def test_full_jitter_grows_to_ten_seconds_and_after_an_hour_to_a_minute() -> None:
    it = dialling(SEED, rng=Top())
    assert [longest_delay_s(it, at_s) for at_s in range(9)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    assert longest_delay_s(it, 3_599) == 10
    assert longest_delay_s(it, 3_600) == 60
    assert longest_delay_s(it, 1e6) == 60


def test_delays_are_spread_from_nothing() -> None:
    delays = []
    for seed in range(50):
        it = dialling(SEED, rng=Random(seed))
        for _ in range(12):
            it.due(1e6, {})
            it.over(SEED, 0.0)
        now_s = 0.0
        while not it.due(now_s, {}):
            now_s += 0.25
        delays.append(now_s)
    assert min(delays) < 1.5
    assert max(delays) > 8
    assert max(delays) <= 10.25


def test_a_seed_is_left_alone_while_its_registry_is_linked() -> None:
    it = dialling(SEED)
    it.due(0, {})
    it.learned(SEED, "eu")
    it.over(SEED, 1, held_s=0.1)
    assert it.due(100, {"eu": 1}) == []
    assert it.due(100, {"us": 1}) == [SEED]


def test_who_is_ourselves_is_dialled_no_more() -> None:
    it = dialling(SEED, OTHER)
    assert it.due(0, {}) == [SEED, OTHER]
    it.myself(SEED)
    it.over(SEED, 0)
    assert it.due(1e6, {}) == []  # the other one is still being dialled
    assert [found for found, _ in it.targets()] == [OTHER]
    it.know({"liar": SEED})
    assert it.due(1e6, {}) == []


def test_members_are_dialled_where_the_roster_says() -> None:
    it = dialling()
    it.know({"eu": url("eu"), "us": url("us"), "nat": None, "me": url("me")})
    assert sorted(it.due(0, {"us": 1})) == [url("eu")]


def test_one_registry_with_two_urls_is_dialled_at_one_at_a_time() -> None:
    it = dialling(SEED, rng=Top())
    it.due(0, {})
    it.learned(SEED, "eu")
    it.over(SEED, 0)
    it.know({"eu": url("eu")})
    assert it.due(100, {}) == [url("eu")]
    assert it.due(200, {}) == []
    it.over(url("eu"), 200)
    assert it.due(200.1, {}) == [SEED]  # the other way, as its turn came long ago


def test_two_registries_at_one_url_are_one_target() -> None:
    it = dialling()
    it.know({"eu": url("x"), "us": url("x")})
    assert it.due(0, {}) == [url("x")]
    assert it.due(0, {}) == []


def test_who_left_the_roster_is_dialled_no_more() -> None:
    it = dialling(SEED)
    it.know(everybody(["eu", "us"]))
    it.know(everybody(["us"]))
    assert sorted(it.due(0, {})) == [SEED, url("us")]
    it.know({})
    it.over(url("us"), 0)
    assert it.due(100, {}) == []
    it.know({})
    assert it.targets() == [(SEED, None)]


def test_a_link_that_held_ends_the_failures_before_it() -> None:
    it = dialling(SEED, rng=Top())
    for _ in range(9):
        it.due(1e3, {})
        it.over(SEED, 0)
    it.due(1e3, {})
    it.over(SEED, 1e3, held_s=STEADY_S)
    assert it.due(1e3 + 0.21, {}) == [SEED]
    it.over(SEED, 2e3, held_s=STEADY_S - 1)
    assert it.due(2e3 + 0.21, {}) == []


def test_a_link_that_they_dialled_ends_the_failures_too() -> None:
    it = dialling(rng=Top())
    it.know(everybody(["eu"]))
    for _ in range(9):
        it.due(1e3, {})
        it.over(url("eu"), 0)
    it.due(1e3, {"eu": STEADY_S})
    it.due(1e3, {})
    it.over(url("eu"), 1e3)
    assert it.due(1e3 + 0.21, {}) == [url("eu")]


def test_peers_cannot_make_it_grow_without_end() -> None:
    it = dialling()
    it.know(everybody(map(str, range(3 * MAX_MEMBERS))))
    assert len(it.targets()) == MAX_MEMBERS


# More than a full mesh


def names(count: int) -> list[str]:
    return [f"r{index}" for index in range(count)]


def dialled(me: str, roster: Mapping[str, str | None], down: frozenset[str] = frozenset()) -> set[str]:
    """Whom it dials once those who are down have failed often enough."""
    it = Dialling(me, [], Random(me))
    it.know(roster)
    found: set[str] = set()
    now_s = 0.0
    for _ in range(DOWN_AFTER + 12):
        now_s += 100
        for target in it.due(now_s, dict.fromkeys(found, 1.0)):
            name = target.removeprefix("http://")
            if name in down:
                it.over(target, now_s)
            else:
                found.add(name)
    return found


def reached(links: Mapping[str, set[str]]) -> set[str]:
    """Who is connected with the first, over whatever links."""
    both = {name: set(others) for name, others in links.items()}
    for name, others in links.items():
        for other in others:
            both[other].add(name)
    todo, seen = [next(iter(both))], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += both[name]
    return seen


def test_up_to_twenty_all_dial_all() -> None:
    roster = everybody(names(FULL_MESH))
    assert all(dialled(me, roster) == roster.keys() - {me} for me in roster)


@pytest.mark.parametrize("count", [FULL_MESH + 1, 40, 100])
def test_beyond_everybody_has_about_eight_links_and_is_connected(count: int) -> None:
    roster = everybody(names(count))
    links = {me: dialled(me, roster) for me in roster}
    assert len(reached(links)) == count
    assert {len(others) for others in links.values()} == {4}


@pytest.mark.parametrize("seed", range(5))
def test_who_is_up_stays_connected_whoever_is_down(seed: int) -> None:
    everyone = names(60)
    down = frozenset(Random(seed).sample(everyone, 25))
    roster = everybody(everyone)
    links = {me: dialled(me, roster, down) for me in everyone if me not in down}
    assert len(reached(links)) == 35


def test_the_choice_is_stable_and_hardly_moves_with_the_roster() -> None:
    roster = everybody(names(60))
    before = dialled("r7", roster)
    assert dialled("r7", dict(reversed(roster.items()))) == before
    assert len(before - dialled("r7", roster | everybody(["new"]))) <= 1


def test_who_cannot_be_dialled_dials() -> None:
    roster = everybody(names(40)) | dict.fromkeys([f"nat{index}" for index in range(10)])
    assert not any(name.startswith("nat") for me in names(5) for name in dialled(me, roster))
    assert len(dialled("nat1", roster)) == 4


def test_the_down_ones_are_probed_for_ever() -> None:
    it = Dialling("r0", [], Random(1))
    it.know(everybody(names(60)))
    tried: set[str] = set()
    for round_ in range(200):
        for target in it.due(round_ * 100, {}):
            tried.add(target)
            it.over(target, round_ * 100)
    first = set(it.due(1e9, {}))
    assert len(first) > 20
    for target in first:
        it.over(target, 1e9)
    assert set(it.due(1e9 + 61, {})) == first


def test_a_seed_is_not_everybodys_neighbour_once_it_is_known() -> None:
    roster = everybody(names(60))
    it = Dialling("r0", [url("r50")], Random(1))
    assert it.due(0, {}) == [url("r50")]
    it.learned(url("r50"), "r50")
    it.over(url("r50"), 0, held_s=STEADY_S)
    it.know(roster)
    near = dialled("r0", roster)
    assert "r50" not in near
    assert {found.removeprefix("http://") for found in it.due(100, {"nat": 1.0})} == near
    for name in near:
        it.over(url(name), 0)
    assert url("r50") in it.due(100, {})  # with no link at all it is better than nothing


# Two links to one registry

LINKS = [
    # dialler of the new one, of the existing one: does the new one stay?
    ("a", "a", True),
    ("b", "b", True),
    ("a", "b", True),
    ("b", "a", False),
]


@pytest.mark.parametrize(("new", "existing", "stays"), LINKS)
def test_both_ends_keep_the_same_link(new: str, existing: str, stays: bool) -> None:
    assert keeps("a", "b", new == "a", existing == "a") is stays
    assert keeps("b", "a", new == "b", existing == "b") is stays
