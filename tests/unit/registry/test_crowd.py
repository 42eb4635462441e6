"""Who may hold how many connections, and who makes room."""

import random

from hypothesis import given
from hypothesis import strategies as st

from registry.crowd import ANY, Crowd


def held(crowd: Crowd[int]) -> dict[str, list[int]]:
    return {address: list(connections) for address, connections in crowd._by_address.items()}


def test_an_address_has_so_many_at_most() -> None:
    crowd = Crowd[int](10, 2)
    assert [crowd.enter("a", number)[0] for number in range(3)] == ["", "", "connections_of_address"]
    assert crowd.enter("b", 7) == ("", None)
    crowd.leave("a", 0)
    crowd.leave("a", 0)
    assert len(crowd) == 2
    assert crowd.enter("a", 3) == ("", None)


def test_when_full_the_greediest_gives_up_its_oldest() -> None:
    crowd = Crowd[int](5, 5)
    for number in range(4):
        crowd.enter("greedy", number)
    crowd.enter("b", 10)
    assert crowd.enter("greedy", 4) == ("connections", None)  # not for its own
    assert crowd.enter("c", 20) == ("", 0)
    assert crowd.enter("b", 11) == ("", 1)
    assert held(crowd) == {"greedy": [2, 3], "b": [10, 11], "c": [20]}
    assert crowd.enter("c", 21) == ("connections", None)  # nobody holds clearly more than it would
    assert crowd.enter("d", 30) == ("", 2)


def test_trusted_proxies_count_only_in_all() -> None:
    crowd = Crowd[int](4, 1)
    assert [crowd.enter(ANY, number)[0] for number in range(4)] == ["", "", "", ""]
    assert crowd.enter("a", 10) == ("connections", None)
    crowd.leave(ANY, 3)
    assert crowd.enter("a", 10) == ("", None)
    assert crowd.enter(ANY, 4) == ("connections", None)


@given(st.integers(0, 2**32))
def test_counts_hold_whatever_happens(seed: int) -> None:
    rng, crowd, inside = random.Random(seed), Crowd[int](8, 5), dict[int, str]()
    for number in range(60):
        if inside and rng.random() < 0.3:
            gone = rng.choice(list(inside))
            crowd.leave(inside.pop(gone), gone)
            continue
        address = rng.choice(["a", "b", "c", ANY])
        refusal, victim = crowd.enter(address, number)
        if not refusal:
            inside[number] = address
        if victim is not None:
            greedy = inside.pop(victim)
            assert greedy != address
        assert len(crowd) == len(inside) <= 8
        assert sum(map(len, held(crowd).values())) == len(inside)
        assert all(len(there) <= 5 for where, there in held(crowd).items() if where != ANY)
