"""What every benchmark shares: servers as processes, fair cores, interleaved rounds, the verdict.

Machines differ and so does one machine from minute to minute, so nothing here trusts a single
figure: two servers are measured in turns, and the median of the rounds' ratios is what counts.
"""

import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.load import Load, generator_name, run

ADMIN_KEY = "sk-admin-" + "b" * 40
RESULTS = Path(__file__).parent / "results"
READY_S = 60.0
SATURATED = 0.9  # CPU seconds a second; the rest goes to accounting and to the neighbours
_OURS = ("REGISTRY_", "NODE_", "REDIS_URL", "ALLOWED_NODES", "NATS_URL", "PROMETHEUS_")


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the server, its store and the generator run on. Empty: nothing is pinned."""

    server: frozenset[int]
    store: frozenset[int]
    generator: frozenset[int]


def cores() -> Cores:
    """The server has a core of its own where there are two; the store and the generator share the
    other, or have one each."""
    free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(free) < 2:
        return Cores(frozenset(), frozenset(), frozenset())
    return Cores(frozenset({free[0]}), frozenset({free[1]}), frozenset({free[2 if len(free) > 2 else 1]}))


class Server:
    """A server process that prints `listening on URL`."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path) -> None:
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        environment["REGISTRY_ADMIN_KEY"] = ADMIN_KEY
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=out, stderr=out, cwd=folder, env=environment
            )
        try:
            self.port = self._wait()
        except BaseException:
            self.popen.kill()
            self.popen.wait()
            raise
        self.process = psutil.Process(self.popen.pid)
        self.stores = self.process.children()
        _pin(self.process, cores().server)
        for store in self.stores:
            _pin(store, cores().store)

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds that the server and its store have used."""
        return _cpu_s(self.process), sum(_cpu_s(store) for store in self.stores)

    def stop(self) -> None:
        """Ask it to stop, and wait until it and its store are gone."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def _wait(self) -> int:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.popen.poll() is None:
            found = re.search(r"listening on https?://[^ :]+:(\d+)\s", self._log.read_text())
            if found:
                return int(found[1])
            time.sleep(0.01)
        raise SystemExit(f"the server did not start: {self._log.read_text()[-2000:]}")


@contextlib.contextmanager
def registry(data_dir: Path, *flags: str) -> Iterator[Server]:
    """A registry with one worker over its embedded Valkey, as operators start it, in mode `key` unless told."""
    command = ["registry", "serve", "--port", "0", "--auth", "key", "--data-dir", str(data_dir), *flags]
    yield from _running(Server(command, data_dir.parent, data_dir.parent / f"{data_dir.name}.log"))


@contextlib.contextmanager
def bare(folder: Path, path: str, answer: bytes) -> Iterator[Server]:
    """The bare aiohttp server that answers `answer` on `path`."""
    file = folder / "answer"
    file.write_bytes(answer)
    yield from _running(Server(["benchmarks.bare", path, str(file)], folder, folder / "bare.log"))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one benchmark's data."""
    with tempfile.TemporaryDirectory(prefix="dagi-bench-") as folder:
        yield Path(folder)


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one server, and the CPU seconds that each side used per second of it."""

    load: Load
    server_cpu: float
    store_cpu: float
    generator_cpu: float

    @property
    def saturated(self) -> str:
        """Which side had no more to give."""
        if self.server_cpu >= SATURATED:
            return "server"
        return "generator" if self.generator_cpu >= SATURATED else "neither"

    @property
    def cpu_us(self) -> float:
        """The server's CPU microseconds a request: steady also while neighbours take its core."""
        return self.server_cpu * self.load.seconds / self.load.requests * 1e6

    @property
    def usage(self) -> str:
        """The CPU columns of a table."""
        store = f"+{self.store_cpu:.2f}" if self.store_cpu else ""
        return f"{self.server_cpu:.2f}{store}|{self.generator_cpu:.2f} {self.saturated}"


def measure(server: Server, requests: Sequence[bytes], **how: Any) -> Run:
    """Load a server. Any answer but 200 ends the benchmark: it would have measured something else."""
    before, children, started = server.cpu_s(), os.times(), time.perf_counter()
    load = run(server.port, requests, cores=cores().generator, **how)
    took = time.perf_counter() - started
    after, ended = server.cpu_s(), os.times()
    if load.errors:
        raise SystemExit(f"{load.errors} of {load.requests} requests failed")
    generator_s = ended.children_user + ended.children_system - children.children_user - children.children_system
    # The generator's process also starts and reads its requests; the load itself is what counts.
    return Run(load, (after[0] - before[0]) / load.seconds, (after[1] - before[1]) / load.seconds, generator_s / took)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Interleaved runs of the registry and of the bare server."""

    ours: list[Run]
    bare: list[Run]

    @property
    def ratios(self) -> list[float]:
        """Registry to bare, round by round."""
        return [ours.load.per_s / bare.load.per_s for ours, bare in zip(self.ours, self.bare, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def cpu_ratio(self) -> float:
        """The same by CPU time a request: what the ratio is on a quiet machine."""
        return statistics.median(bare.cpu_us / ours.cpu_us for ours, bare in zip(self.ours, self.bare, strict=True))

    def rows(self) -> list[list[str]]:
        """A table's rows: each round's rates and ratio."""
        return [
            [f"round {i + 1}", f"{ours.load.per_s:,.0f}/s", f"{bare.load.per_s:,.0f}/s",
             f"{ours.load.per_s / bare.load.per_s:.3f}", f"{bare.cpu_us / ours.cpu_us:.3f}",
             f"{ours.cpu_us:.0f} us", f"{bare.cpu_us:.0f} us", ours.usage, bare.usage]
            for i, (ours, bare) in enumerate(zip(self.ours, self.bare, strict=True))
        ]  # fmt: skip


def interleave(ours: Callable[[], Run], reference: Callable[[], Run], rounds: int) -> Rounds:
    """Run both in turns, the other one first in every second round; one unmeasured turn before."""
    ours()
    reference()
    found = Rounds([], [])
    for index in range(rounds):
        for turn in (0, 1):
            if (index + turn) % 2:
                found.ours.append(ours())
            else:
                found.bare.append(reference())
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """A number that must hold: at least `limit`, or at most where `at_most`."""

    name: str
    value: float
    limit: float
    unit: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(slots=True)
class Report:
    """What a benchmark prints, and writes to benchmarks/results/NAME.json."""

    name: str
    targets: list[Target] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table to print."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        self.tables.append(table)

    def rounds(self, title: str, rounds: Rounds) -> None:
        """Add interleaved rounds: a table, and their numbers."""
        columns = ["", "registry", "bare", "ratio", "by CPU", "registry CPU", "bare CPU",
                   "server+store|generator", "bare|generator"]  # fmt: skip
        median = ["median", "", "", f"{rounds.ratio:.3f}", f"{rounds.cpu_ratio:.3f}", "", "", "", ""]
        self.table(title, columns, [*rounds.rows(), median])
        self.facts[title] = {
            "ratio": rounds.ratio,
            "cpu_ratio": rounds.cpu_ratio,
            "ratios": rounds.ratios,
            "registry": [asdict(each) for each in rounds.ours],
            "bare": [asdict(each) for each in rounds.bare],
            "saturated": sorted({each.saturated for each in [*rounds.ours, *rounds.bare]}),
        }

    def finish(self, folder: Path = RESULTS) -> int:
        """Print and write everything; the exit status: 1 when a target is missed."""
        rows = [
            [t.name, f"{t.value:.3g} {t.unit}", f"{'<=' if t.at_most else '>='} {t.limit:g} {t.unit}",
             "met" if t.met else "MISSED"]
            for t in self.targets
        ]  # fmt: skip
        self.table("targets", ["", "measured", "target", ""], rows)
        console = Console(width=120)
        for table in self.tables:
            console.print(table)
        about = machine()
        console.print(", ".join(f"{name} {value}" for name, value in about.items()))
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{self.name}.json"
        targets = [{**asdict(target), "met": target.met} for target in self.targets]
        document = {"machine": about, "targets": targets, **self.facts}
        written.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {written}")
        return 0 if all(target.met for target in self.targets) else 1


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    with contextlib.suppress(OSError):
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    pinned = cores()
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "generator": generator_name(),
        "pinned": {name: sorted(value) for name, value in asdict(pinned).items()},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _pin(process: psutil.Process, to: frozenset[int]) -> None:
    """Every thread: a process's affinity is that of its first thread only."""
    if to:
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, to)
