"""Heartbeats per second of one worker, against aiohttp that only parses the same body.

10,000 registered nodes in mode `key`, each with its own key, over the embedded Valkey. Both servers
get the same requests from the same generator, in turns. Then the registry alone at half the rate
that it reached, paced: the latency that agents see, with the bare server's beside it, as a
machine that is busy with something else shows up in both.
"""

import argparse
import asyncio
import statistics
import sys
from typing import Any

from benchmarks import fleet
from benchmarks.harness import ADMIN_KEY, Report, Target, bare, interleave, measure, registry, scratch

PATH = "/api/v1/nodes/heartbeat"
RATIO, P99_MS, PACED_ROUNDS = 0.5, 10.0, 5


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    report = Report("heartbeat")
    with scratch() as folder, registry(folder / "data") as ours:
        keys = asyncio.run(fleet.register("127.0.0.1", ours.port, ADMIN_KEY, given.nodes))
        requests = fleet.heartbeats(keys)
        answer = asyncio.run(fleet.ask("127.0.0.1", ours.port, requests[0]))
        how: dict[str, Any] = {"connections": given.connections, "seconds": given.seconds}
        with bare(folder, PATH, answer) as reference:
            rounds = interleave(
                lambda: measure(ours, requests, **how), lambda: measure(reference, requests, **how), given.rounds
            )
            rate = statistics.median(run.load.per_s for run in rounds.ours) / 2
            how["rate_per_s"] = rate
            paced = interleave(
                lambda: measure(ours, requests, **how), lambda: measure(reference, requests, **how), PACED_ROUNDS
            )
    report.rounds("heartbeats", rounds)
    report.table(
        f"paced at {rate:,.0f}/s",
        ["", "registry p50", "registry p99", "bare p50", "bare p99", "server+store|generator"],
        [
            [str(i + 1), *(f"{ms:.2f} ms" for run in pair for ms in (run.load.p50_ms, run.load.p99_ms)), pair[0].usage]
            for i, pair in enumerate(zip(paced.ours, paced.bare, strict=True))
        ],
    )
    p99_ms = [run.load.p99_ms for run in paced.ours]
    report.facts["paced"] = {"rate_per_s": rate, "p99_ms": p99_ms, "bare_p99_ms": [r.load.p99_ms for r in paced.bare]}
    report.targets = [
        Target("heartbeats against bare aiohttp, median ratio", rounds.ratio, RATIO),
        Target("p99 at half that rate", statistics.median(p99_ms), P99_MS, "ms", at_most=True),
    ]
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
