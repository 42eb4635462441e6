"""Those whom registries serve: machines that register and heartbeat, and operators."""

from typing import TYPE_CHECKING

from federation.writes import Token

if TYPE_CHECKING:
    from tests.simulation.registry import SimulatedRegistry
    from tests.simulation.world import World

_UNREACHED = 2  # requests without an answer before a machine looks elsewhere


class Machine:
    """One machine: it has a key (its incarnation), a list of registries, and the newest token."""

    def __init__(self, world: "World", name: str, node_id: str, incarnation: int) -> None:
        scenario, rng = world.scenario, world.rng
        self.world = world
        self.name = name
        self.key = f"n:{node_id}"
        self.incarnation = incarnation
        self.uses_token = rng.random() < scenario.token_share
        self.flaps = rng.random() < scenario.flap_share
        self.alive = True
        self.refused = False  # the id is somebody else's: it gives up
        self.registered = False
        self.token: Token | None = None
        self.home = rng.choice(world.serving())
        self.accepted: bytes | None = None  # the payload of its newest acknowledged registration
        self.answered: set[bytes | None] = set()  # and of all whose answer, and token, it got
        self.answered_s: float | None = None
        self.answered_by = ""
        self._serial = 0
        self._request = 0
        self._newest_answer = 0
        self._unanswered = 0
        world.after(rng.uniform(0.0, scenario.beat_s), self._beat)

    def clone(self, name: str) -> "Machine":
        """A copy of its disk, started somewhere else."""
        copy = Machine(self.world, name, self.key[2:], self.incarnation)
        copy.registered, copy.token, copy.uses_token = self.registered, self.token, self.uses_token
        return copy

    def _beat(self) -> None:
        world = self.world
        if not self.alive or self.refused or world.resting:
            return
        self._ask()
        world.after(world.scenario.beat_s * world.rng.uniform(0.9, 1.1), self._beat)

    def _ask(self) -> None:
        world, rng = self.world, self.world.rng
        if self._unanswered >= _UNREACHED or (self.flaps and not world.healing and rng.random() < 0.3):
            self.home, self._unanswered = rng.choice(world.serving()), 0
        self._request += 1
        self._unanswered += 1
        if not world.healing and rng.random() < world.scenario.request_loss:
            return
        token = self.token if self.uses_token else None
        world.after(rng.uniform(0.001, 0.05), self._arrive, self.home, self._request, token)

    def _arrive(self, home: str, request: int, token: Token | None) -> None:
        registry = self.world.registries[home]
        if not registry.up:
            return

        def reply(outcome: str, new: Token | None) -> None:
            self.world.after(0.01, self._answered, home, request, outcome, new, payload)

        again = not self.world.healing and self.world.rng.random() < self.world.scenario.restart_share
        if self.registered and not again:
            payload = None
            registry.heartbeat(self.key, self.incarnation, token, reply)
        else:
            self._serial += 1
            payload = b"%b %d" % (self.name.encode(), self._serial)
            registry.register(self.key, self.incarnation, payload, token, reply)

    def _answered(self, home: str, request: int, outcome: str, token: Token | None, payload: bytes | None) -> None:
        world = self.world
        if not self.alive or request <= self._newest_answer:
            return
        if not world.healing and world.rng.random() < world.scenario.request_loss:
            return
        self._newest_answer, self._unanswered = request, 0
        if outcome == "ok":
            self.registered, self.token = True, token
            self.answered_s, self.answered_by = world.now, home
            self.accepted = payload or self.accepted
            self.answered.add(self.accepted)
        elif outcome == "unknown":
            self.registered = False
        else:
            self.refused = True
            world.note("refused", self.name, home)


class Operators:
    """People and scripts that change, delete, create and revoke at any registry."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.keys: list[str] = []
        self._serial = 0
        scenario = world.scenario
        for rate, act in (
            (scenario.amend_rate, self._amend),
            (scenario.delete_rate, self._delete),
            (scenario.put_rate, self._put),
            (scenario.revoke_rate, self._revoke),
        ):
            world.poisson(rate, act)

    def _next(self) -> bytes:
        self._serial += 1
        return b"op %d" % self._serial

    def _amend(self) -> None:
        machine = self.world.rng.choice(self.world.machines)
        self._somewhere().amend(machine.key, self._next())

    def _delete(self) -> None:
        machine = self.world.rng.choice(self.world.machines)
        self._somewhere().delete(machine.key, self._next())

    def _put(self) -> None:
        rng = self.world.rng
        if not self.keys or rng.random() < 0.8:
            self.keys.append(f"k:{len(self.keys)}")
        self._somewhere().put(rng.choice(self.keys[-4:]), self._next())

    def _revoke(self) -> None:
        if self.keys:
            self._somewhere().revoke(self.world.rng.choice(self.keys), self._next())

    def _somewhere(self) -> "SimulatedRegistry":
        return self.world.registries[self.world.rng.choice(self.world.serving())]
