"""The world: virtual time, its events, and what goes on from the first to the last check.

Nothing here reads a clock or draws from anything but the one generator that the seed started, so the
same seed gives the same run, event by event; `Outcome.trace` is the proof.
"""

import heapq
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from federation.clock import Vector
from federation.config import Config
from federation.ed25519 import PrivateKey
from tests.simulation import checks
from tests.simulation.actors import Machine, Operators
from tests.simulation.clocks import Clocks
from tests.simulation.faults import Faults
from tests.simulation.ledger import Ledger, Violation, knows
from tests.simulation.network import TOPOLOGIES, Network
from tests.simulation.registry import SimulatedRegistry
from tests.simulation.scenario import Scenario, draw
from tests.simulation.store import State
from tests.support.rosters import advert

OBSERVE_S = 0.5
SAMPLE_S = 2.0
DECIDE_S = 1.0

Tracer = Callable[[float, str, tuple[object, ...]], None]


@dataclass
class Outcome:
    """How a run ended. `violation`: empty when every promise was kept."""

    seed: int
    scenario: Scenario
    violation: str = ""
    at_s: float = 0.0
    trace: int = 0
    events: int = 0
    writes: int = 0
    messages: int = 0
    converged_s: float = 0.0  # after the last write
    alerts: dict[str, int] = field(default_factory=dict)

    @property
    def replay(self) -> str:
        """The command that runs it again."""
        return f"python -m tests.simulation --seed {self.seed} --trace"

    def __str__(self) -> str:
        verdict = self.violation or "every promise kept"
        themes = " ".join(self.scenario.themes) or "calm"
        return f"seed {self.seed} ({themes}) at {self.at_s:.3f} s: {verdict}\n  replay: {self.replay}"


class World:
    """One run."""

    def __init__(self, seed: int, scenario: Scenario | None = None, tracer: Tracer | None = None) -> None:
        self.rng = random.Random(seed)
        drawn = draw(self.rng)
        self.scenario = scenario or drawn
        self.seed = seed
        self.now = 0.0
        self.healing = self.resting = False
        self.events = 0
        self.trace = 0
        self.ahead_ms = 0
        self.clocks_were_wrong = False
        self.longest_stall_s = 0.0
        self.silently_lost: set[str] = set()
        self.keys_lost_s: dict[str, float] = {}  # by registry, when it first lost its identity
        self.ledger = Ledger()
        self.registries: dict[str, SimulatedRegistry] = {}
        self.machines: list[Machine] = []
        self._tracer = tracer
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._scheduled = 0
        self.network = Network(self)

    # time and chance

    def at(self, t: float, fn: Callable[..., None], *args: object) -> None:
        """Call `fn` at that moment."""
        self._scheduled += 1
        heapq.heappush(self._heap, (t, self._scheduled, fn, args))

    def after(self, delay_s: float, fn: Callable[..., None], *args: object) -> None:
        """Call `fn` so much later."""
        self.at(self.now + delay_s, fn, *args)

    def poisson(self, rate: float, act: Callable[[], None]) -> None:
        """Do it again and again at that rate a second, until healing begins."""
        if rate <= 0:
            return

        def again() -> None:
            if not self.healing:
                act()
                self.after(self.rng.expovariate(rate), again)

        self.after(self.rng.expovariate(rate), again)

    def note(self, kind: str, *fields: object) -> None:
        """Something happened: part of what two runs of a seed must have in common."""
        self.trace = zlib.crc32(repr((self.now, kind, fields)).encode(), self.trace)
        if self._tracer is not None:
            self._tracer(self.now, kind, fields)

    def incarnation(self) -> int:
        """A new machine's key."""
        return self.rng.randint(1, 2**40)

    # who takes part

    def config(self, registry_id: str, key: PrivateKey | None = None) -> Config:
        """An engine's numbers, shrunk to the length of a run."""
        scenario = self.scenario
        return Config(
            registry_id=registry_id,
            advert=advert(registry_id, key),
            succession_s=scenario.succession_s,
            reach_s=scenario.reach_s,
            sync_interval_s=scenario.sync_s,
            digest_interval_s=scenario.digest_s,
            tombstone_min_age_s=scenario.tombstone_min_age_s,
            eviction_s=scenario.eviction_s,
            pull_timeout_s=4.0,
            walk_timeout_s=5.0,
            frame_lost_s=3.0,
            hold_retry_s=5.0,
            frame_items=self.scenario.frame_items,
            push_when_asked=self.seed % 3 == 2,  # as whoever keeps writes in rounds does
        )

    def serving(self) -> list[str]:
        """Registries on the machines' lists: all that have not left for good."""
        return [r.id for r in self.registries.values() if not r.left]

    def join(self, registry_id: str) -> None:
        """An empty registry appears, with links to everybody."""
        rng, scenario = self.rng, self.scenario
        clocks = Clocks(rng.randint(-scenario.skew_ms, scenario.skew_ms), rng.uniform(-1, 1) * scenario.drift)
        registry = self.registries[registry_id] = SimulatedRegistry(self, registry_id, clocks)
        registry.start()
        if self.now > 0:
            for other in list(self.registries):
                self.network.link(registry_id, other)

    def store_lost(
        self, registry: SimulatedRegistry, before: dict[str, State], floor: Vector, *, evicted: bool = False
    ) -> None:
        """A process died: what only it had, or had collected, and its store has not, is lost with reason. Of one that
        was evicted, the store does not count any more."""
        replicas = [r.live.replica for r in self.registries.values() if r.up]
        stores = [
            (r.store.records, r.store.floor)
            for r in self.registries.values()
            if not r.up and not r.left and not (r is registry and evicted)
        ]
        for write in self.ledger.writes:
            state = before.get(write.key)
            forgot_a_collection = state is None and write.key in registry.store.records
            if write.lost_s is not None or not (forgot_a_collection or knows(state, floor, write)):
                continue
            if any(knows(kept.get(write.key), kept_floor, write) for kept, kept_floor in stores):
                continue
            held = ((replica.get(write.key), replica.floor) for replica in replicas)
            if not any(knows(record.state() if record else None, its_floor, write) for record, its_floor in held):
                write.lost_s = self.now
                self.note("lost with its store", registry.id, write.serial, write.key)

    # the run

    def run(self) -> Outcome:
        """From the first start to the last check."""
        outcome = Outcome(self.seed, self.scenario)
        try:
            self._begin()
            self._run_until(self.scenario.fault_s)
            self._heal()
            self._run_until(self.now + self.scenario.heal_s)
            checks.after_healing(self)
            self._rest(outcome)
        except Violation as violation:
            outcome.violation = str(violation)
        except Exception as error:
            outcome.violation = f"no exception ever: {type(error).__name__}: {error}{_where(error)}"
        outcome.at_s, outcome.trace, outcome.events = self.now, self.trace, self.events
        outcome.writes, outcome.messages = len(self.ledger.writes), self.network.messages
        for registry in self.registries.values():
            for code, count in registry.alerts.items():
                outcome.alerts[code] = outcome.alerts.get(code, 0) + count
        return outcome

    def _begin(self) -> None:
        scenario = self.scenario
        self.note("scenario", scenario)
        names = [f"r{number}" for number in range(scenario.registries)]
        for name in names:
            self.join(name)
        for a, b in TOPOLOGIES[scenario.topology](names):
            self.network.link(a, b)
        self.machines += [
            Machine(self, f"m{number}", str(number), self.incarnation()) for number in range(scenario.nodes)
        ]
        Operators(self)
        Faults(self)
        self.after(OBSERVE_S, self._observe)
        self.after(SAMPLE_S, self._sample)

    def _observe(self) -> None:
        self.network.observe()
        for registry in self.registries.values():
            down_s = self.now - registry.down_since_s if registry.down_since_s is not None else 0.0
            if down_s > self.scenario.eviction_s - 2 * OBSERVE_S:
                self.store_lost(registry, registry.store.records, registry.store.floor, evicted=True)
        self.after(OBSERVE_S, self._observe)

    def _sample(self) -> None:
        checks.at_any_moment(self)
        if not self.resting:
            self.after(SAMPLE_S * self.rng.uniform(0.5, 1.5), self._sample)

    def _run_until(self, end_s: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end_s:
            self.now, _, fn, args = heapq.heappop(heap)
            self.events += 1
            fn(*args)
        self.now = end_s

    def _heal(self) -> None:
        """Everything works from now on. Where a clock was far ahead, time has caught up with it."""
        self.healing = True
        self.note("heal")
        for registry in self.registries.values():
            registry.clocks.set_right()
            registry.clocks.leap_ms = self.ahead_ms
        self.network.heal()
        for registry in self.registries.values():
            registry.thaw()
            if not registry.up and not registry.left:
                registry.start()

    def _rest(self, outcome: Outcome) -> None:
        """Nobody writes any more; in the end all agree, and nothing is left over."""
        self.resting = True
        self.note("rest")
        began_s = self.now
        end_s = self.now + self.scenario.rest_s
        while True:
            self._run_until(self.now + DECIDE_S)
            different = checks.difference(self)
            if not different and not outcome.converged_s:
                outcome.converged_s = self.now - began_s
            left_over = checks.left_over(self)
            if not different and not left_over:
                break
            if self.now >= end_s:
                raise Violation(different or left_over)
        checks.at_rest(self)


def _where(error: BaseException) -> str:
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return "".join(f"\n    {frame}" for frame in frames[-8:])


def run(
    seed: int,
    scenario: Scenario | None = None,
    *,
    tracer: Tracer | None = None,
    mutate: Callable[[pytest.MonkeyPatch], None] | None = None,
) -> Outcome:
    """Run one seed. `mutate` may break the engine's modules, for as long as the run takes."""
    if mutate is None:
        return World(seed, scenario, tracer).run()
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        return World(seed, scenario, tracer).run()
