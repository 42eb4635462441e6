"""Lists are in the order of ids however the nodes came: one by one, or many at once as in a load."""

import random

import pytest

from registry.directory import Directory
from registry.lifecycle import Windows
from registry.model import RegisterRequest
from registry.node import Origin, registered

ORIGIN = Origin("local", "local", "192.0.2.1", 1, {})


@pytest.mark.parametrize("burst", [1, 5, 63, 64, 65, 500])
def test_bursts_of_new_nodes_end_up_in_order(burst: int) -> None:
    directory, rng = Directory(Windows(30, 90, 300), 0.0, "local"), random.Random(burst)
    version, expected = 0, set()
    for _ in range(4):
        for number in rng.sample(range(10_000), burst):
            version += 1
            directory.put(registered(None, f"n{number}", RegisterRequest(), ORIGIN), version, 0.0)
            expected.add(f"n{number}")
        gone = rng.choice(sorted(expected))
        version += 1
        assert directory.delete(gone, version)
        expected.discard(gone)
        assert [entry.node_id for entry in directory.entries()] == sorted(expected)
        middle = rng.choice(sorted(expected) or ["n"])
        assert [entry.node_id for entry in directory.after(middle)] == [i for i in sorted(expected) if i > middle]
