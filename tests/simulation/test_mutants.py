"""Each mechanism of the core is needed: broken, it makes a seed fail that passes with it."""

import multiprocessing

import pytest

from tests.simulation.mutants import MUTANTS, shows
from tests.simulation.test_simulation import SEEDS
from tests.simulation.world import run


@pytest.fixture(scope="module")
def shown() -> dict[str, bool]:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        names = [mutant.name for mutant in MUTANTS]
        return dict(zip(names, pool.map(shows, names, chunksize=1), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_what_is_broken_shows(name: str, shown: dict[str, bool]) -> None:
    assert shown[name], "look for seeds again: python -m tests.simulation --mutants"


@pytest.mark.slow
def test_the_seeds_pass_without() -> None:
    seeds = {seed for mutant in MUTANTS for seed in mutant.seeds if seed >= SEEDS}  # the others are run anyway
    failed = [seed for seed in seeds if run(seed).violation]
    assert not failed
