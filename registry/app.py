"""make_app: routes on top of a registry, its directory and its store."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from registry.admission import Admission
from registry.allow_commands import AllowCommands
from registry.allowlist import Allowlist
from registry.api_keys import ApiKeys
from registry.auth import Authenticator
from registry.backbone import BACKBONE_PREFIX, Told, read
from registry.changes import Changes
from registry.clock import Clock
from registry.directory import Directory
from registry.discovery import Finder
from registry.federation_view import federation_view
from registry.http.about import AboutHandlers
from registry.http.allowlist import AllowlistHandlers
from registry.http.audit import AuditHandlers
from registry.http.caller import Callers
from registry.http.existing import ExistingHandlers
from registry.http.federation import LINK_PATH, FederationHandlers
from registry.http.forward import Forwarder
from registry.http.keys import KeyHandlers
from registry.http.limits import ADDRESS_PER_S, KEY_PER_S, Limits
from registry.http.nodes import NodeHandlers
from registry.http.refusals import Refusals
from registry.http.reservations import ReservationHandlers
from registry.http.server import Gate
from registry.http.watch import Watching
from registry.http.wire import MAX_BODY_BYTES
from registry.metrics import Metrics
from registry.names import canonical_region
from registry.ports import Store
from registry.region import Region
from registry.reservations import Reservations
from registry.service import Place, Registry
from registry.tables import Table

BOOTSTRAP_SCRIPT = Path(__file__).parent / "http" / "node_bootstrap.py"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a registry is built from; `__main__` and the tests choose the pieces."""

    place: Place
    store: Store
    directory: Directory
    auth: Authenticator
    allowlist: Allowlist
    metrics: Metrics
    clock: Clock
    region: Region
    url: str
    reasons: Callable[[], list[str]]
    trusted_proxies: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    started_ms: int = 0
    audit_folder: Path | None = None
    key_rate: float = KEY_PER_S
    address_rate: float = ADDRESS_PER_S


def make_app(parts: Parts) -> tuple[web.Application, Gate, Forwarder, Registry, Watching]:
    """The application, the gate that every request passes, the way to the worker that writes, the commands, and
    who watches."""
    region = parts.region
    parts.auth.is_listed = parts.allowlist.admits_caller
    admission = Admission(
        parts.allowlist,
        parts.auth,
        parts.clock,
        parts.place.registry_id,
        parts.directory.windows.heartbeat_interval_s,
    )
    registry = Registry(parts.place, parts.store, parts.directory, parts.auth, admission, parts.clock, region)

    def view() -> dict[str, Any]:
        return federation_view(region, parts.directory, parts.place, parts.url, parts.clock)

    limits = Limits(parts.clock.monotonic, parts.metrics.observe_refusal, parts.key_rate, parts.address_rate)
    callers = Callers(parts.auth, parts.trusted_proxies, limits)
    finder = Finder(parts.directory, parts.place.aliases)
    place, backbone = parts.place, parts.directory.backbone
    backbone.hear(place.registry_id, Told(canonical_region(place.region, place.aliases), {}))
    parts.directory.tables.add(Table(BACKBONE_PREFIX, read)).on_change = backbone.hear
    changes = Changes(secrets.token_hex(6))
    parts.directory.on_change = changes.note
    watching = Watching(
        parts.directory, changes, callers, parts.place.aliases, lambda what: parts.metrics.watchers.labels(what).inc()
    )
    reservations = Reservations(registry, region, parts.clock)
    held = ReservationHandlers(reservations, callers)
    nodes = NodeHandlers(registry, finder, callers, parts.clock, watching, reservations)
    about = AboutHandlers(
        registry,
        callers,
        parts.metrics,
        parts.clock,
        parts.reasons,
        lambda: view() if region.writer is not None else None,
        parts.started_ms or parts.clock.wall_ms(),
    )
    forwarder = Forwarder(lambda: region.writer_address, lambda: region.writer is not None, callers.address)
    federation = FederationHandlers(region, view, callers, forwarder, parts.clock)
    existing = ExistingHandlers(registry, callers, parts.clock)
    commands = AllowCommands(parts.allowlist, parts.directory, region.audit, parts.clock, parts.place.registry_id)
    allowlist = AllowlistHandlers(commands, registry, callers)
    keys = KeyHandlers(ApiKeys(registry, parts.clock, region.audit), callers)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    base, public = "/api/v1/nodes", callers.public
    one = base + "/{node_id}"
    app.router.add_routes(
        [
            web.post(f"{base}/register", nodes.register),
            web.post(f"{base}/heartbeat", nodes.heartbeat),
            web.get(base, nodes.list),
            web.get(f"{base}/discover", nodes.discover),
            web.post(f"{base}/discover", nodes.discover),
            web.get(f"{base}/watch", watching.watch, allow_head=False),
            # Without these, another method on a static name would look for a node of that name.
            web.route("*", f"{base}/register", _only("POST")),
            web.route("*", f"{base}/heartbeat", _only("POST")),
            web.route("*", f"{base}/discover", _only("GET", "HEAD", "POST")),
            web.route("*", f"{base}/watch", _only("GET")),
            web.get(one, nodes.get),
            web.delete(one, nodes.delete),
            web.patch(one, nodes.patch),
            web.post(f"{one}/heartbeat", nodes.heartbeat_of),
            web.get(f"{one}/reservations", held.list),
            web.post(f"{one}/reservations", held.reserve),
            web.delete(f"{one}/reservations/{{reservation_id}}", held.release),
            web.post(f"{one}/key", keys.rotate_node),
            web.get(f"{one}/profile", existing.profile),
            web.get(f"{one}/dashboard", existing.dashboard),
            web.post("/api/v1/maintenance/cleanup", existing.clean_up),
            web.post(f"{one}/approve", allowlist.approve),
            web.post(f"{one}/deny", allowlist.deny),
            web.get("/api/v1/allowlist", allowlist.overview),
            web.post("/api/v1/allowlist", allowlist.add),
            web.patch("/api/v1/allowlist", allowlist.turn),
            web.get("/api/v1/allowlist/pending", allowlist.pending),
            web.route("*", "/api/v1/allowlist/pending", _only("GET", "HEAD")),
            web.delete("/api/v1/allowlist/{entry}", allowlist.remove),
            web.post("/api/v1/keys", keys.create),
            web.get("/api/v1/keys", keys.list),
            web.get("/api/v1/keys/{key_id}", keys.get),
            web.delete("/api/v1/keys/{key_id}", keys.revoke),
            web.post("/api/v1/keys/{key_id}/rotate", keys.rotate),
            web.get("/api/v1/audit", AuditHandlers(parts.audit_folder, parts.place.registry_id, callers).list),
            web.get("/api/v1/federation", federation.federation),
            web.delete("/api/v1/federation/members/{registry_id}", federation.forget),
            web.get(LINK_PATH, public(federation.link)),
            web.get("/", public(about.root)),
            web.get("/health", public(about.health)),
            web.get("/healthz", public(about.health)),
            web.get("/readyz", public(about.ready)),
            web.get("/metrics", about.metrics),
            web.get("/openapi.json", public(about.openapi)),
            web.get("/docs", public(about.docs)),
            web.get("/bootstrap/node_bootstrap.py", public(_bootstrap_script)),
        ]
    )
    hot = {("POST", f"{base}/heartbeat"): nodes.heartbeat, ("GET", f"{base}/discover"): nodes.discover}
    refusals = Refusals(region.audit, callers)
    gate = Gate(app, parts.metrics, parts.cors_origins, hot, forwarder.request, callers, limits, refusals)
    return app, gate, forwarder, registry, watching


def _only(*methods: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, methods)

    return refuse


async def _bootstrap_script(_request: web.Request) -> web.StreamResponse:
    return web.FileResponse(BOOTSTRAP_SCRIPT, headers={"Content-Type": "text/x-python; charset=utf-8"})
