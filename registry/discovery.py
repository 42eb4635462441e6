"""Find and rank: which nodes hold every filter, and in what order they are offered. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from registry import ranking
from registry.columns import Columns, Floats, Kind, Mask
from registry.directory import Directory, Entry
from registry.latency import AT_HOME_MS, estimates
from registry.model import DiscoverQuery, DiscoverQuestion, NodeFilter, ResourceFilter
from registry.names import canonical_region, parse_model
from registry.ranking import Rows

CACHE_SIZE = 512
ORDER_FRESH_S = 1.0  # load changes with every heartbeat; an order this old is still a good one
_NONE, _ONE, _NOBODY = np.float32(0), np.float32(1), np.float32(np.inf)
_SPARSE = 8  # below one row in so many, rows are listed before their numbers are looked at
_SORT_AT_ONCE = 2_000  # ids; of more than these some thousands are looked through in order instead


class ByClass(NamedTuple):
    """A filter on what is no number. `reason`: the name of the parameter that asks for it. `whole`: the field is one
    of the values; else it is a set that has all of them."""

    reason: str
    field: str
    wanted: frozenset[Any]
    whole: bool

    def holds(self, columns: Columns) -> Mask:
        """Which classes pass."""
        return columns.among(self.field, self.wanted) if self.whole else columns.holding(self.field, self.wanted)

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

    def holds(self, values: Floats) -> Mask:
        """Which of these values pass."""
        return values <= self.bound if self.at_most else values >= self.bound

    def admits(self, value: float) -> bool:
        """Whether one value passes. NaN, which is not known, does not."""
        return value <= self.bound if self.at_most else value >= self.bound


Filter = ByClass | ByNumber


@dataclass(frozen=True, slots=True)
class Matching:
    """Nodes that hold every filter: of `classes`, and of those, where numbers were asked for, `rows`."""

    classes: Mask
    rows: Rows | None
    total: int


class Latency(NamedTuple):
    """How far a node is, in milliseconds, and how that is known: `measured` or `estimated`; neither, nothing is."""

    ms: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The best nodes in order, how far each is, and how many hold the filters in all."""

    entries: list[Entry]
    latencies: list[Latency]
    total: int


@dataclass(frozen=True, slots=True)
class Near:
    """What nodes are to be near to: a region, or where round trips are known a node. `vector`: its round trips to
    registries; `pairs`: to other nodes, by row. Milliseconds."""

    region: str
    vector: Mapping[str, float]
    pairs: Mapping[int, float]


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
    if isinstance(query, ResourceFilter):
        found += _resources(query)
    return found


def _among(field: str, values: frozenset[str]) -> ByClass:
    return ByClass(field, field, values, whole=True)


def _holding(reason: str, field: str, names: Iterable[Any]) -> ByClass:
    return ByClass(reason, field, frozenset(names), whole=False)


def _resources(query: ResourceFilter) -> Iterator[Filter]:
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
    classes = columns.everything()
    numbers: list[ByNumber] = []
    for each in filters:
        if isinstance(each, ByClass):
            classes &= each.holds(columns)
        else:
            numbers.append(each)
    total = int(columns.count[: columns.classes].compress(classes).sum())
    if not numbers or not total:
        return Matching(classes, None, total)
    size = columns.size
    if total * _SPARSE < size:
        rows = rows_of(columns, classes)
        for each in numbers:
            rows = rows.compress(each.holds(columns.numbers[each.column].take(rows)))
    else:
        mask = classes.take(columns.class_of[:size])
        for each in numbers:
            mask &= each.holds(columns.numbers[each.column][:size])
        rows = np.flatnonzero(mask)
    return Matching(classes, rows, len(rows))


def rows_of(columns: Columns, classes: Mask) -> Rows:
    """The rows of these classes."""
    return np.flatnonzero(classes.take(columns.class_of[: columns.size]))


def left_out(columns: Columns, filters: Iterable[Filter]) -> dict[str, int]:
    """How many nodes each filter leaves out of those that the filters before it left in."""
    mask = columns.everything().take(columns.class_of[: columns.size])
    found: dict[str, int] = {}
    for each in filters:
        if isinstance(each, ByClass):
            holds = each.holds(columns).take(columns.class_of[: columns.size])
        else:
            holds = each.holds(columns.numbers[each.column][: columns.size])
        out = int(np.count_nonzero(mask & ~holds))
        if out:
            found[each.reason] = found.get(each.reason, 0) + out
        mask &= holds
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
    columns = directory.columns
    rows = found.rows
    if found.total <= _SORT_AT_ONCE:
        listed = rows if rows is not None else rows_of(columns, found.classes)
        entries = sorted(
            (e for row in listed.tolist() if (e := directory.at(row)).node_id > after), key=lambda e: e.node_id
        )
        return entries[skip : skip + most]
    if rows is None:
        holds = found.classes.take(columns.class_of[: columns.size])
    else:
        holds = np.zeros(columns.size, np.bool_)
        holds[rows] = True
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


class Finder:
    """Answers discover. The order of one question is kept while no node came, went or changed status, for at most
    a second; what the answer says of each node is always as of now."""

    def __init__(self, directory: Directory, aliases: Mapping[str, str]) -> None:
        self._directory = directory
        self._aliases = aliases
        self._kept: dict[tuple[str, str, str, int], tuple[int, float, Found]] = {}

    def discover(
        self,
        query: DiscoverQuery,
        question: str,
        caller_region: str,
        now: float,
        seed: int = 0,
        caller: str | None = None,
    ) -> Found:
        """The best `query.limit` nodes. `question` identifies the query; `now` is monotonic; `seed` decides among
        equals; `caller` is the node that asks."""
        directory = self._directory
        region = preferred_region(query, directory, caller_region, self._aliases)
        there = query.nearest if query.nearest and directory.get(query.nearest) is not None else None
        if there is None and query.nearest in (None, "auto"):
            there = caller
        vector = directory.vector_of(there) if there else {}
        pairs = directory.pairs_of(there) if there else {}
        if there and (vector or pairs):
            pairs |= directory.rows_of({there: 0.0})  # to itself
        if isinstance(query, DiscoverQuestion):
            vector = query.registry_rtt_ms or vector
            pairs |= directory.rows_of(query.node_rtt_ms or {})
        key = (question, region, there if there and (vector or pairs) else "", seed)
        kept = self._kept.get(key)
        revision = directory.revision
        if kept is not None and kept[0] == revision and now - kept[1] < ORDER_FRESH_S:
            return kept[2]
        found = self._search(query, Near(region, vector, pairs), now, seed)
        if len(self._kept) >= CACHE_SIZE:
            self._kept.clear()
        self._kept[key] = (revision, now, found)
        return found

    def _search(self, query: DiscoverQuery, near: Near, now: float, seed: int) -> Found:
        directory = self._directory
        held = matching(directory.columns, filters_of(query, "online", self._aliases))
        if not held.total:
            return Found([], [], 0)
        order = Order(directory, held, near, prefers=query.prefer_region is not None, now=now)
        if query.max_latency_ms is not None:
            order.leave_out_beyond(query.max_latency_ms)
        sort = "latency" if query.latency == "min" and query.sort is None else query.sort
        entries = order.by_id(query.limit) if sort == "node_id" else order.best(sort, query.limit, seed)
        return Found(entries, [order.latency(entry.row) for entry in entries], order.total)

    def explain(self, query: DiscoverQuery) -> dict[str, Any]:
        """How many nodes each filter leaves out, and of the node that is asked about, why it is left out."""
        columns, filters = self._directory.columns, filters_of(query, "online", self._aliases)
        told: dict[str, Any] = {"left_out": left_out(columns, filters)}
        if query.node_id is not None:
            entry = self._directory.get(query.node_id)
            if entry is None:
                told["node"] = {"node_id": query.node_id, "known": False}
            else:
                reasons = failing(columns, filters, entry.row)
                told["node"] = {"node_id": entry.node_id, "known": True, "left_out_by": reasons, "matches": not reasons}
        return told


class Order:
    """The order of nodes that hold every filter; see ranking.py."""

    def __init__(self, directory: Directory, held: Matching, near: Near, *, prefers: bool, now: float) -> None:
        self._directory, self._columns = directory, directory.columns
        self._held, self._now = held, now
        columns, region = self._columns, near.region
        far_ms = ranking.ELSEWHERE_MS + (ranking.ANOTHER_REGION if prefers else 0.0)
        latency = columns.table("region", lambda name: ranking.SAME_REGION_MS if name == region else far_ms)
        self._latency: Floats = columns.by_class("region", latency)
        self._distances = Distances(columns, near) if near.vector or near.pairs else None
        worse = columns.table("status", lambda status: 0.0 if status == "online" else ranking.NOT_ONLINE)
        self._worse: Floats | None = columns.by_class("status", worse) if worse.any() else None
        self._vouched = columns.table("home", lambda home: directory.vouched(*home), np.float64)
        lost = (self._vouched < 0).astype(np.float32) * np.float32(ranking.NOT_HEARD_OF)
        if lost.any():
            self._worse = columns.by_class("home", lost) + (0 if self._worse is None else self._worse)

    @property
    def total(self) -> int:
        """How many hold the filters."""
        return self._held.total

    def latency(self, row: int) -> Latency:
        """How far a node is."""
        return self._distances.of(row) if self._distances is not None else Latency()

    def leave_out_beyond(self, most_ms: float) -> None:
        """Leave out who is known to be farther away."""
        if self._distances is not None:
            held = self._held
            rows = held.rows if held.rows is not None else rows_of(self._columns, held.classes)
            _, shown = self._distances.to(rows)
            near = rows.compress(~(shown > most_ms))
            self._held = Matching(held.classes, near, len(near))

    def best(self, sort: str | None, limit: int, seed: int) -> list[Entry]:
        """The first ones. `sort`: by one fact before anything else."""
        rows, costs = self._costs()
        keys = costs if sort is None else self._keys(sort, rows)
        width = ranking.EQUAL_MS if sort is None else 0.0
        places = ranking.best(
            keys, costs, limit, seed, width, lambda places: self._late(places if rows is None else rows.take(places))
        )
        chosen = places if rows is None else rows.take(places)
        return [self._directory.at(row) for row in chosen.tolist()]

    def by_id(self, limit: int) -> list[Entry]:
        """In the order of ids; those of a registry that cannot be heard of last."""
        rows = self._held.rows if self._held.rows is not None else rows_of(self._columns, self._held.classes)
        lost = self._spread(self._worst(), rows) >= ranking.NOT_HEARD_OF
        found: list[Entry] = []
        for part in (rows.compress(~lost), rows.compress(lost)):
            some = Matching(self._held.classes, part, len(part))
            found += in_order_of_ids(self._directory, some, most=limit - len(found)) if len(found) < limit else []
        return found

    def _worst(self) -> Floats:
        """By class, what makes its nodes come after all others; a copy."""
        return np.zeros(self._columns.classes, np.float32) if self._worse is None else self._worse.copy()

    def _costs(self) -> tuple[Rows | None, Floats]:
        """Rows, and the cost of each; without rows, that of every row there is, infinite for all others."""
        columns, held = self._columns, self._held
        by_class = self._latency if self._worse is None else self._latency + self._worse
        if held.rows is None and held.total * _SPARSE >= columns.size:
            by_class = np.where(held.classes, by_class, _NOBODY)
            return None, self._measured(self._spread(by_class, None), None) + columns.base[: columns.size]
        rows = held.rows if held.rows is not None else rows_of(columns, held.classes)
        return rows, self._measured(self._spread(by_class, rows), rows) + columns.base.take(rows)

    def _measured(self, costs: Floats, rows: Rows | None) -> Floats:
        """Costs with what is known of distances in place of what regions let expect."""
        if self._distances is None:
            return costs
        ranked, _ = self._distances.to(rows)
        expected = self._spread(self._latency, rows, plain=True)
        better = np.where(np.isnan(ranked), _NONE, ranked - np.minimum(expected, ranking.ELSEWHERE_MS))
        known: Floats = costs + better
        return known

    def _late(self, rows: Rows) -> Floats:
        """What silence adds. Of other registries' nodes each heartbeat is not known here."""
        columns, us = self._columns, self._directory.registry_id
        ours = columns.table("home", lambda home: float(home[0] == us))
        silence_s = (self._now - columns.heard_s.take(rows)) * columns.by_row("home", ours, rows)
        return ranking.silence_cost(silence_s, self._directory.windows.heartbeat_interval_s)

    def _keys(self, sort: str, rows: Rows | None) -> Floats:
        """What is asked to come first, smaller is better, behind what is worse in kind."""
        columns = self._columns
        worse = self._worst()
        if rows is None:
            worse[~self._held.classes] = _NOBODY
        if sort == "latency":
            return self._measured(self._spread(worse + self._latency, rows), rows)
        name = sort if sort == "load" else f"{sort}_gb"
        column = columns.numbers[name]
        values = column[: columns.size] if rows is None else column.take(rows)
        unknown = np.isnan(values)
        if sort == "load":
            values = np.where(unknown, _ONE, values) * np.float32(ranking.LOAD_SPREAD)
        else:
            values = np.float32(ranking.MOST_GB) - np.where(unknown, _NONE, values).clip(0, ranking.MOST_GB)
        keys: Floats = self._spread(worse, rows) + values
        return keys

    def _spread(self, by_class: Floats, rows: Rows | None, *, plain: bool = False) -> Floats:
        """What classes have, for rows; and whether the word on a node is vouched for, where its class cannot tell."""
        columns = self._columns
        class_of = columns.class_of[: columns.size] if rows is None else columns.class_of.take(rows)
        spread: Floats = by_class.take(class_of)
        if plain:
            return spread
        mixed = (self._vouched >= 0) & (self._vouched < np.inf)
        if mixed.any():
            said = columns.said_seq[: columns.size] if rows is None else columns.said_seq.take(rows)
            upto = columns.by_class("home", np.where(mixed, self._vouched, np.inf))
            spread[said > upto.take(class_of)] += np.float32(ranking.NOT_HEARD_OF)
        return spread


class Distances:
    """How far nodes are from one: what it measured itself; what both measured to registries; else the way to their
    home registry."""

    def __init__(self, columns: Columns, near: Near) -> None:
        self._columns, self._near = columns, near
        self._home = columns.table("home", lambda home: near.vector.get(home[0], math.nan) + AT_HOME_MS)

    def to(self, rows: Rows | None) -> tuple[Floats, Floats]:
        """(what to rank by, what to show) of these rows, or of all; NaN where nothing is known."""
        columns, near = self._columns, self._near
        size = columns.size if rows is None else len(rows)
        vectors = {
            name: column[:size] if rows is None else column.take(rows)
            for name in near.vector
            if (column := columns.vectors.column(name)) is not None
        }
        ranked, shown = estimates(vectors, near.vector, size)
        by_home = columns.by_row("home", self._home, np.arange(size) if rows is None else rows)
        unknown = np.isnan(shown)
        ranked, shown = np.where(unknown, by_home, ranked), np.where(unknown, by_home, shown)
        for row, ms in near.pairs.items():
            place = row if rows is None else int(np.searchsorted(rows, row))
            if place < size and (rows is None or rows[place] == row):
                ranked[place] = shown[place] = ms
        return ranked, shown

    def of(self, row: int) -> Latency:
        """How far one node is."""
        if row in self._near.pairs:
            return Latency(round(self._near.pairs[row], 2), "measured")
        _, shown = self.to(np.array([row]))
        ms = float(shown[0])
        return Latency(round(ms, 2), "estimated") if ms == ms else Latency()
