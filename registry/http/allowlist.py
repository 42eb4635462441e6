"""Handlers of the allowlist. All need an admin key; the region's writer answers, so that who wrote reads it back."""

from aiohttp import web

from registry.allow_commands import AllowCommands
from registry.http.caller import Callers
from registry.http.paths import ALLOWLIST, NODE, only
from registry.http.wire import answer_json, no_query, query_of, read_json
from registry.keys import Principal
from registry.model import AllowlistQuery, AllowRequest, DecisionRequest, SwitchRequest, parse
from registry.service import Registry


class AllowlistHandlers:
    """One method a route."""

    def __init__(self, commands: AllowCommands, registry: Registry, callers: Callers) -> None:
        self._commands = commands
        self._registry = registry
        self._callers = callers

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.post(f"{NODE}/approve", self.approve),
            web.post(f"{NODE}/deny", self.deny),
            web.get(ALLOWLIST, self.overview),
            web.post(ALLOWLIST, self.add),
            web.patch(ALLOWLIST, self.turn),
            web.get(f"{ALLOWLIST}/pending", self.pending),
            web.route("*", f"{ALLOWLIST}/pending", only("GET", "HEAD")),  # else it would be an entry of that name
            web.delete(f"{ALLOWLIST}/{{entry}}", self.remove),
        ]

    async def overview(self, request: web.Request) -> web.Response:
        """GET /api/v1/allowlist."""
        self._callers.require_operator(request)
        query = query_of(request, AllowlistQuery)
        self._registry.writer  # noqa: B018 - raises NotWriter
        return answer_json(await self._commands.overview(query))

    async def pending(self, request: web.Request) -> web.Response:
        """GET /api/v1/allowlist/pending."""
        self._operator(request)
        self._registry.writer  # noqa: B018 - raises NotWriter
        return answer_json(self._commands.pending())

    async def add(self, request: web.Request) -> web.Response:
        """POST /api/v1/allowlist."""
        who = self._operator(request)
        asked = parse(AllowRequest, await read_json(request))
        return answer_json(await self._commands.add(who, asked, self._registry.ready_writer()))

    async def turn(self, request: web.Request) -> web.Response:
        """PATCH /api/v1/allowlist."""
        who = self._operator(request)
        asked = parse(SwitchRequest, await read_json(request))
        return answer_json(await self._commands.turn(who, asked, self._registry.ready_writer()))

    async def remove(self, request: web.Request) -> web.Response:
        """DELETE /api/v1/allowlist/{entry}."""
        who = self._operator(request)
        entry = request.match_info["entry"]
        return answer_json(await self._commands.remove(who, entry, self._registry.ready_writer()))

    async def approve(self, request: web.Request) -> web.Response:
        """POST /api/v1/nodes/{node_id}/approve."""
        who = self._operator(request)
        node_id, code = await _decided(request)
        return answer_json(await self._commands.approve(who, node_id, code, self._registry.ready_writer()))

    async def deny(self, request: web.Request) -> web.Response:
        """POST /api/v1/nodes/{node_id}/deny."""
        who = self._operator(request)
        node_id, code = await _decided(request)
        return answer_json(await self._commands.deny(who, node_id, code, self._registry.ready_writer()))

    def _operator(self, request: web.Request) -> Principal:
        who = self._callers.require_operator(request)
        no_query(request)
        return who


async def _decided(request: web.Request) -> tuple[str, str | None]:
    """The node, and the code of who is meant: a request without a body means the only one."""
    body = await read_json(request) if request.can_read_body else {}
    return request.match_info["node_id"], parse(DecisionRequest, body).code
