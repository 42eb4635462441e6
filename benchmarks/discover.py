"""Discover by capability, the best 20 of 10,000 nodes, against aiohttp that answers the same bytes.

The target is for repeated questions: many callers ask the same. Distinct questions, each of which
looks at every node, are measured beside it: what a caller with a question of its own gets.
"""

import argparse
import asyncio
import sys
from typing import Any

from benchmarks import fleet
from benchmarks.harness import ADMIN_KEY, Report, Target, bare, interleave, measure, registry, scratch

PATH = "/api/v1/nodes/discover"
QUESTION = "capability=chat&limit=20"  # half of the fleet has it
RATIO = 0.5


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    how: dict[str, Any] = {"connections": given.connections, "seconds": given.seconds}
    report = Report("discover")
    with scratch() as folder, registry(folder / "data") as ours:
        keys = asyncio.run(fleet.register("127.0.0.1", ours.port, ADMIN_KEY, given.nodes))
        repeated = [fleet.request_bytes("GET", f"{PATH}?{QUESTION}", key) for _, key in keys]
        distinct = [
            fleet.request_bytes("GET", f"{PATH}?{QUESTION}&min_free_vram_gb={index / 1000:.3f}", keys[0][1])
            for index in range(5_000)
        ]
        answer = asyncio.run(fleet.ask("127.0.0.1", ours.port, repeated[0]))
        with bare(folder, PATH, answer) as reference:
            rounds = interleave(
                lambda: measure(ours, repeated, **how), lambda: measure(reference, repeated, **how), given.rounds
            )
        own = measure(ours, distinct, **how)
    report.rounds(f"repeated question, {len(answer):,} bytes", rounds)
    report.table(
        f"distinct questions, each over {given.nodes:,} nodes",
        ["", "registry", "CPU", "p50", "p99", "server+store|generator"],
        [["", f"{own.load.per_s:,.0f}/s", f"{own.cpu_us / 1000:.2f} ms", f"{own.load.p50_ms:.0f} ms",
          f"{own.load.p99_ms:.0f} ms", own.usage]],
    )  # fmt: skip
    report.facts["distinct"] = {"per_s": own.load.per_s, "cpu_ms": own.cpu_us / 1000}
    report.targets = [Target("discover against the same bytes from bare aiohttp, median ratio", rounds.ratio, RATIO)]
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
