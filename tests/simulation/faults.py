"""What breaks, when, and for how long."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.actors import Machine
from tests.simulation.registry import SimulatedRegistry

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    """Each kind of fault is a Poisson process of its own, from the start until healing."""

    def __init__(self, world: "World") -> None:
        self.world = world
        scenario, rng = world.scenario, world.rng
        for rate, act in (
            (scenario.partition_rate, self._partition),
            (scenario.one_way_rate, self._one_way),
            (scenario.cut_rate, self._cut),
            (scenario.crash_rate, self._crash),
            (scenario.stall_rate, self._stall),
            (scenario.jump_rate, self._jump),
            (scenario.death_rate, self._death),
            (scenario.clone_rate, self._clone),
            (scenario.impostor_rate, self._impostor),
            (scenario.forget_rate, self._forget),
        ):
            world.poisson(rate, act)
        if "backup" in scenario.crash_kinds:
            world.poisson(0.15, self._back_up)
        for count, act in (
            (scenario.absences, self._absence),
            (scenario.joins, self._join),
            (scenario.leaves, self._leave),
        ):
            for _ in range(count):
                world.after(rng.uniform(0.1, 0.6) * scenario.fault_s, self.while_faulty, act)

    def while_faulty(self, act: Callable[[], None]) -> None:
        """Faults end with the healing."""
        if not self.world.healing:
            act()

    def _registry(self) -> SimulatedRegistry | None:
        up = [r for r in self.world.registries.values() if r.running]
        return self.world.rng.choice(up) if up else None

    def _block(self, directions: list[tuple[str, str]], duration_s: float) -> None:
        network = self.world.network
        for src, dst in directions:
            network.block(src, dst)
        self.world.note("block", directions, duration_s)

        def end() -> None:
            if not self.world.healing:  # healing has unblocked everything
                self.world.note("unblock", directions)
                for src, dst in directions:
                    network.unblock(src, dst)

        self.world.after(duration_s, end)

    def _partition(self) -> None:
        rng = self.world.rng
        names = list(self.world.registries)
        side = set(rng.sample(names, rng.randint(1, max(1, len(names) // 2))))
        cut = [(a, b) for a in names for b in names if (a in side) != (b in side)]
        self._block(cut, rng.uniform(2.0, 25.0))

    def _one_way(self) -> None:
        rng = self.world.rng
        names = list(self.world.registries)
        src = rng.choice(names)
        others = [name for name in names if name != src]
        if rng.random() < 0.5:
            others = [rng.choice(others)]
        directions = [(src, dst) for dst in others]
        if rng.random() < 0.5:
            directions = [(dst, src) for src, dst in directions]
        self._block(directions, rng.uniform(2.0, 20.0))

    def _cut(self) -> None:
        if self.world.network.pairs:
            pair = self.world.rng.choice(self.world.network.pairs)
            self.world.note("cut", *pair)
            self.world.network.cut(*pair)

    def _crash(self) -> None:
        registry = self._registry()
        if registry is not None:
            rng = self.world.rng
            registry.crash(rng.choice(self.world.scenario.crash_kinds))
            self.world.after(rng.choice((0.0, 0.5, 3.0, 15.0)), self._return, registry)

    def _return(self, registry: SimulatedRegistry) -> None:
        if not registry.up and not registry.left:
            registry.start()

    def _absence(self) -> None:
        registry = self._registry()
        if registry is None:
            return
        scenario, rng = self.world.scenario, self.world.rng
        registry.crash("keep")
        long_s = scenario.eviction_s if scenario.eviction_s < scenario.fault_s else scenario.tombstone_min_age_s
        self.world.after(long_s * rng.uniform(1.1, 2.0) + 3.0, self._return, registry)

    def _stall(self) -> None:
        registry = self._registry()
        if registry is not None:
            duration_s = self.world.rng.uniform(0.5, 14.0)
            self.world.note("freeze", registry.id, duration_s)
            self.world.longest_stall_s = max(self.world.longest_stall_s, duration_s)
            registry.freeze()
            self.world.after(duration_s, registry.thaw)

    def _jump(self) -> None:
        rng, scenario = self.world.rng, self.world.scenario
        registry = rng.choice(list(self.world.registries.values()))
        ahead_ms = int(scenario.jump_ms * rng.choice((-1, 1, 1)) * rng.uniform(0.3, 1.0))
        registry.clocks.jump_ms = ahead_ms
        self.world.ahead_ms = max(self.world.ahead_ms, ahead_ms)
        self.world.clocks_were_wrong |= abs(ahead_ms) > self.world.config(registry.id).clock_suspect_ms
        self.world.note("jump", registry.id, ahead_ms)

        def back() -> None:
            self.world.note("jump back", registry.id)
            registry.clocks.jump_ms = 0

        self.world.after(rng.choice((0.5, 5.0, 40.0)), back)

    def _back_up(self) -> None:
        registry = self._registry()
        if registry is not None:
            registry.store.back_up()

    def _join(self) -> None:
        self.world.join(f"r{len(self.world.registries)}")

    def _leave(self) -> None:
        registry = self._registry()
        if registry is not None and len(self.world.serving()) > 2:
            registry.left = True
            self.world.network.bypass(registry.id)
            registry.crash("wipe")
            self.world.note("left", registry.id)

    def _death(self) -> None:
        machine = self.world.rng.choice(self.world.machines)
        machine.alive = False
        self.world.note("died", machine.name)

    def _clone(self) -> None:
        machine = self.world.rng.choice(self.world.machines)
        if machine.alive:
            copy = machine.clone(f"{machine.name}c{len(self.world.machines)}")
            self.world.note("clone", machine.name, copy.name)
            self.world.machines.append(copy)

    def _impostor(self) -> None:
        """Another machine comes with an id that is taken, or about to be."""
        world = self.world
        of = world.rng.choice(world.machines)
        name = f"{of.name}x{len(world.machines)}"
        world.machines.append(Machine(world, name, of.key[2:], world.incarnation()))
        world.note("impostor", of.name, name)

    def _forget(self) -> None:
        """An operator takes another registry out: one that is there, or one that has lost its key, and mostly its
        store. (The network has it forgotten also where it is not let in.)"""
        rng, registry = self.world.rng, self._registry()
        others = [r for r in self.world.registries.values() if r is not registry]
        if registry is None or not others:
            return
        other = rng.choice(others)
        if other.running and rng.random() < 0.6:
            other.crash(rng.choice(("keep", "wipe", "wipe")))
            other.lose_key()
            self.world.after(rng.choice((0.5, 3.0, 15.0)), self._return, other)
        registry.forget(other.id)
