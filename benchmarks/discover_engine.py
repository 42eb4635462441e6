"""Discovery without HTTP: mixed questions, from broad to narrow, over a fleet in memory.

The same questions are answered by a look at every node in Python, as a first version would have it: the same
filters, the same order.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import psutil

from benchmarks import fleet
from registry.directory import Directory
from registry.discovery import Finder
from registry.lifecycle import Windows
from registry.model import DiscoverQuery, RegisterRequest, parse
from registry.names import parse_model
from registry.node import Origin, Record, registered
from registry.ranking import ELSEWHERE_MS, SAME_REGION_MS, base_cost

REGIONS = ("eu", "us", "asia", "sa", "af")
LIMIT = 20
WARM_UP = 20
_MODELS = ("qwen3:8b", "llama3.1:70b", "gemma3:27b", "mistral-small:24b", "deepseek-r1:32b", "nomic-embed-text")


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds a question, sorted, and nodes found at the median."""

    label: str
    ms: list[float]
    found: int

    @property
    def row(self) -> list[str]:
        """A table's row."""
        p50, p99 = (self.ms[min(len(self.ms) - 1, int(len(self.ms) * share))] for share in (0.5, 0.99))
        return [self.label, str(len(self.ms)), f"{statistics.mean(self.ms):.3f} ms", f"{p50:.3f}", f"{p99:.3f}",
                f"{self.ms[-1]:.3f}", f"{self.found:,}"]  # fmt: skip

    @property
    def mean_ms(self) -> float:
        """The mean."""
        return statistics.mean(self.ms)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile."""
        return self.ms[min(len(self.ms) - 1, int(len(self.ms) * 0.99))]


COLUMNS = ["", "questions", "mean", "p50 ms", "p99 ms", "max ms", "found, p50"]


def filled(count: int) -> tuple[Directory, list[dict[str, Any]]]:
    """A directory of so many nodes, and each one's facts for the naive loop. Registrations repeat after 100,000:
    their JSON is shared, their rows are not."""
    directory = Directory(Windows(30, 90, 300), 0.0, "eu")
    rng = random.Random(3)
    facts: list[dict[str, Any]] = []
    made: list[Record] = []
    gc.disable()
    for index in range(count):
        if index < 100_000:
            record = _registered(index, region=REGIONS[index % len(REGIONS)])
            made.append(record)
        else:
            old = made[index % len(made)]
            record = Record(
                f"{old.node_id}-{index}", old.spec, old.fingerprint, old.observed_ip, "eu", 1, 1, kept=old.encode_spec()
            )
        directory.put(record, index + 1, 0.0)
        metrics = {"cpu_percent": round(rng.uniform(0, 100), 1), "gpu_percent": round(rng.uniform(0, 100), 1)}
        directory.beat(record.node_id, b"{}", 1, -rng.uniform(0, 30), metrics)  # some time in the last interval
        if index < 100_000:
            facts.append({**record.spec, "node_id": record.node_id, "load": max(metrics.values()) / 100})
    gc.freeze()
    gc.enable()
    return directory, facts


def questions(count: int) -> list[DiscoverQuery]:
    """What callers ask, no two alike: a third broad, a third in between, a third narrow."""
    rng = random.Random(9)
    kinds: Sequence[Callable[[], dict[str, Any]]] = (
        dict,
        lambda: {"capability": "gpu"},
        lambda: {"region": rng.choice(REGIONS)},
        lambda: {"model": rng.choice(_MODELS)},
        lambda: {"model": rng.choice(_MODELS), "min_free_vram_gb": round(rng.uniform(8, 48), 2)},
        lambda: {"label": rng.choice(("gpu", "home", "spot")), "prefer_region": rng.choice(REGIONS)},
        lambda: {"min_vram_gb": 48, "max_load": round(rng.uniform(0.2, 0.9), 2)},
        lambda: {"role": "inference", "sort": rng.choice(("load", "free_vram")), "region": rng.choice(REGIONS)},
        lambda: {
            "model": rng.sample(_MODELS, 2), "region": rng.choice(REGIONS),
            "min_free_vram_gb": round(rng.uniform(16, 60), 2),
        },
        lambda: {"label": ["gpu", "home"], "min_ram_gb": 200, "min_cpu_cores": 64, "max_load": 0.3},
        lambda: {"min_free_vram_gb": round(rng.uniform(75, 80), 2), "region": rng.choice(REGIONS)},
        lambda: {"model": "nobody-has-this:1b"},
    )  # fmt: skip
    asked = []
    for index in range(count):
        fields = kinds[index % len(kinds)]()
        asked.append(parse(DiscoverQuery, {"limit": LIMIT, **fields}))
    return asked


def ours(directory: Directory, asked: Sequence[DiscoverQuery], label: str) -> Timed:
    """Each question once, none of them kept from before; what several share grows old meanwhile."""
    finder = Finder(directory, {})
    started_s = time.perf_counter()
    taken: list[float] = []
    found: list[int] = []
    for index, query in enumerate(asked):
        began_s = time.perf_counter()
        answer = finder.discover(query, str(index), "eu", began_s - started_s, index)
        if index >= WARM_UP:
            taken.append((time.perf_counter() - began_s) * 1000)
        found.append(answer.total)
    return Timed(label, sorted(taken), sorted(found)[len(found) // 2])


def naive(facts: Sequence[dict[str, Any]], asked: Sequence[DiscoverQuery], label: str) -> Timed:
    """A look at every node."""
    taken: list[float] = []
    found: list[int] = []
    for query in asked:
        began_s = time.perf_counter()
        total, _ = best_of(facts, query)
        taken.append((time.perf_counter() - began_s) * 1000)
        found.append(total)
    return Timed(label, sorted(taken), sorted(found)[len(found) // 2])


def best_of(facts: Sequence[dict[str, Any]], query: DiscoverQuery) -> tuple[int, list[dict[str, Any]]]:
    """How many hold the filters, and the best of them."""
    matching = [node for node in facts if _holds(node, query)]
    return len(matching), sorted(matching, key=lambda node: _cost(node, query))[: query.limit]


def _holds(node: dict[str, Any], query: DiscoverQuery) -> bool:
    flat = node["capabilities"]
    return (
        (not query.region or node["region"] in query.region)
        and (not query.role or node["role"] in query.role)
        and all(label in node["labels"] for label in query.label)
        and all(flat.get(name) or name in flat["features"] for name in query.capability)
        and all(parse_model(name) in map(parse_model, flat["models"]) for name in query.model)
        and (query.min_vram_gb is None or sum(g["vram_gb"] for g in flat["gpus"]) >= query.min_vram_gb)
        and (query.min_free_vram_gb is None or sum(g["vram_free_gb"] for g in flat["gpus"]) >= query.min_free_vram_gb)
        and (query.min_ram_gb is None or flat["ram_gb"] >= query.min_ram_gb)
        and (query.min_cpu_cores is None or flat["cpu_cores"] >= query.min_cpu_cores)
        and (query.max_load is None or node["load"] <= query.max_load)
    )


def _cost(node: dict[str, Any], query: DiscoverQuery) -> tuple[float, float]:
    free = sum(g["vram_free_gb"] for g in node["capabilities"]["gpus"])
    near = query.prefer_region or "eu"
    cost = (SAME_REGION_MS if node["region"] == near else ELSEWHERE_MS) + base_cost(node["load"], free)
    return {"load": node["load"], "free_vram": -free}.get(query.sort or "", 0.0), cost


def held(count: int) -> tuple[float, float]:
    """Resident bytes a node that a directory of so many takes with all that it finds them by, and the mean length
    of the JSON that a node registered, which is part of that. In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(_held, count).result()


def _held(count: int) -> tuple[float, float]:
    directory = Directory(Windows(30, 90, 300), 0.0, "eu")
    resident = psutil.Process().memory_info
    directory.put(_registered(0), 1, 0.0)  # and everything that one node needs
    before = resident().rss
    for index in range(1, count):
        directory.put(_registered(index), index + 1, 0.0)
    a_node = (resident().rss - before) / count
    some = [entry for _, entry in zip(range(1_000), directory.entries(), strict=False)]
    return a_node, statistics.mean(len(entry.registration) for entry in some)


def _registered(index: int, **fields: Any) -> Record:
    """A node of the fleet; `fields` stand instead of what it says."""
    request = parse(RegisterRequest, {**fleet.registration(index), **fields})
    return registered(None, request.node_id or "", request, Origin("eu", "eu", "127.0.0.1", 1, {}))
