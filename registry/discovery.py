"""Find and rank: which nodes hold every filter, and in what order they are offered. Pure."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from registry import ranking
from registry.columns import Columns, Floats, Kind, Mask
from registry.directory import Directory, Entry
from registry.latency import AT_HOME_MS, estimates
from registry.model import DiscoverQuery, DiscoverQuestion, NodeFilter, ResourceFilter
from registry.names import canonical_region, parse_model
from registry.ranking import Cheapest, Rows

CACHE_SIZE = 512
ORDER_FRESH_S = 1.0  # load changes with every heartbeat; an order this old is still a good one
COSTS_FRESH_S = 0.2  # which adds to that; a busy worker has answered a hundred other questions by then
_NOTHING_KNOWN, _NOTHING_COARSE = np.empty(0, np.float32), np.empty(0, np.bool_)
_NONE, _ONE, _MOST = np.float32(0), np.float32(1), np.float32(ranking.MOST_GB)
_MOST_COSTS = 8  # arrays of them that are kept: one a region that is near to somebody, four bytes a node each
_SPARSE = 16  # below one row in so many, rows are listed before they are compared
_SORT_AT_ONCE = 2_000  # ids; of more than these some thousands are looked through in order instead


class ByClass(NamedTuple):
    """A filter on what is no number. `reason`: the name of the parameter that asks for it. `whole`: the field is one
    of the values; else it is a set that has all of them."""

    reason: str
    field: str
    wanted: frozenset[Any]
    whole: bool

    def holds(self, columns: Columns) -> Mask:
        """Which rows pass; not to be written to."""
        found: Mask = columns.spread(self, lambda: self._classes(columns))
        return found

    def _classes(self, columns: Columns) -> Mask:
        return columns.among(self.field, self.wanted) if self.whole else columns.holding(self.field, self.wanted)

    def is_vain(self, columns: Columns) -> bool:
        """Whether nobody has what is asked for: not worth keeping."""
        knows = columns.knows_one if self.whole else columns.knows_all
        return not knows(self.field, self.wanted)

    def admits(self, kind: Kind) -> bool:
        """Whether one class passes."""
        value = getattr(kind, self.field)
        return value in self.wanted if self.whole else bool(self.wanted <= value)


class ByNumber(NamedTuple):
    """A filter on a number: not known, or beyond the bound, is left out."""

    reason: str
    column: str
    bound: float
    at_most: bool = False

    def holds(self, columns: Columns) -> Mask:
        """Which rows pass."""
        values = columns.numbers[self.column][: columns.size]
        return values <= self.bound if self.at_most else values >= self.bound

    def admits(self, value: float) -> bool:
        """Whether one value passes, as columns hold it. NaN, which is not known, does not."""
        bound = float(np.float32(self.bound))
        return value <= bound if self.at_most else value >= bound


Filter = ByClass | ByNumber
_SIGNED = ByClass("signed", "signed", frozenset({True}), whole=True)
GENUINE = ByClass("signature", "signed", frozenset({True, None}), whole=True)


@dataclass(frozen=True, slots=True)
class Matching:
    """Nodes that hold every filter: whether each row is of one, not to be written to, and how many there are."""

    holds: Mask
    total: int

    def rows(self) -> Rows:
        """Their rows, ascending."""
        return np.flatnonzero(self.holds)


class Latency(NamedTuple):
    """How far a node is, in milliseconds, and how that is known: `measured`; `estimated` from what both measured;
    `region`: of one of the two only the place is known. None of them: nothing is."""

    ms: float | None = None
    source: str | None = None


_UNKNOWN = Latency()


@dataclass(slots=True)
class Found:
    """The best nodes in order, how far each is, and how many hold the filters in all, as of a moment (monotonic).
    `shown`: for who shows it, to keep what that made."""

    entries: list[Entry]
    latencies: list[Latency]
    total: int
    at_s: float
    shown: Any = None


@dataclass(frozen=True, slots=True)
class Near:
    """What nodes are to be near to: a region, or where round trips are known a node. `vector`: its round trips to
    registries; `pairs`: to other nodes, by row; `at`: where it has measured none and distances are asked for, how far
    registries are from where it is. Milliseconds."""

    region: str
    vector: Mapping[str, float]
    pairs: Mapping[int, float]
    at: Mapping[str, float]


@lru_cache(maxsize=64)
def _somewhere_in(region: str) -> Near:
    """What is near to somebody of whom nothing but the region is known."""
    return Near(region, {}, {}, {})


def filters_of(query: NodeFilter, default_status: str, aliases: Mapping[str, str]) -> list[Filter]:
    """What is asked for, in the order in which reasons are given."""
    asked: list[str] = [*query.status]
    statuses = frozenset(asked or [default_status])
    found: list[Filter] = []
    if "any" not in statuses:
        found.append(_among("status", statuses))
    if query.region:
        found.append(_among("region", frozenset(canonical_region(name, aliases) for name in query.region)))
    if query.role:
        found.append(_among("role", frozenset(query.role)))
    if query.type:
        found.append(_among("type", frozenset(query.type)))
    if query.label:
        found.append(_holding("label", "labels", (name.casefold() for name in query.label)))
    if query.capability:
        found.append(_holding("capability", "capabilities", (name.casefold() for name in query.capability)))
    if query.signed:
        found.append(_SIGNED)
    if isinstance(query, ResourceFilter):
        found += _resources(query)
    return found


def _among(field: str, values: frozenset[str]) -> ByClass:
    return ByClass(field, field, values, whole=True)


def _holding(reason: str, field: str, names: Iterable[Any]) -> ByClass:
    return ByClass(reason, field, frozenset(names), whole=False)


def _resources(query: ResourceFilter) -> Iterator[Filter]:
    yield GENUINE
    if query.model:
        wanted = [parse_model(name) for name in query.model]
        yield _holding("model", "models", [name.family for name in wanted] if query.match == "family" else wanted)
    for reason, column in (
        ("min_vram_gb", "vram_gb"),
        ("min_free_vram_gb", "free_vram_gb"),
        ("min_ram_gb", "ram_gb"),
        ("min_cpu_cores", "cpu_cores"),
    ):
        least = getattr(query, reason)
        if least is not None:
            yield ByNumber(reason, column, least)
    if query.max_load is not None:
        yield ByNumber("max_load", "load", query.max_load, at_most=True)


def matching(columns: Columns, filters: Iterable[Filter]) -> Matching:
    """The nodes that hold all of them."""
    holds: Mask | None = None
    owned = False  # what is spread is kept for others
    for each in filters:
        if isinstance(each, ByClass) and each.is_vain(columns):
            return Matching(np.zeros(columns.size, np.bool_), 0)
        passing = each.holds(columns)
        if holds is None:
            holds, owned = passing, isinstance(each, ByNumber)
        else:
            holds, owned = np.logical_and(holds, passing, out=holds if owned else None), True
    if holds is None:
        holds = columns.nodes()
    return Matching(holds, int(np.count_nonzero(holds)))


def left_out(columns: Columns, filters: Iterable[Filter]) -> dict[str, int]:
    """How many nodes each filter leaves out of those that the filters before it left in."""
    holds = columns.nodes()
    before = int(np.count_nonzero(holds))
    found: dict[str, int] = {}
    for each in filters:
        holds = holds & each.holds(columns)
        left = int(np.count_nonzero(holds))
        if left < before:
            found[each.reason] = found.get(each.reason, 0) + before - left
        before = left
    return found


def failing(columns: Columns, filters: Iterable[Filter], row: int) -> list[str]:
    """The filters that leave one node out."""
    kind = columns.kind(int(columns.class_of[row]))
    return [
        each.reason
        for each in filters
        if not (
            each.admits(kind) if isinstance(each, ByClass) else each.admits(float(columns.numbers[each.column][row]))
        )
    ]


def admits(columns: Columns, filters: Iterable[Filter], row: int) -> bool:
    """Whether one node holds all filters."""
    kind = columns.kind(int(columns.class_of[row]))
    return all(
        each.admits(kind) if isinstance(each, ByClass) else each.admits(float(columns.numbers[each.column][row]))
        for each in filters
    )


def in_order_of_ids(directory: Directory, found: Matching, most: int, after: str = "", skip: int = 0) -> list[Entry]:
    """Some of them, by id: those after an id, from the `skip`th on. Of few all are sorted; of many the ids in order
    are looked through, among which they come often."""
    holds = found.holds
    if found.total <= _SORT_AT_ONCE:
        nodes = (directory.at(row) for row in found.rows().tolist())
        entries = sorted((entry for entry in nodes if entry.node_id > after), key=lambda entry: entry.node_id)
        return entries[skip : skip + most]
    among = directory.after(after) if after else directory.entries()
    return list(islice((entry for entry in among if holds[entry.row]), skip, skip + most))


def preferred_region(query: DiscoverQuery, directory: Directory, caller_region: str, aliases: Mapping[str, str]) -> str:
    """The region that is near: asked for, else that of the node or region to be near to, else the caller's own."""
    if query.prefer_region:
        return canonical_region(query.prefer_region, aliases)
    if query.nearest and query.nearest != "auto":
        node = directory.get(query.nearest)
        return node.region if node is not None else canonical_region(query.nearest, aliases)
    return caller_region


def asks_for_distance(query: DiscoverQuery) -> bool:
    """Whether how far nodes are matters more than where."""
    by_distance = query.latency == "min" or query.sort == "latency" or query.max_latency_ms is not None
    return by_distance or query.nearest is not None


class Finder:
    """Answers discover. The order of one question is kept while no node came, went or changed status, for at most
    a second; what the answer says of each node is always as of now."""

    def __init__(self, directory: Directory, aliases: Mapping[str, str]) -> None:
        self._directory = directory
        self._aliases = aliases
        self._costs = Costs(directory)
        self._kept: dict[tuple[str, str, str, int], tuple[int, Found]] = {}

    def discover(
        self,
        query: DiscoverQuery,
        question: str,
        caller_region: str,
        now: float,
        seed: int = 0,
        caller: str | None = None,
        beside: str | None = None,
    ) -> Found:
        """The best `query.limit` nodes. `question` identifies the query; `now` is monotonic; `seed` decides among
        equals; `caller` is the node that asks, else `beside` one at its address."""
        near, known = self._near(query, caller_region, caller, beside)
        key = (question, near.region, known, seed)
        kept = self._kept.get(key)
        revision = self._directory.revision
        if kept is not None and kept[0] == revision and now - kept[1].at_s < ORDER_FRESH_S:
            return kept[1]
        found = self._search(query, near, now, seed)
        if len(self._kept) >= CACHE_SIZE:
            self._kept.clear()
        self._kept[key] = revision, found
        return found

    def _near(
        self, query: DiscoverQuery, caller_region: str, caller: str | None, beside: str | None = None
    ) -> tuple[Near, str]:
        """What to be near to; and whose round trips it goes by, for two callers with none are answered alike."""
        directory = self._directory
        region = preferred_region(query, directory, caller_region, self._aliases)
        there = query.nearest if query.nearest and directory.get(query.nearest) is not None else None
        if there is None and query.nearest in (None, "auto"):
            there = caller or beside
        itself = there if there != beside or there == caller else None
        vector = directory.vector_of(there) if there else {}
        pairs = directory.pairs_of(itself) if itself else {}
        if not (vector or pairs or asks_for_distance(query) or isinstance(query, DiscoverQuestion)):
            return _somewhere_in(region), ""
        asked = isinstance(query, DiscoverQuestion) and query.registry_rtt_ms
        at = self._place(query, there, caller_region) if not (vector or asked) and asks_for_distance(query) else {}
        known = there if there and (vector or pairs or at) else ""
        if known and itself:
            pairs |= directory.rows_of({itself: 0.0})
        if isinstance(query, DiscoverQuestion):
            vector = query.registry_rtt_ms or vector
            pairs |= directory.rows_of(query.node_rtt_ms or {})
        return Near(region, vector, pairs, at), known

    def _place(self, query: DiscoverQuery, there: str | None, caller_region: str) -> Mapping[str, float]:
        """How far registries are from the region in which a node is that has measured nothing, or the caller."""
        entry, nearest = self._directory.get(there) if there else None, query.nearest
        named = caller_region if nearest in (None, "auto") else canonical_region(nearest, self._aliases)
        return self._directory.backbone.of_region(named if entry is None else entry.region)

    def _search(self, query: DiscoverQuery, near: Near, now: float, seed: int) -> Found:
        held = matching(self._directory.columns, filters_of(query, "online", self._aliases))
        if not held.total:
            return Found([], [], 0, now)
        order = Order(self._directory, held, near, query, now, self._costs)
        sort = "latency" if query.latency == "min" and query.sort is None else query.sort
        entries = order.by_id(query.limit) if sort == "node_id" else order.best(sort, query.limit, seed)
        return Found(entries, order.latencies(entries), order.total, now)

    def explain(
        self, query: DiscoverQuery, caller_region: str, caller: str | None = None, beside: str | None = None
    ) -> dict[str, Any]:
        """How many nodes each filter leaves out, and of the node that is asked about, why it is left out."""
        directory, columns = self._directory, self._directory.columns
        filters = filters_of(query, "online", self._aliases)
        told: dict[str, Any] = {"left_out": left_out(columns, filters)}
        beyond: frozenset[int] = frozenset()
        if query.max_latency_ms is not None:
            near, _ = self._near(query, caller_region, caller, beside)
            rows = matching(columns, filters).rows()
            shown = Distances(directory, near).to(rows).shown
            beyond = frozenset(rows.compress(shown > query.max_latency_ms).tolist())
            if beyond:
                told["left_out"]["max_latency_ms"] = len(beyond)
        if query.node_id is not None:
            entry = directory.get(query.node_id)
            told["node"] = {"node_id": query.node_id, "known": entry is not None}
            if entry is not None:
                reasons = failing(columns, filters, entry.row)
                reasons += ["max_latency_ms"] if entry.row in beyond else []
                told["node"] |= {"left_out_by": reasons, "matches": not reasons}
        return told


@dataclass(slots=True)
class Summed:
    """What all rows cost, but for silence and for latency that is known; not to be written to."""

    costs: Floats
    cheapest: Cheapest | None = None


class Costs:
    """Costs by what is near, for questions that come within a moment and ask for other nodes near to the same region:
    kept while no node came, went or changed status, and not for long."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: dict[tuple[str, bool], tuple[tuple[int, int], float, Summed]] = {}

    def of(self, region: str, preferred: bool, now: float, made: Callable[[], Floats]) -> Summed:
        """Those that are kept, else made. The cheapest are looked for when they are asked for twice."""
        revisions = self._directory.revision, self._directory.backbone.revision
        before, at_s, summed = self._kept.get((region, preferred), (None, 0.0, None))
        if summed is not None and before == revisions and now - at_s < COSTS_FRESH_S:
            if summed.cheapest is None:
                summed.cheapest = ranking.cheapest_of(summed.costs)
            return summed
        if len(self._kept) >= _MOST_COSTS:
            self._kept.clear()
        summed = Summed(made())
        self._kept[region, preferred] = revisions, now, summed
        return summed


class Order:
    """The order of nodes that hold every filter; see ranking.py. `total`: how many there are."""

    def __init__(
        self, directory: Directory, held: Matching, near: Near, query: DiscoverQuery, now: float, costs: Costs
    ) -> None:
        self._directory, self._columns, self._now = directory, directory.columns, now
        self._kept = costs
        self._held, self.total, self._region = held, held.total, near.region
        dense = held.total * _SPARSE >= self._columns.size
        self._rows = None if dense else held.rows()  # None: every row there is
        self._preferred = query.prefer_region is not None
        self._vouched = self._columns.table("home", lambda home: directory.vouched(*home), math.inf, np.float64)
        self._lost = self._vouched < 0
        self._backbone = directory.backbone
        self._pairs, self._by_place = near.pairs, not near.vector
        self._ranked = self._shown = _NOTHING_KNOWN
        self._coarse: Mask = _NOTHING_COARSE
        if near.vector or near.pairs or near.at:
            self._ranked, self._shown, self._coarse = Distances(directory, near).to(self._rows)
            if query.max_latency_ms is not None:
                self._leave_out_beyond(query.max_latency_ms)

    def latencies(self, entries: Sequence[Entry]) -> list[Latency]:
        """How far nodes of the answer are."""
        if len(self._shown):
            return [self._latency_of(entry) for entry in entries]
        far = self._backbone.of_region(self._region)
        return [self._by_region(entry, far) for entry in entries] if len(far) > 1 else [_UNKNOWN] * len(entries)

    def _latency_of(self, entry: Entry) -> Latency:
        place = entry.row if self._rows is None else int(np.searchsorted(self._rows, entry.row))
        ms = float(self._shown[place])
        by_place = self._by_place or self._coarse[place]
        source = "measured" if entry.row in self._pairs else "region" if by_place else "estimated"
        return Latency(round(ms, 2), source) if ms == ms else _UNKNOWN

    def _by_region(self, entry: Entry, far: Mapping[str, float]) -> Latency:
        """Of a node in another region, the way between the regions; in one region nobody knows."""
        ms = far.get(entry.owner.registry_id) if entry.region != self._region else None
        return Latency(round(ms + AT_HOME_MS, 2), "region") if ms else _UNKNOWN

    def best(self, sort: str | None, limit: int, seed: int) -> list[Entry]:
        """The first ones. `sort`: by one fact before anything else."""
        rows, summed = self._rows, self._costs()
        costs = summed.costs
        keys = costs if sort is None else self._keys(sort)
        places = ranking.best(
            keys, costs, limit, seed, ranking.EQUAL_MS if sort is None else 0.0,
            lambda places: self._late(places if rows is None else rows.take(places)),
            self._held.holds if rows is None else None,
            summed.cheapest if sort is None else None,
        )  # fmt: skip
        chosen = places if rows is None else rows.take(places)
        return [self._directory.at(row) for row in chosen.tolist()]

    def by_id(self, limit: int) -> list[Entry]:
        """In the order of ids; those of a registry that cannot be heard of last."""
        holds = self._held.holds
        if self._rows is not None:  # fewer than hold the filters, where some were too far
            holds = self._everywhere(np.ones(len(self._rows), np.bool_))
        lost = self._everywhere(self._worse(None) >= ranking.NOT_HEARD_OF)
        found: list[Entry] = []
        for part in (holds & ~lost, holds & lost):
            some = Matching(part, int(np.count_nonzero(part)))
            found += in_order_of_ids(self._directory, some, most=limit - len(found)) if len(found) < limit else []
        return found

    def _everywhere(self, found: Mask) -> Mask:
        """A verdict on the rows that are looked at, for every row there is."""
        if self._rows is None:
            return found
        spread = np.zeros(self._columns.size, np.bool_)
        spread[self._rows] = found
        return spread

    def _leave_out_beyond(self, most_ms: float) -> None:
        """Leave out who is known to be farther away."""
        rows = self._rows if self._rows is not None else self._held.rows()
        shown = self._shown if self._rows is not None else self._shown.take(rows)
        ranked = self._ranked if self._rows is not None else self._ranked.take(rows)
        near = ~(shown > most_ms)
        coarse = self._coarse if self._rows is not None else self._coarse.take(rows)
        self._rows, self._coarse = rows.compress(near), coarse.compress(near)
        self._shown, self._ranked = shown.compress(near), ranked.compress(near)
        self.total = len(self._rows)

    def _costs(self) -> Summed:
        """The cost of each row, but for its silence."""
        if self._rows is None and not len(self._ranked):
            return self._kept.of(self._region, self._preferred, self._now, self._summed)
        return Summed(self._summed())

    def _summed(self) -> Floats:
        costs: Floats = self._expected() + self._of_rows(self._columns.base)
        return costs

    def _expected(self) -> Floats:
        """What is worse in kind, and the latency: as far as it is known, else as regions let expect."""
        worse = self._worse(self._preferred)
        if not len(self._ranked):
            return worse
        columns = self._columns
        key = "latency", self._region, self._backbone.revision
        expected = self._of_rows(columns.spread(key, lambda: self._latency(preferred=False)))
        known: Floats = worse + np.where(np.isnan(self._ranked), _NONE, self._ranked - expected)
        return known

    def _latency(self, *, preferred: bool) -> Floats:
        """What regions let expect, by class. `preferred`: the other ones come behind."""
        columns, far = self._columns, self._backbone.of_region(self._region)
        latency = columns.chosen("region", (self._region,), ranking.SAME_REGION_MS, ranking.ELSEWHERE_MS)
        found: Floats = columns.by_class("region", latency)
        elsewhere = found == ranking.ELSEWHERE_MS
        if len(far) > 1:  # other registries have said how far they are
            home = columns.table("home", lambda home: (far.get(home[0]) or math.nan) + AT_HOME_MS, math.nan)
            by_home = columns.by_class("home", home)
            found = np.where(elsewhere & (by_home == by_home), by_home, found)
        return found + elsewhere * np.float32(ranking.ANOTHER_REGION) if preferred else found

    def _worse(self, preferred: bool | None) -> Floats:
        """What is worse in kind; with the latency that regions let expect, unless None is preferred."""
        place = None if preferred is None else (self._region, self._backbone.revision)
        key = "worse", place, preferred, self._lost.tobytes()
        spread: Floats = self._of_rows(self._columns.spread(key, lambda: self._worse_by_class(preferred)))
        return self._doubted(spread)

    def _worse_by_class(self, preferred: bool | None) -> Floats:
        columns = self._columns
        status = columns.chosen("status", ("online",), 0.0, ranking.NOT_ONLINE)
        lost = self._lost.astype(np.float32) * np.float32(ranking.NOT_HEARD_OF)
        worse: Floats = columns.by_class("status", status) + columns.by_class("home", lost)
        return worse if preferred is None else worse + self._latency(preferred=preferred)

    def _doubted(self, spread: Floats) -> Floats:
        """With what is worse about words that are not vouched for, where their class cannot tell."""
        mixed = (self._vouched >= 0) & (self._vouched < np.inf)
        if not np.count_nonzero(mixed):
            return spread
        columns = self._columns
        upto = columns.by_class("home", np.where(mixed, self._vouched, np.inf))
        doubted = self._of_rows(columns.said_seq) > upto.take(self._of_rows(columns.class_of))
        found: Floats = spread + doubted * np.float32(ranking.NOT_HEARD_OF)
        return found

    def _late(self, rows: Rows) -> Floats:
        """What silence adds. Of other registries' nodes each heartbeat is not known here."""
        columns, us, windows = self._columns, self._directory.registry_id, self._directory.windows
        silence_s = self._now - columns.heard_s.take(rows)
        if not np.count_nonzero(silence_s > ranking.borne_s(windows.heartbeat_interval_s)):  # nearly always
            return np.zeros(len(rows), np.float32)
        ours = columns.table("home", lambda home: float(home[0] == us), 0.0)
        silence_s *= columns.by_row("home", ours, rows)
        return ranking.silence_cost(silence_s, windows.heartbeat_interval_s, windows.degraded_after_s)

    def _keys(self, sort: str) -> Floats:
        """What is asked to come first, smaller is better, behind what is worse in kind."""
        if sort == "latency":
            return self._expected()
        values = self._of_rows(self._columns.numbers[sort if sort == "load" else f"{sort}_gb"])
        if sort == "load":  # fmin, fmax: of NaN, which is not known, and a number the number
            load = np.fmin(values.clip(_NONE, _ONE), _ONE) + self._of_rows(self._columns.held)
            keys = load * np.float32(ranking.LOAD_SPREAD)
        else:
            keys = _MOST - np.fmax(values.clip(_NONE, _MOST), _NONE)
        found: Floats = keys + self._worse(None)
        return found

    def _of_rows(self, column: Any) -> Any:
        """The part of a column that is looked at."""
        return column[: self._columns.size] if self._rows is None else column.take(self._rows)


class Far(NamedTuple):
    """Of rows: what to rank by, what to show (NaN: nothing is known), and whether only the node's home is known."""

    ranked: Floats
    shown: Floats
    coarse: Mask


class Distances:
    """How far nodes are from one: what it measured itself; what both measured to registries; else the way to their
    home registry."""

    def __init__(self, directory: Directory, near: Near) -> None:
        columns = directory.columns
        self._columns, self._near = columns, near
        self._beyond = directory.backbone.beyond(near.vector or near.at) | dict(near.at)
        ways = {**self._beyond, **near.vector}
        self._home = columns.table("home", lambda home: ways.get(home[0], math.nan) + AT_HOME_MS, math.nan)
        # Both are somewhere in one region: that is near, and nobody knows how near.
        within = [name for name, ms in near.at.items() if not ms]
        self._within = columns.table("home", lambda home: math.nan if home[0] in within else 0.0, 0.0)

    def to(self, rows: Rows | None) -> Far:
        """How far these rows are, which ascend, or all of them."""
        columns, near = self._columns, self._near
        size = columns.size if rows is None else len(rows)
        vectors = {
            name: column[:size] if rows is None else column.take(rows)
            for name in (*near.vector, *self._beyond)
            if (column := columns.vectors.column(name)) is not None
        }
        ranked, shown = estimates(vectors, near.vector, size, self._beyond)
        coarse = np.isnan(shown)
        unknown = np.flatnonzero(coarse)
        by_home = columns.by_row("home", self._home, unknown if rows is None else rows.take(unknown))
        ranked[unknown] = by_home
        shown[unknown] = by_home + columns.by_row("home", self._within, unknown if rows is None else rows.take(unknown))
        for row, ms in near.pairs.items():
            place = row if rows is None else int(np.searchsorted(rows, row))
            if place < size and (rows is None or rows[place] == row):
                ranked[place] = shown[place] = ms
        return Far(ranked, shown, coarse)
