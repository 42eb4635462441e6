"""What a run is like: how many take part, which faults happen and how often. All of it drawn from the seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

WEEK_S = 7 * 86400.0


@dataclass(frozen=True)
class Scenario:
    """Defaults are a calm run on good clocks and an orderly network. Rates are events a virtual second."""

    themes: tuple[str, ...] = ()
    registries: int = 4
    topology: str = "mesh"  # mesh | ring | star | line | sparse
    nodes: int = 14
    fault_s: float = 70.0
    heal_s: float = 18.0  # nodes go on heartbeating, nothing breaks any more
    rest_s: float = 150.0  # nothing is written any more; ends as soon as everything is as it must be

    beat_s: float = 2.0
    window_s: float = 6.0
    reach_s: float = 5.0
    sync_s: float = 3.0
    digest_s: float = 8.0
    tombstone_min_age_s: float = 15.0
    eviction_s: float = WEEK_S
    succession_s: float = 4.0

    latency_s: float = 0.03
    jitter_s: float = 0.05
    ordered: bool = True  # as over TCP; otherwise messages overtake each other
    loss: float = 0.0
    duplication: float = 0.0
    late_s: float = 0.0  # messages of a link that was cut still arrive, this much later at most
    wire: bool = False  # every message goes through the codec

    partition_rate: float = 0.0
    one_way_rate: float = 0.0
    cut_rate: float = 0.0
    crash_rate: float = 0.0
    crash_kinds: tuple[str, ...] = ("keep",)  # keep | tail | wipe | backup | silent
    stall_rate: float = 0.0
    absences: int = 0  # registries down for longer than tombstones are kept
    joins: int = 0
    leaves: int = 0
    forget_rate: float = 0.0  # operators take a registry out of the roster, and mostly it has another key from then on
    store_delay_s: float = 0.01
    frame_items: int = 2_000  # or three: every drain, push and repair is of many frames

    skew_ms: int = 0
    drift: float = 0.0
    jump_rate: float = 0.0
    jump_ms: int = 0

    token_share: float = 1.0
    flap_share: float = 0.0
    request_loss: float = 0.0
    restart_share: float = 0.03  # of heartbeats are registrations: the machine's agent was started again
    death_rate: float = 0.02
    clone_rate: float = 0.0
    impostor_rate: float = 0.0
    amend_rate: float = 0.2
    delete_rate: float = 0.05
    put_rate: float = 0.05
    revoke_rate: float = 0.02


Change = Callable[[Scenario, random.Random], Scenario]


def _lossy(s: Scenario, rng: random.Random) -> Scenario:
    return replace(s, ordered=False, loss=rng.choice((0.02, 0.1, 0.25)))


def _reordering(s: Scenario, rng: random.Random) -> Scenario:
    jitter_s = rng.choice((0.2, 1.0))  # a walk is a dozen messages, each of them late: that takes patience
    duplication = rng.choice((0.0, 0.1, 0.3))
    return replace(s, ordered=False, duplication=duplication, jitter_s=jitter_s, heal_s=18.0 + 30.0 * jitter_s)


def _skewed(s: Scenario, rng: random.Random) -> Scenario:
    return replace(s, skew_ms=rng.choice((5, 200, 3000)), drift=rng.choice((0.0, 0.0, 0.001, 0.02)))


def _jumping(s: Scenario, rng: random.Random) -> Scenario:
    return replace(s, jump_rate=0.06, jump_ms=rng.choice((2_000, 30_000, 600_000, 3_600_000)))


def _crashing(*kinds: str) -> Change:
    def change(s: Scenario, rng: random.Random) -> Scenario:
        return replace(s, crash_rate=rng.choice((0.03, 0.08)), crash_kinds=kinds, store_delay_s=rng.choice((0.01, 0.4)))

    return change


def _sparse(s: Scenario, rng: random.Random) -> Scenario:
    topology, registries = rng.choice(("ring", "star", "line", "sparse")), rng.choice((5, 6, 12))
    # Along a line what comes late is pulled from relay to relay, each after its grace: two seconds a hop, and for what
    # was written meanwhile once more, after the walk by which one that was away for long becomes current.
    heal_s = max(30.0, 10.0 + 2 * 2.0 * (registries - 1)) if topology == "line" else 30.0
    return replace(s, topology=topology, registries=registries, nodes=10, heal_s=heal_s, reach_s=16.0)


def _wandering(s: Scenario, rng: random.Random) -> Scenario:
    """Machines go from registry to registry, register everywhere, and clocks disagree."""
    return replace(
        s, flap_share=1.0, restart_share=0.4, skew_ms=3000, death_rate=0.0, partition_rate=0.15, delete_rate=0.0
    )


def _revoking_ahead(s: Scenario, rng: random.Random) -> Scenario:
    """Keys are revoked while clocks are far off."""
    return replace(s, put_rate=0.4, revoke_rate=0.4, jump_rate=0.15, jump_ms=3_600_000)


def _evicting(s: Scenario, rng: random.Random) -> Scenario:
    return replace(s, absences=1, eviction_s=rng.choice((25.0, 35.0)), tombstone_min_age_s=8.0, delete_rate=0.15)


THEMES: dict[str, Change] = {
    "loss": _lossy,
    "reorder": _reordering,
    "late": lambda s, rng: replace(s, late_s=rng.choice((5.0, 60.0)), cut_rate=0.2),
    "partition": lambda s, rng: replace(s, partition_rate=rng.choice((0.03, 0.1))),
    "one-way": lambda s, rng: replace(s, one_way_rate=rng.choice((0.05, 0.15))),
    "cut": lambda s, rng: replace(s, cut_rate=rng.choice((0.1, 0.5))),
    "skew": _skewed,
    "jump": _jumping,
    "crash": _crashing("keep"),
    "tail": _crashing("tail", "keep"),
    "wipe": _crashing("wipe"),
    "backup": _crashing("backup", "keep"),
    "silent": _crashing("silent"),
    "any-crash": _crashing("keep", "tail", "wipe", "backup", "silent"),
    "stall": lambda s, rng: replace(s, stall_rate=0.06),
    "absence": lambda s, rng: replace(s, absences=rng.choice((1, 2)), tombstone_min_age_s=8.0, delete_rate=0.15),
    "eviction": _evicting,
    "join": lambda s, rng: replace(s, joins=rng.choice((1, 2))),
    "leave": lambda s, rng: replace(s, leaves=1, eviction_s=60.0),
    "forget": lambda s, rng: replace(s, forget_rate=0.1, put_rate=0.3, revoke_rate=0.1, partition_rate=0.1),
    "sparse": _sparse,
    "flap": lambda s, rng: replace(s, flap_share=rng.choice((0.3, 1.0)), request_loss=rng.choice((0.0, 0.1))),
    "old-callers": lambda s, rng: replace(s, token_share=rng.choice((0.0, 0.5)), flap_share=0.4),
    "clones": lambda s, rng: replace(s, clone_rate=0.05, impostor_rate=0.05),
    "wander": _wandering,
    "revoking-ahead": _revoking_ahead,
    "deletes": lambda s, rng: replace(s, delete_rate=0.6, amend_rate=0.6, tombstone_min_age_s=rng.choice((3.0, 15.0))),
    "keys": lambda s, rng: replace(s, put_rate=0.3, revoke_rate=0.25),
}


def draw(rng: random.Random) -> Scenario:
    """A scenario: half of them have one or two themes, the rest a good many."""
    names = list(THEMES)
    count = rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 4, 6, 8))
    themes = tuple(rng.sample(names, count))
    base = Scenario(
        themes=themes,
        registries=rng.choice((2, 3, 3, 3, 4, 4, 5, 7)),
        nodes=rng.randint(6, 16),
        fault_s=rng.choice((25.0, 35.0, 50.0, 70.0)),
        wire=rng.random() < 0.2,
    )
    for name in names:  # in their own order: what a theme sets does not depend on how it was drawn
        if name in themes:
            base = THEMES[name](base, rng)
    if base.nodes % 3 == 0 and base.ordered:
        base = replace(base, frame_items=3)
    if base.topology != "mesh":  # a dozen relays in a row, each of them late: that is a matter of patience
        base = replace(base, jitter_s=min(base.jitter_s, 0.2))
    if base.forget_rate:  # who is below a floor, and has taken somebody out, is heard when others walk with it
        base = replace(base, heal_s=base.heal_s + 3 * base.digest_s)
    return base
