"""The promises, while everything breaks and after it was healed. Each Violation begins with the promise's name."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tests.chaos.callers import NODES, Agent
from tests.chaos.client import Unanswered
from tests.chaos.ledger import LATE_S, Ledger
from tests.chaos.site import OFFLINE_S, Hearing, Site, listed
from tests.chaos.timeline import Timeline, Violation

LOOK_S = 0.4
FRESH_S = 2.0  # a heartbeat of so long ago still counts as alive, with a second and more to spare
HEARS_S = 6.0  # with a link for so long a registry has caught up
GAP_S = OFFLINE_S - 2.0  # whoever never was silent for so long cannot be called offline by anybody who hears it
SPAN_S = 8.0
LAG_S = 3.0
OLD_MARK_S = 2.5
NOTICED_S = 1.5  # how late one look notices that a registry has died

Nodes = Mapping[str, dict[str, Any]]


class Watch:
    """Looks at one registry again and again."""

    def __init__(self, site: Site, sites: Sequence[Site], agents: list[Agent], ledger: Ledger, timeline: Timeline):
        self._site, self._others = site, [other for other in sites if other is not site]
        self._agents, self._ledger, self._timeline = agents, ledger, timeline
        self.looks = 0

    async def run(self) -> None:
        """For ever."""
        site = self._site
        while True:
            site.check_alive()
            if site.listening:
                epoch, asked_s, caught_up = site.epoch, self._timeline.now_s, site.caught_up
                try:
                    peers = await self._federation()
                    nodes = await listed(site)
                except Unanswered as fault:
                    if site.listening and site.epoch == epoch:
                        raise Violation(
                            f"reads are always answered: {site} is up, and to a read at {asked_s:.2f} there was {fault}"
                        ) from None
                else:
                    if site.listening and site.epoch == epoch:
                        self._look(nodes, peers, asked_s)
                        if caught_up:
                            self._deleted_stay_away(nodes)
            else:
                site.hears.clear()
            await asyncio.sleep(LOOK_S)

    async def _federation(self) -> dict[str, dict[str, Any]]:
        answer = await self._site.read("/api/v1/federation")
        if not answer.ok:
            raise Unanswered(f"{answer.status} {answer.body}", sent=True)
        return {peer["registry_id"]: peer for peer in answer.body["peers"]}

    def _look(self, nodes: Nodes, peers: Nodes, asked_s: float) -> None:
        self.looks += 1
        for other in self._others:
            self._note_hearing(other, peers.get(other.name, {}), asked_s)
        for agent in self._agents:
            node = nodes.get(agent.node_id)
            if node is not None and node["status"] == "offline":
                self._is_justified(agent, asked_s)

    def _note_hearing(self, other: Site, peer: dict[str, Any], asked_s: float) -> None:
        lag_s, hears = peer.get("lag_s"), self._site.hears
        before = hears.get(other.name)
        if peer.get("state") == "up" and lag_s is not None and lag_s <= OLD_MARK_S:
            since_s = before.since_s if before is not None and before.goes_on else asked_s
            hears[other.name] = Hearing(since_s, asked_s)
        elif before is not None:
            hears[other.name] = replace(before, goes_on=False)

    def _is_justified(self, agent: Agent, asked_s: float) -> None:
        """Whether this registry may call that node offline."""
        if agent.stopped_s is not None or not agent.acks:
            return
        newest = agent.acks[-1]
        if newest.answered_s > asked_s:
            return  # it was heard while we looked
        here = newest.site is self._site and newest.epoch == self._site.epoch  # else its store may be lost since
        if here and asked_s - newest.sent_s < FRESH_S:
            raise Violation(
                f"no live node is shown offline: {self._site} shows {agent} so at {asked_s:.2f}, and took its "
                f"heartbeat of {newest.sent_s:.2f}",
                agent.node_id,
            )
        times = [ack.sent_s for ack in agent.acks] + [asked_s]
        if times[0] > asked_s - SPAN_S:
            return
        gap_s = max(later - earlier for earlier, later in pairwise(times))
        if gap_s < GAP_S and self._knows(agent, asked_s):
            where = ", ".join(dict.fromkeys(ack.site.name for ack in agent.acks))
            raise Violation(
                f"no live node is called dead by who cannot know: {self._site} shows {agent} offline at {asked_s:.2f}; "
                f"it was heard by {where}, without a gap of more than {gap_s:.2f} s; it is where it is since "
                f"{agent.settled_s:.2f}, and {self._site} hears: {self._site.hears}",
                agent.node_id,
            )

    def _knows(self, agent: Agent, asked_s: float) -> bool:
        """Whether this registry has had the words of all that the node was at of late: it hears them, or did for as
        long as they served it, or it heard the one that the node is with since long before."""
        if asked_s - agent.unanswered_s < LATE_S + SPAN_S:
            return False  # who stood still may take that heartbeat for a new one, and wait for the next in vain
        last_s = {ack.site.name: ack.sent_s for ack in agent.acks if ack.site is not self._site}
        settled_s = agent.settled_s if len(last_s) == 1 else float("inf")
        for name, served_s in last_s.items():
            hearing = self._site.hears.get(name)
            if hearing is None or hearing.until_s - hearing.since_s < HEARS_S:
                return False
            served = hearing.until_s >= served_s - NOTICED_S
            if not (hearing.goes_on or served or hearing.until_s - settled_s >= HEARS_S):
                return False
        return True

    def _deleted_stay_away(self, nodes: Nodes) -> None:
        name, epoch = self._site.name, self._site.epoch
        # Whoever lost its store and can reach nobody serves what it has: nothing. It has heard of no deletion.
        hears_somebody = any(hearing.goes_on for hearing in self._site.hears.values())
        for deletion in self._ledger.deletions.values():
            if not deletion.holds or deletion.doubtful:
                continue
            if deletion.node_id not in nodes:
                if hears_somebody:
                    deletion.gone_at[name] = epoch
            elif deletion.gone_at.get(name) == epoch:
                raise Violation(
                    f"nothing is resurrected: {self._site} shows it again, after {deletion}", deletion.node_id
                )


# after healing


def difference(shown: Mapping[str, Nodes]) -> str:
    """Empty when all registries say the same of all nodes."""
    (first, nodes), *rest = shown.items()
    for other, theirs in rest:
        if nodes.keys() != theirs.keys():
            ours_alone, theirs_alone = sorted(nodes.keys() - theirs.keys()), sorted(theirs.keys() - nodes.keys())
            return f"registries agree: only {first} has {ours_alone}, only {other} {theirs_alone}"
        for node_id, node in nodes.items():
            for field in ("status", "home_registry", "labels"):
                ours, others = node[field], theirs[node_id][field]
                if sorted(ours) != sorted(others):
                    return f"registries agree: {field} of {node_id}: {ours} at {first}, {others} at {other}"
    return ""


def unsettled(nodes: Nodes, agents: Sequence[Agent], ledger: Ledger) -> str:
    """Empty when every node stands as its agent and operators left it."""
    known = {node_id for agent in agents for node_id in (agent.node_id, *agent.former_ids)}
    if strange := nodes.keys() - known:
        return f"nothing is made up: {sorted(strange)} never registered"
    for agent in agents:
        if (found := _of(agent, nodes.get(agent.node_id), ledger)) != "":
            return found
    return ""


def _of(agent: Agent, node: dict[str, Any] | None, ledger: Ledger) -> str:
    deletion = ledger.deletions.get(agent.node_id)
    if deletion is not None:
        if node is None or not deletion.holds or deletion.doubtful:
            return ""
        return f"nothing is resurrected: {node['node_id']} is there, after {deletion}"
    stopped = agent.stopped_s is not None
    if node is None:
        if stopped and (agent.node_id in ledger.reborn or not any(made.holds for made in agent.registrations)):
            return ""
        if not agent.registered:
            return f"the living are shown online: {agent} could not register"
        return f"acknowledged registrations stand: {agent} is nowhere, after {agent.registered_as()[0]}"
    registered = [label for label in node["labels"] if label.startswith("reg-")]
    if registered not in [[made.label] for made in agent.registered_as()]:
        return f"the newest registration stands: {agent} has {registered}, after {agent.registered_as()[0]}"
    if stopped:
        if node["status"] != "offline":
            return f"the dead are shown offline: {agent} stopped at {agent.stopped_s:.2f} and is {node['status']}"
        return _patch_stands(agent, node, ledger, status=False)
    if node["status"] in ("offline", "degraded"):
        return f"the living are shown online: {agent} is {node['status']} ({node['status_reason']})"
    return _patch_stands(agent, node, ledger, status=True)


def _patch_stands(agent: Agent, node: dict[str, Any], ledger: Ledger, *, status: bool) -> str:
    if agent.node_id in ledger.reborn:
        return ""
    last, instead = ledger.standing(agent.node_id)
    shown = [label for label in node["labels"] if label.startswith("op-")]
    winner = next((patch for patch in (last, *instead) if patch is not None and [patch.label] == shown), None)
    if winner is None:
        if not shown and last is None:
            return ""
        return f"acknowledged patches stand: {agent} has {shown} and is {node['status']}, after {last}"
    if status and node["status"] != winner.status:
        return f"acknowledged patches stand: {agent} is {node['status']} with {winner}"
    return ""


async def unlinked(sites: Sequence[Site]) -> str:
    """Empty when every registry hears every other."""
    for site in sites:
        answer = await site.read("/api/v1/federation")
        peers = {peer["registry_id"]: peer for peer in answer.body["peers"]}
        for other in sites:
            if other is site:
                continue
            peer = peers.get(other.name)
            if peer is None or peer["state"] != "up" or peer["lag_s"] is None or peer["lag_s"] >= LAG_S:
                said = {name: peer[name] for name in ("state", "lag_s", "error")} if peer is not None else None
                return f"registries hear each other: {site} says of {other}: {said}"
    return ""


async def keys_work(sites: Sequence[Site], agents: Sequence[Agent]) -> None:
    """Each living agent's key, at each registry."""
    for agent in agents:
        for site in sites:
            if agent.stopped_s is None and agent.key is not None:
                answer = await site.read(f"{NODES}/{agent.node_id}", agent.key)
                if not answer.ok:
                    raise Violation(f"keys work everywhere: {site} answers {agent}'s read {answer}")
