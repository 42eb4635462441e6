"""The promises, one function each. Each raises a Violation that begins with the promise's name."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from federation.clock import Dot, covers
from federation.record import Item, Record, SectionKind, section_of
from federation.seals import Seal, is_sealed, seal_of
from tests.simulation.ledger import Violation, Write, has
from tests.simulation.registry import OFFLINE, ONLINE, SWEEP_S, SimulatedRegistry

if TYPE_CHECKING:
    from tests.simulation.world import World

State = tuple[Any, ...]

SLACK_S = 3.0  # ticks, sweeps, watermarks' and samples' own intervals
HOP_S = 3.0  # for a revocation: one link, with a loaded store at each end


def _up(world: "World") -> Iterator[SimulatedRegistry]:
    return (registry for registry in world.registries.values() if registry.running)


def at_any_moment(world: "World") -> None:
    """What must hold while everything breaks."""
    positions_are_true(world)
    only_owners_judge(world)
    the_dead_are_not_shown_alive(world)
    dead_registries_are_not_reachable(world)
    words_are_vouched_for(world)
    revocations_arrive(world)


def after_healing(world: "World") -> None:
    """What must hold once all has worked for a while and machines still heartbeat."""
    the_living_are_shown_online(world)
    revocations_arrive(world)


def at_rest(world: "World") -> None:
    """What must hold in the end."""
    positions_are_true(world)
    only_owners_judge(world)
    nothing_is_made_up(world)
    acknowledged_writes_stand(world)
    newest_registrations_stand(world)
    nothing_is_resurrected(world)
    nothing_grows_without_bound(world)


# while it runs


def positions_are_true(world: "World") -> None:
    """A position at or past a write means that it is here, or something greater, or was collected."""
    rng = world.rng
    writes = world.ledger.writes
    if len(writes) > 150 and not world.resting:
        writes = rng.sample(writes, 150)
    for registry in _up(world):
        vector, get = registry.live.replica.vector, registry.live.replica.get
        for write in writes:
            if write.key in world.silently_lost or not covers(vector, write.section.dot):
                continue
            record = get(write.key)
            if record is not None and has(record.state(), write):
                continue
            if world.ledger.ended(write.key, write.life) and (
                record is None or record.deleted or _is_another(world, record, write)
            ):
                continue
            lost_s = world.keys_lost_s.get(write.registry)
            if lost_s is not None and write.at_s >= lost_s and _is_refused(world, registry, write):
                continue
            raise Violation(f"positions are true: {registry.id} is past {write}, and holds {record and record.state()}")


def _is_another(world: "World", record: Record, write: Write) -> bool:
    """Whether it is not what that write was of, or a deletion ended: it was registered after it, by a registry that
    had lost what came before; or apart from it, and who deleted the one never saw the other's birth, and had
    forgotten the deletion when they met."""
    spec = world.ledger.by_dot.get(record.spec.dot) if record.spec is not None else None
    if spec is not None and spec.serial > write.serial:
        return True
    endings = (w for w in world.ledger.by_key[write.key] if w.kind == SectionKind.END and w.lost_s is None)
    return all(ending.section.birth != record.birth for ending in endings)


def only_owners_judge(world: "World") -> None:
    """Every word on a node in any replica was written by the registry that it names; `offline` only
    by one that owned the node and had not heard it for a window."""
    by_dot = world.ledger.by_dot
    for registry in _up(world):
        for record in registry.held():
            judgement = record.judgement
            if judgement is None or not record.key.startswith("n:"):
                continue
            write = by_dot.get(judgement.dot)
            if write is None or write.section != judgement:
                raise Violation(f"only owners judge: {registry.id} holds {record.state()}, which nobody wrote")
            if judgement.payload == OFFLINE and write.action != "judge":
                raise Violation(f"only owners judge: {write} was no owner's judgement")


def the_dead_are_not_shown_alive(world: "World") -> None:
    """Nobody who hears a dead node's owner shows it as reachable and online past its window, and who
    does not hear the owner does not call it reachable."""
    scenario = world.scenario
    late_s = max(1.0, world.network.latest_s)
    living = {machine.key for machine in world.machines if machine.alive and not machine.refused}
    for key, beat_s in world.ledger.last_beat_s.items():
        if key in living:
            continue
        for registry in _up(world):
            now = registry.now
            standing = registry.live.standing(key, now)
            if standing is None or standing.judgement != ONLINE or not standing.reachable:
                continue
            owner = world.registries.get(standing.owner)
            held = owner.live.replica.get(key) if owner is not None and owner.up else None
            if key in world.silently_lost and owner is not None and owner.up and (held is None or held.deleted):
                continue  # its owner does not know of it, and can say nothing, until a walk brings it back
            found_s = (
                owner.counting_since_s(key) if owner is not None else 0.0
            )  # with a store that was lost: much later
            heard_s = max([beat_s, found_s, *(r.started_s for r in world.registries.values())])
            limit_s = scenario.window_s + SWEEP_S + scenario.reach_s + late_s + 2 * scenario.store_delay_s + SLACK_S
            if world.now - heard_s > limit_s * (1 if scenario.topology == "mesh" else 2):
                raise Violation(
                    f"the dead are not shown alive: {registry.id} shows {key} as {standing}, {world.now - heard_s:.1f} "
                    f"s after anybody heard it or started; its owner is {'up' if owner and owner.up else 'down'}"
                )


def dead_registries_are_not_reachable(world: "World") -> None:
    """A registry whose process is gone is called unreachable, everywhere, once its last word is too old
    (and has had time to come round by every relay)."""
    scenario = world.scenario
    hops = 2 if scenario.topology == "mesh" else len(world.registries)
    limit_s = scenario.reach_s + SLACK_S + 2 * scenario.store_delay_s + hops * max(1.0, world.network.latest_s)
    limit_s += world.longest_stall_s  # what waits in front of a frozen process looks fresh when it wakes up
    for dead in world.registries.values():
        if dead.down_since_s is None or world.now - dead.down_since_s < limit_s:
            continue
        for registry in _up(world):
            if registry.live.reachable(dead.id, registry.now):
                raise Violation(
                    f"dead registries are not reachable: {registry.id} hears {dead.id}, which has been gone for "
                    f"{world.now - dead.down_since_s:.1f} s"
                )


def words_are_vouched_for(world: "World") -> None:
    """Who shows an owner's word as fresh shows what the owner itself held then: not what it has said
    otherwise since, nor a node that it knew to be another's."""
    if world.clocks_were_wrong:
        return  # a word may be held until its time, and what came before it still shown
    scenario = world.scenario
    hops = 2 if scenario.topology == "mesh" else len(world.registries)
    slack_s = SLACK_S + 2 * scenario.store_delay_s + hops * max(0.5, world.network.latest_s) + world.longest_stall_s
    for registry in _up(world):
        now = registry.now
        for key in world.ledger.last_beat_s:
            if key in world.silently_lost:
                continue  # its owner cannot tell any more that it is another's, until a walk brings it back
            standing = registry.live.standing(key, now)
            if standing is None or not standing.reachable or standing.owner == registry.id:
                continue
            owner, then_s = world.registries[standing.owner], world.now - standing.as_of_s - slack_s
            if not owner.up or owner.started_s > then_s:
                continue
            record = registry.live.replica.get(key)
            assert record is not None
            assert record.judgement is not None
            word = world.ledger.by_dot[record.judgement.dot]
            moved_s = owner.moved_s.get(key, world.now)
            if word.at_s < moved_s < then_s:
                raise Violation(
                    f"words are vouched for: {registry.id} shows {key} as {standing}, which {owner.id} knows since "
                    f"{moved_s:.3f} to be another's"
                )
            for later in world.ledger.by_key[key]:
                if (
                    later.kind == SectionKind.JUDGEMENT
                    and (later.life, later.incarnation) == (word.life, word.incarnation)
                    and later.serial > word.serial
                    and later.at_s < then_s
                    and (later.registry, later.section.generation) == (owner.id, owner.live.replica.generation)
                ):
                    raise Violation(f"words are vouched for: {registry.id} shows {word} as {standing}, since {later}")


def _is_refused(world: "World", registry: SimulatedRegistry, write: Write) -> bool:
    """Whether it is of an identity that is not the one pinned here, until an operator has taken that out and the new
    one has come, or was so until a moment ago: the next walk brings it. It may be another that refused it, and told us
    how far it has come."""
    taken_in_s = registry.taken_in_s.get(write.registry, float("-inf"))
    item = Item(write.key, write.life, write.incarnation, write.kind, write.section)
    if not is_sealed(item):
        return False
    walked = world.resting or world.now - taken_in_s > 2 * world.scenario.digest_s
    seal = seal_of(item, registry.live.replica.roster)
    return not walked or seal is Seal.BROKEN or (seal is Seal.UNKNOWN and not world.resting)


def revocations_arrive(world: "World") -> None:
    """A revocation is in force wherever there has been a way to for long enough, whatever clocks do."""
    scenario = world.scenario
    bound_s = scenario.sync_s + HOP_S
    if scenario.loss:  # pushes, announcements and pulls are lost in a row
        bound_s = 4 * scenario.sync_s + 2 * scenario.digest_s
    if scenario.forget_rate:  # what one that is out has sealed is held, and no walk with it is whole until it is back
        bound_s += 2 * scenario.digest_s
    bound_s = (bound_s + 2 * scenario.store_delay_s + 12 * scenario.jitter_s) * _hops(world)
    for write in world.ledger.due():
        if not write.revocation or world.now - write.at_s < bound_s or write.key in world.silently_lost:
            continue
        if world.registries[write.registry].started_s > write.at_s:
            continue  # it may have lost it, and others may have it who had no way to here
        for registry in _up(world):
            if world.now - registry.started_s < bound_s:
                continue
            writer = world.registries[write.registry]
            if scenario.loss and not all(r.up and r.live.caught_up for r in (registry, writer)):
                continue  # who is below a floor walks first: eight messages in a row of which none may be lost
            if world.network.together_s(write.registry, registry.id) < bound_s:
                continue
            record = registry.live.replica.get(write.key)
            if record is None or not has(record.state(), write):
                raise Violation(
                    f"revocations arrive: {write} is not in force at {registry.id}, which has had a way to "
                    f"{write.registry} for {world.network.together_s(write.registry, registry.id):.1f} s"
                )


def _hops(world: "World") -> int:
    return 1 if world.scenario.topology == "mesh" else len(world.registries)


# after healing


def the_living_are_shown_online(world: "World") -> None:
    """A machine that heartbeats a registry that serves is online and reachable everywhere; but for those
    whose records vanished somewhere, which come back with some later walk."""
    for machine in world.machines:
        if (
            machine.key in world.silently_lost
            or not machine.alive
            or machine.refused
            or any(m.refused and m.key == machine.key for m in world.machines)
        ):
            continue
        if machine.answered_s is None or world.now - machine.answered_s > 3 * world.scenario.beat_s:
            raise Violation(f"the living are shown online: {machine.name} was answered last at {machine.answered_s}")
        for registry in _up(world):
            standing = registry.live.standing(machine.key, registry.now)
            if standing is None or not standing.reachable or standing.judgement != ONLINE:
                raise Violation(
                    f"the living are shown online: {machine.name} was answered by {machine.answered_by} at "
                    f"{machine.answered_s:.3f}, and {registry.id} shows {standing}"
                )


# in the end


def difference(world: "World") -> str:
    """Empty when all registries agree: on every record (where one has collected a tombstone that another
    has not, they do) and on every node's standing."""
    registries = list(_up(world))
    first = registries[0]
    states = {registry.id: _states(registry) for registry in registries}
    for registry in registries[1:]:
        for key in sorted(states[first.id].keys() | states[registry.id].keys()):
            ours, theirs = states[first.id].get(key), states[registry.id].get(key)
            if ours != theirs and not (_only_end(ours) and _only_end(theirs)):
                return f"convergence: {first.id} holds {ours}, {registry.id} {theirs}"
    for key in states[first.id]:
        if key.startswith("n:"):
            shown = {r.id: r.live.standing(key, r.now) for r in registries}
            views = {(s.owner, s.judgement, s.reachable) if s is not None else None for s in shown.values()}
            if len(views) > 1:
                return f"convergence: {key} is shown as {shown}"
    return ""


def _states(registry: SimulatedRegistry) -> dict[str, State]:
    return {record.key: record.state() for record in registry.held()}


def _only_end(state: State | None) -> bool:
    return state is None or state[1] % 2 == 0


def left_over(world: "World") -> str:
    """Empty when every tombstone of a node is collected."""
    for registry in _up(world):
        for record in registry.held():
            if not record.deleted or _birth_is_forgotten(registry, record):
                continue
            awaited = [dot for dot in (record.end and record.end.dot, record.birth) if dot is not None]
            if not any(_is_beyond(world, dot) for dot in awaited):
                return f"tombstones are collected: {registry.id} still holds {record.state()}"
    return ""


def _birth_is_forgotten(registry: SimulatedRegistry, tombstone: Record) -> bool:
    """Whether nobody's position knows where it was born: all who did lost their stores, one after another.
    Then nobody can ever be past it, and it stays."""
    birth = tombstone.birth
    return birth is not None and birth.chain not in registry.live.replica.vector


def _is_beyond(world: "World", dot: Dot) -> bool:
    """Whether nobody's position reaches that write, as every registry that was past it, its writer first, has lost
    its store since. Some write before it nobody can give any more, or nobody knows that it was replaced: its chain
    never closes, and a tombstone that waits for it stays (federation/DESIGN.md, what it does not do)."""
    if any(covers(registry.live.replica.vector, dot) for registry in _up(world)):
        return False
    return world.registries[dot.origin].store_lost_s > world.ledger.by_dot[dot].at_s


def nothing_is_made_up(world: "World") -> None:
    """Every section that stands was written by somebody, for this very record."""
    for registry in _up(world):
        for record in registry.live.replica.records():
            for kind in SectionKind:
                section = section_of[kind](record)
                if section is None:
                    continue
                write = world.ledger.by_dot.get(section.dot)
                if write is None or (write.key, write.life, write.incarnation, write.kind, write.section) != (
                    record.key,
                    record.life,
                    record.incarnation,
                    kind,
                    section,
                ):
                    raise Violation(f"nothing is made up: {registry.id} holds {record.state()}, written as {write}")


def _final(world: "World") -> dict[str, Record]:
    return {record.key: record for record in next(_up(world)).held()}


def acknowledged_writes_stand(world: "World") -> None:
    """What a caller was told holds is there, or what replaced it: a later write, a deletion."""
    final = _final(world)
    for write in world.ledger.due():
        record = final.get(write.key)
        if record is None:
            if not world.ledger.ended(write.key, write.life):
                raise Violation(f"acknowledged writes stand: {write} is gone, and nobody deleted it")
            continue
        if has(record.state(), write):
            standing = section_of[write.kind](record)
            winner = None if standing is None else world.ledger.by_dot.get(standing.dot)
            _is_no_ancestor(write, winner)
        elif world.ledger.ended(write.key, write.life) and (
            write.key in world.silently_lost or _is_another(world, record, write)
        ):
            continue  # deleted; who lost that in silence vouched for it, and brings it back
        else:
            raise Violation(f"acknowledged writes stand: {write} was replaced by {record.state()}")


def _is_no_ancestor(write: Write, winner: Write | None) -> None:
    """One registry's own writes of one section replace each other in the order in which they were made."""
    if winner is None or winner is write or winner.registry != write.registry:
        return
    if (winner.key, winner.life, winner.incarnation, winner.kind) != (
        write.key,
        write.life,
        write.incarnation,
        write.kind,
    ):
        return
    if winner.serial < write.serial and winner.section.generation == write.section.generation:
        raise Violation(f"acknowledged writes stand: {write} was replaced by the older {winner}")


def newest_registrations_stand(world: "World") -> None:
    """A machine that carries its token: its newest acknowledged registration is what stands, wherever
    it made the ones before. A registry that stood still answers requests that were given up long ago."""
    if world.longest_stall_s:
        return
    final = _final(world)
    for machine in world.machines:
        rivals = [m for m in world.machines if m.key == machine.key]
        if len(rivals) > 1 or not machine.uses_token or machine.accepted is None or machine.key in world.silently_lost:
            continue
        writes = [w for w in world.ledger.by_key[machine.key] if w.kind == SectionKind.SPEC]
        newest = next(w for w in writes if w.section.payload == machine.accepted)
        record = final.get(machine.key)
        ended = world.ledger.ended(machine.key, newest.life)
        if newest.lost_s is not None or ended or record is None or record.life != newest.life:
            continue  # deleted, or registered again without an answer: acknowledged_writes_stand sees to those
        assert record.spec is not None
        standing = world.ledger.by_dot[record.spec.dot]
        if standing.serial < newest.serial and standing.section.payload in machine.answered:
            raise Violation(f"newest registrations stand: {newest} gave way to the older {standing}")


def nothing_is_resurrected(world: "World") -> None:
    """A key that was deleted exists only where a registration was accepted for the life after."""
    for key, record in _final(world).items():
        if record.deleted or key in world.silently_lost:
            continue  # who lost the deletion in silence vouched for it
        for write in world.ledger.by_key.get(key, ()):
            if write.kind != SectionKind.END or write.life % 2 or write.lost_s is not None or write.acked_s is None:
                continue
            if record.life < write.life and not _is_another(world, record, write):
                raise Violation(f"nothing is resurrected: {write} ended it, and it stands as {record.state()}")


def nothing_grows_without_bound(world: "World") -> None:
    """Positions: a chain a start, about. Logs: what stands, and what was replaced lately."""
    starts = sum(registry.starts for registry in world.registries.values())
    for registry in _up(world):
        replica = registry.live.replica
        if len(replica.vector) > 2 * starts:  # a start may find its generation taken, and take another
            raise Violation(
                f"nothing grows without bound: {registry.id} knows {len(replica.vector)} chains of {starts}"
            )
        entries = sum(len(log) for log in replica.logs.values())
        if entries > 4 * len(world.ledger.writes) + 64:
            raise Violation(
                f"nothing grows without bound: {registry.id} logs {entries} of {len(world.ledger.writes)} writes"
            )
