"""All the federation's nodes in memory: every read is answered from here, none from Redis.

An entry keeps its registration as it was written, and its JSON once somebody was shown it; what filters and ranking
look at stands in columns (columns.py), at the entry's row. How a node fares is its home registry's word; of our own
nodes we keep who has been silent for how long, and say when another word is due.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from sys import intern
from typing import Any

import numpy as np
import orjson

from federation.signed import split
from federation.writes import Token
from registry.backbone import Backbone
from registry.capabilities import capability_names, free_vram_gb, number, slots_of, total_vram_gb
from registry.columns import Columns, Kind
from registry.latency import MOST_PAIRS, MOST_REGISTRIES, believed
from registry.lifecycle import Deadlines, ExpiryGuard, Liveness, Transition, Windows, next_liveness, shown_status
from registry.names import folded, model_terms
from registry.node import Intent, Record, Unread, Word, certified, iso, rendered, token_text
from registry.ranking import base_cost, held_share, settled_load
from registry.signatures import Signatures
from registry.signing import INVALID, UNVERIFIED, VERIFIED, LaterFormat, fault_of
from registry.tables import Tables

Json = Any
_NOTHING: dict[str, Json] = {}
_JUDGE_AGAIN_S = 1.0  # a word that was due and has not come: the store was away
_MAX_MEASURERS = 50_000  # nodes whose measured pairs are kept: 30 MB at most
_FEW = 64  # so many new ids are put in their places one by one; more are sorted in
_REMEMBERED_DELETIONS = 10_000  # far more than can be in flight between two workers


class Owner:
    """A registry as the home of nodes: whether its word on them is current. `piece` is what it adds to each
    of its nodes' JSON; `revision` grows when it has become reachable, or is no longer."""

    __slots__ = ("_generation", "_known", "_since", "is_us", "piece", "reachable", "registry_id", "revision")

    def __init__(self, registry_id: str, *, is_us: bool) -> None:
        self.registry_id = registry_id
        self.is_us = self.reachable = is_us
        self.revision = 0
        self.piece = _age_piece(0.0 if is_us else None)
        self._since: int | None = None
        self._generation = 0
        self._known: dict[int, int] = {}

    def hear(
        self, reachable: bool, age_s: float | None, now_ms: int, generation: int, known: Iterable[tuple[int, int]]
    ) -> bool:
        """Take in how it stands: its word was current `age_s` ago (None: it never was, as far as we know), and
        vouches for its judgements up to `known`, a position for each of its starts up to `generation`.
        Whether anything changed for its nodes but the age."""
        before = self.reachable, self._generation, self._known
        earlier = {start: seq for start, seq in known if start < generation}  # all that it says in this one stands
        self.reachable, self._generation, self._known = reachable, generation, earlier
        self.piece = _age_piece(age_s)
        if before == (self.reachable, self._generation, self._known):
            return False
        self._since = now_ms - int(age_s * 1000) if age_s is not None else None
        self.revision += 1
        return True

    def vouched(self, generation: int) -> float:
        """Up to which position its words of that start stand, as far as can be known here; -1: none does."""
        if not self.reachable:
            return -1.0
        current = self.is_us or generation >= self._generation
        return math.inf if current else float(self._known.get(generation, -1))

    def vouches(self, said: tuple[int, int]) -> bool:
        """Whether that word of it stands, as far as can be known here."""
        generation, seq = said
        return self.vouched(generation) >= seq

    def doubt(self, said: tuple[int, int]) -> str | None:
        """Why that word of it may be out of date; None: it is current."""
        if self.vouches(said):
            return None
        if self.reachable:
            return f"{self.registry_id}, its home registry, has not confirmed this since it started again"
        since = "" if self._since is None else f" since {iso(self._since)}"
        return (
            f"its home registry {self.registry_id} has not been heard of{since}: this is the last known status, "
            "the node may well be alive"
        )


def _age_piece(age_s: float | None) -> bytes:
    return b',"status_age_s":null' if age_s is None else b',"status_age_s":%d' % age_s


class Entry:
    """One node. Times: `heard_s` monotonic seconds, `beat_at_ms` wall-clock milliseconds."""

    __slots__ = (
        "_declared_free_gb", "_dynamic", "_intent", "_owner_revision", "_registration", "_static", "_token",
        "_token_text", "beat_at_ms", "due_at_s", "heard_s", "key_hash", "metrics", "must_register", "node_id", "owner",
        "region", "reserved_slots", "row", "said", "signature", "status", "version", "word",
    )  # fmt: skip

    def __init__(self, node_id: str, owner: Owner, row: int) -> None:
        self.node_id = node_id
        self.owner = owner
        self.row = row
        self.word = Word()
        self.said = (0, 0)
        self.metrics = b"{}"
        self.reserved_slots = 0
        self._declared_free_gb: float | None = None
        self.beat_at_ms: int | None = None
        self.heard_s = self.due_at_s = 0.0
        self._intent = Intent()
        self._static: bytes | None = None
        self._registration = b""
        self.key_hash: bytes | None = None
        self._token = Token(0, 0, 0)
        self.signature: str | None = None  # how its registration stands: see registry/signing.py
        self.must_register = False  # what stands is not what it signed last: it alone can mend that
        self._token_text: str | None = None
        self._dynamic: bytes | None = None
        self._owner_revision = -1

    @property
    def liveness(self) -> Liveness:
        """How it fares, by its home registry's word."""
        return self.word.liveness

    @property
    def reported(self) -> str | None:
        """What its agent said of itself."""
        return self.word.reported

    @property
    def reachable(self) -> bool:
        """Whether its home registry's word is current."""
        return self.owner.vouches(self.said)

    @property
    def wanted(self) -> Intent:
        """What operators want of it."""
        return self._intent

    @property
    def intent(self) -> str | None:
        """The status that operators want it to have."""
        return self._intent.status

    @property
    def role(self) -> str:
        """Its role, read again each time: only keys that are limited to some need it of a single node."""
        role: str = self._told()[0]["role"]
        return role

    @property
    def own_labels(self) -> list[str]:
        """The labels that it registered with; read again each time."""
        labels: list[str] = self._told()[0]["labels"]
        return labels

    @property
    def last_registration_ms(self) -> int:
        """When it registered last; read again each time."""
        at_ms: int = self._told()[4]
        return at_ms

    @property
    def token(self) -> str:
        """See node.Record.token; as the node carries it."""
        if self._token_text is None:
            self._token_text = token_text(self._token)
        return self._token_text

    @property
    def registration(self) -> bytes:
        """What it registered, as it is replicated."""
        return self._registration

    @property
    def incarnation(self) -> int:
        """See node.Record.incarnation."""
        return self._token.incarnation

    @property
    def static(self) -> bytes:
        """The part of the fragment that only a write changes. Most nodes are never shown: it is made when one is."""
        if self._static is None:
            self._static = rendered(self.node_id, self._registration, self._intent, self.owner.registry_id)
        return self._static

    def came_from(self) -> tuple[str, tuple[str, ...]]:
        """The address that it registered from, and what its certificate named then. Read anew each time."""
        spec, _, observed_ip, *_ = self._told()
        return observed_ip, certified(spec)

    def _told(self) -> list[Json]:
        """See node.Record.encode_spec."""
        told: list[Json] = orjson.loads(split(self._registration)[0])
        return told

    def stand(self, told: Unread | Record, version: int) -> None:
        """Fill in what a record says beside its registration."""
        self._intent, self._static = told.intent, None
        self.version = version
        self._token, self._token_text = told.token, None
        self.word, self.said = told.word, told.said
        self.status = shown_status(told.word.liveness, told.word.reported, told.intent.status)
        self._dynamic = None

    def register(self, record: Record) -> None:
        """Fill in its registration."""
        self._registration = record.kept or record.encode_spec()
        self.key_hash = bytes.fromhex(record.key_hash) if record.key_hash else None
        self.region = intern(record.spec["region"])  # one text for all nodes of a region
        self._declared_free_gb = free_vram_gb(record.spec["capabilities"]["gpus"])

    def take_metrics(self, metrics: bytes, values: Mapping[str, Json]) -> tuple[float | None, float | None]:
        """Keep what a heartbeat says, encoded and decoded. The load (0..1) and the free VRAM (GB) in it."""
        self.metrics, self._dynamic = metrics, None
        if not values:
            return None, self._declared_free_gb
        cpu, gpu = number(values.get("cpu_percent")), number(values.get("gpu_percent"))
        known = [value for value in (cpu, gpu) if value is not None]
        gpus = values.get("gpus")
        live_gb = free_vram_gb(gpus) if isinstance(gpus, list) else None
        return max(known) / 100 if known else None, self._declared_free_gb if live_gb is None else live_gb

    def reserve(self, slots: int) -> None:
        """So many of its slots are held for callers."""
        self.reserved_slots, self._dynamic = slots, None

    @property
    def slots(self) -> int | None:
        """How many requests it can work on at once, where it says so."""
        return slots_of(orjson.loads(self.static + b"}")["capabilities"], orjson.loads(self.metrics))

    def heard(self, at_ms: int, now: float) -> None:
        """Note a heartbeat."""
        self.beat_at_ms, self.heard_s = at_ms, now
        self._dynamic = None

    def fragment(self) -> bytes:
        """The node's JSON without its closing brace."""
        return self.static + self.dynamic() + self.owner.piece

    def dynamic(self) -> bytes:
        """The part of the fragment that heartbeats and silence change; it follows `static`, and its owner's
        `piece` follows it."""
        if self._dynamic is None or self._owner_revision != self.owner.revision:
            self._owner_revision = self.owner.revision
            beat = b'"' + iso(self.beat_at_ms).encode() + b'"' if self.beat_at_ms is not None else b"null"
            self._dynamic = b',"status":"%b","status_reason":%b,"signature":%b,"last_heartbeat":%b,"metrics":%b' % (
                self.status.encode(),
                orjson.dumps(self._reason()),
                b"null" if self.signature is None else b'"%b"' % self.signature.encode(),
                beat,
                self.metrics,
            )
            if self.reserved_slots:
                self._dynamic += b',"reserved_slots":%d' % self.reserved_slots
        return self._dynamic

    def _reason(self) -> str | None:
        doubt = self.owner.doubt(self.said)
        parts = [text for text in (doubt, self.word.why) if text is not None]
        if self.signature == INVALID:
            parts.append("what is held of it is not what it signed: forged, or altered on the way")
        if self.intent:
            parts.append(f"set to {self.intent} by an operator")
        elif self.reported == "leaving":
            parts.append("the agent is stopping")
        elif self.reported in ("draining", "maintenance", "degraded"):
            parts.append(f"the agent reports {self.reported}")
        return "; ".join(parts) or None


@dataclass(frozen=True, slots=True)
class Counts:
    """Nodes by what callers see; reported round trips that were left out."""

    total: int
    by_status: dict[str, int]
    rtts_left_out: int = 0
    by_signature: Mapping[str | None, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Due:
    """A node of ours of which another word is due: it has been silent for so long."""

    node_id: str
    word: Word
    basis: Word | None = None  # the word that stood when this came due


class Directory:
    """All nodes. `revision` grows with every change that can alter an answer's membership or order;
    heartbeats that only bring new numbers do not count. `retold` grows with everything else that can alter what is
    shown of a node. `on_transition` hears of changes of liveness."""

    def __init__(self, windows: Windows, now: float, registry_id: str) -> None:
        self.windows = windows
        self.registry_id = registry_id
        self.columns = Columns()
        self.tables = Tables()
        self.backbone = Backbone()
        self._by_row: list[Entry | None] = [None]
        self._nodes: dict[str, Entry] = {}
        self._order: list[str] = []
        self._unsorted: list[str] = []
        self._keys: dict[bytes, str] = {}
        self._deleted: dict[str, int] = {}
        self._pairs: dict[str, dict[str, float]] = {}
        self._reserved: dict[str, int] = {}  # slots that callers hold, also of nodes that have not arrived yet
        self.rtts_left_out = 0  # round trips that no network has, or too many of them
        self._deadlines = Deadlines()
        self._overdue: dict[str, None] = {}
        self._guard = ExpiryGuard(windows.offline_after_s)
        self._counting_since = now
        self._us = Owner(registry_id, is_us=True)
        self._owners = {registry_id: self._us}
        self._alive = 0  # nodes of ours that are not offline
        self._late = 0  # those among them that are called degraded for their silence
        self.revision = self.retold = 0
        self.newest = 0  # the greatest version of a change that was heard of
        self.by_status: dict[str, int] = {}
        self.by_signature: dict[str | None, int] = {}
        self.signatures = Signatures()
        # Hears of every write that was taken in, and of which region and role the node was before it.
        self.on_change: Callable[[str, tuple[str, str] | None], None] = lambda node_id, was: None
        self.on_transition: Callable[[Transition], None] = lambda transition: None

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, node_id: str) -> Entry | None:
        """The node, or None."""
        return self._nodes.get(node_id)

    def at(self, row: int) -> Entry:
        """The node whose facts stand in that row."""
        entry = self._by_row[row]
        assert entry is not None
        return entry

    def vouched(self, registry_id: str, generation: int) -> float:
        """Up to which position the words that a registry said in one of its starts are current; -1: none is."""
        owner = self._owners.get(registry_id)
        return owner.vouched(generation) if owner is not None else -1.0

    def owner_of(self, key_hash: bytes) -> str | None:
        """The node whose record carries this key's hash."""
        return self._keys.get(key_hash)

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
        return Counts(len(self._nodes), dict(self.by_status), self.rtts_left_out, dict(self.by_signature))

    # changes

    def put(self, record: Record, version: int, now: float, now_ms: int = 0) -> Entry | None:
        """Apply a stored record; None when a newer change of the node is already here."""
        return self._take(record, record, version, now, now_ms)

    def show(self, unread: Unread, version: int, now: float, now_ms: int = 0) -> None:
        """Apply a stored record, reading its registration only where it is not the very bytes that stand here. What is
        no registration shows no node."""
        if self.shows(unread):
            self._take(unread, None, version, now, now_ms)
        elif (record := unread.read()) is not None:
            self._take(record, record, version, now, now_ms)
        else:
            self.delete(unread.node_id, version)

    def shows(self, unread: Unread) -> bool:
        """Whether its registration is the one that stands here: the very bytes, as the replica holds them."""
        entry = self._nodes.get(unread.node_id)
        return entry is not None and entry.registration is unread.registration

    def _take(
        self, told: Unread | Record, record: Record | None, version: int, now: float, now_ms: int
    ) -> Entry | None:
        """`record`: with the registration, unless that stands here already."""
        node_id = told.node_id
        self.newest = max(self.newest, version)
        entry = self._nodes.get(node_id)
        if version <= self._deleted.get(node_id, 0) or (entry is not None and version <= entry.version):
            return None
        owner = self._owner(told.home_registry)
        new, before = entry is None, entry.liveness if entry is not None else None
        if entry is None:
            entry = Entry(node_id, owner, self._new_row())
            self._nodes[node_id] = self._by_row[entry.row] = entry
            self._unsorted.append(node_id)
            was = None
        else:
            was = entry.region, self.columns.kind(int(self.columns.class_of[entry.row])).role
            self._forget_status(entry)
        moved = new or entry.owner is not owner
        entry.owner = owner
        registration, incarnation, intent = entry.registration, entry.incarnation, entry.wanted
        entry.stand(told, version)
        if record is not None:
            self._register(entry, record)
        if entry.registration != registration or entry.incarnation != incarnation:
            self._registered(entry, registration, incarnation)
        if record is not None:
            self._place(entry, record)
        else:
            self._place_again(entry, intent)
        if entry.key_hash is not None:
            self._keys[entry.key_hash] = node_id  # again each time: a peer may have given it to another node
        self._count_status(entry)
        if moved or (before not in (None, "online") and entry.liveness == "online"):
            entry.heard_s = self.columns.heard_s[entry.row] = now  # so it was said because it was heard
        if not owner.is_us:
            known_ms = max(entry.beat_at_ms or 0, told.word.heard_at_ms or 0)
            if record is not None or moved:
                known_ms = max(known_ms, entry.last_registration_ms if record is None else record.last_registration_ms)
            entry.beat_at_ms = known_ms
        elif moved or before != entry.liveness:
            self._watch(entry)
        self.revision += 1
        if before is not None and before != entry.liveness:
            why = entry.word.why or "heard again"
            self.on_transition(Transition(node_id, before, entry.liveness, why, now_ms))
        self.on_change(node_id, was)
        return entry

    def _register(self, entry: Entry, record: Record) -> None:
        self._forget_key(entry)
        entry.register(record)
        if self._reserved and entry.node_id in self._reserved:
            self._hold(entry, self._reserved[entry.node_id])

    def _registered(self, entry: Entry, before: bytes, incarnation_before: int) -> None:
        """Another registration of it has come in: who signed it?"""
        known, signatures = entry.signature == VERIFIED, self.signatures
        replayed = known and signatures.replaced(entry.node_id, before, incarnation_before, entry.registration)
        entry.signature = signatures.taken(entry.node_id, entry.registration, entry.incarnation)
        entry.must_register = replayed or entry.signature == INVALID

    def check_next(self) -> bool:
        """Look whether a registration is what its node signed; one that waits for it. False: none does."""
        node_id = self.signatures.next()
        if node_id is not None:
            self.check(node_id)
        return node_id is not None

    def check(self, node_id: str) -> None:
        """Look whether a node's registration is what it signed, unless that is known. A third of a millisecond."""
        entry = self._nodes.get(node_id)
        if entry is None or entry.signature != UNVERIFIED:
            return
        self.signatures.gone(node_id)
        spec = entry._told()[0]
        try:
            fault = fault_of(node_id, entry.incarnation, entry.registration, spec)
        except LaterFormat:
            return
        self._forget_status(entry)
        entry.signature = VERIFIED if fault is None else INVALID
        entry._dynamic = None
        self.retold += 1
        self._count_status(entry)
        if fault is not None:
            entry.must_register = True
            kind = self.columns.kind(int(self.columns.class_of[entry.row]))
            self.columns.classify(entry.row, kind._replace(signed=False), entry.said[1])
            self.revision += 1
            self.signatures.invalid(node_id, fault)
            self.on_change(node_id, (entry.region, entry.role))

    def _new_row(self) -> int:
        row = self.columns.add()
        if row == len(self._by_row):
            self._by_row.append(None)
        return row

    def _place(self, entry: Entry, record: Record) -> None:
        """Everything that can be filtered by, into the columns."""
        spec, columns, row = record.spec, self.columns, entry.row
        flat = spec["capabilities"]
        kind = _kind(
            entry.status,
            entry.region,
            spec["role"],
            spec["node_type"],
            _home(entry),
            tuple(record.intent.labels(spec["labels"])),
            capability_names(flat),
            tuple(flat["models"]),
            _signed(entry),
        )
        columns.classify(row, kind, entry.said[1])
        columns.address[row] = address_number(record.observed_ip)
        columns.describe(row, total_vram_gb(flat), number(flat.get("ram_gb")), number(flat.get("cpu_cores")))
        self._measure(entry, entry.metrics, None)

    def _place_again(self, entry: Entry, before: Intent) -> None:
        """What can be filtered by and its registration does not tell: a registry that dies has all its nodes told of
        again, each for its new owner's sake. `before`: what operators wanted of it."""
        columns, row, wanted = self.columns, entry.row, entry.wanted
        kind = columns.kind(int(columns.class_of[row]))
        labels = kind.labels
        if (wanted.labels_add, wanted.labels_remove) != (before.labels_add, before.labels_remove):
            labels = folded(tuple(wanted.labels(entry.own_labels)))
        kind = kind._replace(status=entry.status, home=_home(entry), labels=labels, signed=_signed(entry))
        columns.classify(row, kind, entry.said[1])

    def _measure(self, entry: Entry, metrics: bytes, decoded: Mapping[str, Json] | None) -> Mapping[str, Json]:
        values = decoded if decoded is not None else orjson.loads(metrics) if metrics != b"{}" else _NOTHING
        load, free_vram_gb = entry.take_metrics(metrics, values)
        columns, row = self.columns, entry.row
        settled = settled_load(columns.load_settled(row), load)
        held = float(columns.held[row])
        columns.measure(row, load, free_vram_gb, settled, base_cost(settled, free_vram_gb, held))
        return values

    def reserve(self, node_id: str, slots: int) -> None:
        """So many slots of a node are held for callers from now on; 0: none is."""
        if slots:
            self._reserved[node_id] = slots
        else:
            self._reserved.pop(node_id, None)
        entry = self._nodes.get(node_id)
        if entry is not None:
            self._hold(entry, slots)
            self._measure(entry, entry.metrics, None)
            self.revision += 1

    def _hold(self, entry: Entry, slots: int) -> None:
        entry.reserve(slots)
        self.columns.held[entry.row] = held_share(slots, entry.slots if slots else None)

    def _beaten(self, entry: Entry, metrics: bytes, decoded: Mapping[str, Json] | None) -> None:
        """What a heartbeat measured: how busy the node is, and how far it is from others."""
        values = self._measure(entry, metrics, decoded)
        if "registry_rtt_ms" in values:  # to registries that there are: nodes must not fill the columns with inventions
            vector, strange = believed(values["registry_rtt_ms"], MOST_REGISTRIES, self._owners)
            self.rtts_left_out += strange + self.columns.vectors.set(entry.row, vector)
        if "node_rtt_ms" in values:
            pairs, strange = believed(values["node_rtt_ms"], MOST_PAIRS)
            self.rtts_left_out += strange
            self._measured_pairs(entry.node_id, pairs)

    def _measured_pairs(self, node_id: str, pairs: dict[str, float]) -> None:
        """What a node measured to others replaces what it measured before."""
        self._pairs.pop(node_id, None)
        if pairs:
            self._pairs[node_id] = pairs
            if len(self._pairs) > _MAX_MEASURERS:
                del self._pairs[next(iter(self._pairs))]

    @property
    def registries(self) -> KeysView[str]:
        """The ids of all registries that there are."""
        return self._owners.keys()

    def at_address(self, address: str) -> str | None:
        """A node that was last seen at this address, one that has measured round trips if any has."""
        rows = np.flatnonzero(self.columns.address[: self.columns.size] == address_number(address))
        nodes = [self.at(row).node_id for row in rows[:_FEW].tolist()] if address_number(address) else []
        return next((node_id for node_id in nodes if self.vector_of(node_id)), nodes[0] if nodes else None)

    def vector_of(self, node_id: str) -> dict[str, float]:
        """A node's round trips to registries, in milliseconds; none where it told none, or is not here."""
        entry = self._nodes.get(node_id)
        return self.columns.vectors.of(entry.row) if entry is not None else {}

    def pairs_of(self, node_id: str) -> dict[int, float]:
        """Round trips that a node measured to others, in milliseconds by row."""
        pairs = self._pairs.get(node_id)
        return self.rows_of(pairs) if pairs else {}

    def rows_of(self, by_id: Mapping[str, float]) -> dict[int, float]:
        """Numbers of nodes, by row; those that are not here are left out."""
        return {
            entry.row: number for node_id, number in by_id.items() if (entry := self._nodes.get(node_id)) is not None
        }

    def delete(self, node_id: str, version: int) -> bool:
        """Apply a deletion; False when a newer registration is already here."""
        self.newest = max(self.newest, version)
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
        self._by_row[entry.row] = None
        self._pairs.pop(node_id, None)
        self.signatures.gone(node_id)
        self.columns.remove(entry.row)
        order = self._ordered()
        del order[bisect_left(order, node_id)]
        self._forget_key(entry)
        self.revision += 1
        self.on_change(node_id, (entry.region, entry.role))
        return True

    def _forget_key(self, entry: Entry) -> None:
        if entry.key_hash is not None and self._keys.get(entry.key_hash) == entry.node_id:
            del self._keys[entry.key_hash]

    def beat(
        self,
        node_id: str,
        metrics: bytes | None,
        at_ms: int,
        now: float,
        decoded: Mapping[str, Json] | None = None,
        *,
        now_ms: int | None = None,
    ) -> None:
        """Apply a heartbeat, ours or (`now`: when it was heard there) another registry's. What it means for a
        node's liveness its home registry says. `decoded` is as in Entry.take_metrics. One that is told late,
        by the wall clock, is left out; a last one from after `now_ms` shows only that a clock was wrong."""
        entry = self._nodes.get(node_id)
        if entry is None:
            return
        last_ms = entry.beat_at_ms
        if last_ms is not None and at_ms < last_ms and (now_ms is None or last_ms <= now_ms):
            return
        if metrics is not None:
            self._beaten(entry, metrics, decoded)
        entry.heard(at_ms, now)
        self.retold += 1
        self.columns.heard_s[entry.row] = now

    def restore(
        self, node_id: str, beat_at_ms: int | None, age_s: float | None, metrics: bytes | None, now: float
    ) -> None:
        """Set what the store knows of a node's last heartbeat. `age_s` None: its time was up."""
        entry = self._nodes.get(node_id)
        if entry is None or not entry.owner.is_us or (entry.beat_at_ms or 0) > (beat_at_ms or 0):
            return
        if metrics is not None and metrics != entry.metrics:
            self._beaten(entry, metrics, None)
        entry.beat_at_ms = beat_at_ms
        entry.heard_s = now - (self.windows.offline_after_s if age_s is None else age_s)
        self.columns.heard_s[entry.row] = entry.heard_s
        entry._dynamic = None
        self.retold += 1

    # liveness

    def hear(
        self,
        registry_id: str,
        *,
        reachable: bool,
        age_s: float | None,
        now_ms: int,
        generation: int,
        known: Iterable[tuple[int, int]],
    ) -> None:
        """How another registry stands; see Owner.hear."""
        owner = self._owner(registry_id)
        if owner.is_us:
            return
        self.retold += 1
        if owner.hear(reachable, age_s, now_ms, generation, known):
            self.revision += 1

    def restart_counting(self, now: float) -> None:
        """Silence counts only from here on: before, we might not have heard (start, outage, stall)."""
        self._counting_since = now

    def is_heard(self, entry: Entry, now: float) -> bool:
        """Whether a node's heartbeats come in, here."""
        return entry.liveness == "online" and now - entry.heard_s < self.windows.degraded_after_s

    def knows_better(self, unread: Unread, now: float) -> bool:
        """Whether another registry calls a node offline that is ours, and was heard here since: it had taken the node
        with a request that it could not answer."""
        entry = self._nodes.get(unread.node_id)
        if entry is None or not entry.owner.is_us or unread.home_registry == self.registry_id:
            return False
        return (
            unread.word.liveness == "offline"
            and entry.liveness == "online"
            and now - entry.heard_s < self.windows.degraded_after_s / 2
        )

    def due(self, now: float, limit: int = 5_000) -> list[Due]:
        """Nodes of ours that have been silent too long for what was last said of them; bounded work a call.
        Until that is said they come up again."""
        found: list[Due] = []
        self._watch_heard_again(now)  # first: it may be due for something by now
        for due_at_s, node_id in self._deadlines.due(now, limit):
            entry = self._nodes.get(node_id)
            # A node deleted and registered again, or moved away and back, has a newer entry: this one is dead.
            if entry is None or entry.due_at_s != due_at_s or not self._expires(entry):
                continue
            after = self._liveness_due(entry, now)
            if after == "offline":
                self._overdue[node_id] = None
            elif after != entry.liveness:
                found.append(self._due(entry, after))
                self._watch(entry, now + _JUDGE_AGAIN_S)
            else:
                self._watch(entry)
        if self._overdue:
            found += self._due_offline(now, limit)
        return found

    def hold_left_s(self, now: float) -> float | None:
        """How much longer nobody is called offline, because too many fell silent at once; None: no hold."""
        return self._guard.left_s(now)

    def _watch_heard_again(self, now: float) -> None:
        for node_id in list(self._overdue):
            entry = self._nodes.get(node_id)
            if entry is None or not self._expires(entry):
                del self._overdue[node_id]
            elif self._liveness_due(entry, now) != "offline":
                del self._overdue[node_id]
                self._watch(entry)

    def _due_offline(self, now: float, limit: int) -> list[Due]:
        overdue = [self._nodes[node_id] for node_id in self._overdue]
        silent = self._late + sum(entry.liveness == "online" for entry in overdue)
        if not self._guard.holds(silent, self._alive, now):
            return [self._due(entry, "offline") for entry in overdue[:limit]]
        return [self._due(entry, "degraded") for entry in overdue if entry.liveness == "online"][:limit]

    def _expires(self, entry: Entry) -> bool:
        return entry.owner.is_us and entry.liveness != "offline"

    def _liveness_due(self, entry: Entry, now: float) -> Liveness:
        held = now - self._counting_since
        return next_liveness(now - entry.heard_s, held, entry.liveness, self.windows)

    def _due(self, entry: Entry, liveness: Liveness) -> Due:
        why = _silence(entry, self.windows, liveness)
        return Due(entry.node_id, Word(liveness, entry.reported, why, entry.beat_at_ms), entry.word)

    def _owner(self, registry_id: str) -> Owner:
        owner = self._owners.get(registry_id)
        if owner is None:
            owner = self._owners[registry_id] = Owner(registry_id, is_us=False)
        return owner

    def _watch(self, entry: Entry, at_s: float | None = None) -> None:
        """Look again at that moment, or when silence from now on would matter."""
        windows = self.windows
        limit_s = windows.degraded_after_s if entry.liveness == "online" else windows.offline_after_s
        entry.due_at_s = max(entry.heard_s, self._counting_since) + limit_s if at_s is None else at_s
        if entry.liveness != "offline":
            self._deadlines.add(entry.node_id, entry.due_at_s)

    def _count_status(self, entry: Entry) -> None:
        status = entry.status
        self.by_status[status] = self.by_status.get(status, 0) + 1
        self.by_signature[entry.signature] = self.by_signature.get(entry.signature, 0) + 1
        self._alive += self._expires(entry)
        self._late += entry.owner.is_us and entry.liveness == "degraded"

    def _forget_status(self, entry: Entry) -> None:
        self.by_status[entry.status] -= 1
        self.by_signature[entry.signature] -= 1
        self._alive -= self._expires(entry)
        self._late -= entry.owner.is_us and entry.liveness == "degraded"

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


def _home(entry: Entry) -> tuple[str, int]:
    """Whose word its status is, and of which start of that registry; of our own it does not matter."""
    return entry.owner.registry_id, 0 if entry.owner.is_us else entry.said[0]


def _signed(entry: Entry) -> bool | None:
    return None if entry.signature is None else entry.signature != INVALID


@lru_cache(maxsize=16_384)  # a fleet has few kinds of nodes, and each comes many times
def _kind(
    status: str, region: str, role: str, node_type: str | None, home: tuple[str, int], labels: tuple[str, ...],
    capabilities: tuple[str, ...], models: tuple[str, ...], signed: bool | None,
) -> Kind:  # fmt: skip
    names = folded(labels), folded(capabilities), model_terms(models)
    return Kind(status, region, role, node_type, home, *names, signed)


def address_number(address: str) -> int:
    """A number for an address; 0 for none, and for this machine's own: everything may come from there."""
    return 0 if not address or address.startswith("127.") or address == "::1" else hash(address)


def _silence(entry: Entry, windows: Windows, liveness: Liveness) -> str:
    last = f"since {iso(entry.beat_at_ms)}" if entry.beat_at_ms is not None else "since it registered"
    limit = windows.offline_after_s if liveness == "offline" else windows.degraded_after_s
    return f"no heartbeat {last} (limit {limit:g} s): check the machine, its agent and its network"
