"""Handlers of the federation: who is in it and how it fares, and the peers' links."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from registry.clock import Clock
from registry.errors import ApiError
from registry.http.caller import Callers
from registry.http.forward import Forwarder
from registry.http.paths import FEDERATION, MEMBER
from registry.http.presented import presented
from registry.http.wire import answer_json, no_query
from registry.region import Region
from registry.service import NotWriter

LINK_PATH = "/federation/v1/link"


class FederationHandlers:
    """One method a route."""

    def __init__(
        self,
        region: Region,
        view: Callable[[], dict[str, Any]],
        callers: Callers,
        forwarder: Forwarder,
        clock: Clock,
    ) -> None:
        self._region = region
        self._view = view
        self._callers = callers
        self._forwarder = forwarder
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.get(FEDERATION, self.federation),
            web.delete(MEMBER, self.forget),
            web.get(LINK_PATH, self._callers.public(self.link)),
        ]

    async def federation(self, request: web.Request) -> web.Response:
        """GET /api/v1/federation."""
        self._callers.require_observe(request)
        no_query(request)
        if self._region.writer is None:
            raise NotWriter
        return answer_json(self._view())

    async def forget(self, request: web.Request) -> web.Response:
        """DELETE /api/v1/federation/members/{registry_id}: an operator takes a registry out of the roster, and
        with it the identity that is pinned for it."""
        who = self._callers.require_operator(request)
        no_query(request)
        writer, audit = self._region.writer, self._region.audit
        if writer is None:
            raise NotWriter
        registry_id = request.match_info["registry_id"]
        if registry_id == writer.engine.config.registry_id:
            raise ApiError("forbidden", f"{registry_id} is this registry itself; ask another one to forget it.")
        if not await writer.forget_registry(registry_id, lambda: audit.note("registry.forgotten", who, registry_id)):
            raise ApiError("no_such_registry", "No registry of that id is in the federation's roster.")
        return answer_json({"success": True, "registry_id": registry_id, "message": "removed from the roster"})

    async def link(self, request: web.Request) -> web.StreamResponse:
        """GET /federation/v1/link: a peer's WebSocket."""
        if self._region.writer is None:
            return await self._forwarder.link(request)
        if self._region.links is None:
            raise ApiError(
                "forbidden", "This registry is in no federation: it was started without REGISTRY_FEDERATION_SECRET."
            )
        certificate = presented(request)
        named = certificate.registry_id if certificate else None
        return await self._region.links.accept(request, named, self._callers.address(request))
