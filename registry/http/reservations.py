"""Handlers of /api/v1/nodes/{node_id}/reservations. Whoever may discover may hold what it found."""

from functools import partial

from aiohttp import web

from registry.http.caller import Callers
from registry.http.paths import NODE
from registry.http.wire import answer_json, no_query, read_json
from registry.keys import Principal
from registry.model import ReservationRequest, parse
from registry.reservations import Reservations, Sight


class ReservationHandlers:
    """One method a route."""

    def __init__(self, reservations: Reservations, callers: Callers) -> None:
        self._reservations = reservations
        self._callers = callers

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.get(f"{NODE}/reservations", self.list),
            web.post(f"{NODE}/reservations", self.reserve),
            web.delete(f"{NODE}/reservations/{{reservation_id}}", self.release),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """GET: what is held of the node."""
        who = self._callers.require_read(request)
        no_query(request)
        return answer_json(self._reservations.listed(request.match_info["node_id"], self._sight(who)))

    async def reserve(self, request: web.Request) -> web.Response:
        """POST: hold slots of the node."""
        who = self._callers.require_read(request)
        no_query(request)
        asked = parse(ReservationRequest, await read_json(request) if request.can_read_body else {})
        address = self._callers.address(request)
        node_id = request.match_info["node_id"]
        return answer_json(await self._reservations.reserve(who, address, node_id, asked, self._sight(who)))

    async def release(self, request: web.Request) -> web.Response:
        """DELETE: give back before the time is over."""
        who = self._callers.require_read(request)
        no_query(request)
        found = request.match_info
        node_id, hold_id = found["node_id"], found["reservation_id"]
        return answer_json(await self._reservations.release(who, node_id, hold_id, self._sight(who)))

    def _sight(self, who: Principal) -> Sight:
        return partial(self._callers.require_sight, who)
