"""make_app: routes on top of a registry, its directory and its store."""

import secrets
from collections.abc import Callable, Sequence
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
from registry.http.federation import FederationHandlers
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
    audit = AuditHandlers(parts.audit_folder, place.registry_id, callers)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    for handlers in (nodes, watching, held, keys, existing, allowlist, audit, federation, about):
        app.router.add_routes(handlers.routes())
    refusals = Refusals(region.audit, callers)
    gate = Gate(app, parts.metrics, parts.cors_origins, nodes.hot(), forwarder.request, callers, limits, refusals)
    return app, gate, forwarder, registry, watching
