"""What an agent does next: pure decisions; `rng` and outcomes come in, the next step goes out."""

from dataclasses import dataclass
from typing import Literal, Protocol

from tenacity import RetryCallState, wait_exponential

_REGISTER_AGAIN = {
    404: "the registry does not know this node",
    409: "another agent has registered as this node",
}
Step = Literal["register", "beat"]
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
PENDING_S = 30.0  # where the registry does not say how often to ask
REFUSED_BACKOFF_S = 60.0  # a key or an id that is wrong does not mend itself soon
LONGEST_RETRY_AFTER_S = 300.0  # a registry that asks for more may be back long before


class Dice(Protocol):
    """What spreads agents apart; `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """A number between the two."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. `status` None: no answer at all. `retry_after_s` as the registry asked. `code`: what the
    registry calls a refusal."""

    status: int | None
    detail: str = ""
    retry_after_s: float | None = None
    code: str | None = None

    @property
    def is_pending(self) -> bool:
        """Whether an operator has yet to let this node in."""
        return self.status == 403 and self.code == "pending"


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step, how long to wait first (seconds), and what to tell the person watching."""

    step: Step
    wait_s: float
    say: str | None = None


class Session:
    """Registers, then heartbeats; after failures it backs off with full jitter, for ever."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._failures = 0
        self._registered = False
        self._waits: str | None = None  # what was said of waiting for approval

    def after(self, step: Step, outcome: Outcome, rng: Dice) -> Plan:
        """The plan after `step` ended with `outcome`."""
        if outcome.status == 200:
            return self._succeeded(step, rng)
        if outcome.is_pending:
            return self._pending(outcome, rng)
        self._failures += 1
        if step == "beat" and outcome.status == 403 and outcome.code == "not_allowlisted":
            self._registered = False  # registering asks for approval, where the registry lets nodes ask
        if step == "beat" and outcome.status in _REGISTER_AGAIN:
            self._registered = False
            return Plan("register", rng.uniform(0, 1), f"{_REGISTER_AGAIN[outcome.status]}; registering again")
        wait_s = self._backoff_s(outcome, rng)
        again = step if step == "register" or self._registered else "register"
        what = "registration" if step == "register" else "heartbeat"
        return Plan(again, wait_s, f"{what} failed: {outcome.detail}; next try in {wait_s:.1f} s")

    def _pending(self, outcome: Outcome, rng: Dice) -> Plan:
        """People take their time: asked steadily, and said once."""
        self._failures, self._registered = 0, False
        asked_s = PENDING_S if outcome.retry_after_s is None else outcome.retry_after_s
        wait_s = min(asked_s, LONGEST_RETRY_AFTER_S) + rng.uniform(0, FIRST_BACKOFF_S)
        said, self._waits = self._waits, outcome.detail
        if said == outcome.detail:
            return Plan("register", wait_s)
        return Plan("register", wait_s, f"waiting for approval: {outcome.detail} Asking again every {asked_s:.0f} s.")

    def _succeeded(self, step: Step, rng: Dice) -> Plan:
        recovered = self._failures > 0 and step == "beat"
        self._failures, self._waits = 0, None
        first = not self._registered
        self._registered = True
        # A random first phase spreads the heartbeats of machines that started together.
        wait_s = rng.uniform(0, self.interval_s) if first else self.interval_s * rng.uniform(0.95, 1.05)
        return Plan("beat", wait_s, "heartbeats are accepted again" if recovered else None)

    def _backoff_s(self, outcome: Outcome, rng: Dice) -> float:
        if outcome.retry_after_s is not None:
            return min(outcome.retry_after_s, LONGEST_RETRY_AFTER_S) + rng.uniform(0, FIRST_BACKOFF_S)
        if outcome.status in (401, 403, 409, 422):
            return REFUSED_BACKOFF_S * rng.uniform(0.8, 1.2)
        return full_jitter_s(self._failures, rng)


def full_jitter_s(attempt: int, rng: Dice) -> float:
    """A random wait below an exponentially growing bound, so that agents do not come back as a herd.

    tenacity states the bound; the dice are ours, so that a seed replays them.
    """
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # only the attempt number is read
    state.attempt_number = attempt
    bound_s = wait_exponential(multiplier=FIRST_BACKOFF_S, max=LONGEST_BACKOFF_S)(state)
    return rng.uniform(0.1, bound_s)
