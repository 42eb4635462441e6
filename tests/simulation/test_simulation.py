"""200 seeds, and the proofs that a seed is all there is to a run and that the checks can fail."""

import os
import subprocess
import sys

import pytest

from tests.simulation.world import run

SEEDS = 200
CHUNK = 10


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_is_kept(first: int) -> None:
    failed = [str(outcome) for seed in range(first, first + CHUNK) if (outcome := run(seed)).violation]
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
