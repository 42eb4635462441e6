"""Routes for callers that were there before: profile, dashboard, maintenance. What a node never
reported is null."""

from typing import Any

import orjson
from aiohttp import web

from registry.capabilities import number
from registry.clock import Clock
from registry.errors import invalid
from registry.http.caller import Callers
from registry.http.paths import NODE
from registry.http.wire import answer_json, no_query, query_of, read_json
from registry.model import CleanupQuery, parse
from registry.node import iso
from registry.service import Registry

Json = Any


class ExistingHandlers:
    """One method a route."""

    def __init__(self, registry: Registry, callers: Callers, clock: Clock) -> None:
        self._registry = registry
        self._callers = callers
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.get(f"{NODE}/profile", self.profile),
            web.get(f"{NODE}/dashboard", self.dashboard),
            web.post("/api/v1/maintenance/cleanup", self.clean_up),
        ]

    async def profile(self, request: web.Request) -> web.Response:
        """GET /{node_id}/profile: what the node is, without how it fares."""
        node = self._node(request)
        left_out = ("metrics", "status_reason", "status_age_s", "last_heartbeat", "reserved_slots")
        return answer_json({key: value for key, value in node.items() if key not in left_out})

    async def dashboard(self, request: web.Request) -> web.Response:
        """GET /{node_id}/dashboard: the node's own heartbeats in the page's shape."""
        return answer_json(dashboard(self._node(request)))

    async def clean_up(self, request: web.Request) -> web.Response:
        """POST /maintenance/cleanup: remove nodes that have been offline for long."""
        who = self._callers.require_operator(request)
        query = query_of(request, CleanupQuery)
        if request.can_read_body:
            if request.query_string:
                raise invalid("query", "give older_than_s once, in the query or in the body")
            query = parse(CleanupQuery, await read_json(request))
        removed = await self._registry.clean_up(who, query.older_than_s)
        return answer_json(
            {
                "success": True,
                "removed": len(removed),
                "node_ids": removed,
                "timestamp": iso(self._clock.wall_ms()),
            }
        )

    def _node(self, request: web.Request) -> dict[str, Json]:
        who = self._callers.require_read(request)
        no_query(request)
        entry = self._registry.require(request.match_info["node_id"])
        self._callers.require_sight(who, entry)
        node: dict[str, Json] = orjson.loads(entry.fragment() + b"}")
        return node


def dashboard(node: dict[str, Json]) -> dict[str, Json]:
    """The page's shape of one node."""
    metrics, flat = node["metrics"], node["capabilities"]
    agents = metrics.get("agent_count")
    return {
        "node": {
            **{key: node[key] for key in ("id", "node_id", "node_name", "node_type", "region", "status")},
            **{key: node[key] for key in ("hostname", "ip_address", "local_ip", "last_heartbeat", "labels")},
            "roles": [node["role"]],
            "modules": flat["services"],
            "gpu": {"model": flat["gpu"], "count": len(flat["gpus"])} if flat["gpus"] else None,
        },
        "infra": {
            "cpu_usage_pct": number(metrics.get("cpu_percent")),
            "ram": {
                "total_gb": number(flat.get("ram_gb")),
                "used_gb": _used(metrics, "ram_used_gb", "memory_percent", flat.get("ram_gb")),
            },
            "disk": {
                "total_gb": number(flat.get("disk_gb")),
                "used_gb": _used(metrics, "disk_used_gb", "disk_percent", flat.get("disk_gb")),
            },
            "gpus": [_gpu(gpu) for gpu in _gpus(metrics, flat)],
        },
        "ai": {
            "swapper": None,
            "router": None,
            "ollama": flat.get("ollama"),
            "services": metrics.get("services", flat["services"]),
        },
        "agents": {"total": agents} if number(agents) is not None else None,
        "matrix": None,
        "monitoring": None,
    }


def _used(metrics: dict[str, Json], used: str, percent: str, total: Json) -> float | None:
    """What is in use, as reported, or from a reported share of a reported total."""
    value = number(metrics.get(used))
    share, whole = number(metrics.get(percent)), number(total)
    if value is not None or share is None or whole is None:
        return value
    return round(whole * share / 100, 2)


def _gpus(metrics: dict[str, Json], flat: dict[str, Json]) -> list[Json]:
    live = metrics.get("gpus")
    chosen = live if isinstance(live, list) and live else flat["gpus"]
    return [gpu for gpu in chosen if isinstance(gpu, dict)]


def _gpu(gpu: dict[str, Json]) -> dict[str, Json]:
    total, free = number(gpu.get("vram_gb")), number(gpu.get("vram_free_gb"))
    return {
        "name": gpu.get("name"),
        "vram_gb": total,
        "used_gb": round(total - free, 3) if total is not None and free is not None else None,
        "sm_util_pct": number(gpu.get("utilization_percent")),
    }
