"""The region's nodes in memory: every read is answered from here, none from Redis.

An entry keeps the node's pre-encoded JSON and the few facts that filters and ranking need.
Entries with equal labels, capabilities or models share one set.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from registry.capabilities import capability_names, free_vram_gb, number, total_vram_gb
from registry.lifecycle import Deadlines, Liveness, Transition, Windows, next_liveness, shown_status
from registry.names import ModelName, parse_model
from registry.node import Record, iso, shown

Json = Any
_FEW = 64  # so many new ids are put in their places one by one; more are sorted in
_REMEMBERED_DELETIONS = 10_000  # far more than can be in flight between two workers


class Entry:
    """One node. Times: `heard_s` monotonic seconds, `beat_at_ms` wall-clock milliseconds."""

    __slots__ = (
        "_declared_free_gb", "_dynamic", "beat_at_ms", "capabilities", "cpu_cores", "due_at_s", "free_vram_gb",
        "heard_s", "intent", "key_hash", "labels", "liveness", "load", "metrics", "models", "node_id", "ram_gb",
        "region", "reported", "role", "static", "token", "type", "version", "vram_gb", "why",
    )  # fmt: skip

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.liveness: Liveness = "online"
        self.metrics = b"{}"
        self.load: float | None = None
        self.beat_at_ms: int | None = None
        self.heard_s = self.due_at_s = 0.0
        self.why: str | None = None
        self._dynamic: bytes | None = None

    @property
    def status(self) -> str:
        """The status that callers see."""
        return shown_status(self.liveness, self.reported, self.intent)

    def take_record(self, record: Record, version: int, intern: Callable[[Any], Any]) -> None:
        """Fill in everything that a record says."""
        view = shown(record)
        flat = view["capabilities"]
        # A copy: orjson hands out its own oversized buffer, and we keep this for long.
        self.static = bytes(memoryview(orjson.dumps(view)[:-1]))
        self.version = version
        self.token = record.token
        self.key_hash = bytes.fromhex(record.key_hash) if record.key_hash else None
        self.role, self.type = intern(view["role"]), intern(view["node_type"])
        self.region = intern(view["region"])
        self.labels: frozenset[str] = intern(frozenset(x.casefold() for x in view["labels"]))
        self.capabilities: frozenset[str] = intern(capability_names(flat))
        self.models: frozenset[ModelName] = intern(frozenset(parse_model(name) for name in flat["models"]))
        self.cpu_cores = number(flat.get("cpu_cores"))
        self.ram_gb = number(flat.get("ram_gb"))
        self.vram_gb = total_vram_gb(flat)
        self._declared_free_gb = free_vram_gb(flat["gpus"])
        self.reported, self.intent = intern(record.reported), intern(record.intent.status)
        self.take_metrics(self.metrics)

    def take_metrics(self, metrics: bytes, decoded: Mapping[str, Json] | None = None) -> None:
        """Fill in what a heartbeat says: JSON of an object, already checked. Who has it decoded may
        give that too."""
        self.metrics = metrics
        values = orjson.loads(metrics) if decoded is None else decoded
        cpu, gpu = number(values.get("cpu_percent")), number(values.get("gpu_percent"))
        known = [value for value in (cpu, gpu) if value is not None]
        self.load = max(known) / 100 if known else None
        gpus = values.get("gpus")
        live_gb = free_vram_gb(gpus) if isinstance(gpus, list) else None
        self.free_vram_gb = self._declared_free_gb if live_gb is None else live_gb
        self._dynamic = None

    def heard(self, at_ms: int, now: float) -> None:
        """Note a heartbeat."""
        self.beat_at_ms, self.heard_s, self.liveness, self.why = at_ms, now, "online", None
        self._dynamic = None

    def silent(self, liveness: Liveness, why: str | None) -> None:
        """Note what silence led to."""
        self.liveness, self.why = liveness, why
        self._dynamic = None

    def fragment(self) -> bytes:
        """The node's JSON without its closing brace."""
        return self.static + self.dynamic()

    def dynamic(self) -> bytes:
        """The part of the fragment that heartbeats and silence change; it follows `static`."""
        if self._dynamic is None:
            beat = b'"' + iso(self.beat_at_ms).encode() + b'"' if self.beat_at_ms is not None else b"null"
            self._dynamic = b',"status":"%b","status_reason":%b,"last_heartbeat":%b,"metrics":%b' % (
                self.status.encode(),
                orjson.dumps(self._reason()),
                beat,
                self.metrics,
            )
        return self._dynamic

    def _reason(self) -> str | None:
        parts = [self.why] if self.why else []
        if self.intent:
            parts.append(f"set to {self.intent} by an operator")
        elif self.reported == "leaving":
            parts.append("the agent is stopping")
        elif self.reported in ("draining", "maintenance", "degraded"):
            parts.append(f"the agent reports {self.reported}")
        return "; ".join(parts) or None


@dataclass(frozen=True, slots=True)
class Counts:
    """Nodes by what callers see."""

    total: int
    by_status: dict[str, int]


class Directory:
    """All nodes of a region. `revision` grows with every change that can alter an answer's
    membership; heartbeats that only bring new numbers do not count."""

    def __init__(self, windows: Windows, now: float) -> None:
        self._windows = windows
        self._nodes: dict[str, Entry] = {}
        self._order: list[str] = []
        self._unsorted: list[str] = []
        self._owners: dict[bytes, str] = {}
        self._deleted: dict[str, int] = {}
        self._interned: dict[Any, Any] = {}
        self._deadlines = Deadlines()
        self._counting_since = now
        self.revision = 0
        self.by_status: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, node_id: str) -> Entry | None:
        """The node, or None."""
        return self._nodes.get(node_id)

    def owner_of(self, key_hash: bytes) -> str | None:
        """The node whose record carries this key's hash."""
        return self._owners.get(key_hash)

    def entries(self) -> Iterator[Entry]:
        """Every node in the order of ids."""
        nodes = self._nodes
        return (nodes[node_id] for node_id in self._ordered())

    def after(self, node_id: str) -> Iterator[Entry]:
        """Every node whose id comes after this one."""
        nodes, order = self._nodes, self._ordered()
        start = bisect_right(order, node_id)
        return (nodes[order[i]] for i in range(start, len(order)))

    def counts(self) -> Counts:
        """How many nodes there are, by status."""
        return Counts(len(self._nodes), dict(self.by_status))

    # changes

    def put(self, record: Record, version: int, now: float) -> Entry | None:
        """Apply a stored record; None when a newer change of the node is already here."""
        node_id = record.node_id
        entry = self._nodes.get(node_id)
        if version <= self._deleted.get(node_id, 0) or (entry is not None and version <= entry.version):
            return None
        if entry is None:
            entry = Entry(node_id)
            entry.heard_s = now
            self._nodes[node_id] = entry
            self._unsorted.append(node_id)
            self._watch(entry)
        else:
            self._forget_status(entry)
            if entry.key_hash is not None:
                self._owners.pop(entry.key_hash, None)
        entry.take_record(record, version, self._intern)
        if entry.key_hash is not None:
            self._owners[entry.key_hash] = node_id
        self._count_status(entry)
        self.revision += 1
        return entry

    def delete(self, node_id: str, version: int) -> bool:
        """Apply a deletion; False when a newer registration is already here."""
        entry = self._nodes.get(node_id)
        if entry is not None and entry.version > version:
            return False
        self._deleted[node_id] = max(version, self._deleted.pop(node_id, 0))
        if len(self._deleted) > _REMEMBERED_DELETIONS:
            del self._deleted[next(iter(self._deleted))]
        if entry is None:
            return False
        self._forget_status(entry)
        del self._nodes[node_id]
        order = self._ordered()
        del order[bisect_left(order, node_id)]
        if entry.key_hash is not None:
            self._owners.pop(entry.key_hash, None)
        self.revision += 1
        return True

    def beat(
        self, node_id: str, metrics: bytes | None, at_ms: int, now: float, decoded: Mapping[str, Json] | None = None
    ) -> Transition | None:
        """Apply a heartbeat; the transition if it brought the node back. `decoded` is as in
        Entry.take_metrics."""
        entry = self._nodes.get(node_id)
        if entry is None or (entry.beat_at_ms is not None and at_ms < entry.beat_at_ms):
            return None
        before = entry.liveness
        if metrics is not None:
            entry.take_metrics(metrics, decoded)
        if before == "online":
            entry.heard(at_ms, now)
            return None
        self._forget_status(entry)
        entry.heard(at_ms, now)
        self._count_status(entry)
        self._watch(entry)
        self.revision += 1
        return Transition(node_id, before, "online", "heard again", at_ms)

    def restore(
        self, entry: Entry, liveness: Liveness, beat_at_ms: int | None, age_s: float | None, now: float
    ) -> None:
        """Set what was known of a node's heartbeat before this registry started."""
        self._forget_status(entry)
        entry.beat_at_ms = beat_at_ms
        entry.heard_s = now - age_s if age_s is not None else now - self._windows.offline_after_s
        why = _silence(entry, self._windows, liveness) if liveness != "online" else None
        if age_s is None and liveness == "online":
            why = "not heard since the registry restarted"
        entry.silent(liveness, why)
        self._count_status(entry)

    # liveness

    def restart_counting(self, now: float) -> None:
        """Silence counts only from here on: before, we might not have heard (start, outage, stall)."""
        self._counting_since = now

    def sweep(self, now: float, now_ms: int, limit: int = 5_000) -> list[Transition]:
        """Change the status of nodes that have been silent too long; bounded work a call."""
        found: list[Transition] = []
        for due_at_s, node_id in self._deadlines.due(now, limit):
            entry = self._nodes.get(node_id)
            # A node deleted and registered again has a newer entry in the heap: this one is dead.
            if entry is None or entry.due_at_s != due_at_s or entry.liveness == "offline":
                continue
            before = entry.liveness
            silence, held = now - entry.heard_s, now - self._counting_since
            after = next_liveness(silence, held, before, self._windows)
            if after != before:
                self._forget_status(entry)
                entry.silent(after, _silence(entry, self._windows, after))
                self._count_status(entry)
                self.revision += 1
                found.append(Transition(node_id, before, after, entry.why or "", now_ms))
            if after != "offline":
                self._watch(entry)
        return found

    def _watch(self, entry: Entry) -> None:
        """Look again when silence from now on would matter."""
        windows = self._windows
        limit_s = windows.degraded_after_s if entry.liveness == "online" else windows.offline_after_s
        entry.due_at_s = max(entry.heard_s, self._counting_since) + limit_s
        self._deadlines.add(entry.node_id, entry.due_at_s)

    def _count_status(self, entry: Entry) -> None:
        status = entry.status
        self.by_status[status] = self.by_status.get(status, 0) + 1

    def _forget_status(self, entry: Entry) -> None:
        self.by_status[entry.status] -= 1

    def _ordered(self) -> list[str]:
        """The ids in order. New ones wait until somebody asks: 100,000 loaded nodes are sorted once."""
        order, unsorted = self._order, self._unsorted
        if len(unsorted) < _FEW:
            for node_id in unsorted:
                insort(order, node_id)
        else:
            order += unsorted
            order.sort()
        unsorted.clear()
        return order

    def _intern(self, value: Any) -> Any:
        if len(self._interned) > 200_000:  # values that no node has any more; start over
            self._interned.clear()
        return self._interned.setdefault(value, value)


def _silence(entry: Entry, windows: Windows, liveness: Liveness) -> str:
    last = f"since {iso(entry.beat_at_ms)}" if entry.beat_at_ms is not None else "since it registered"
    limit = windows.offline_after_s if liveness == "offline" else windows.degraded_after_s
    return f"no heartbeat {last} (limit {limit:g} s): check the machine, its agent and its network"
