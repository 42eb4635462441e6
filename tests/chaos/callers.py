"""Those whom registries serve: agents that heartbeat and look for another registry when one fails, and operators."""

import asyncio
import base64
import contextlib
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.client import Answer, Client, Unanswered
from tests.chaos.ledger import LATE_S, Deletion, Ledger, Write
from tests.chaos.site import HEARTBEAT_S, Site
from tests.chaos.timeline import Timeline, Violation
from tests.support.live import ADMIN_KEY

NODES = "/api/v1/nodes"
REMEMBERED_S = 10.0
MOVE_SHARE = 0.01  # of heartbeats after which an agent goes somewhere else for no reason
RESTART_SHARE = 0.01  # or begins anew: registers there, and perhaps at the next one too
DOUBT_S = 30.0
DISMISS_SHARE = 0.05  # of operators' requests


@dataclass(frozen=True)
class Ack:
    """A heartbeat or registration that was taken."""

    sent_s: float
    answered_s: float
    site: Site
    epoch: int  # of the site, when it answered


@dataclass
class Registration(Write):
    """One that was sent."""

    serial: int = 0

    @property
    def label(self) -> str:
        """What tells it from the others of its node."""
        return f"reg-{self.serial}"

    def __str__(self) -> str:
        return f"{self.label} of {self.node_id} at {self.site}, {self.when}"


class Agent:
    """One node: a key, the newest token, a list of registries. `stopped_s`: when it had sent its last request."""

    def __init__(
        self,
        node_id: str,
        sites: Sequence[Site],
        client: Client,
        timeline: Timeline,
        rng: random.Random,
        counts: Counter[str],
    ) -> None:
        self.node_id = node_id
        self.key: str | None = None
        self.token: str | None = None
        self.registered = False
        self.registrations: list[Registration] = []  # all that may have been taken
        self.former_ids: list[str] = []
        self.acks: deque[Ack] = deque()
        self.unanswered_s = float("-inf")  # when it last sent what nobody answered
        self.settled_s = 0.0  # since when nobody else has heard it than who did last
        self.stopped_s: float | None = None
        self.roams = True
        self._sites = list(sites)
        rng.shuffle(self._sites)
        self._at = 0
        self._client, self._timeline, self._rng, self._counts = client, timeline, rng, counts
        self._stopping = False
        self._turn = asyncio.Lock()

    @property
    def site(self) -> Site:
        """Where it heartbeats."""
        return self._sites[self._at]

    @property
    def may_register_late(self) -> bool:
        """Whether a registration of its may still be taken by a registry that stands still."""
        since_s = self._timeline.now_s - DOUBT_S
        return any(made.sent_s > since_s and made.acked_s is None for made in self.registrations)

    def registered_as(self) -> list["Registration"]:
        """What may stand: the last registration that must, and whatever may have been done after it."""
        made = self.registrations
        last = next((index for index in reversed(range(len(made))) if made[index].holds), 0)
        late = [each for each in made[:last] if not each.holds and each.sent_s > made[last].sent_s - LATE_S]
        return made[last:] + late

    def history(self) -> str:
        """For people: who took its last requests, and what it carries."""
        acks = " ".join(f"{ack.site}:{ack.sent_s:.2f}-{ack.answered_s:.2f}" for ack in self.acks)
        token = base64.urlsafe_b64decode(f"{self.token}===").decode() if self.token else "none"
        made = "; ".join(map(str, self.registrations[-4:]))
        return f"{self} goes to {self.site}, carries (life.incarnation.epoch) {token}, was taken {acks}; {made}"

    async def run(self) -> None:
        """Until it is stopped."""
        await asyncio.sleep(self._rng.uniform(0.0, HEARTBEAT_S))
        while not self._stopping:
            async with self._turn:
                await (self._beat() if self.registered else self._register())
                if self.registered and self.roams:
                    await self._roam()
            await asyncio.sleep(HEARTBEAT_S * self._rng.uniform(0.9, 1.1))

    async def stop(self) -> None:
        """For good. Returns when nothing of it is under way."""
        self._stopping = True
        async with self._turn:
            self.stopped_s = self._timeline.now_s

    async def tour(self) -> None:
        """Beat once at each registry: its key, and what it last heard, must do everywhere."""
        async with self._turn:
            for at in self._rng.sample(range(len(self._sites)), len(self._sites)):
                self._at = at
                await self._beat()
                if not self.registered or self.acks[-1].site is not self.site:
                    raise Violation(f"keys work everywhere: {self.node_id} could not heartbeat at {self.site}")

    async def _register(self) -> None:
        made = Registration(self.node_id, self.site.name, self._timeline.now_s, serial=len(self.registrations))
        self.registrations.append(made)
        answer = await self._ask("register", {"node_id": self.node_id, "labels": [made.label]})
        if answer is None:
            return
        if answer.ok:
            self.key = answer.body["api_key"] or self.key
            self.registered = True
            made.acked_s, made.version = self._timeline.now_s, answer.body["version"]
            self._acknowledged(made.sent_s, answer)
        elif answer.status == 409 and self.key is None:
            # Somebody registered it and was told no key: ourselves, when no answer came.
            self._counts["ids given up"] += 1
            self.former_ids.append(self.node_id)
            self.node_id += "x"
        elif answer.status != 503:
            self._refused("register", answer)

    async def _beat(self) -> None:
        sent_s = self._timeline.now_s
        answer = await self._ask("heartbeat", {"node_id": self.node_id})
        if answer is None or answer.status == 503:
            return
        if answer.ok:
            self._acknowledged(sent_s, answer)
        elif answer.status == 404:
            self._counts["404 to heartbeats"] += 1
            self.registered = False
            await self._register()
        else:
            self._refused("heartbeat", answer)

    async def _ask(self, action: str, body: dict[str, Any]) -> Answer | None:
        """None: no answer came. Whoever cannot serve is left for the next one."""
        if self.token is not None:
            body["token"] = self.token
        sent_s = self._timeline.now_s
        try:
            answer = await self._client.ask("POST", self.site.url(f"{NODES}/{action}"), self.key, body)
        except Unanswered as fault:
            if fault.sent:
                self.unanswered_s = sent_s
            self._counts[f"{action}s not answered"] += 1
            self._move()
            return None
        if answer.status == 503:
            self._counts[f"503 to {action}s"] += 1
            self._move()
        return answer

    def _acknowledged(self, sent_s: float, answer: Answer) -> None:
        self.token = answer.body["token"]
        now_s = self._timeline.now_s
        self._counts["heartbeats"] += 1
        if answer.body["status"] == "offline":
            raise Violation(f"no live node is shown offline: {self.site} answers {self} so", self.node_id)
        if not self.acks or self.acks[-1].site is not self.site:
            self.settled_s = now_s
        self.acks.append(Ack(sent_s, now_s, self.site, self.site.epoch))
        while self.acks[0].sent_s < now_s - REMEMBERED_S:
            self.acks.popleft()

    async def _roam(self) -> None:
        if self._rng.random() < RESTART_SHARE:
            await self._register()
            if self._rng.random() < 0.5:
                self._move()
                await self._register()
        elif self._rng.random() < MOVE_SHARE:
            self._move()

    def _refused(self, action: str, answer: Answer) -> None:
        raise Violation(f"keys work everywhere: {self.site} answers {self}'s {action} {answer}", self.node_id)

    def _move(self) -> None:
        self._at = (self._at + 1) % len(self._sites)

    def __repr__(self) -> str:
        return self.node_id


class Operators:
    """They patch whatever node at whatever registry, one request a node at a time, and delete nodes that stopped."""

    def __init__(
        self,
        agents: list[Agent],
        sites: Sequence[Site],
        ledger: Ledger,
        client: Client,
        timeline: Timeline,
        rng: random.Random,
    ) -> None:
        self._agents, self._sites, self._ledger = agents, sites, ledger
        self._client, self._timeline, self._rng = client, timeline, rng

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))
            known = [
                agent for agent in self._agents if agent.registered and agent.node_id not in self._ledger.deletions
            ]
            if known:
                await self.patch(self._rng.choice(known).node_id, self._rng.choice(self._sites))

    async def patch(self, node_id: str, site: Site) -> None:
        """Ask for something, and remember what was answered."""
        ledger = self._ledger
        status = self._rng.choice(("online", "maintenance", "draining"))
        patch = ledger.next_patch(node_id, site.name, self._timeline.now_s, status)
        body = {"status": status, "labels_add": [patch.label], "labels_remove": ledger.labels(node_id)}
        ledger.patches[node_id].append(patch)
        try:
            answer = await self._client.ask("PATCH", site.url(f"{NODES}/{node_id}"), ADMIN_KEY, body)
        except Unanswered as fault:
            if not fault.sent:
                ledger.patches[node_id].remove(patch)
            return
        if answer.ok:
            patch.acked_s, patch.version = self._timeline.now_s, answer.body["version"]
        elif answer.status == 404:
            ledger.patches[node_id].remove(patch)
        elif answer.status != 503:
            raise Violation(f"patches are taken or put off: {patch} was answered {answer}")

    async def dismiss(self, node_id: str, site: Site) -> None:
        """Delete a node that lives: it hears of it, and registers again."""
        self._ledger.reborn.add(node_id)
        with contextlib.suppress(Unanswered):
            await self._client.ask("DELETE", site.url(f"{NODES}/{node_id}"), ADMIN_KEY)
        self._timeline.note(f"deleted {node_id}, which lives, at {site}")

    async def delete(self, agent: Agent) -> None:
        """Until some registry has done it."""
        assert agent.stopped_s is not None
        deletion = Deletion(agent.node_id, "", self._timeline.now_s, doubtful=agent.may_register_late)
        self._ledger.deletions[agent.node_id] = deletion
        unknown_at: set[str] = set()
        while deletion.acked_s is None:
            site = self._rng.choice(self._sites)
            try:
                answer = await self._client.ask("DELETE", site.url(f"{NODES}/{agent.node_id}"), ADMIN_KEY)
            except Unanswered:
                answer = Answer(503)
            if answer.status == 404:
                unknown_at.add(site.name)
            if answer.ok:
                deletion.site, deletion.version = site.name, answer.body["version"]
            if answer.ok or len(unknown_at) == len(self._sites):  # one that was not answered was done
                deletion.acked_s = self._timeline.now_s
            await asyncio.sleep(0.2)
        self._timeline.note(f"deleted {agent} at {deletion.site or 'some registry'}")
