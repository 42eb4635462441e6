"""Run the simulation: one seed, told event by event, or many in several processes.

python -m tests.simulation --seed 17 --trace
python -m tests.simulation --seeds 10000 --jobs 2
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from itertools import islice

from tests.simulation.mutants import MUTANTS
from tests.simulation.world import Outcome, run


def _tell(t: float, kind: str, fields: tuple[object, ...]) -> None:
    print(f"{t:10.3f}  {kind:<10} {' '.join(str(field) for field in fields)}")


def _one(seed: int, trace: bool) -> int:
    outcome = run(seed, tracer=_tell if trace else None)
    print(f"{outcome}\n  trace {outcome.trace:08x}, {outcome.events} events, {outcome.writes} writes, {outcome.alerts}")
    return 1 if outcome.violation else 0


def _many(first: int, count: int, jobs: int) -> int:
    began_s = time.monotonic()
    failed: list[Outcome] = []
    themes: Counter[str] = Counter()
    converged: list[float] = []
    totals: Counter[str] = Counter()
    with multiprocessing.Pool(jobs) as pool:
        for outcome in pool.imap_unordered(run, range(first, first + count), chunksize=4):
            themes.update(outcome.scenario.themes or ("calm",))
            totals.update(events=outcome.events, writes=outcome.writes, messages=outcome.messages)
            if outcome.violation:
                failed.append(outcome)
                print(outcome, flush=True)
            else:
                converged.append(outcome.converged_s)
    took_s = time.monotonic() - began_s
    print(f"{count} seeds from {first} in {took_s:.0f} s: {len(failed)} failed")
    print(", ".join(f"{total} {name}" for name, total in totals.items()))
    print("themes: " + ", ".join(f"{name} {number}" for name, number in themes.most_common()))
    if converged:
        converged.sort()
        middle, high = converged[len(converged) // 2], converged[int(len(converged) * 0.99)]
        print(f"agreement after the last write: median {middle:.0f} s, 99 % {high:.0f} s, most {converged[-1]:.0f} s")
    for promise, number in Counter(outcome.violation.split(":")[0] for outcome in failed).most_common():
        seeds = sorted(o.seed for o in failed if o.violation.startswith(promise))
        print(f"  {number} x {promise}: seeds {' '.join(map(str, seeds[:20]))}")
    return 1 if failed else 0


def _mutants(first: int, count: int) -> int:
    """For each broken mechanism the first seeds that show it."""
    survivors = 0
    for mutant in MUTANTS:
        shown = (seed for seed in range(first, first + count) if run(seed, mutate=mutant.mutate).violation)
        seeds = list(islice(shown, 2))
        survivors += not seeds
        print(f"{mutant}: {', '.join(map(str, seeds)) or 'NOTHING shows it'}", flush=True)
    return 1 if survivors else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--trace", action="store_true", help="and tell every event")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--mutants", action="store_true", help="look for seeds that show broken mechanisms")
    arguments = parser.parse_args()
    if arguments.mutants:
        return _mutants(arguments.first, arguments.seeds)
    if arguments.seed is not None:
        return _one(arguments.seed, arguments.trace)
    return _many(arguments.first, arguments.seeds, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
