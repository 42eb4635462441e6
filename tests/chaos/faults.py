"""What is broken, when, and how it is healed. A schedule is a function of its seed."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.site import Site
from tests.support.proxy import Network, Way

SILENT_S = 5.0  # how long links bear silence
FAR_S, JITTER_S = 0.3, 0.1


@dataclass(frozen=True)
class Fault:
    """`kind` names one of KINDS. It begins at `at_s`, or when its site is well again, and is healed after `lasts_s`."""

    at_s: float
    kind: str
    site: str
    other: str
    lasts_s: float

    def __str__(self) -> str:
        towards = f", {self.other}" if self.kind in ("cut one way", "links reset") else ""
        return f"{self.kind}: {self.site}{towards}, for {self.lasts_s:.1f} s"


@dataclass(frozen=True)
class Scene:
    """What a fault acts on. `store_lost` is called when a store is gone, with its registry dead."""

    site: Site
    other: Site
    sites: list[Site]
    network: Network
    lasts_s: float
    store_lost: Callable[[Site], Awaitable[None]]

    @property
    def around(self) -> list[Way]:
        """Every way to and from the site."""
        return self.network.between([self.site.name], [s.name for s in self.sites if s is not self.site])

    async def last(self) -> None:
        """Let it be for its time."""
        await asyncio.sleep(self.lasts_s)


async def _registry_killed(scene: Scene) -> None:
    scene.site.kill_registry()
    await scene.last()
    await scene.site.start_registry()


async def _registry_frozen(scene: Scene) -> None:
    scene.site.freeze_registry()
    try:
        await scene.last()
    finally:
        scene.site.thaw_registry()


async def _store_killed(scene: Scene) -> None:
    scene.site.store.kill()
    await scene.last()
    await scene.site.start_store()


async def _store_frozen(scene: Scene) -> None:
    scene.site.store.signal(signal.SIGSTOP)
    try:
        await scene.last()
    finally:
        scene.site.store.signal(signal.SIGCONT)


async def _store_emptied(scene: Scene) -> None:
    await asyncio.to_thread(scene.site.store.ask, "FLUSHALL")
    await scene.last()


async def _store_lost(scene: Scene) -> None:
    scene.site.kill_registry()
    scene.site.lose_store(restore=False)
    await scene.store_lost(scene.site)
    await scene.last()
    await scene.site.start_store()
    await scene.site.start_registry()


async def _store_is_old(scene: Scene) -> None:
    await asyncio.to_thread(scene.site.copy_store)
    await scene.last()
    scene.site.kill_registry()
    scene.site.lose_store(restore=True)
    await scene.store_lost(scene.site)
    await scene.site.start_store()
    await scene.site.start_registry()


async def _cut_one_way(scene: Scene) -> None:
    way = scene.network.way(scene.site.name, scene.other.name)
    way.lose()
    try:
        await scene.last()
    finally:
        way.mend()


async def _partitioned(scene: Scene) -> None:
    for way in scene.around:
        way.lose()
    try:
        await scene.last()
    finally:
        for way in scene.around:
            way.mend()


async def _held_back(scene: Scene) -> None:
    for way in scene.around:
        way.hold()
    try:
        await scene.last()
    finally:
        for way in scene.around:
            way.release()


async def _links_reset(scene: Scene) -> None:
    scene.network.way(scene.site.name, scene.other.name).reset()
    await scene.last()


async def _far_away(scene: Scene) -> None:
    for way in scene.around:
        way.delay_s, way.jitter_s, way.loss = FAR_S, JITTER_S, 0.05
    try:
        await scene.last()
    finally:
        for way in scene.around:
            way.delay_s, way.jitter_s, way.loss = 0.0, 0.0, 0.0


@dataclass(frozen=True)
class Kind:
    """`network`: only links suffer. `loses`: what nobody else has is gone; so the others have to be up, to be
    asked what they have. `least_s`, `most_s`: how long it may last."""

    strike: Callable[[Scene], Awaitable[None]]
    least_s: float
    most_s: float
    network: bool = False
    loses: bool = False


KINDS = {
    "registry killed": Kind(_registry_killed, 0.0, 8.0),
    "registry frozen": Kind(_registry_frozen, 1.0, 12.0),
    "store killed": Kind(_store_killed, 0.0, 6.0),
    "store frozen": Kind(_store_frozen, 0.5, 8.0),
    "store emptied": Kind(_store_emptied, 0.0, 1.0),
    "store lost": Kind(_store_lost, 0.0, 6.0, loses=True),
    "store is old": Kind(_store_is_old, 2.0, 20.0, loses=True),
    "cut one way": Kind(_cut_one_way, 2.0, 15.0, network=True),
    "partitioned": Kind(_partitioned, 2.0, 20.0, network=True),
    "held back": Kind(_held_back, 1.0, 10.0, network=True),
    "links reset": Kind(_links_reset, 0.0, 0.5, network=True),
    "far away": Kind(_far_away, 3.0, 15.0, network=True),
}


def schedule(seed: int, sites: list[str], seconds: float) -> list[Fault]:
    """Faults for so long: every kind in turn, in an order of the seed's, often two at a time."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    at_s, kinds = 1.0, list[str]()
    while at_s < seconds:
        if not kinds:
            kinds = rng.sample(sorted(KINDS), len(KINDS))
        name = kinds.pop()
        kind = KINDS[name]
        site, other = rng.sample(sites, 2)
        fault = Fault(at_s, name, site, other, rng.uniform(kind.least_s, kind.most_s))
        faults.append(fault)
        at_s += rng.choice((0.5, 1.0, fault.lasts_s + rng.uniform(1.0, 6.0)))
    return faults


SHORT = [
    Fault(1.0, "registry killed", "r0", "r1", 1.5),
    Fault(4.0, "store frozen", "r1", "r0", 3.5),
    Fault(6.0, "store killed", "r2", "r0", 1.5),
    Fault(9.0, "cut one way", "r0", "r2", 6.0),
    Fault(10.0, "store emptied", "r1", "r0", 0.5),
    Fault(12.0, "store is old", "r1", "r0", 4.0),
    Fault(16.0, "far away", "r2", "r1", 4.0),
    Fault(26.0, "partitioned", "r1", "r0", 14.0),  # longer than an owner may be silent without being called so
    Fault(31.0, "store lost", "r0", "r1", 1.0),
    Fault(41.0, "links reset", "r0", "r1", 0.0),
    Fault(41.5, "registry frozen", "r2", "r0", 4.0),
]
