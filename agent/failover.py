"""Which registry to ask: what is known of each, and the order that follows. Pure: `now_s` and `rng` come in.

A registry is known to be fine (it answered last), failed (not asked before a random time is over, unless nothing
else is left), or resting (it asked for patience: it is not asked at all). The nearest of the fine ones is chosen,
and kept until it fails or another has been clearly nearer several times.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from agent.session import LONGEST_RETRY_AFTER_S, Dice, Outcome, full_jitter_s
from agent.wire import Advert

SAMPLES = 5
MEASURE_EVERY_S = 300.0
NEARER_SHARE, NEARER_MS = 0.8, 10.0  # clearly nearer: by a fifth and by this; less is noise
NEARER_TIMES = 3
LEAST_STAY_S = 300.0
MISDIRECTED_S = 60.0  # a 421 is about how somebody set things up
MAX_LEARNED = 32  # configured ones are not counted; a federation has tens of registries
MAX_ATTEMPTS = 6  # of one request: 2 s of silence each is what a caller can bear
TOKENS, TOKENS_PER_S = 10.0, 1.0
LEAST_RTT_MS = 0.01  # two clocks' readings may differ by more than a loopback takes
ANSWERS_4XX = frozenset({400, 404, 405, 406, 409, 410, 411, 413, 414, 415, 417, 422, 431})
_LOOPBACK = ("localhost", "127.", "::1")


@dataclass(slots=True, eq=False)
class Registry:
    """One registry. `failures` in a row; 0 and not `answered`: nothing is known yet. Times are monotonic seconds."""

    url: str
    learned: bool = False
    region: str | None = None
    registry_id: str | None = None
    rtts_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    answered: bool = False
    refused: bool = False
    failures: int = 0
    why: str = ""
    failed_at_s: float | None = None
    rests_until_s: float | None = None
    ask_again_s: float = 0.0
    times_nearer: int = 0

    @property
    def rtt_ms(self) -> float | None:
        """The round trip: the least of the last measurements."""
        return min(self.rtts_ms, default=None)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.registry_id or self.url

    def rests(self, now_s: float) -> bool:
        """Whether it asked for patience, and the time is not over."""
        return self.rests_until_s is not None and now_s < self.rests_until_s


class Bucket:
    """Tokens that come back with time: what asking registries that are known to fail may cost."""

    def __init__(self, capacity: float = TOKENS, per_s: float = TOKENS_PER_S) -> None:
        self._capacity, self._per_s = capacity, per_s
        self._tokens, self._at_s = capacity, 0.0

    def take(self, now_s: float) -> bool:
        """Take a token, if there is one."""
        self._tokens = min(self._capacity, self._tokens + max(0.0, now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def goes_on(outcome: Outcome) -> bool:
    """Whether the next registry is to be asked: all but a 200 and the caller's own faults."""
    return outcome.status != 200 and outcome.status not in ANSWERS_4XX


class Registries:
    """The list: those that were configured, in their order, then those that were learned."""

    def __init__(self, urls: Sequence[str], known: Iterable[Advert] = ()) -> None:
        self.all = [Registry(url) for url in dict.fromkeys(urls)]
        self._only_https = any(url.startswith("https:") for url in urls)
        self._bucket = Bucket()
        self._since_s: float | None = None
        self.current = self.all[0]
        self._learn(known, on_loopback=all(map(_on_loopback, urls)))

    @property
    def settled(self) -> bool:
        """Whether one of them has taken a request."""
        return self._since_s is not None

    # which to ask

    def next_attempt(self, tried: Sequence[Registry], now_s: float, *, spare: bool = False) -> Registry | None:
        """The registry to ask after those that were tried for a request; None: nobody is left.

        One that is known to fail is asked when nobody else is left and there is a token, or never (`spare`).
        """
        if len(tried) >= MAX_ATTEMPTS:
            return None
        left = [each for each in self.ranked() if each not in tried and not each.rests(now_s)]
        fine = next((each for each in left if not each.failures), None)
        if fine is not None:
            return fine
        due = min(left, key=lambda each: each.ask_again_s, default=None)
        return due if due is not None and not spare and self._bucket.take(now_s) else None

    def ranked(self) -> list[Registry]:
        """All of them: the one in use, those as near as the nearest by their order in the list, then by distance."""
        known = [each.rtt_ms for each in self.all if each.rtt_ms is not None and not each.failures]
        near_ms = max(min(known) / NEARER_SHARE, min(known) + NEARER_MS) if known else 0.0

        def key(each: Registry) -> tuple[bool, bool, bool, float, bool]:
            rtt_ms = each.rtt_ms
            distance = float("inf") if rtt_ms is None else 0.0 if rtt_ms <= near_ms else rtt_ms
            stays = each is self.current and self.settled
            return each.failures > 0, each.refused, not stays, distance, not each.answered

        return sorted(self.all, key=key)  # stable: the list's order decides the rest

    # what happened

    def succeeded(self, registry: Registry, now_s: float) -> None:
        """It took a request: it is the one in use."""
        self.responded(registry)
        registry.refused = False
        if registry is not self.current or self._since_s is None:
            self.current, self._since_s = registry, now_s
            for each in self.all:
                each.times_nearer = 0

    def responded(self, registry: Registry) -> None:
        """It is there and speaks as a registry."""
        registry.answered, registry.failures, registry.why, registry.rests_until_s = True, 0, "", None

    def failed(self, registry: Registry, outcome: Outcome, now_s: float, rng: Dice) -> None:
        """It gave no answer that counts."""
        registry.why = outcome.detail
        if outcome.status in (401, 403):
            registry.answered, registry.refused = True, True  # it is there; the others may know the key
            return
        registry.failures += 1
        registry.failed_at_s = now_s
        registry.rtts_ms.clear()
        registry.times_nearer = 0
        wait_s = full_jitter_s(registry.failures, rng)
        patience_s = outcome.retry_after_s
        if patience_s is None and outcome.status == 421:
            patience_s = MISDIRECTED_S
        if patience_s is not None:
            registry.rests_until_s = now_s + min(patience_s, LONGEST_RETRY_AFTER_S)
            wait_s += registry.rests_until_s - now_s
        registry.ask_again_s = now_s + wait_s

    def measured(self, registry: Registry, rtts_ms: Sequence[float], now_s: float, rng: Dice) -> None:
        """A look at it ended well; `rtts_ms` over a warm connection, none where there was none."""
        self.responded(registry)
        registry.ask_again_s = now_s + MEASURE_EVERY_S * rng.uniform(0.8, 1.2)
        for rtt_ms in rtts_ms:
            self.sampled(registry, rtt_ms)
        if rtts_ms:
            nearer = registry is not self.current and _clearly_nearer(registry.rtt_ms, self.current.rtt_ms)
            registry.times_nearer = registry.times_nearer + 1 if nearer else 0

    def sampled(self, registry: Registry, rtt_ms: float) -> None:
        """A request of another purpose measured it by the way."""
        registry.rtts_ms.append(max(rtt_ms, LEAST_RTT_MS))

    def moved(self) -> None:
        """This machine is somewhere else, or was away: distances are of no use, and all are due."""
        for each in self.all:
            each.rtts_ms.clear()
            each.times_nearer, each.ask_again_s = 0, 0.0

    def go_home(self, now_s: float) -> Registry | None:
        """Change to a registry that was clearly nearer for long enough; which was left, or None."""
        if self._since_s is None or now_s - self._since_s < LEAST_STAY_S:
            return None
        homes = [each for each in self.all if self._is_home(each, now_s)]
        if not homes:
            return None
        left = self.current
        self.succeeded(min(homes, key=lambda each: each.rtt_ms or 0.0), now_s)
        return left

    def _is_home(self, each: Registry, now_s: float) -> bool:
        lately = each.failed_at_s is not None and now_s - each.failed_at_s < LEAST_STAY_S
        fine = not each.failures and not each.refused and not each.rests(now_s)
        return fine and not lately and each.times_nearer >= NEARER_TIMES

    # measuring

    def due(self, now_s: float) -> list[Registry]:
        """Those to measure, or to look at whether they are back."""
        return [each for each in self.all if each.ask_again_s <= now_s and not each.rests(now_s)]

    def next_due_s(self) -> float:
        """When the next is due."""
        return min(each.ask_again_s for each in self.all)

    # what was learned

    def learn(self, adverts: Iterable[Advert], teacher: Registry) -> bool:
        """Take note of the registries that one of them tells of; whether that changed anything."""
        before = self.adverts()
        told = list(adverts)
        mine = next((advert for advert in told if advert.url == teacher.url), None)
        if mine is not None:
            self.identified(teacher, mine.registry_id, mine.region)
        self._learn(told, on_loopback=_on_loopback(teacher.url))
        return self.adverts() != before

    def _learn(self, adverts: Iterable[Advert], *, on_loopback: bool) -> None:
        configured = [each for each in self.all if not each.learned]
        before = {each.url: each for each in self.all if each.learned}
        ids = {each.registry_id for each in configured if each.registry_id}
        fresh: dict[str, Registry] = {}
        for advert in adverts:
            known = next((each for each in configured if each.url == advert.url), None)
            if known is not None:
                self.identified(known, advert.registry_id, advert.region)
            elif self._may_learn(advert, on_loopback) and advert.registry_id not in ids:
                found = before.get(advert.url) or Registry(advert.url, learned=True)
                found.registry_id, found.region = advert.registry_id, advert.region
                fresh.setdefault(advert.url, found)
        kept = [each for url, each in before.items() if url not in fresh and not each.failures]
        learned = [*fresh.values(), *kept][:MAX_LEARNED]
        if self.current.learned and self.current not in learned:
            learned = [self.current, *learned][:MAX_LEARNED]  # a request may be under way there
        self.all = [*configured, *learned]

    def _may_learn(self, advert: Advert, on_loopback: bool) -> bool:
        """A key that https protects goes to no http; another machine's loopback is not ours."""
        if self._only_https and not advert.url.startswith("https:"):
            return False
        return on_loopback or not _on_loopback(advert.url)

    def identified(self, registry: Registry, registry_id: str | None, region: str | None) -> None:
        """It said who it is: what was learned of the same one under another URL is not needed beside it."""
        registry.registry_id = registry_id or registry.registry_id
        registry.region = region or registry.region
        if registry_id and not registry.learned:
            self.all = [
                each for each in self.all if not each.learned or each.registry_id != registry_id or each is self.current
            ]

    def adverts(self) -> list[Advert]:
        """What to remember for the next start."""
        return [Advert(each.url, each.region, each.registry_id) for each in self.all if each.learned]

    # what to tell

    def rtts_ms(self) -> dict[str, float]:
        """Round trips by registry id, or by region where the id is not known."""
        found: dict[str, float] = {}
        for each in self.all:
            name = each.registry_id or each.region
            if name and each.rtt_ms is not None:
                found[name] = round(min(each.rtt_ms, found.get(name, each.rtt_ms)), 2)
        return found

    def others(self) -> str:
        """The registries that are not in use, in words: their distance, or what is wrong with them."""
        told = [_told(each) for each in self.all if each is not self.current]
        return ", ".join(filter(None, told))

    def wait_s(self, now_s: float) -> float | None:
        """For how long nobody may be asked, when all rest; None when one does not."""
        if not all(each.rests(now_s) for each in self.all):
            return None
        return min(each.rests_until_s or now_s for each in self.all) - now_s


def _told(each: Registry) -> str:
    if each.failures:
        return f"{each.name} unreachable: {each.why.removeprefix(each.url).lstrip(': ')}"
    if each.rtt_ms is not None:
        return f"{each.name} is {each.rtt_ms:.0f} ms"
    return ""


def _clearly_nearer(one_ms: float | None, other_ms: float | None) -> bool:
    if one_ms is None or other_ms is None:
        return False
    return one_ms < other_ms * NEARER_SHARE and one_ms < other_ms - NEARER_MS


def _on_loopback(url: str) -> bool:
    return (urlsplit(url).hostname or "").startswith(_LOOPBACK)
