"""Find and rank: which nodes hold every filter, and in what order. Pure; measured latency will
rank first once there are measurements, until then the caller's region comes first."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from registry.directory import Directory, Entry
from registry.model import DiscoverQuery, NodeFilter
from registry.names import canonical_region, parse_model

Test = Callable[[Entry], bool]
CACHE_SIZE = 512
ORDER_FRESH_S = 1.0  # load changes with every heartbeat; an order this old is still a good one


@dataclass(frozen=True, slots=True)
class Found:
    """The best nodes in order, and how many hold the filters in all."""

    entries: list[Entry]
    total: int


def tests_of(query: NodeFilter, default_status: str, aliases: Mapping[str, str]) -> list[Test]:
    """The filters as predicates, the most selective kind first."""
    tests: list[Test] = []
    statuses: frozenset[str] = frozenset(query.status) or frozenset({default_status})
    if query.capability:
        tests.append(_includes("capabilities", query.capability))
    if query.label:
        tests.append(_includes("labels", query.label))
    if "any" not in statuses:
        tests.append(lambda e: e.status in statuses)
    if query.role:
        roles = frozenset(query.role)
        tests.append(lambda e: e.role in roles)
    if query.type:
        types = frozenset(query.type)
        tests.append(lambda e: e.type in types)
    if query.region:
        regions = frozenset(canonical_region(name, aliases) for name in query.region)
        tests.append(lambda e: e.region in regions)
    if isinstance(query, DiscoverQuery):
        tests += _resource_tests(query)
    return tests


def _includes(attribute: str, wanted: list[str]) -> Test:
    """All wanted names among the entry's set; nodes share sets, so each is looked at once."""
    names = frozenset(name.casefold() for name in wanted)
    return _once_per_set(attribute, lambda held: names <= held)


def _once_per_set(attribute: str, holds: Callable[[frozenset[Any]], bool]) -> Test:
    seen: dict[frozenset[Any], bool] = {}

    def test(entry: Entry) -> bool:
        held = getattr(entry, attribute)
        known = seen.get(held)
        if known is None:
            known = seen[held] = holds(held)
        return known

    return test


def _resource_tests(query: DiscoverQuery) -> Iterator[Test]:
    if query.model:
        wanted = [parse_model(name) for name in query.model]
        if query.match == "family":
            families = frozenset(name.family for name in wanted)
            yield _once_per_set("models", lambda held: families <= {m.family for m in held})
        else:
            yield _once_per_set("models", lambda held: held.issuperset(wanted))
    for attribute, least in (
        ("vram_gb", query.min_vram_gb),
        ("free_vram_gb", query.min_free_vram_gb),
        ("ram_gb", query.min_ram_gb),
        ("cpu_cores", query.min_cpu_cores),
    ):
        if least is not None:
            yield _at_least(attribute, least)
    if query.max_load is not None:
        most = query.max_load
        yield lambda e: e.load is not None and e.load <= most


def _at_least(attribute: str, least: float) -> Test:
    def test(entry: Entry) -> bool:
        value = getattr(entry, attribute)
        return value is not None and value >= least

    return test


def rank_key(query: DiscoverQuery, region: str | None) -> Callable[[Entry], tuple[Any, ...]]:
    """The order, smallest first: known to be there (its home registry can be heard of), healthy, near (the
    region), then as `sort` says, then less loaded, more VRAM free; the id makes it total."""

    def key(e: Entry) -> tuple[Any, ...]:
        load = 1.0 if e.load is None else e.load  # unknown load is no reason to prefer a node
        free = -(e.free_vram_gb or 0.0)
        chosen: Any = 0
        if query.sort == "load":
            chosen = load
        elif query.sort == "free_vram":
            chosen = free
        elif query.sort == "vram":
            chosen = -(e.vram_gb or 0.0)
        elif query.sort == "ram":
            chosen = -(e.ram_gb or 0.0)
        elif query.sort == "node_id":
            return (not e.reachable, e.node_id)
        return (not e.reachable, e.status != "online", chosen, e.region != region, load, free, e.node_id)

    return key


def preferred_region(query: DiscoverQuery, directory: Directory, caller_region: str, aliases: Mapping[str, str]) -> str:
    """The region that comes first: asked for, else that of the node or region to be near to,
    else the caller's own."""
    if query.prefer_region:
        return canonical_region(query.prefer_region, aliases)
    if query.nearest and query.nearest != "auto":
        node = directory.get(query.nearest)
        return node.region if node is not None else canonical_region(query.nearest, aliases)
    return caller_region


class Finder:
    """Answers discover. The order of one question is kept while no node came, went or changed
    status, for at most a second; what the answer says of each node is always as of now."""

    def __init__(self, directory: Directory, aliases: Mapping[str, str]) -> None:
        self._directory = directory
        self._aliases = aliases
        self._kept: dict[tuple[str, str], tuple[int, float, Found]] = {}

    def discover(self, query: DiscoverQuery, question: str, caller_region: str, now: float) -> Found:
        """The best `query.limit` nodes. `question` identifies the query; `now` is monotonic."""
        region = preferred_region(query, self._directory, caller_region, self._aliases)
        kept = self._kept.get((question, region))
        revision = self._directory.revision
        if kept is not None and kept[0] == revision and now - kept[1] < ORDER_FRESH_S:
            return kept[2]
        tests = tests_of(query, "online", self._aliases)
        matching = [e for e in self._directory.entries() if all(test(e) for test in tests)]
        best = nsmallest(query.limit, matching, key=rank_key(query, region))
        found = Found(best, len(matching))
        if len(self._kept) >= CACHE_SIZE:
            self._kept.clear()
        self._kept[question, region] = (revision, now, found)
        return found
