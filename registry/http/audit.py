"""GET /api/v1/audit: the audit log, page by page, as this machine's files have it."""

import asyncio
from pathlib import Path

import orjson
from aiohttp import web

from registry.audit_reader import Page, Wanted, page
from registry.errors import ApiError
from registry.http.caller import Callers
from registry.http.paths import AUDIT
from registry.http.wire import answer, query_of
from registry.model import AuditQuery

LINES = "application/x-ndjson"


class AuditHandlers:
    """`folder`: None where nothing is kept."""

    def __init__(self, folder: Path | None, registry_id: str, callers: Callers) -> None:
        self._folder = folder
        self._id = registry_id
        self._callers = callers

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [web.get(AUDIT, self.list)]

    async def list(self, request: web.Request) -> web.Response:
        """As JSON, or with `Accept: application/x-ndjson` line by line, byte for byte, to be verified."""
        self._callers.require_operator(request)
        query = query_of(request, AuditQuery)
        wanted = Wanted(query.since or "", query.action or "", query.actor or "")
        try:
            found = await self._page(query, wanted)
        except OSError:
            raise ApiError(
                "store_unavailable", "The audit log's files cannot be read; the registry's disk fails."
            ) from None
        more = b"" if found.after is None else str(found.after).encode()
        if LINES in request.headers.get("Accept", ""):
            headers = {"Content-Type": LINES, "X-Registry-Id": self._id, "X-Next-After": more.decode()}
            return web.Response(body=b"".join(line + b"\n" for line in found.lines), headers=headers)
        return answer(
            b'{"registry_id":%b,"entries":[%b],"next_after":%b}'
            % (orjson.dumps(self._id), b",".join(found.lines), more or b"null")
        )

    async def _page(self, query: AuditQuery, wanted: Wanted) -> Page:
        if self._folder is None:
            return Page([], None)
        return await asyncio.to_thread(page, self._folder, query.after, query.limit, wanted)
