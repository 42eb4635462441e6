"""Sized runs of the replication core: many registries, or many nodes, in one process and virtual time.

Every byte on a link is really encoded. What is measured: how long until all are equal when the
nodes register everywhere at once, when one record changes, and when an empty registry joins; bytes on the
links; the memory of a registry. Table, JSON and plot go to benchmarks/results/.
"""

import argparse
import functools
import gc
import multiprocessing
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field

import matplotlib as mpl
import psutil

from benchmarks.harness import RESULTS, Report, Target
from benchmarks.merge import payload
from tests.support.fabric import Fabric

mpl.use("agg")
from matplotlib import pyplot

CHANGES = 25
CHORDS = 3  # beside the ring, each registry dials so many others: what an overlay of 100 keeps up


@dataclass(frozen=True, slots=True)
class Size:
    """`registries` in a mesh up to 20, else in a ring with chords; `nodes` in all, spread evenly."""

    registries: int
    nodes: int
    delay_s: float = 0.04

    @property
    def label(self) -> str:
        """What a table calls it."""
        return f"{self.registries} x {self.nodes:,}"


@dataclass(slots=True)
class Outcome:
    """Times in virtual seconds, sizes in bytes."""

    label: str
    links: int = 0
    load_s: float = 0.0
    load_bytes_a_link: float = 0.0
    load_wall_s: float = 0.0
    quiet_bytes_per_s: float = 0.0
    change_ms: list[float] = field(default_factory=list)
    join_s: float = 0.0
    join_bytes: int = 0
    memory_a_record: float = 0.0
    payload_bytes: int = 0


SIZES = (Size(100, 10_000), Size(5, 1_000_000))
SMALL = (Size(24, 1_000), Size(5, 10_000))


def main() -> int:
    """Run every size, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a minute instead of many, to see that it works")
    sizes = SMALL if parser.parse_args().small else SIZES
    # A process a size: what one leaves behind is not counted as the next one's memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        outcomes = list(processes.map(run, sizes))
    report = Report("federation_scale")
    rows = [
        [o.label, f"{o.links}", f"{o.load_s:.1f} s", f"{o.load_bytes_a_link / 1e6:.2f} MB",
         f"{o.quiet_bytes_per_s:.0f} B/s", f"{_at(o.change_ms, 0.5):.0f} / {max(o.change_ms):.0f} ms",
         f"{o.join_s:.1f} s", f"{o.join_bytes / 1e6:.1f} MB", f"{o.memory_a_record:.0f} B", f"{o.load_wall_s:.0f} s"]
        for o in outcomes
    ]  # fmt: skip
    columns = ["registries x nodes", "links", "all equal", "a link", "quiet link", "one change p50 / max",
               "newcomer equal", "it took in", "memory a record", "(real time)"]  # fmt: skip
    report.table("sized runs, 40 ms one way; times are virtual", columns, rows)
    for outcome in outcomes:
        report.targets.append(
            Target(f"{outcome.label}: quiet link", outcome.quiet_bytes_per_s, 1_024, "B/s", at_most=True)
        )
    report.facts["runs"] = [asdict(outcome) for outcome in outcomes]
    RESULTS.mkdir(exist_ok=True)
    plot(outcomes)
    return report.finish()


def run(size: Size) -> Outcome:
    """One size, from empty to a newcomer's last record."""
    outcome, rng = Outcome(size.label), random.Random(17)
    fabric = Fabric(delay_s=size.delay_s)
    names = [f"r{index:03d}" for index in range(size.registries)]
    for name in names:
        fabric.add(name)
    pairs = topology(names, rng)
    outcome.links = len(pairs)
    before = _rss()
    for pair in pairs:
        fabric.link(*pair)
    fabric.run(5)
    keys = _load(fabric, names, size, outcome, rng)
    gc.collect()
    outcome.memory_a_record = (_rss() - before) / (size.nodes * size.registries) - outcome.payload_bytes / size.nodes
    fabric.run(90)  # what the load left to announce
    sent, started_s = dict(fabric.sent), fabric.now_s
    fabric.run(60)
    links = {(min(pair), max(pair)) for pair in fabric.sent}
    busiest = max(sum(fabric.sent[way] - sent.get(way, 0) for way in (pair, pair[::-1])) for pair in links)
    outcome.quiet_bytes_per_s = busiest / (fabric.now_s - started_s)
    _change(fabric, names, keys, outcome, rng)
    _join(fabric, names, outcome)
    return outcome


def topology(names: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """A mesh up to 20, as operators would have it; beyond, a ring and a few chords each."""
    count = len(names)
    if count <= 20:
        return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    pairs = {tuple(sorted((names[i], names[(i + 1) % count]))) for i in range(count)}
    for name in names:
        pairs |= {tuple(sorted((name, other))) for other in rng.sample([n for n in names if n != name], CHORDS)}
    return sorted((a, b) for a, b in pairs)


def _load(fabric: Fabric, names: list[str], size: Size, outcome: Outcome, rng: random.Random) -> list[str]:
    """Every registry takes in its share of the nodes, over ten virtual seconds; then until all are equal."""
    started = time.perf_counter()
    keys = [f"n:node-host-{index}-{index:08x}" for index in range(size.nodes)]
    for part in range(100):
        for index in range(part, size.nodes, 100):
            name, data = names[index % len(names)], payload(index, rng)
            outcome.payload_bytes += len(data)
            _, effects = fabric.engines[name].register(
                keys[index], data, fabric.now(), incarnation=rng.getrandbits(62), judgement=b"online"
            )
            fabric.perform(name, effects)
        fabric.run(0.1)
    last_s = fabric.now_s
    if not fabric.run(900, until=lambda: _same_position(fabric) and fabric.equal()):
        raise SystemExit(f"{size.label}: the registries never became equal")
    outcome.load_s, outcome.load_wall_s = fabric.now_s - last_s, time.perf_counter() - started
    outcome.load_bytes_a_link = sum(fabric.sent.values()) / outcome.links
    return keys


def _change(fabric: Fabric, names: list[str], keys: list[str], outcome: Outcome, rng: random.Random) -> None:
    """One operator's change here, until it is in every other registry."""
    for _ in range(CHANGES):
        key, name, mark = rng.choice(keys), rng.choice(names), rng.randbytes(8)
        seen: dict[str, float] = {}
        fabric.on_store = functools.partial(_note, fabric, key, mark, seen)
        started_s = fabric.now_s
        fabric.perform(name, fabric.engines[name].amend(key, mark, fabric.now()))
        if not fabric.run(60, until=functools.partial(_everywhere, seen, len(names))):
            raise SystemExit(f"a change of {key} never arrived everywhere")
        outcome.change_ms.append((max(seen.values()) - started_s) * 1000)
    fabric.on_store = lambda registry_id, key: None


def _everywhere(seen: dict[str, float], count: int) -> bool:
    return len(seen) == count


def _note(fabric: Fabric, key: str, mark: bytes, seen: dict[str, float], registry_id: str, stored: str) -> None:
    record = fabric.engines[registry_id].replica.get(key) if stored == key else None
    if record is not None and record.intent is not None and record.intent.payload == mark:
        seen.setdefault(registry_id, fabric.now_s)


def _join(fabric: Fabric, names: list[str], outcome: Outcome) -> None:
    """An empty registry with links to three others."""
    fabric.add("newcomer")
    started_s = fabric.now_s
    for name in names[:3]:
        fabric.link("newcomer", name)
    if not fabric.run(900, until=lambda: _same_position(fabric) and fabric.equal()):
        raise SystemExit("the newcomer never caught up")
    outcome.join_s = fabric.now_s - started_s
    outcome.join_bytes = sum(size for (_, dst), size in fabric.sent.items() if dst == "newcomer")


def _same_position(fabric: Fabric) -> bool:
    engines = list(fabric.engines.values())
    return all(engine.replica.vector == engines[0].replica.vector for engine in engines[1:])


def _at(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


def plot(outcomes: list[Outcome]) -> None:
    """How long one change takes to be everywhere, as a distribution; what a link carries when quiet."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for outcome in outcomes:
        values = sorted(outcome.change_ms)
        shares = [(index + 1) / len(values) for index in range(len(values))]
        left.step(values, shares, where="post", label=outcome.label)
    left.set(xlabel="virtual ms until seen everywhere", ylabel="share of changes", xlim=(0, None), ylim=(0, 1.02))
    left.set_title("One change, 40 ms one way")
    left.legend(title="registries x nodes")
    left.grid(alpha=0.3)
    bars = right.bar([o.label for o in outcomes], [o.quiet_bytes_per_s for o in outcomes], width=0.5)
    right.bar_label(bars, fmt="%.0f")
    right.axhline(1_024, linestyle="--", color="grey", label="1 KB/s")
    right.set(ylabel="bytes/s on the busiest link", title="A quiet federation")
    right.legend()
    figure.savefig(RESULTS / "federation_scale.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
