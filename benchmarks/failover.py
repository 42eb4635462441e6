"""One of three registries dies, Valkey and all: how long its agents take to be heard elsewhere.

100 stand-ins for agents in one process, spread over the registries. Each has a list of all of them with its own
first, its own key, and the newest token; it beats every half second, goes to the next registry at once where it
is refused, and after 2 s where nothing is answered, as the real agent does. Meanwhile a discovery client with
the same list asks without a pause: no call may fail, as it asks the next registry when one does not answer.

Measured from the kill to each agent's next accepted heartbeat. Afterwards every agent has to be online at every
registry that lives; then the dead one comes back, and has to agree.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import fleet
from benchmarks.cluster import Cluster, Failed, Member, at, cluster, run, until
from benchmarks.harness import ADMIN_KEY, RESULTS, Report, Target, scratch

NAMES = ("eu", "us", "asia")
AGENTS = 100
BEAT_S, SILENT_S = 0.5, 2.0
FLAGS = ("--heartbeat-interval-s", f"{BEAT_S:g}", "--degraded-after-s", "5", "--offline-after-s", "15")
QUIET_S = 3.0  # of beating before the kill
FAILED_OVER_WITHIN_S, EVERYWHERE_WITHIN_S, BACK_WITHIN_S = 20.0, 30.0, 60.0
AFTER_S = 5.0  # discovery goes on for so long after everybody has failed over
P99_S, SLOWEST_S = 1.0, 2.5  # a beat's interval, and a reconnection; nobody waits for a silence here
_FIRST = 40_000_000  # numbers of nodes that nobody else registers


@dataclass(slots=True)
class Agent:
    """A stand-in. `accepted_s`: the moments of its heartbeats that were taken; `moves`: how often it changed."""

    node_id: str
    key: str
    token: str
    registries: list[str]
    accepted_s: list[float] = field(default_factory=list)
    moves: int = 0
    answers: Counter[str] = field(default_factory=Counter)

    async def live(self, client: aiohttp.ClientSession, rng: random.Random) -> None:
        """Beat for ever."""
        await asyncio.sleep(rng.random() * BEAT_S)
        while True:
            began_s = time.monotonic()
            for _ in range(2 * len(self.registries)):
                if await self._beat(client):
                    break
                self.registries.append(self.registries.pop(0))
                self.moves += 1
            await asyncio.sleep(max(0.0, began_s + BEAT_S - time.monotonic()))

    async def _beat(self, client: aiohttp.ClientSession) -> bool:
        body = {"node_id": self.node_id, "status": "online", "token": self.token}
        try:
            async with client.post(
                self.registries[0] + "/api/v1/nodes/heartbeat",
                json=body,
                headers={"Authorization": f"Bearer {self.key}"},
                timeout=aiohttp.ClientTimeout(SILENT_S),
            ) as answer:
                self.answers[str(answer.status)] += 1
                if answer.status != 200:
                    return False
                self.token = (await answer.json())["token"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.answers[type(error).__name__] += 1
            return False
        self.accepted_s.append(time.monotonic())
        return True


@dataclass(slots=True)
class Discovery:
    """A client with a list. `failed`: calls that no registry of the list answered; `passed_on`: attempts that one
    did not answer, so that the next one was asked."""

    registries: list[str]
    calls: int = 0
    failed: int = 0
    passed_on: int = 0
    took_ms: list[float] = field(default_factory=list)
    fewest: int = 2**31  # nodes that an answer told of

    async def ask_for_ever(self, client: aiohttp.ClientSession) -> None:
        """One call after the other."""
        while True:
            began_s = time.monotonic()
            answered = False
            for _ in range(len(self.registries)):
                answered = await self._ask(client)
                if answered:
                    break
                self.passed_on += 1
                self.registries.append(self.registries.pop(0))
            self.calls += 1
            self.failed += not answered
            self.took_ms.append((time.monotonic() - began_s) * 1000)
            await asyncio.sleep(0.005)  # the cores belong to the registries

    async def _ask(self, client: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with client.get(
                self.registries[0] + "/api/v1/nodes/discover?limit=1",
                headers={"Authorization": f"Bearer {ADMIN_KEY}"},
                timeout=aiohttp.ClientTimeout(SILENT_S),
            ) as answer:
                if answer.status == 200:
                    self.fewest = min(self.fewest, (await answer.json())["total"])
                    return True
        return False


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    given = parser.parse_args()
    with scratch() as folder:
        return run(_run(given.agents, folder, given.out))


async def _run(count: int, folder: Path, out: Path) -> int:
    report = Report("failover")
    async with cluster(folder, NAMES, FLAGS) as registries:
        await registries.start()
        agents = await _register(registries.members, count)
        discovery = Discovery([member.direct for member in registries.members])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            rng = random.Random(9)
            tasks = [asyncio.create_task(agent.live(client, rng)) for agent in agents]
            asking = asyncio.create_task(discovery.ask_for_ever(client))
            try:
                await _fail_over(registries, agents, discovery, report)
            finally:
                for task in (*tasks, asking):
                    task.cancel()
                ended = await asyncio.gather(*tasks, asking, return_exceptions=True)
    faults = [end for end in ended if isinstance(end, Exception)]
    if faults:
        raise faults[0]
    return report.finish(out)


async def _register(members: Sequence[Member], count: int) -> list[Agent]:
    found = []
    for index in range(count):
        own = index % len(members)
        node = await members[own].call("POST", "/api/v1/nodes/register", fleet.registration(_FIRST + index))
        urls = [members[(own + offset) % len(members)].direct for offset in range(len(members))]
        found.append(Agent(node["node_id"], node["api_key"], node["token"], urls))
    return found


async def _fail_over(registries: Cluster, agents: list[Agent], discovery: Discovery, report: Report) -> None:
    victim, *living = registries.members  # the one that the discovery client asks first
    await asyncio.sleep(QUIET_S)
    await until(lambda: _online(registries.members, agents), "not all agents were online", EVERYWHERE_WITHIN_S)
    mine = [agent for agent in agents if agent.registries[0] == victim.direct]
    before, discovery.fewest = discovery.calls, len(agents)
    killed_s = await asyncio.to_thread(victim.kill)
    over_s = await _all_heard(mine, killed_s)
    everywhere_s = await until(
        lambda: _moved(living, victim, agents), "not all agents were online everywhere", EVERYWHERE_WITHIN_S
    )
    await asyncio.sleep(AFTER_S)
    shown_by_clients = discovery.fewest
    await asyncio.to_thread(victim.start)
    back_s = await victim.ready(BACK_WITHIN_S)
    agrees_s = await until(
        lambda: _moved(registries.members, victim, agents), "the registry that came back did not agree", BACK_WITHIN_S
    )
    calls_ms = sorted(discovery.took_ms[before:])
    shares = {f"p{share * 100:g}": at(over_s, share) for share in (0.5, 0.9, 0.99)} | {"max": over_s[-1]}
    report.table(
        "from the kill to the next heartbeat that was taken",
        ["", *shares, "online everywhere after"],
        [
            [
                f"{len(mine)} of {len(agents)} agents",
                *(f"{value:.3f} s" for value in shares.values()),
                f"{everywhere_s - killed_s:.2f} s",
            ]
        ],
    )
    report.table(
        "discovery with a list, meanwhile",
        ["", "calls", "failed", "asked the next", "slowest call", "p99", "fewest nodes seen"],
        [
            ["", f"{discovery.calls:,}", str(discovery.failed), str(discovery.passed_on), f"{calls_ms[-1]:.0f} ms",
             f"{at(calls_ms, 0.99):.1f} ms", f"{shown_by_clients} of {len(agents)}"]
        ],
    )  # fmt: skip
    report.table(
        "the registry comes back",
        ["", "ready after", "agrees after"],
        [["", f"{back_s - victim.started_s:.2f} s", f"{agrees_s - victim.started_s:.2f} s"]],
    )
    answers = sum((agent.answers for agent in agents), Counter())
    report.facts["failover"] = {
        "seconds": shares,
        "samples_s": over_s,
        "everywhere_s": everywhere_s - killed_s,
        "discovery": {"calls": discovery.calls, "failed": discovery.failed, "passed_on": discovery.passed_on},
        "agents_answers": dict(answers),
        "back_s": back_s - victim.started_s,
        "agrees_s": agrees_s - victim.started_s,
    }
    report.targets += [
        Target("heard elsewhere, p99", shares["p99"], P99_S, "s", at_most=True),
        Target("heard elsewhere, slowest", over_s[-1], SLOWEST_S, "s", at_most=True),
        Target("discovery calls that failed", discovery.failed, 0, at_most=True),
        Target("nodes that discovery never missed", shown_by_clients, len(agents)),
    ]


async def _all_heard(agents: list[Agent], killed_s: float) -> list[float]:
    """Seconds from the kill to each agent's next heartbeat that was taken, sorted."""
    found: dict[str, float] = {}

    async def all_of_them() -> bool:
        for agent in agents:
            if agent.node_id not in found and agent.accepted_s and agent.accepted_s[-1] > killed_s:
                found[agent.node_id] = next(moment for moment in agent.accepted_s if moment > killed_s) - killed_s
        return len(found) == len(agents)

    try:
        await until(all_of_them, "", FAILED_OVER_WITHIN_S)
    except Failed:
        lost = [agent for agent in agents if agent.node_id not in found]
        raise Failed(
            f"{len(lost)} agents were heard nowhere within {FAILED_OVER_WITHIN_S:g} s; the first was answered with "
            f"{dict(lost[0].answers)}"
        ) from None
    return sorted(found.values())


async def _shown(member: Member) -> dict[str, dict[str, Any]]:
    page = await member.get("/api/v1/nodes?limit=1000")
    return {node["node_id"]: node for node in page["nodes"]}


async def _online(members: Sequence[Member], agents: list[Agent]) -> bool:
    for member in members:
        nodes = await _shown(member)
        if any(nodes.get(agent.node_id, {}).get("status") != "online" for agent in agents):
            return False
    return True


async def _moved(members: Sequence[Member], victim: Member, agents: list[Agent]) -> bool:
    """Whether all show every agent online, and none at home where it was killed."""
    homes = []
    for member in members:
        nodes = await _shown(member)
        if any(nodes.get(agent.node_id, {}).get("status") != "online" for agent in agents):
            return False
        homes.append({agent.node_id: nodes[agent.node_id]["home_registry"] for agent in agents})
    return victim.name not in homes[0].values() and all(each == homes[0] for each in homes)


if __name__ == "__main__":
    sys.exit(main())
