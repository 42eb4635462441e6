"""Writes beside a measurement: a process of its own that spreads registrations and PATCHes over registries.

Half are registrations of nodes of its own (each at one registry, again and again), half are an operator's
changes of those nodes, at a registry that is not their home. Paced: what is due while every connection is busy
waits. One JSON object on standard output when the time is up; "started" on a line of its own before.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks import fleet
from benchmarks.harness import ADMIN_KEY
from benchmarks.load import Load, paced

NODES = 400  # at each registry
CONNECTIONS = 8  # to each registry
_FIRST = 10_000_000  # numbers of nodes that no seeded fleet has


@dataclass(frozen=True, slots=True)
class Written:
    """What the process did. `p99_ms` is of the registry that answered slowest."""

    per_s: float
    errors: int
    p50_ms: float
    p99_ms: float


def requests(number: int, count: int) -> list[bytes]:
    """What goes to registry `number` of `count`."""
    found = []
    for index in range(NODES):
        own = fleet.registration(_FIRST + index * count + number)
        found.append(fleet.request_bytes("POST", "/api/v1/nodes/register", ADMIN_KEY, own))
        other = fleet.registration(_FIRST + index * count + (number + 1) % count)["node_id"]
        change = {"labels_add": ["loaded"]}
        found.append(fleet.request_bytes("PATCH", f"/api/v1/nodes/{other}", ADMIN_KEY, change))
    return found


async def _register(port: int, registrations: Sequence[bytes]) -> None:
    for each in registrations:
        await fleet.ask("127.0.0.1", port, each)


async def spread(ports: Sequence[int], rate_per_s: float, seconds: float) -> Written:
    """Load every registry with its share."""
    async with asyncio.TaskGroup() as group:  # so that there is something to PATCH everywhere
        for number, port in enumerate(ports):
            group.create_task(_register(port, requests(number, len(ports))[::2]))
    await asyncio.sleep(1.0)
    print("started", flush=True)
    share = rate_per_s / len(ports)
    loads: list[Load] = await asyncio.gather(
        *(paced(port, requests(number, len(ports)), CONNECTIONS, seconds, share) for number, port in enumerate(ports))
    )
    return Written(
        sum(load.per_s for load in loads),
        sum(load.errors for load in loads),
        max(load.p50_ms for load in loads),
        max(load.p99_ms for load in loads),
    )


def main() -> None:
    """Run as a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rate_per_s", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("ports", type=int, nargs="+")
    given = parser.parse_args()
    written = uvloop.run(spread(given.ports, given.rate_per_s, given.seconds))
    print(json.dumps({name: getattr(written, name) for name in Written.__slots__}))


if __name__ == "__main__":
    main()
