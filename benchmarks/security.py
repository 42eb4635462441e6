"""What security costs, and what a flood of bad keys does to everybody else.

(a) Good clients, paced, alone and beside a flood of bad keys from another address, in turns. (b) Heartbeats in mode
`key` against mode `open`, and (c) over TLS on connections that are kept, against plain ones: the same requests from
the same generator, in turns; the median of the rounds' ratios counts.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks import fleet
from benchmarks.flood import ADDRESS
from benchmarks.harness import (
    ADMIN_KEY,
    Report,
    Rounds,
    Run,
    Server,
    Target,
    cores,
    interleave,
    measure,
    registry,
    scratch,
)
from tests.support.tls import certificate

P99_MS, ANSWERS_PER_S = 15.0, 100.0  # of good clients; of the flood, those that are answered at all
KEYS_COST, TLS_COST = 0.10, 0.45
FLOOD_S = 2.0
SETTLE_S = 1.0  # of the flood, before good clients are measured


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15, help="of keys and of TLS: many short ones")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each of those")
    parser.add_argument("--flood-rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1_000.0, help="of the good clients beside the flood, a second")
    given = parser.parse_args()
    report = Report("security")
    how: dict[str, Any] = {"connections": given.connections, "seconds": given.seconds}
    with scratch() as folder:
        cert, _ = certificate(folder / "tls")
        tls = ("--tls-cert", str(cert), "--tls-key", str(cert.with_name("key.pem")))
        with registry(folder / "secured") as filled:  # over plain HTTP; then it is started again
            secured_beats = _beats(filled, given.nodes)
        with registry(folder / "plain") as plain:
            beats = _beats(plain, given.nodes)
            _flooded(report, plain, beats, given)
            with registry(folder / "open", "--auth", "open", "--address-rate", "0") as anyone:
                free = _beats(anyone, given.nodes, with_keys=False)
                rounds = interleave(
                    lambda: measure(plain, beats, **how), lambda: measure(anyone, free, **how), given.rounds
                )
                _cost(report, "keys", ("mode key", "mode open"), rounds, KEYS_COST)
            with registry(folder / "secured", *tls) as secured:
                rounds = interleave(
                    lambda: measure(secured, secured_beats, **how, scheme="https"),
                    lambda: measure(plain, beats, **how),
                    given.rounds,
                )
                _cost(report, "TLS", ("TLS", "plain"), rounds, TLS_COST)
    return report.finish()


def _beats(server: Server, nodes: int, *, with_keys: bool = True) -> list[bytes]:
    """Register nodes; the requests of their heartbeats."""
    keys = asyncio.run(fleet.register("127.0.0.1", server.port, ADMIN_KEY, nodes))
    return fleet.heartbeats(keys if with_keys else [(node_id, "") for node_id, _ in keys])


def _cost(report: Report, what: str, names: tuple[str, str], rounds: Rounds, most: float) -> None:
    """Report what the first costs against the second, in throughput."""
    rows = [
        [f"round {index + 1}", f"{ours.load.per_s:,.0f}/s", f"{other.load.per_s:,.0f}/s",
         f"{1 - ours.load.per_s / other.load.per_s:.1%}", f"{ours.cpu_us:.0f} us", f"{other.cpu_us:.0f} us",
         ours.usage, other.usage]
        for index, (ours, other) in enumerate(zip(rounds.ours, rounds.bare, strict=True))
    ]  # fmt: skip
    rows.append(["median", "", "", f"{1 - rounds.ratio:.1%}", f"by CPU {1 - rounds.cpu_ratio:.1%}", "", "", ""])
    columns = [
        "",
        *names,
        "cost",
        *(f"{name}, CPU" for name in names),
        *(f"{name}, server+store|gen." for name in names),
    ]
    report.table(f"{what}: heartbeats", columns, rows)
    report.facts[what] = {
        "cost": 1 - rounds.ratio,
        "by_cpu": 1 - rounds.cpu_ratio,
        names[0]: [asdict(each) for each in rounds.ours],
        names[1]: [asdict(each) for each in rounds.bare],
    }
    report.targets.append(
        Target(f"{what}: cost in throughput, median", 100 * (1 - rounds.ratio), 100 * most, "%", True)
    )


def _flooded(report: Report, server: Server, beats: list[bytes], given: argparse.Namespace) -> None:
    """Good clients alone and beside the flood, in turns."""
    how: dict[str, Any] = {"connections": given.connections, "seconds": FLOOD_S, "rate_per_s": given.rate}
    measure(server, beats, **how)
    pairs: list[tuple[Run, Run, dict[str, float]]] = []
    for _ in range(given.flood_rounds):
        alone = measure(server, beats, **how)
        flood = _start_flood(server.port, given.connections, SETTLE_S + FLOOD_S + 1.0)
        time.sleep(SETTLE_S)
        beside = measure(server, beats, **how)
        pairs.append((alone, beside, _ended(flood)))
    report.table(
        f"good clients at {given.rate:,.0f}/s, alone and beside a flood of bad keys from {ADDRESS}",
        ["", "alone p50", "p99", "beside it p50", "p99", "server alone", "beside it", "flood: connects", "sent",
         "401", "429"],
        [[f"round {index + 1}", *(f"{ms:.2f} ms" for run in runs for ms in (run.load.p50_ms, run.load.p99_ms)),
          *(f"{run.server_cpu:.2f}" for run in runs),
          *(f"{seen.get(name, 0) / seen['seconds']:,.0f}/s" for name in ("connects", "sent", "401", "429"))]
         for index, (*runs, seen) in enumerate(pairs)],
    )  # fmt: skip
    answered = [(seen.get("401", 0) + seen.get("429", 0)) / seen["seconds"] for _, _, seen in pairs]
    report.facts["flood"] = [
        {"alone": asdict(alone), "beside": asdict(beside), "flood": seen} for alone, beside, seen in pairs
    ]
    p99_ms = statistics.median(beside.load.p99_ms for _, beside, _ in pairs)
    report.targets += [
        Target("p99 of good clients beside the flood, median", p99_ms, P99_MS, "ms", at_most=True),
        Target("answers that the flood gets, median", statistics.median(answered), ANSWERS_PER_S, "/s", at_most=True),
    ]


def _start_flood(port: int, connections: int, seconds: float) -> subprocess.Popen[str]:
    """The flood shares a core with the store and the generator, which it would not in earnest: it goes last there."""
    command = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.flood", *map(str, (port, connections, seconds))]
    pinned = cores().generator
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, pinned)) if pinned else None,
    )  # fmt: skip


def _ended(flood: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = flood.communicate(timeout=60)
    if flood.returncode:
        raise SystemExit("the flood failed")
    seen: dict[str, float] = json.loads(out)
    return seen


if __name__ == "__main__":
    sys.exit(main())
