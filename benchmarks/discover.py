"""Discovery: the engine alone over 100,000 and 1,000,000 nodes, and over HTTP against aiohttp that answers the
same bytes, repeated and distinct questions apart.
"""

import argparse
import asyncio
import sys
from typing import Any

from benchmarks import discover_engine as engine
from benchmarks import fleet
from benchmarks.harness import ADMIN_KEY, Report, Target, bare, interleave, measure, registry, scratch

PATH = "/api/v1/nodes/discover"
QUESTION = "capability=chat&limit=20"  # half of the fleet has it
RATIO, DISTINCT_PER_S = 0.6, 1_500.0
MEAN_MS, P99_MS, MILLION_P99_MS = 0.35, 2.5, 25.0
QUESTIONS, NAIVE_QUESTIONS = 3_000, 24


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--million", action="store_true", help="also over 1,000,000 nodes: 5 GB and two minutes")
    given = parser.parse_args()
    how: dict[str, Any] = {"connections": given.connections, "seconds": given.seconds}
    report = Report("discover")
    _engine(report, given.million)
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
    report.targets += [
        Target("discover against the same bytes from bare aiohttp, median ratio", rounds.ratio, RATIO),
        Target("distinct questions", own.load.per_s, DISTINCT_PER_S, "/s"),
    ]
    return report.finish()


def _engine(report: Report, million: bool) -> None:
    asked = engine.questions(QUESTIONS)
    directory, facts = engine.filled(100_000)
    timed = [
        engine.ours(directory, asked, "100,000 nodes"),
        engine.naive(facts, asked[:NAIVE_QUESTIONS], "100,000 nodes, a loop over all"),
    ]
    report.targets += [
        Target("engine, 100,000 nodes: mean", timed[0].mean_ms, MEAN_MS, "ms", at_most=True),
        Target("engine, 100,000 nodes: p99", timed[0].p99_ms, P99_MS, "ms", at_most=True),
    ]
    del directory, facts
    if million:
        timed.append(engine.ours(engine.filled(1_000_000)[0], asked[:1_000], "1,000,000 nodes"))
        report.targets.append(
            Target("engine, 1,000,000 nodes: p99", timed[-1].p99_ms, MILLION_P99_MS, "ms", at_most=True)
        )
    report.table(
        f"engine alone, the best {engine.LIMIT}, mixed questions", engine.COLUMNS, [each.row for each in timed]
    )
    report.facts["engine"] = {each.label: {"mean_ms": each.mean_ms, "p99_ms": each.p99_ms} for each in timed}


if __name__ == "__main__":
    sys.exit(main())
