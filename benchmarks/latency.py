"""How good the estimates of latency are, on measured round trips between 490 hosts (data/README.md).

Registries stand at some hosts, all others measure only those; a caller then asks for the nearest of 60 others, drawn
at random. An answer is right when it is within 10 % or 5 ms of the true best. Registries stand where few hosts are far
from all of them: the k medoids of log(1 + RTT), as an operator who goes by ratios would place them.

The whole way is taken: each host is a node of a directory, its round trips come with a heartbeat, and the finder
answers `latency=min`. Then the caller measures the first ten itself and asks again.
"""

import argparse
import gzip
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.harness import Report, Target
from registry.backbone import Told
from registry.directory import Directory
from registry.discovery import Finder
from registry.latency import estimates
from registry.lifecycle import Windows
from registry.model import DiscoverQuestion, RegisterRequest, parse
from registry.node import Origin, registered

FILE = Path(__file__).parent / "data" / "planetlab-rtt-ms.csv.gz"
REGISTRIES, CANDIDATES, PROBED = 8, 60, 10
ERROR, FIRST, FIVE, PROBED_RIGHT = 0.065, 0.64, 0.88, 0.93
Matrix = NDArray[np.float64]


def measured() -> Matrix:
    """Round trips between hosts in milliseconds, the lesser of both directions; 0 to itself."""
    with gzip.open(FILE, "rt") as file:
        found = np.loadtxt(file, delimiter=",")
    found[found == 0] = np.inf
    found = np.minimum(found, found.T)
    np.fill_diagonal(found, 0)
    return found


def medoids(rtt_ms: Matrix, count: int) -> list[int]:
    """Partitioning around medoids (Kaufman and Rousseeuw 1987) of log(1 + RTT)."""
    far = np.log1p(np.minimum(rtt_ms, 10_000))
    chosen = [int(far.sum(1).argmin())]
    while len(chosen) < count:
        gains = np.maximum(far[:, chosen].min(1)[:, None] - far, 0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
    better = True
    while better:
        better = False
        for place in range(count):
            rest = [host for index, host in enumerate(chosen) if index != place]
            costs = np.minimum(far[:, rest].min(1)[:, None], far).sum(0)
            if costs.min() < far[:, chosen].min(1).sum() - 1e-9:
                chosen[place] = int(costs.argmin())
                better = True
    return chosen


class World:
    """The hosts as nodes of one registry."""

    def __init__(self, rtt_ms: Matrix, registries: Sequence[int], most: int = REGISTRIES, *, told: bool = True) -> None:
        """`most`: how many registries, the nearest, each host has measured. `told`: registries say how far they are
        from each other."""
        self.rtt_ms = rtt_ms
        self._asked: set[int] = set()
        self.hosts = [host for host in range(len(rtt_ms)) if host not in registries]
        self.vectors = {
            host: {f"r{number}": round(float(rtt_ms[host, at]), 2) for number, at in enumerate(registries)}
            for host in self.hosts
        }
        self.directory = Directory(Windows(30, 90, 300), 0.0, "r0")
        self.vectors = {
            host: {name: vector[name] for name in sorted(vector, key=vector.__getitem__)[:most]}
            for host, vector in self.vectors.items()
        }
        for number, at in enumerate(registries):
            if told:
                ways = {f"r{other}": float(rtt_ms[at, to]) for other, to in enumerate(registries) if to != at}
                self.directory.backbone.hear(f"r{number}", Told(f"region-{number}", ways))
            self.directory.hear(f"r{number}", reachable=True, age_s=0.0, now_ms=1, generation=1, known=())
        for version, host in enumerate(self.hosts, 1):
            request = parse(RegisterRequest, {"node_id": f"n{host}"})
            record = registered(None, f"n{host}", request, Origin("r0", "eu", "127.0.0.1", 1, {}))
            self.directory.put(record, version, 0.0)
            metrics = {"registry_rtt_ms": self.vectors[host]}
            self.directory.beat(f"n{host}", orjson.dumps(metrics), 1, 0.0, metrics)

    def among(self, hosts: Sequence[int]) -> Finder:
        """A finder that offers these alone."""
        version = 1 + self.directory.newest
        for host in self._asked.symmetric_difference(hosts):
            labels = ["asked"] if host in hosts else []
            request = parse(RegisterRequest, {"node_id": f"n{host}", "labels": labels})
            record = registered(None, f"n{host}", request, Origin("r0", "eu", "127.0.0.1", 1, {}))
            self.directory.put(record, version, 0.0)
        self._asked = set(hosts)
        return Finder(self.directory, {})


def answered(finder: Finder, caller: int, limit: int, pairs: Mapping[str, float] | None = None) -> list[int]:
    """The nearest, as the finder says."""
    asked = {"label": ["asked"], "latency": "min", "limit": limit, "node_rtt_ms": dict(pairs) if pairs else None}
    query = parse(DiscoverQuestion, {name: value for name, value in asked.items() if value is not None})
    found = finder.discover(query, repr(query), "eu", 0.0, 1, f"n{caller}")
    return [int(entry.node_id[1:]) for entry in found.entries]


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=2_000)
    given = parser.parse_args()
    report, rng = Report("latency"), random.Random(7)
    rtt_ms = measured()
    world = World(rtt_ms, medoids(rtt_ms, REGISTRIES))
    first, five, probed = [], [], []
    for _ in range(given.questions):
        caller, *others = rng.sample(world.hosts, CANDIDATES + 1)
        best_ms = min(rtt_ms[caller, host] for host in others)

        def right(host: int, caller: int = caller, best_ms: float = best_ms) -> bool:
            return bool(rtt_ms[caller, host] <= max(best_ms * 1.1, best_ms + 5))

        finder = world.among(others)
        ids = answered(finder, caller, PROBED)
        first.append(right(ids[0]))
        five.append(any(map(right, ids[:5])))
        pairs = {f"n{host}": float(rtt_ms[caller, host]) for host in ids}
        probed.append(right(answered(finder, caller, 1, pairs)[0]))
    few = [_few(rtt_ms, given.questions // 4, told=told) for told in (False, True)]
    report.table(
        "hosts have measured two registries alone; registries tell what they measured of each other",
        ["", "median relative error", "first right", "one of the first five"],
        [[name, *row] for name, row in zip(("no", "yes"), few, strict=True)],
    )
    error = _error(world)
    report.table(
        f"{REGISTRIES} registries, the nearest of {CANDIDATES}, {given.questions} questions",
        ["median relative error", "first right", "one of the first five", "first, once ten were measured"],
        [[f"{error:.4f}", *(f"{statistics.mean(each):.1%}" for each in (first, five, probed))]],
    )
    report.facts["latency"] = {
        "error": error, "first": statistics.mean(first), "five": statistics.mean(five),
        "probed": statistics.mean(probed),
    }  # fmt: skip
    report.targets = [
        Target("median relative error of estimates", error, ERROR, at_most=True),
        Target("the first answer is right", statistics.mean(first), FIRST),
        Target("one of the first five is", statistics.mean(five), FIVE),
        Target("the first is, once ten were measured", statistics.mean(probed), PROBED_RIGHT),
    ]
    return report.finish()


def _few(rtt_ms: Matrix, questions: int, *, told: bool) -> list[str]:
    """How good answers are where each host has measured little."""
    world, rng = World(rtt_ms, medoids(rtt_ms, REGISTRIES), 2, told=told), random.Random(7)
    first, five, errors = [], [], list[float]()
    for _ in range(questions):
        caller, *others = rng.sample(world.hosts, CANDIDATES + 1)
        best_ms = min(rtt_ms[caller, host] for host in others)
        query = parse(DiscoverQuestion, {"label": ["asked"], "latency": "min", "limit": CANDIDATES})
        found = world.among(others).discover(query, repr(query), "eu", 0.0, 1, f"n{caller}")
        hosts = [int(entry.node_id[1:]) for entry in found.entries]
        right = [bool(rtt_ms[caller, host] <= max(best_ms * 1.1, best_ms + 5)) for host in hosts]
        first.append(right[0])
        five.append(any(right[:5]))
        for host, (ms, _) in zip(hosts, found.latencies, strict=True):
            if ms is not None and 0 < rtt_ms[caller, host] < np.inf:
                errors.append(abs(ms - rtt_ms[caller, host]) / float(rtt_ms[caller, host]))
    return [f"{statistics.median(errors):.3f}", f"{statistics.mean(first):.1%}", f"{statistics.mean(five):.1%}"]


def _error(world: World) -> float:
    """Of the shown estimate, over all pairs."""
    found: list[float] = []
    names = sorted(world.vectors[world.hosts[0]])
    columns = {name: np.array([world.vectors[host][name] for host in world.hosts], np.float32) for name in names}
    for host in world.hosts:
        _, shown = estimates(columns, world.vectors[host], len(world.hosts))
        true = world.rtt_ms[host, world.hosts]
        known = np.isfinite(true) & (true > 0)
        found += (np.abs(shown - true) / np.where(known, true, 1))[known].tolist()
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
