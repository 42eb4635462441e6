"""What an agent costs, how soon it is in the network, and how soon it is heard elsewhere; a client that never fails.

Three federated registries, each a process with a Valkey of its own, and the real agent as users run it, all
detectors on. Measured: from its start to being registered, and found by discover; its memory and CPU while it idles;
the CPU of its heartbeats alone (the same code in this process, without the detectors); from the loss of the registry
it uses (SIGKILL: the port refuses; SIGSTOP: silence) to its next accepted heartbeat elsewhere, at an interval of half
a second, which is part of the figure. Then a program asks `AsyncNodeDiscovery` 1,000 times with a moment between,
while registries are killed and started, or frozen and thawed, in turn.
"""

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from agent.config import load
from agent.discovery import AsyncNodeDiscovery
from agent.identity import Home
from agent.node import Agent
from benchmarks.cluster import Cluster, Failed, Member, at, cluster, run, until
from benchmarks.harness import ADMIN_KEY, RESULTS, Report, Target, scratch
from tests.support.live import clean_environment

NAMES = ("eu", "us", "asia")
STARTED_S, RSS_MB, IDLE_PERCENT, BEAT_CPU_MS = 1.5, 60.0, 0.2, 5.0
REFUSED_S, SILENT_S = 1.0, 3.0
FAST_BEAT_S = 0.5
CALLS, PAUSE_S, TURN_S = 1_000, 0.02, 2.0
SETTLE_S = 10.0  # what an agent does after its start is over
BEATS = 200


class AgentProcess:
    """`dagi-agent bootstrap` in a home of its own."""

    def __init__(self, folder: Path, urls: list[str], interval_s: float | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        self._log = folder / "agent.log"
        env = {**clean_environment(), "HOME": str(self.home), "DAGI_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        env["PYTHONPATH"] = str(Path(__file__).parent.parent)
        if interval_s is not None:
            env["HEARTBEAT_INTERVAL"] = f"{interval_s:g}"
        command = [sys.executable, "-m", "agent", "bootstrap", "--registry-url", ",".join(urls), "--labels", "bench"]
        self.started_s = time.monotonic()
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env)
        self.process = psutil.Process(self.popen.pid)

    def output(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    def node_id(self) -> str | None:
        """The id that it has registered, once it has."""
        found = re.search(r"registered as (\S+)", self.output())
        return found[1] if found else None

    def cpu_s(self) -> float:
        """CPU seconds, its children's too: detectors run commands."""
        times = self.process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)

    def stop(self) -> None:
        """End it."""
        self.popen.terminate()
        try:
            self.popen.wait(15)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


@contextlib.contextmanager
def agent(folder: Path, urls: list[str], interval_s: float | None = None) -> Iterator[AgentProcess]:
    """An agent that is gone afterwards."""
    process = AgentProcess(folder, urls, interval_s)
    try:
        yield process
    finally:
        process.stop()


def main() -> int:
    """Measure, print, and write the report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=60.0, help="two intervals tell as much as an hour")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return run(measured(parser.parse_args()))


async def measured(arguments: argparse.Namespace) -> int:
    """Everything, one after the other."""
    report = Report("agent")
    with scratch() as folder:
        async with cluster(folder, NAMES, ["--auth", "key"]) as registries:
            await registries.start()
            await starts(registries, folder, arguments.starts, report)
            await idle(registries, folder, arguments.idle_s, report)
            await beats(registries, folder, report)
            for way in ("refused", "silent"):
                await failover(registries, folder, way, report)
            await calls(registries, arguments.calls, report)
    return report.finish(arguments.out)


def urls_of(registries: Cluster) -> list[str]:
    """Where agents and clients ask."""
    return [member.direct for member in registries.members]


async def starts(registries: Cluster, folder: Path, rounds: int, report: Report) -> None:
    """From the start of the process to registered, and to being found by discover."""
    rows, found_s = [], []
    for number in range(rounds):
        with agent(folder / f"start{number}", urls_of(registries)) as process:

            async def discoverable(process: AgentProcess = process) -> bool:
                node_id = process.node_id()
                if node_id is None:
                    return False
                answer = await registries.members[0].get("/api/v1/nodes/discover?label=bench&limit=1000")
                return node_id in {node["node_id"] for node in answer["nodes"]}

            moment_s = await until(discoverable, "an agent was not discoverable", 30.0)
            found_s.append(moment_s - process.started_s)
            rows.append([f"start {number + 1}", f"{found_s[-1]:.2f} s", process.output().splitlines()[0][:80]])
    report.table("from start to registered and discoverable", ["", "took", "said"], rows)
    report.facts["start_s"] = found_s
    report.targets.append(Target("start to discoverable, median", statistics.median(found_s), STARTED_S, "s", True))
    report.targets.append(Target("start to discoverable, slowest", max(found_s), STARTED_S, "s", True))


async def idle(registries: Cluster, folder: Path, seconds: float, report: Report) -> None:
    """Memory and CPU at the default interval, once the start is over."""
    with agent(folder / "idle", urls_of(registries)) as process:
        await asyncio.sleep(SETTLE_S)
        before_s, began_s = process.cpu_s(), time.monotonic()
        await asyncio.sleep(seconds)
        share = (process.cpu_s() - before_s) / (time.monotonic() - began_s)
        rss_mb = process.process.memory_info().rss / 2**20
    report.facts["idle"] = {"seconds": seconds, "cpu_share": share, "rss_mb": rss_mb}
    report.targets.append(Target("idle agent's memory", rss_mb, RSS_MB, "MB", True))
    report.targets.append(Target("idle agent's CPU, % of a core", share * 100, IDLE_PERCENT, "%", True))


async def beats(registries: Cluster, folder: Path, report: Report) -> None:
    """CPU of a heartbeat with all that was measured, and of a look at a registry, in this process."""
    node = Agent(load({"node_registry_url": urls_of(registries)}, None), Home(folder / "beats"), say=lambda line: None)
    try:
        await node.measure()
        outcome, _ = await node.register()
        if outcome.status != 200:
            raise Failed(f"not registered: {outcome.detail}")
        await node.heartbeat()
        before = time.process_time()
        for _ in range(BEATS):
            if (await node.heartbeat()).status != 200:
                raise Failed("a heartbeat was not accepted")
        each_ms = (time.process_time() - before) / BEATS * 1000
    finally:
        await node.client.close()
    report.facts["heartbeat_cpu_ms"] = each_ms
    report.targets.append(Target("a heartbeat's own CPU", each_ms, BEAT_CPU_MS, "ms", True))


async def failover(registries: Cluster, folder: Path, way: str, report: Report) -> None:
    """The registry in use is gone: from then to the next heartbeat that another has accepted."""
    victim, others = registries.members[0], registries.members[1:]
    with agent(folder / way, urls_of(registries), FAST_BEAT_S) as process:

        async def settled() -> bool:
            return process.node_id() is not None and victim.direct in process.output()

        await until(settled, "the agent did not register with the first", 30.0)
        node_id = process.node_id() or ""
        await until(lambda: _known(others, node_id), "the others did not hear of the node", 30.0)
        await asyncio.sleep(3 * FAST_BEAT_S)
        moment_s = freeze(victim) if way == "silent" else victim.kill()
        accepted_s = await until(lambda: _beats_at(others, node_id), f"no heartbeat elsewhere ({way})", 30.0)
        took_s = accepted_s - moment_s
        said = [line for line in process.output().splitlines() if "heartbeats go to" in line]
    if way == "silent":
        thaw(victim)
    else:
        victim.start()
    await victim.ready()
    await registries.settled()
    report.facts[f"failover_{way}"] = {"s": took_s, "said": said}
    limit_s = REFUSED_S if way == "refused" else SILENT_S
    report.targets.append(Target(f"next accepted heartbeat, {way}", took_s, limit_s, "s", True))


async def _known(members: list[Member], node_id: str) -> bool:
    return all([await member_node(member, node_id) for member in members])


async def _beats_at(members: list[Member], node_id: str) -> bool:
    nodes = [await member_node(member, node_id) for member in members]
    return any(node and node["home_registry"] in {member.name for member in members} for node in nodes)


async def member_node(member: Member, node_id: str) -> dict[str, object] | None:
    """The node as a registry shows it."""
    page = await member.get("/api/v1/nodes/discover?label=bench&status=any&limit=1000")
    return next((node for node in page["nodes"] if node["node_id"] == node_id), None)


def freeze(member: Member) -> float:
    """SIGSTOP a registry: its port takes connections, and nothing answers; the moment."""
    moment_s = time.monotonic()
    for process in member.processes():
        process.suspend()
    return moment_s


def thaw(member: Member) -> None:
    """SIGCONT."""
    for process in member.processes():
        process.resume()


async def calls(registries: Cluster, number: int, report: Report) -> None:
    """A client that asks all the time, while registries are killed, or frozen, and come back, in turn."""
    took_ms, failed, stale, done = list[float](), list[str](), 0, asyncio.Event()
    trouble = asyncio.create_task(_trouble(registries, done))
    async with AsyncNodeDiscovery(urls_of(registries), ADMIN_KEY, fresh_s=0) as discovery:
        for _ in range(number):
            began_s = time.perf_counter()
            try:
                stale += (await discovery.find_nodes(status="any")).stale
            except Exception as error:  # whatever it is, it is what must not be
                failed.append(f"{type(error).__name__}: {error}")
            took_ms.append((time.perf_counter() - began_s) * 1000)
            await asyncio.sleep(PAUSE_S)
    done.set()
    turns = await trouble
    took_ms.sort()
    report.facts["calls"] = {
        "calls": number, "failed": failed[:20], "stale": stale, "turns": turns,
        "p50_ms": at(took_ms, 0.5), "p99_ms": at(took_ms, 0.99), "slowest_ms": took_ms[-1],
    }  # fmt: skip
    rows = [[f"{number}", f"{len(failed)}", f"{stale}", f"{turns}", f"{at(took_ms, 0.5):.1f} ms",
             f"{at(took_ms, 0.99):.0f} ms", f"{took_ms[-1]:.0f} ms"]]  # fmt: skip
    columns = ["discoveries", "failed", "stale", "registries lost", "median", "99 %", "slowest"]
    report.table("discoveries while registries die and come back", columns, rows)
    report.targets.append(Target("failed discoveries", float(len(failed)), 0.0, "", True))
    report.targets.append(Target("registries lost meanwhile", float(turns), 3.0))


async def _trouble(registries: Cluster, done: asyncio.Event) -> int:
    """Kill one, start it again, freeze the next, and so on, until it is enough; how many were lost."""
    turns = 0
    while not done.is_set():
        victim = registries.members[turns % len(NAMES)]
        turns += 1
        frozen = turns % 2 == 0
        if frozen:
            freeze(victim)
        else:
            victim.kill()
        await asyncio.sleep(TURN_S)
        if frozen:
            thaw(victim)
        else:
            victim.start()
        await victim.ready()
    return turns


if __name__ == "__main__":
    os.environ.pop("NODE_API_KEY", None)
    sys.exit(main())
