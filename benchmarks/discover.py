"""Discovery: the engine alone over 100,000 and 1,000,000 nodes, and over HTTP against aiohttp that answers the
same bytes, repeated and distinct questions apart.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import discover_engine as engine
from benchmarks import fleet, load
from benchmarks.discover_elsewhere import compared
from benchmarks.harness import (
    ADMIN_KEY,
    Report,
    Run,
    Server,
    Target,
    bare,
    cores,
    interleave,
    measure,
    registry,
    scratch,
)

PATH = "/api/v1/nodes/discover"
QUESTION = "capability=chat&limit=20"  # half of the fleet has it
RATIO, DISTINCT_PER_S = 0.6, 1_500.0
BEATS, WRITES, MOST_COST = 1_000.0, 50.0, 0.2  # a second, beside; and the share of the answers that they may cost
MEAN_MS, P99_MS, MILLION_P99_MS = 0.35, 2.5, 25.0
MEMORY_KB = 1.0  # a node in the directory, columns and indexes included, beyond its own JSON
# Most nodes never beat here, and are not to fall silent one after the other while others are measured.
PATIENT = ("--heartbeat-interval-s", "3600", "--degraded-after-s", "7200", "--offline-after-s", "14400")
QUESTIONS, NAIVE_QUESTIONS, ELSEWHERE_QUESTIONS = 3_000, 24, 6


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
    with scratch() as folder:
        _engine(report, folder, given.million)
    with scratch() as folder, registry(folder / "data", *PATIENT) as ours:
        keys = asyncio.run(fleet.register("127.0.0.1", ours.port, ADMIN_KEY, given.nodes))
        repeated = [fleet.request_bytes("GET", f"{PATH}?{QUESTION}", key) for _, key in keys]
        distinct = [
            fleet.request_bytes("GET", f"{PATH}?{QUESTION}&min_free_vram_gb={index / 2000:.4f}", keys[index][1])
            for index in range(min(len(keys), 20_000))
        ]
        answer = asyncio.run(fleet.ask("127.0.0.1", ours.port, repeated[0]))
        with bare(folder, PATH, answer) as reference:
            rounds = interleave(
                lambda: measure(ours, repeated, **how), lambda: measure(reference, repeated, **how), given.rounds
            )
        quiet, busy = _beside(ours, distinct, keys, given.rounds, how)
    report.rounds(f"repeated question, {len(answer):,} bytes", rounds)
    cost = 1 - statistics.median(b.load.per_s / q.load.per_s for q, b in zip(quiet, busy, strict=True))
    report.table(
        f"distinct questions over {given.nodes:,} nodes; beside: {BEATS:g} heartbeats/s, {WRITES:g} registrations/s",
        ["", "registry", "beside", "cost", "CPU", "p50", "p99", "server+store|generator"],
        [
            [f"round {number}", f"{q.load.per_s:,.0f}/s", f"{b.load.per_s:,.0f}/s",
             f"{1 - b.load.per_s / q.load.per_s:.0%}", f"{q.cpu_us / 1000:.2f} ms", f"{q.load.p50_ms:.0f} ms",
             f"{q.load.p99_ms:.0f} ms", q.usage]
            for number, (q, b) in enumerate(zip(quiet, busy, strict=True), 1)
        ],
    )  # fmt: skip
    per_s = statistics.median(run.load.per_s for run in quiet)
    report.facts["distinct"] = {
        "per_s": [run.load.per_s for run in quiet], "beside_per_s": [run.load.per_s for run in busy],
        "cpu_ms": [run.cpu_us / 1000 for run in quiet], "cost": cost,
    }  # fmt: skip
    report.targets += [
        Target("discover against the same bytes from bare aiohttp, median ratio", rounds.ratio, RATIO),
        Target("distinct questions", per_s, DISTINCT_PER_S, "/s"),
        Target("what heartbeats and registrations beside cost of them", cost, MOST_COST, at_most=True),
    ]
    return report.finish()


def _beside(
    server: Server, distinct: list[bytes], keys: Sequence[tuple[str, str]], rounds: int, how: dict[str, Any]
) -> tuple[list[Run], list[Run]]:
    """Distinct questions alone, and while nodes beat and register, in turns."""
    writes = [
        fleet.request_bytes("POST", "/api/v1/nodes/register", ADMIN_KEY, fleet.registration(20_000_000 + index))
        for index in range(5_000)
    ]
    loads = ((fleet.heartbeats(keys), BEATS), (writes, WRITES))
    quiet: list[Run] = []
    busy: list[Run] = []
    for index in range(rounds):
        for turn in (0, 1):
            if (index + turn) % 2:
                quiet.append(measure(server, distinct, **how))
                continue
            with ThreadPoolExecutor(len(loads)) as threads:
                seconds = how["seconds"] + 1.0  # the questions begin and end within it
                beside = [
                    threads.submit(load.run, server.port, some, connections=32, seconds=seconds, rate_per_s=rate,
                                   cores=cores().generator)
                    for some, rate in loads
                ]  # fmt: skip
                time.sleep(0.5)
                busy.append(measure(server, distinct, **how))
                if any(each.result().errors for each in beside):
                    raise SystemExit("requests beside failed")
    return quiet, busy


def _engine(report: Report, folder: Path, million: bool) -> None:
    asked = engine.questions(QUESTIONS)
    a_node, its_json = engine.held(100_000)
    directory, facts = engine.filled(100_000)
    timed = [
        engine.ours(directory, asked, "100,000 nodes"),
        engine.naive(facts, asked[:NAIVE_QUESTIONS], "100,000 nodes, a loop over all"),
        *compared(folder, facts, asked[:ELSEWHERE_QUESTIONS], print),
    ]
    report.targets += [
        Target("engine, 100,000 nodes: mean", timed[0].mean_ms, MEAN_MS, "ms", at_most=True),
        Target("engine, 100,000 nodes: p99", timed[0].p99_ms, P99_MS, "ms", at_most=True),
    ]
    report.facts["directory"] = {"bytes_a_node": a_node, "json_bytes": its_json}
    report.targets.append(
        Target("directory, a node beyond its own JSON", (a_node - its_json) / 1024, MEMORY_KB, "KB", at_most=True)
    )
    del directory, facts
    if million:
        timed.append(engine.ours(engine.filled(1_000_000)[0], asked[:1_000], "1,000,000 nodes"))
        report.targets.append(
            Target("engine, 1,000,000 nodes: p99", timed[-1].p99_ms, MILLION_P99_MS, "ms", at_most=True)
        )
    report.table(
        f"engine alone, the best {engine.LIMIT}, mixed questions; and what one would take instead",
        engine.COLUMNS,
        [each.row for each in timed],
    )
    report.facts["engine"] = {each.label: {"mean_ms": each.mean_ms, "p99_ms": each.p99_ms} for each in timed}


if __name__ == "__main__":
    sys.exit(main())
