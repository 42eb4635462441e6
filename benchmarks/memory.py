"""Memory of the registry's process with 100,000 nodes, and how fast it is back with them.

A real `dagi-registry serve`: its resident memory when idle, after the nodes registered over HTTP,
and again after a restart, which reads them all back from the store before it is ready.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

import orjson

from benchmarks import fleet
from benchmarks.harness import ADMIN_KEY, Report, Server, Target, registry, scratch

# The directory: 1.5 KB. The record that is replicated, kept beside it: its payload (1 KB here), and 1 KB of ours.
OVERHEAD_KB, READY_S = 4.0, 10.0
SETTLE_S = 2.0  # the last answers and the tail of the change stream


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000)
    given = parser.parse_args()
    count: int = given.nodes
    report = Report("memory")
    with scratch() as folder:
        data = folder / "data"
        idle_kb, _ = asyncio.run(_idle(data))
        with registry(data) as server:
            started = time.perf_counter()
            asyncio.run(fleet.register("127.0.0.1", server.port, ADMIN_KEY, count))
            filled_s = time.perf_counter() - started
            loaded_kb = _resident_kb(server)
            json_kb = asyncio.run(_shown_kb(server.port))
        started = time.perf_counter()
        with registry(data) as server:
            ready_s = time.perf_counter() - started
            ready_cpu_s = server.cpu_s()
            restarted_kb = _resident_kb(server)
            total = asyncio.run(_total(server.port))
        if total != count:
            raise SystemExit(f"{total} of {count} nodes came back after the restart")
    _tell(report, count, idle_kb, loaded_kb, restarted_kb, json_kb, filled_s, ready_s, ready_cpu_s)
    return report.finish()


def _tell(
    report: Report, count: int, idle_kb: float, loaded_kb: float, restarted_kb: float, json_kb: float,
    filled_s: float, ready_s: float, ready_cpu_s: tuple[float, float],
) -> None:  # fmt: skip
    sent_kb = statistics.mean(len(orjson.dumps(fleet.registration(i))) for i in range(1_000)) / 1024
    per_node = {name: (kb - idle_kb) / count for name, kb in (("registered", loaded_kb), ("restarted", restarted_kb))}
    report.table(
        f"{count:,} nodes; a registration is {sent_kb:.2f} KB, the node's own encoded JSON {json_kb:.2f} KB",
        ["", "resident", "a node", "above its own JSON"],
        [["idle", f"{idle_kb / 1024:,.0f} MB", "", ""]]
        + [
            [name, f"{kb / 1024:,.0f} MB", f"{per_node[name]:.2f} KB", f"{per_node[name] - json_kb:.2f} KB"]
            for name, kb in (("registered", loaded_kb), ("restarted", restarted_kb))
        ],
    )
    report.table(
        "restart to ready",
        ["", "wall", "registry CPU", "store CPU"],
        [["", f"{ready_s:.1f} s", f"{ready_cpu_s[0]:.1f} s", f"{ready_cpu_s[1]:.1f} s"]],
    )
    report.facts["memory"] = {
        "nodes": count, "idle_kb": idle_kb, "registered_kb": loaded_kb, "restarted_kb": restarted_kb,
        "json_kb": json_kb, "registration_kb": sent_kb, "registrations_per_s": count / filled_s,
        "ready_s": ready_s, "ready_cpu_s": ready_cpu_s,
    }  # fmt: skip
    report.targets = [
        Target(f"a node {name}, above its own JSON", kb - json_kb, OVERHEAD_KB, "KB", at_most=True)
        for name, kb in per_node.items()
    ]
    report.targets.append(Target("restart to ready", ready_s, READY_S, "s", at_most=True))


async def _idle(data: Path) -> tuple[float, int]:
    """Resident memory with no node, after some requests warmed everything up."""
    with registry(data) as server:
        for _ in range(200):
            total = await _total(server.port)
        return _resident_kb(server), total


async def _total(port: int) -> int:
    body = await fleet.ask("127.0.0.1", port, fleet.request_bytes("GET", "/api/v1/nodes?limit=1", ADMIN_KEY))
    return int(orjson.loads(body)["total"])


async def _shown_kb(port: int) -> float:
    """The mean length of a node's JSON as every answer shows it."""
    body = await fleet.ask("127.0.0.1", port, fleet.request_bytes("GET", "/api/v1/nodes?limit=1000", ADMIN_KEY))
    return statistics.mean(len(orjson.dumps(node)) for node in orjson.loads(body)["nodes"]) / 1024


def _resident_kb(server: Server) -> float:
    time.sleep(SETTLE_S)
    return float(server.process.memory_info().rss) / 1024


if __name__ == "__main__":
    sys.exit(main())
