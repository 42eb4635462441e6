"""The promises, while everything breaks and after it was healed. Each Violation begins with the promise's name."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.chaos.callers import NODES, Agent
from tests.chaos.client import Unanswered
from tests.chaos.ledger import Ledger
from tests.chaos.site import OFFLINE_S, Site, listed
from tests.chaos.timeline import Timeline, Violation

LOOK_S = 0.4
FRESH_S = 2.0  # a heartbeat of so long ago still counts as alive, with a second and more to spare
HEARS_S = 6.0  # with a link for so long a registry has caught up
GAP_S = OFFLINE_S - 2.0  # whoever never was silent for so long cannot be called offline by anybody who hears it
SPAN_S = 8.0
LAG_S = 3.0
OLD_MARK_S = 2.5

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
                epoch, asked_s = site.epoch, self._timeline.now_s
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
            else:
                site.hears_since_s.clear()
            await asyncio.sleep(LOOK_S)

    async def _federation(self) -> dict[str, dict[str, Any]]:
        answer = await self._site.read("/api/v1/federation")
        if not answer.ok:
            raise Unanswered(f"{answer.status} {answer.body}", sent=True)
        return {peer["registry_id"]: peer for peer in answer.body["peers"]}

    def _look(self, nodes: Nodes, peers: Nodes, asked_s: float) -> None:
        self.looks += 1
        hears = self._site.hears_since_s
        for other in self._others:
            peer = peers.get(other.name, {})
            lag_s = peer.get("lag_s")
            if not other.dead and (peer.get("state") != "up" or lag_s is None or lag_s > OLD_MARK_S):
                hears.pop(other.name, None)  # of the dead we remember how it was when they died
            elif not other.dead:
                hears.setdefault(other.name, asked_s)
        for agent in self._agents:
            node = nodes.get(agent.node_id)
            if node is not None and node["status"] == "offline":
                self._is_justified(agent, asked_s)
        self._deleted_stay_away(nodes)

    def _is_justified(self, agent: Agent, asked_s: float) -> None:
        """Whether this registry may call that node offline."""
        if agent.stopped_s is not None or not agent.acks:
            return
        newest = agent.acks[-1]
        if newest.answered_s > asked_s:
            return  # it was heard while we looked
        if newest.site is self._site and asked_s - newest.sent_s < FRESH_S:
            raise Violation(
                f"no live node is shown offline: {self._site} shows {agent} so at {asked_s:.2f}, and took its "
                f"heartbeat of {newest.sent_s:.2f}"
            )
        times = [ack.sent_s for ack in agent.acks] + [asked_s]
        if times[0] > asked_s - SPAN_S:
            return
        gap_s = max(later - earlier for earlier, later in pairwise(times))
        heard = all(self._has_heard(ack.site, asked_s) for ack in agent.acks)
        if gap_s < GAP_S and heard:
            where = ", ".join(dict.fromkeys(ack.site.name for ack in agent.acks))
            raise Violation(
                f"a dead registry makes no live node look dead: {self._site} shows {agent} offline at {asked_s:.2f}; "
                f"it was heard without a gap of more than {gap_s:.2f} s by {where}, which {self._site} hears"
            )

    def _has_heard(self, other: Site, asked_s: float) -> bool:
        since_s = 0.0 if other is self._site else self._site.hears_since_s.get(other.name, float("inf"))
        return asked_s - since_s >= HEARS_S

    def _deleted_stay_away(self, nodes: Nodes) -> None:
        name, epoch = self._site.name, self._site.epoch
        for deletion in self._ledger.deletions.values():
            if not deletion.holds or deletion.doubtful:
                continue
            if deletion.node_id not in nodes:
                deletion.gone_at[name] = epoch
            elif deletion.gone_at.get(name) == epoch:
                raise Violation(f"nothing is resurrected: {self._site} shows it again, after {deletion}")


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
