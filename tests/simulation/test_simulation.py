"""100 seeds, and the proofs that a seed is all there is to a run and that the checks can fail."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from tests.simulation.world import run

SEEDS, SOME = 100, 50


@pytest.mark.parametrize("seeds", [range(SOME), pytest.param(range(SOME, SEEDS), marks=pytest.mark.slow)], ids=str)
def test_every_promise_is_kept(seeds: range) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        failed = [str(outcome) for outcome in pool.imap(run, seeds, chunksize=4) if outcome.violation]
    assert not failed, "\n" + "\n".join(failed)


def test_a_seed_is_all_there_is_to_a_run() -> None:
    code = "from tests.simulation.world import run; print(*(run(seed).trace for seed in (3, 4)))"
    traces = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert traces == {f"{run(3).trace} {run(4).trace}\n"}
    assert run(3).trace != run(4).trace
