"""A federation of real registries, its agents and operators, one schedule of faults, and what has to hold."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.callers import NODES, Agent, Operators
from tests.chaos.checks import Watch, difference, keys_work, unlinked, unsettled
from tests.chaos.client import Client, Unanswered
from tests.chaos.faults import KINDS, Fault, Scene
from tests.chaos.ledger import MOST_SKEW_S, Ledger, Vector
from tests.chaos.site import READY_S, Site, listed
from tests.chaos.timeline import Timeline, Violation
from tests.support.proxy import Network

FIRST_S = 15.0
CONVERGE_S = 60.0  # an interval between two walks and the walk; usually it takes a few seconds
REPLICATED_S = 5.0  # what was acknowledged so long before its only store was lost, others must have
CHURN_S = 6.0
CLOSE_S = 10.0
SLACK_S = 90.0
LOG_LINES = 60
SHOWN = ("status", "status_reason", "home_registry", "status_age_s", "last_heartbeat", "labels")


@dataclass
class Outcome:
    """How a run went."""

    timeline: Timeline
    violation: str = ""
    logs: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    converged_s: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{value} {name}" for name, value in sorted(self.counts.items()))
        if not self.violation:
            return f"all agreed {self.converged_s:.1f} s after the last fault was over; {counts}"
        logs = [f"--- the end of {name}'s log\n{text}" for name, text in self.logs.items()]
        return "\n".join([*self.timeline.notes, *logs, counts, f"VIOLATED: {self.violation}"])


class Federation:
    """Runs once. `run` returns with nothing left of it but its folder."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        faults: Sequence[Fault],
        *,
        registries: int = 3,
        agents: int = 30,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._rng = random.Random(seed)
        self._faults = faults
        self._limit_s = max((fault.at_s + fault.lasts_s for fault in faults), default=0.0) * 1.5 + SLACK_S
        self._timeline = Timeline(tell)
        self._client = Client()
        self._network = Network(seed)
        names = [f"r{index}" for index in range(registries)]
        self._sites = [
            Site(
                name,
                folder / name,
                self._client,
                self._timeline,
                self._network,
                self._rng.uniform(-MOST_SKEW_S, MOST_SKEW_S),
            )
            for name in names
        ]
        self._by_name = {site.name: site for site in self._sites}
        self._agents: list[Agent] = []
        self._first_agents = agents
        self._ledger = Ledger()
        self._operators = Operators(
            self._agents, self._sites, self._ledger, self._client, self._timeline, random.Random(self._rng.random())
        )
        self._watches = [Watch(site, self._sites, self._agents, self._ledger, self._timeline) for site in self._sites]
        self._outcome = Outcome(self._timeline)
        self._counts = self._outcome.counts
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._losing, self._cutting = asyncio.Lock(), asyncio.Lock()
        self._healed_s = 0.0

    async def run(self) -> Outcome:
        """Start, break, heal, and see."""
        outcome = self._outcome
        script = self._spawn(self._script())
        try:
            await asyncio.wait({script, self._failed}, timeout=self._limit_s, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            if not script.done():
                raise Violation(f"heals: the run is not over after {self._limit_s:.0f} s")
        except Violation as violation:
            outcome.violation = str(violation)
            self._timeline.note(f"VIOLATED: {violation}")
            await self._explain(violation.node_id)
        finally:
            await self._close()
        outcome.logs = {site.name: "\n".join(site.log().splitlines()[-LOG_LINES:]) for site in self._sites}
        outcome.counts.update(self._ledger.counts())
        outcome.counts["looks"] = sum(watch.looks for watch in self._watches)
        return outcome

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        try:
            await self._network.close()
            await self._client.close()
        finally:
            with contextlib.ExitStack() as stack:  # each is closed, whatever another raises
                for site in self._sites:
                    stack.callback(site.close)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def watched() -> None:
            try:
                await work
            except Exception as fault:
                if not self._failed.done():
                    self._failed.set_exception(fault)

        task = asyncio.create_task(watched())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _explain(self, node_id: str) -> None:
        """What everybody knows of the node that a promise was broken for."""
        for agent in self._agents:
            if node_id and agent.node_id == node_id:
                self._timeline.note(agent.history())
                for site in self._sites:
                    shown: Any = None
                    with contextlib.suppress(Unanswered):
                        shown = (await site.read(f"{NODES}/{node_id}")).body
                    if isinstance(shown, dict):
                        shown = {name: shown.get(name) for name in SHOWN}
                    self._timeline.note(f"{site} shows {shown}")
                    self._timeline.note(f"{site} stored {await asyncio.to_thread(site.stored, node_id)}")

    # the script

    async def _script(self) -> None:
        await self._start()
        for _ in range(self._first_agents):
            self._join()
        await self._until("the first agents are known everywhere", self._unsettled, FIRST_S)
        self._timeline.note("all are known everywhere; the schedule begins")
        operating = self._spawn(self._operators.run())
        churning = self._spawn(self._churn())
        await self._break()
        churning.cancel()
        operating.cancel()
        for agent in self._agents:
            agent.roams = False
        self._healed_s = self._timeline.now_s
        self._timeline.note("everything is healed")
        await self._heal()

    async def _start(self) -> None:
        for site in self._sites:
            site.advertised = await self._network.add(site.name, site.port)
        for site in self._sites:
            site.peers = [other.advertised for other in self._sites if other is not site]
        await asyncio.gather(*(site.start_store() for site in self._sites))
        await asyncio.gather(*(site.start_registry() for site in self._sites))
        await asyncio.gather(*(site.ready() for site in self._sites))
        for watch in self._watches:
            self._spawn(watch.run())

    def _join(self) -> Agent:
        rng = random.Random(self._rng.random())
        name = f"n{len(self._agents)}"
        agent = Agent(name, self._sites, self._client, self._timeline, rng, self._counts)
        self._agents.append(agent)
        self._spawn(agent.run())
        return agent

    async def _churn(self) -> None:
        """Agents come, and go for good; half of those that went are deleted."""
        rng = random.Random(self._rng.random())
        for turn in range(1_000_000):
            await asyncio.sleep(rng.uniform(0.5, 1.5) * CHURN_S / 2)
            living = [agent for agent in self._agents if agent.registered and agent.stopped_s is None]
            agent = rng.choice(living)
            await agent.stop()
            self._timeline.note(f"{agent} stopped, last heard by {agent.site}")
            self._join()
            if turn % 2 == 0:
                self._spawn(self._operators.delete(agent))

    # faults

    async def _break(self) -> None:
        striking: list[asyncio.Task[None]] = []
        began_s = self._timeline.now_s
        for fault in self._faults:
            await asyncio.sleep(max(0.0, began_s + fault.at_s - self._timeline.now_s))
            striking.append(self._spawn(self._strike(fault)))
            await asyncio.sleep(0)
        if striking:
            await asyncio.wait(striking)

    async def _strike(self, fault: Fault) -> None:
        kind, site = KINDS[fault.kind], self._by_name[fault.site]
        async with contextlib.AsyncExitStack() as stack:
            if kind.loses:
                await stack.enter_async_context(self._losing)
            await stack.enter_async_context(self._cutting if kind.network else site.turn)
            self._timeline.note(str(fault))
            self._counts["faults"] += 1
            scene = Scene(site, self._by_name[fault.other], self._sites, self._network, fault.lasts_s, self._store_lost)
            await kind.strike(scene)
            self._timeline.note(f"over: {fault.kind} at {site}")
            if not kind.network:
                await site.ready()
                self._timeline.note(f"{site} is ready")

    async def _store_lost(self, site: Site) -> None:
        """Ask the others what they have of what was acknowledged."""
        at_s = self._timeline.now_s
        vectors = [await self._vector(other) for other in self._sites if other is not site]
        registrations = (made for agent in self._agents for made in agent.registrations)
        lost = self._ledger.store_lost(site.name, registrations, vectors, at_s)
        heard = [other.hears[site.name] for other in self._sites if other is not site and site.name in other.hears]
        for write in lost:
            self._timeline.note(f"lost with {site}'s store: {write}")
            acked_s = write.acked_s or at_s
            if any(max(acked_s, hearing.since_s) < hearing.until_s - REPLICATED_S for hearing in heard):
                raise Violation(f"acknowledged writes replicate: {write}, and nobody had it at {at_s:.2f}")

    async def _vector(self, site: Site) -> Vector:
        deadline_s = self._timeline.now_s + READY_S
        while True:
            with contextlib.suppress(Unanswered):
                answer = await site.read("/api/v1/federation")
                if answer.ok:
                    vector: Vector = answer.body["vector"]
                    return vector
            if self._timeline.now_s > deadline_s:
                raise Violation(f"heals: {site} did not answer for {READY_S:g} s")
            await asyncio.sleep(0.1)

    # after healing

    async def _heal(self) -> None:
        await asyncio.gather(*(site.ready() for site in self._sites))
        await self._until("registries agree", self._unsettled, CONVERGE_S)
        self._outcome.converged_s = self._timeline.now_s - self._healed_s
        self._timeline.note("all agree")
        await keys_work(self._sites, self._agents)
        await asyncio.gather(*(agent.tour() for agent in self._agents if agent.stopped_s is None))
        self._timeline.note("every agent was at every registry")
        await self._until("registries agree again", self._unsettled, CONVERGE_S)
        for site in self._sites:
            if faults := site.faults_logged():
                raise Violation(f"registries log no faults of their own: {site} logged {faults[0]}")

    async def _unsettled(self) -> str:
        try:
            shown = {site.name: await listed(site) for site in self._sites}
            return (
                difference(shown)
                or unsettled(shown[self._sites[0].name], self._agents, self._ledger)
                or await unlinked(self._sites)
            )
        except Unanswered as fault:
            return f"reads are always answered: {fault}"

    async def _until(self, what: str, fault: Callable[[], Awaitable[str]], within_s: float) -> None:
        """Wait for nothing to be at fault."""
        deadline_s = self._timeline.now_s + within_s
        while found := await fault():
            if self._timeline.now_s > deadline_s:
                named = next((agent.node_id for agent in self._agents if f" {agent.node_id} " in f" {found} "), "")
                raise Violation(f"{found} (waited {within_s:g} s until {what})", named)
            await asyncio.sleep(0.25)
