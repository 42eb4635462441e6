"""Handlers that tell about the registry itself: health, readiness, metrics, documents."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from registry.clock import Clock
from registry.http import openapi
from registry.http.caller import Callers
from registry.http.wire import answer_json
from registry.metrics import Metrics
from registry.node import iso
from registry.service import NotWriter, Registry

SERVICE = "node-registry"
VERSION = "0.1.0"
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
BOOTSTRAP_SCRIPT = Path(__file__).with_name("node_bootstrap.py")


class AboutHandlers:
    """One method a route."""

    def __init__(
        self,
        registry: Registry,
        callers: Callers,
        metrics: Metrics,
        clock: Clock,
        reasons: Callable[[], list[str]],
        federation: Callable[[], dict[str, Any] | None],
        started_ms: int,
    ) -> None:
        """`federation`: its view, of the worker that has one."""
        self._federation = federation
        self._registry = registry
        self._callers = callers
        self._metrics = metrics
        self._clock = clock
        self._reasons = reasons
        self._started_ms = started_ms

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        public = self._callers.public
        return [
            web.get("/", public(self.root)),
            web.get("/health", public(self.health)),
            web.get("/healthz", public(self.health)),
            web.get("/readyz", public(self.ready)),
            web.get("/metrics", self.metrics),
            web.get("/openapi.json", public(self.openapi)),
            web.get("/docs", public(self.docs)),
            web.get("/bootstrap/node_bootstrap.py", public(self.bootstrap_script)),
        ]

    async def root(self, _request: web.Request) -> web.Response:
        """GET /."""
        place = self._registry.place
        return answer_json(
            {
                "service": SERVICE,
                "version": VERSION,
                "registry_id": place.registry_id,
                "region": place.region,
                "api": "/api/v1/nodes",
                "docs": "/docs",
                "openapi": "/openapi.json",
            }
        )

    async def health(self, _request: web.Request) -> web.Response:
        """GET /health and /healthz: the process answers; /readyz tells whether it may be used."""
        place = self._registry.place
        return answer_json(
            {
                "status": "healthy",
                "service": SERVICE,
                "version": VERSION,
                "registry_id": place.registry_id,
                "region": place.region,
                "worker": os.getpid(),
                "uptime_seconds": self._uptime_s(),
                "timestamp": iso(self._clock.wall_ms()),
            }
        )

    async def ready(self, _request: web.Request) -> web.Response:
        """GET /readyz."""
        reasons = self._reasons()
        return answer_json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics: Prometheus' text when asked for, else JSON for pages."""
        self._callers.require_observe(request)
        counts = self._registry.directory.counts()
        accept = request.headers.get("Accept", "*/*")
        # Some pages' libraries ask for JSON and for plain text in one breath; Prometheus never asks for JSON.
        if "json" not in accept and ("text/plain" in accept or "openmetrics" in accept):
            view = self._federation()
            if view is None:
                raise NotWriter
            self._metrics.ready.set(0 if self._reasons() else 1)
            return web.Response(body=self._metrics.exposition(counts, view), headers={"Content-Type": _EXPOSITION})
        online = counts.by_status.get("online", 0)
        return answer_json(
            {
                "service": SERVICE,
                "uptime_seconds": self._uptime_s(),
                "total_nodes": counts.total,
                "online_nodes": online,
                "degraded_nodes": counts.by_status.get("degraded", 0),
                "offline_nodes": counts.by_status.get("offline", 0),
                "uptime_percentage": round(100 * online / counts.total, 2) if counts.total else None,
                "timestamp": iso(self._clock.wall_ms()),
            }
        )

    async def openapi(self, _request: web.Request) -> web.Response:
        """GET /openapi.json."""
        return answer_json(openapi.document(VERSION, not self._registry.auth.open))

    async def docs(self, _request: web.Request) -> web.Response:
        """GET /docs: the same, for people; no script, nothing fetched from elsewhere."""
        return web.Response(text=openapi.page(VERSION), content_type="text/html")

    async def bootstrap_script(self, _request: web.Request) -> web.StreamResponse:
        """GET /bootstrap/node_bootstrap.py."""
        return web.FileResponse(BOOTSTRAP_SCRIPT, headers={"Content-Type": "text/x-python; charset=utf-8"})

    def _uptime_s(self) -> float:
        return round((self._clock.wall_ms() - self._started_ms) / 1000, 3)
