"""Whom to dial, and when. No I/O: the moment and the dice are given.

A target is a URL; which registry answers there is known only after a handshake, and may change. Up to 20
registries all link to all. Beyond, each dials its next two on a ring and two that chance chose once: with those
who dial it that makes about eight links. The ring keeps whoever is up connected, whatever chance does; the
others make the ways short. Whoever is down is passed over, and probed for ever.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from federation.ports import Rng

FULL_MESH = 20  # registries; 190 links
RING_SUCCESSORS = 2
CHORDS = 2
MOST_PASSED_OVER = 16  # down ones probed beside those: more in a row would be down by a common cause
MAX_MEMBERS = 1_024  # ten times what is planned for: peers write the roster
DOWN_AFTER = 3  # failures in a row
STEADY_S = 10.0  # a link that held so long was none of the failures

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0
_LONGEST_DELAY_LATE_S = 60.0
_LATE_S = 3_600.0
_MOST_DOUBLINGS = 10  # 0.2 s of them is beyond the longest delay


@dataclass(slots=True)
class _Target:
    """`registry_id`: who answered there last. `busy`: being dialled, or linked by our dialling."""

    url: str
    is_seed: bool = False
    registry_id: str | None = None
    is_me: bool = False
    busy: bool = False
    next_s: float = float("-inf")
    failures: int = 0
    failing_since_s: float = 0.0

    @property
    def is_down(self) -> bool:
        return self.failures >= DOWN_AFTER

    def failed(self, now_s: float, rng: Rng) -> None:
        """Full jitter (Brooker, "Exponential Backoff And Jitter", 2015): many that lost one peer do not come
        back to it at once."""
        if not self.failures:
            self.failing_since_s = now_s
        self.failures += 1
        late = now_s - self.failing_since_s >= _LATE_S
        doubled_s = _FIRST_DELAY_S * 2 ** min(self.failures - 1, _MOST_DOUBLINGS)
        self.next_s = now_s + rng.random() * min(doubled_s, _LONGEST_DELAY_LATE_S if late else _LONGEST_DELAY_S)


class Dialling:
    """Every URL that `due` gives is being dialled until `over` says otherwise."""

    def __init__(self, me: str, seeds: Iterable[str], rng: Rng) -> None:
        self._me = me
        self._rng = rng
        self._seeds = [_Target(url, is_seed=True) for url in dict.fromkeys(map(trimmed, seeds))]
        self._targets = {seed.url: seed for seed in self._seeds}
        self._urls: dict[str, str] = {}  # of the members that can be dialled
        self._ring: list[str] = []
        self._chords: list[str] = []
        self._members = 1

    def know(self, roster: Mapping[str, str | None]) -> None:
        """Who there is, and where each can be dialled, if anywhere. All of them, each time."""
        others = sorted(roster.keys() - {self._me}, key=_place)[:MAX_MEMBERS]
        self._members = len(others) + 1
        self._urls = {other: trimmed(url) for other in others if (url := roster[other]) is not None}
        dialable = [other for other in others if other in self._urls]
        self._ring = [other for other in dialable if _place(other) > _place(self._me)]
        self._ring += dialable[: len(dialable) - len(self._ring)]
        self._chords = sorted(dialable, key=lambda other: _digest(f"{self._me}\0{other}"))
        for url in self._urls.values():
            self._targets.setdefault(url, _Target(url))
        wanted = set(self._urls.values())
        for url, target in list(self._targets.items()):
            if not (target.is_seed or target.busy or url in wanted):
                del self._targets[url]

    def due(self, now_s: float, linked: Mapping[str, float]) -> list[str]:
        """What to dial now. `linked`: for how long (s) each registry has been linked, by whomever dialled."""
        self._forgive(linked)
        found: list[str] = []
        for ways in self._wanted(linked):
            if any(target.busy for target in ways):
                continue
            first = min(ways, key=lambda target: target.next_s)
            if first.next_s <= now_s:
                first.busy = True
                found.append(first.url)
        return found

    def learned(self, url: str, registry_id: str) -> None:
        """That registry proved itself at the URL."""
        if (target := self._targets.get(url)) is not None:
            target.registry_id = registry_id

    def myself(self, url: str) -> None:
        """The URL leads to this registry."""
        if (target := self._targets.get(url)) is not None:
            target.is_me, target.busy = True, False

    def over(self, url: str, now_s: float, held_s: float = 0.0) -> None:
        """The dialling failed, or the link that it gave has ended after so long."""
        target = self._targets.get(url)
        if target is None:
            return
        target.busy = False
        if held_s >= STEADY_S:
            target.failures = 0
        target.failed(now_s, self._rng)

    def targets(self) -> list[tuple[str, str | None]]:
        """Every URL that is not our own, and whose it is, as far as known."""
        named = {url: registry_id for registry_id, url in self._urls.items()}
        return [
            (url, target.registry_id or named.get(url)) for url, target in self._targets.items() if not target.is_me
        ]

    def _wanted(self, linked: Mapping[str, float]) -> Iterator[list[_Target]]:
        """The ways to each registry that should be linked and is not, and to each that is not known yet."""
        for registry_id in self._neighbours(linked):
            if registry_id not in linked and (ways := self._ways(registry_id)):
                yield ways
        for seed in self._seeds:
            known = seed.registry_id
            if not seed.is_me and known not in linked and (known not in self._urls or not linked):
                yield [seed] if known is None else self._ways(known)

    def _neighbours(self, linked: Mapping[str, float]) -> list[str]:
        if self._members <= FULL_MESH:
            return list(self._urls)
        chosen = self._choose(self._ring, RING_SUCCESSORS, linked, frozenset())
        return chosen + self._choose(self._chords, CHORDS, linked, frozenset(chosen))

    def _choose(
        self, candidates: Iterable[str], count: int, linked: Mapping[str, float], taken: frozenset[str]
    ) -> list[str]:
        """The first so many that are not down, and the down ones before them."""
        chosen: list[str] = []
        up = 0
        for candidate in candidates:
            if up == count or len(chosen) == count + MOST_PASSED_OVER:
                break
            if candidate not in taken:
                chosen.append(candidate)
                up += candidate in linked or not self._is_down(candidate)
        return chosen

    def _is_down(self, registry_id: str) -> bool:
        return all(target.is_down for target in self._ways(registry_id))

    def _ways(self, registry_id: str) -> list[_Target]:
        """Where it can be dialled: at what the roster says, and at a seed where it answered."""
        advertised = self._targets.get(self._urls.get(registry_id, ""))
        ways = [seed for seed in self._seeds if seed.registry_id == registry_id and seed is not advertised]
        if advertised is not None:
            ways.append(advertised)
        return [way for way in ways if not way.is_me]

    def _forgive(self, linked: Mapping[str, float]) -> None:
        """A link that holds, whoever dialled it, ends the failures before it."""
        for url, target in self._targets.items():
            if target.failures and not target.busy:
                names = [target.registry_id, *(name for name in linked if self._urls.get(name) == url)]
                if any(linked.get(name, 0.0) >= STEADY_S for name in names if name is not None):
                    target.failures = 0


def keeps(me: str, peer: str, dialled_by_us: bool, existing_dialled_by_us: bool) -> bool:
    """Whether a new link to a registry replaces the one that is up. Both ends answer alike: of one dialler's
    links the newer, as only the dialler knows that the older is dead; else the one that the smaller id dialled."""
    return dialled_by_us == existing_dialled_by_us or dialled_by_us == (me < peer)


def trimmed(url: str) -> str:
    """One form of a URL that may be written with a slash at its end."""
    return url.rstrip("/")


def _place(registry_id: str) -> bytes:
    """Where it stands on the ring."""
    return _digest(registry_id)


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16, person=b"dagi-overlay").digest()
