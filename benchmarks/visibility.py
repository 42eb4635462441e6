"""How long a write in one region takes to be visible in each other one.

One process with one clock writes at one registry and reads at all others. The clock starts when the write is
sent, so the write's own commit counts. A read is `GET /nodes/{id}?min_version=...` with the version from the
write's answer: it waits at the registry and returns the moment that the write is visible there, so nobody has to
poll, which takes the CPU that it measures. It errs by the way of that read, a fraction of a millisecond, to our
disadvantage, and by its condition, which is stricter: everything before that write is visible too. `polled` does
the same by asking again and again, to see that both agree.
"""

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson

from benchmarks import fleet
from benchmarks.cluster import Cluster, Failed, Lag, Member, at, own_cpu_s, request
from benchmarks.load import Exchange

mpl.use("agg")
from matplotlib import pyplot

VISIBLE_WITHIN_S = 15.0
PAUSE_S = 0.04  # at most between two writes: not in step with anybody's tick
WARM_UP = 5  # writes that are not counted
LOAD_AROUND_S = 2.0  # the load goes on for so long before and after
_FIRST = 20_000_000  # numbers of nodes that nobody else registers


@dataclass(slots=True)
class Seen:
    """One condition. Milliseconds, sorted: until the write was answered, and until it was visible elsewhere."""

    label: str
    delay_ms: float = 0.0
    rate_per_s: float = 0.0
    achieved_per_s: float = 0.0
    load_errors: int = 0
    load_p99_ms: float = 0.0
    seconds: float = 0.0
    answered_ms: list[float] = field(default_factory=list)
    visible_ms: list[float] = field(default_factory=list)
    loop_late_ms: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)  # seconds a second

    @property
    def row(self) -> list[str]:
        """A table's row."""
        late = f"{at(self.loop_late_ms, 0.99):.1f} ms" if self.loop_late_ms else ""
        return [
            self.label,
            str(len(self.visible_ms)),
            *(f"{at(self.visible_ms, share):.1f}" for share in (0.5, 0.9, 0.99)),
            f"{self.visible_ms[-1]:.1f}",
            f"{at(self.answered_ms, 0.5):.1f} / {at(self.answered_ms, 0.99):.1f}",
            f"{self.achieved_per_s:,.0f}/s" if self.rate_per_s else "",
            " | ".join(f"{used:.2f}" for used in self.cpu.values()),
            late,
        ]

    def facts(self) -> dict[str, Any]:
        """What the JSON holds: quantiles, and every sample for whoever wants to plot it again."""
        found = asdict(self)
        for name in ("answered_ms", "visible_ms", "loop_late_ms"):
            values: list[float] = found.pop(name)
            if values:
                found[name] = {f"p{share * 100:g}": at(values, share) for share in (0.5, 0.9, 0.99, 0.999)}
                found[name]["max"] = values[-1]
        found["samples_ms"] = [round(value, 3) for value in self.visible_ms]
        return found


COLUMNS = ["", "samples", "p50 ms", "p90 ms", "p99 ms", "max ms", "answered p50 / p99", "beside it",
           "CPU s/s: regs | stores | us", "our loop late, p99"]  # fmt: skip


class Probe:
    """Connections of one process to every registry: one to write by, one to read by."""

    def __init__(self, members: Sequence[Member], *, poll: bool = False) -> None:
        self._members = members
        self._poll = poll
        self._writers: list[Exchange] = []
        self._readers: list[Exchange] = []
        self._rng = random.Random(5)
        self._next = _FIRST + self._rng.getrandbits(20) * (2 if poll else 3)

    async def open(self) -> None:
        """Connect."""
        for member in self._members:
            self._writers.append(await member.connect())
            self._readers.append(await member.connect())

    def close(self) -> None:
        """Hang up."""
        for each in (*self._writers, *self._readers):
            each.close()

    async def run(self, seen: Seen, seconds: float) -> None:
        """Write and look, for so long."""
        count, ends_s = -WARM_UP, time.monotonic() + seconds
        while time.monotonic() < ends_s:
            answered_ms, visible_ms = await self._once(count % len(self._members))
            if count >= 0:
                seen.answered_ms.append(answered_ms)
                seen.visible_ms += visible_ms
            count += 1
            await asyncio.sleep(self._rng.random() * PAUSE_S)
        if not seen.visible_ms:
            raise Failed(f"{seen.label}: not one write was seen within {seconds:g} s")
        seen.answered_ms.sort()
        seen.visible_ms.sort()

    async def _once(self, home: int) -> tuple[float, list[float]]:
        self._next += 1
        body = fleet.registration(self._next)
        node_id: str = body["node_id"]
        write = request("POST", "/api/v1/nodes/register", body)
        others = [reader for index, reader in enumerate(self._readers) if index != home]
        started_s = time.monotonic()
        if self._poll:
            polling = [asyncio.create_task(self._until_there(reader, node_id, "")) for reader in others]
        status, answer = await self._writers[home].ask(write)
        answered_s = time.monotonic()
        if status != 200:
            raise Failed(f"{self._members[home].name} answered a registration with {status}: {answer[:300]!r}")
        if not self._poll:
            version = orjson.loads(answer)["version"]
            polling = [asyncio.create_task(self._until_there(reader, node_id, version)) for reader in others]
        moments = await asyncio.gather(*polling)
        return (answered_s - started_s) * 1000, [(moment - started_s) * 1000 for moment in moments]

    async def _until_there(self, reader: Exchange, node_id: str, version: str) -> float:
        query = f"?min_version={version}" if version else ""
        read = request("GET", f"/api/v1/nodes/{node_id}{query}")
        deadline_s = time.monotonic() + VISIBLE_WITHIN_S
        while True:
            status, body = await reader.ask(read)
            moment_s = time.monotonic()
            if status == 200:
                return moment_s
            if moment_s > deadline_s:
                raise Failed(f"{node_id} was not visible within {VISIBLE_WITHIN_S:g} s: {status} {body[:300]!r}")


async def measured(cluster: Cluster, delay_ms: float, rate_per_s: float, seconds: float, *, poll: bool = False) -> Seen:
    """One condition, from a settled cluster to a settled cluster."""
    label = f"{delay_ms:g} ms, " + (f"{rate_per_s:,.0f} writes/s" if rate_per_s else "idle")
    seen = Seen(label + (", polled" if poll else ""), delay_ms, rate_per_s, seconds=seconds)
    cluster.delay(delay_ms / 1000)
    probe = Probe(cluster.members, poll=poll)
    lag: Lag | None = None
    try:
        async with _load(cluster, rate_per_s, seconds, seen):
            await probe.open()  # not before: a registry hangs up on who connects and asks nothing for long
            cpu, began_s = _cpu(cluster), time.monotonic()
            lag = Lag()
            await probe.run(seen, seconds)
            took_s = time.monotonic() - began_s
            seen.cpu = {name: (value - cpu[name]) / took_s for name, value in _cpu(cluster).items()}
    finally:
        probe.close()
        if lag is not None:
            seen.loop_late_ms = lag.stop()
    await cluster.settled()
    return seen


def _cpu(cluster: Cluster) -> dict[str, float]:
    registries, stores = cluster.cpu_s()
    return {"registries": registries, "stores": stores, "client+proxy": own_cpu_s()}


@contextlib.asynccontextmanager
async def _load(cluster: Cluster, rate_per_s: float, seconds: float, seen: Seen) -> AsyncIterator[None]:
    """The other process, at work before and after what is measured."""
    if not rate_per_s:
        yield
        return
    ports = [str(member.port) for member in cluster.members]
    lasts_s = seconds + 2 * LOAD_AROUND_S
    command = [sys.executable, "-m", "benchmarks.writes", str(rate_per_s), str(lasts_s), *ports]
    process = await create_subprocess_exec(*command, stdout=PIPE, cwd=Path(__file__).parent.parent)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(90):
            if await process.stdout.readline() != b"started\n":
                raise Failed("the load did not start")
        await asyncio.sleep(LOAD_AROUND_S)
        yield
        async with asyncio.timeout(lasts_s + 60):
            written = json.loads(await process.stdout.read() or b"{}")
        if await process.wait() != 0:
            raise Failed("the load ended with a fault")
        seen.achieved_per_s, seen.load_errors = written["per_s"], written["errors"]
        seen.load_p99_ms = written["p99_ms"]
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()


def plot(seen: Sequence[Seen], file: Path) -> None:
    """The distributions: how many of the reads had seen the write after so long."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for each in seen:
        values = each.visible_ms
        shares = [(index + 1) / len(values) for index in range(len(values))]
        axes.step(values, shares, where="post", label=each.label, linestyle="--" if each.rate_per_s else "-")
    axes.set(
        xscale="log",
        xlabel="ms from sending a write in one region until a read in another shows it",
        ylabel="share of reads",
        ylim=(0, 1.02),
        title="A write becomes visible in the other regions (delay is one way)",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3, which="both")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
