"""Handlers of /api/v1/nodes: register, heartbeat, list, get, patch, deregister, discover."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from aiohttp import web

from registry.clock import Clock
from registry.directory import Entry
from registry.discovery import Finder, Found, asks_for_distance, filters_of, in_order_of_ids, matching
from registry.errors import ApiError, invalid
from registry.http.caller import Callers
from registry.http.paths import NODE, NODES, Handler, only
from registry.http.watch import Watching
from registry.http.wire import answer, answer_json, no_query, query_of, read_json
from registry.keys import Principal
from registry.model import (
    DiscoverQuery,
    DiscoverQuestion,
    HeartbeatRequest,
    ListQuery,
    OneQuery,
    PatchRequest,
    parse,
)
from registry.names import canonical_region
from registry.node import iso
from registry.reservations import Reservations
from registry.service import Registry
from registry.signing import UNVERIFIED, parse_registration, proof_of


class NodeHandlers:
    """One method a route."""

    def __init__(
        self,
        registry: Registry,
        finder: Finder,
        callers: Callers,
        clock: Clock,
        watching: Watching,
        reservations: Reservations,
    ) -> None:
        self._registry = registry
        self._finder = finder
        self._callers = callers
        self._clock = clock
        self._watching = watching
        self._reservations = reservations
        self._dice = random.Random()  # noqa: S311 - spreads callers, guards nothing

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.post(f"{NODES}/register", self.register),
            web.post(f"{NODES}/heartbeat", self.heartbeat),
            web.get(NODES, self.list),
            web.get(f"{NODES}/discover", self.discover),
            web.post(f"{NODES}/discover", self.discover),
            # Without these, another method on a static name would look for a node of that name.
            web.route("*", f"{NODES}/register", only("POST")),
            web.route("*", f"{NODES}/heartbeat", only("POST")),
            web.route("*", f"{NODES}/discover", only("GET", "HEAD", "POST")),
            web.get(NODE, self.get),
            web.delete(NODE, self.delete),
            web.patch(NODE, self.patch),
            web.post(f"{NODE}/heartbeat", self.heartbeat_of),
        ]

    def hot(self) -> dict[tuple[str, str], Handler]:
        """Most of the traffic: see Gate."""
        return {("POST", f"{NODES}/heartbeat"): self.heartbeat, ("GET", f"{NODES}/discover"): self.discover}

    async def register(self, request: web.Request) -> web.Response:
        """POST /register."""
        who = self._callers.identify(request)
        no_query(request)
        data = await read_json(request)
        body = parse_registration(data, self._registry.place.aliases)
        return answer(await self._registry.register(who, body, self._callers.address(request)))

    async def heartbeat(self, request: web.Request) -> web.Response:
        """POST /heartbeat."""
        who = self._callers.identify(request)
        no_query(request)
        beat = parse(HeartbeatRequest, await read_json(request))
        return answer(await self._registry.heartbeat(who, beat, self._round_trip_ms(request)))

    async def heartbeat_of(self, request: web.Request) -> web.Response:
        """POST /{node_id}/heartbeat."""
        who = self._callers.identify(request)
        no_query(request)
        data = await read_json(request)
        path_id = request.match_info["node_id"]
        if data.setdefault("node_id", path_id) != path_id:
            raise invalid("node_id", "differs from the one in the path")
        return answer(await self._registry.heartbeat(who, parse(HeartbeatRequest, data), self._round_trip_ms(request)))

    def _round_trip_ms(self, request: web.Request) -> float | None:
        """How far the node is, by its connection; seldom asked, as ways change slowly."""
        return self._callers.round_trip_ms(request) if self._dice.random() < ROUND_TRIP_SHARE else None

    async def get(self, request: web.Request) -> web.Response:
        """GET /{node_id}."""
        who = self._callers.require_read(request)
        query = query_of(request, OneQuery)
        await self._registry.seen(query.min_version)
        self._reservations.expire()
        entry = self._registry.require(request.match_info["node_id"])
        self._callers.require_sight(who, entry)
        self._registry.directory.check(entry.node_id)
        return answer(entry.fragment() + (_proof_piece(entry) if query.proof else b"") + b"}")

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /{node_id}."""
        who = self._callers.identify(request)
        no_query(request)
        node_id = request.match_info["node_id"]
        version = await self._registry.deregister(who, node_id)
        return answer_json({"success": True, "node_id": node_id, "message": "deregistered", "version": version})

    async def patch(self, request: web.Request) -> web.Response:
        """PATCH /{node_id}."""
        who = self._callers.identify(request)
        no_query(request)
        body = parse(PatchRequest, await read_json(request))
        return answer(await self._registry.patch(who, request.match_info["node_id"], body))

    async def list(self, request: web.Request) -> web.Response:
        """GET /nodes, in the order of ids."""
        who = self._callers.require_read(request)
        query = self._callers.narrowed(who, query_of(request, ListQuery), self._registry.place.aliases)
        if query.since is not None:
            if query.cursor is not None or query.offset:
                raise invalid("query.since", "has no pages: leave out cursor and offset")
            polled = await self._watching.poll(query)
            if not self._callers.is_good_still(who):  # it may have waited while the key was revoked
                self._callers.require_read(request)
            return polled
        await self._registry.seen(query.min_version)
        since = self._watching.cursor
        self._reservations.expire()
        directory = self._registry.directory
        found = matching(directory.columns, filters_of(query, "any", self._registry.place.aliases))
        most = min(query.limit, MOST_PROOFS) if query.proof else query.limit
        page = in_order_of_ids(directory, found, most + 1, query.cursor or "", query.offset)
        more = len(page) > most
        page = page[:most]
        tail = orjson.dumps(
            {
                "total": found.total,
                "limit": most,
                "offset": query.offset,
                "since": since,
                "next_cursor": page[-1].node_id if more else None,
            }
        )
        return answer(_listing(page, [end + b"}" for end in self._ends(page, proof=query.proof)], tail[1:]))

    async def discover(self, request: web.Request) -> web.Response:
        """GET or POST /discover."""
        who = self._callers.require_read(request)
        if request.method == "POST":
            no_query(request)
            data = await read_json(request)
            known = {key: value for key, value in data.items() if key in _DISCOVER_NAMES and value not in (None, "")}
            query: DiscoverQuery = parse(DiscoverQuestion, known)
            question = repr(query)
        else:
            query = query_of(request, DiscoverQuery)
            question = request.rel_url.raw_query_string
        if query.min_version is not None:
            await self._registry.seen(query.min_version)
            question = repr(query.model_copy(update={"min_version": None}))
        within = self._callers.narrowed(who, query, self._registry.place.aliases)
        if within is not query:
            if query.explain:
                raise ApiError("forbidden", "explain counts all nodes; ask with a key without region or role scopes.")
            query, question = within, repr(within)
        self._reservations.expire()
        region, lot = self._caller_region(who.node_id), int(self._dice.random() * LOTS)
        now_s = self._clock.monotonic()
        beside = self._beside(request, who, query)
        found = self._finder.discover(query, question, region, now_s, lot, who.node_id, beside)
        if query.explain or query.proof:
            told = self._finder.explain(query, region, who.node_id, beside) if query.explain else None
            return answer(self._shown(query, found, now_s, told))
        shown, retold = found.shown, self._registry.directory.retold
        if shown is not None and shown.body and shown.echo == query.echo and shown.stands(found.entries, retold):
            return answer(shown.body)
        body = self._shown(query, found, now_s, None)
        asked_again = shown is not None and len(body) <= MOST_KEPT_BYTES
        found.shown = _Shown(query.echo, _fares(found.entries), body if asked_again else b"", retold)
        return answer(body)

    def _shown(self, query: DiscoverQuery, found: Found, now_s: float, told: dict[str, Any] | None) -> bytes:
        """`told`: what explains the answer, where that was asked for."""
        as_of = iso(self._clock.wall_ms() - int((now_s - found.at_s) * 1000)).encode()
        why = b""
        if told is not None:
            why = b',"explain":' + orjson.dumps(self._reservations.explained(told))
        tail = b'"total":%d,"query":%b,"as_of":"%b"%b}' % (found.total, query.echo, as_of, why)
        entries = found.entries[:MOST_PROOFS] if query.proof else found.entries
        ends = zip(self._ends(entries, proof=query.proof), found.latencies, strict=False)
        return _listing(entries, [end + _latency_piece(*latency) for end, latency in ends], tail)

    def _ends(self, entries: Sequence[Entry], *, proof: bool) -> Sequence[bytes]:
        """What follows in each node's JSON, where `proof` was asked for. Those that nobody has checked yet are next."""
        for entry in entries:
            if entry.signature == UNVERIFIED:
                self._registry.directory.signatures.hurry(entry.node_id)
        if not proof:
            return [b""] * len(entries)
        return [_proof_piece(entry) for entry in entries]

    def _beside(self, request: web.Request, who: Principal, query: DiscoverQuery) -> str | None:
        """A node at the caller's address, where it matters how far the caller is and its key does not tell."""
        if who.node_id is not None or not asks_for_distance(query):
            return None
        return self._registry.directory.at_address(self._callers.address(request))

    def _caller_region(self, node_id: str | None) -> str:
        entry = self._registry.directory.get(node_id) if node_id else None
        return entry.region if entry else canonical_region(self._registry.place.region, self._registry.place.aliases)


_Fares = tuple[list[bytes], list[bytes]]


@dataclass(slots=True)
class _Shown:
    """An answer as it was made, of an order that is kept. It is given again while its nodes fare as they did, which
    their order takes no notice of. `body`: once it was asked for twice. `retold`: the directory's, when they were last
    looked at."""

    echo: bytes
    fares: _Fares
    body: bytes
    retold: int

    def stands(self, entries: Sequence[Entry], retold: int) -> bool:
        """Whether its nodes fare as they did. They are not looked at while nothing at all has changed."""
        if self.retold != retold:
            if self.fares != _fares(entries):
                return False
            self.retold = retold
        return True


def _fares(entries: Sequence[Entry]) -> _Fares:
    return [entry.dynamic() for entry in entries], [entry.owner.piece for entry in entries]


MOST_KEPT_BYTES = 2**16  # of an answer that is kept; there are CACHE_SIZE of them
MOST_PROOFS = 200  # in one answer: each has to be unpacked
ROUND_TRIP_SHARE = 0.1  # of heartbeats: by chance, as nodes may beat in a fixed order
LOTS = 16  # as many answers to one question are kept, each with other nodes first among equals
_DISCOVER_NAMES = frozenset(DiscoverQuestion.model_fields) | {"labels", "node_role", "node_type", "capabilities"}


def _proof_piece(entry: Entry) -> bytes:
    """What the node signed."""
    proof = proof_of(entry.registration)
    return b',"signed":' + (orjson.dumps(proof.to_json()) if proof is not None else b"null")


@lru_cache(maxsize=4_096)
def _latency_piece(ms: float | None, source: str | None) -> bytes:
    """What ends a node's JSON in an answer of discover."""
    return b',"latency_ms":%b,"latency_source":%b}' % (orjson.dumps(ms), orjson.dumps(source))


def _listing(entries: list[Entry], ends: list[bytes], tail: bytes) -> bytes:
    """`nodes` and what follows it. Joined once: twenty nodes are 40 KB, and copying is what costs."""
    pieces = [b'{"nodes":[']
    for entry, end in zip(entries, ends, strict=True):
        pieces += (entry.static, entry.dynamic(), entry.owner.piece, end, b",")
    if entries:
        pieces.pop()
    pieces += (b"],", tail)
    return b"".join(pieces)
