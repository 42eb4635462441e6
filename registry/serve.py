"""Runs one worker: builds every part from the settings, serves until told to stop."""

import asyncio
import gc
import random
import secrets
import signal
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

from aiohttp import web

from federation.config import Config
from federation.handshake import LINK_VERSION, Identity
from federation.links import Links, load_or_create_identity
from federation.roster import Advert, pack_advert
from federation.tls import Certificates
from registry import audit_checkpoint, logs
from registry.allowlist import Allowlist
from registry.app import Parts, make_app
from registry.audit_chain import START
from registry.audit_files import AUDIT_FOLDER, AuditFiles, last_head
from registry.audit_keeper import AuditKeeper
from registry.audit_witness import Witness
from registry.auth import Authenticator, key_secrets
from registry.certificates import registry_named
from registry.clock import SystemClock
from registry.directory import Directory
from registry.enforcement import Enforcement
from registry.feed import Feed
from registry.follower import Follower
from registry.http.door import Door
from registry.http.server import Runner
from registry.key_keeping import UseKeeper
from registry.lifecycle import Transition
from registry.metrics import Metrics
from registry.names import canonical_region
from registry.node import node_key
from registry.ports import Store
from registry.region import Membership, Region
from registry.service import Place, Registry
from registry.settings import ADMIN_KEY_HASH, LAST, Assignment, Settings
from registry.store import RedisStore
from registry.tls import certificates, keep_watching, log
from registry.verifying import verify_for_ever
from registry.writer import Writer

DRAIN_S = 2.0  # of the 5 s that a stop may take; a frozen store holds a call for less
CUT_S = 0.2  # for handlers to see that they are cancelled
TEND_EVERY_S = 0.25
SETTLE_EVERY_S = 0.1


async def run_worker(settings: Settings, job: Assignment, tend: Callable[[], None], *, announce: bool) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is in flight. `tend` is called now and then,
    and keeps up what the worker depends on."""
    stop, last = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(LAST, last.set)
    metrics = Metrics()
    store = RedisStore(
        job.redis_url,
        region=settings.identity,
        worker_id=job.worker_id,
        beat_window_ms=int(settings.offline_after_s * 1000),
        on_commit=metrics.observe_commit,
    )
    tending = asyncio.create_task(_tend(tend), name="tend")
    try:
        await store.start()
        await _serve(settings, job, store, metrics, stop, last, announce=announce)
    finally:
        await _cancelled(tending)
        await store.aclose()


async def _tend(tend: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(TEND_EVERY_S)
        tend()


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Redis-py swallows a cancellation that arrives while it connects: ask again."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


async def _serve(
    settings: Settings,
    job: Assignment,
    store: Store,
    metrics: Metrics,
    stop: asyncio.Event,
    last: asyncio.Event,
    *,
    announce: bool,
) -> None:
    clock, feed = SystemClock(), Feed()
    directory = Directory(settings.windows, clock.monotonic(), settings.identity)
    directory.on_transition = feed.publish
    shown = certificates(settings)
    metrics.watch_certificates(shown, log if announce else None)  # one of the workers says it for all
    feed.subscribe(lambda transition: _note(transition, metrics))
    directory.signatures.on_fault = lambda *fault: _alert(region, *fault)
    kept = {} if settings.admin_key is not None else {ADMIN_KEY_HASH: job.admin_hash}
    follower = Follower(store, directory, settings.windows, clock, kept, alone=not job.address)
    region = Region(
        membership(settings, job, shown),
        store,
        directory,
        follower,
        settings.windows,
        clock,
        address=job.address,
        alone=not job.address,
    )
    audit_keeper = _audit_keeper(settings, region, store, directory, metrics, clock)
    parts = _parts(settings, job, store, directory, metrics, follower, region, clock)
    app, gate, forwarder, registry, watching = make_app(parts)
    enforcement = Enforcement(parts.allowlist, directory, region, clock, settings.identity)
    region.on_writer = lambda writer: _attend(writer, registry, region, settings, job.port)
    region.on_registries = lambda registries: registry.told_config(_config(settings, registries))
    stopped = asyncio.create_task(stop.wait())
    gc.disable()  # what is loaded stays: to look through it again and again takes a tenth of the start
    loading = asyncio.create_task(region.start())
    await asyncio.wait({stopped, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        await _cancelled(loading)
        await region.stop()
        return
    loading.result()
    enforcing = asyncio.create_task(enforcement.run(), name="allowlist")
    aside = [asyncio.create_task(_settle_garbage_collector(region)), asyncio.create_task(keep_watching(shown))]
    keeper = UseKeeper(parts.auth.use, region, store, int(job.worker_id.partition("-")[0]), settings.workers)
    aside.append(asyncio.create_task(keeper.keep_for_ever(), name="key-use"))
    await audit_keeper.start(settings.audited if announce else None, job.started_ms)
    runner = Runner(app, gate, shutdown_timeout=CUT_S)
    await runner.setup()
    context = shown.server if settings.tls_cert else None
    await Door(runner, job.listener, gate.limits, settings.trusted_proxies, context).start()
    if job.address:
        await web.UnixSite(runner, job.address).start()
        region.serving = True
    if announce:
        print(f"{settings.identity}: listening on {settings.url(job.port)}", flush=True)
    forever = (follower.failed(), region.failed(), verify_for_ever(directory))
    failed = [*(asyncio.create_task(each) for each in forever), enforcing]
    try:
        await asyncio.wait({stopped, *failed}, return_when=asyncio.FIRST_COMPLETED)
        for task in failed:
            if task.done():
                task.result()
    finally:
        await _cancelled(stopped)
        for task in (*aside, *failed):
            await _cancelled(task)
        await watching.stop()
        audit_keeper.begin_to_end()
        await _drain(runner, region, last if job.address and stop.is_set() else None)
        await audit_keeper.finish()
        await region.stop()
        await runner.cleanup()
        await forwarder.close()
        await follower.stop()


async def _drain(runner: Runner, region: Region, last: asyncio.Event | None) -> None:
    """Finish what is in flight. Of workers that all end, the one that writes ends last: another would have to load
    everything first to finish what it cannot pass on any more. `last`: set when the others have; None: they go on."""
    writer = region.writer if last is not None else None

    def passed_on() -> bool:
        return writer is not None and region.writer is writer and last is not None and not last.is_set()

    await runner.drain(DRAIN_S, passed_on)


def _alert(region: Region, code: str, node_id: str, detail: str) -> None:
    """Tell of a node whose registration is not its own, and who wrote it. Of several workers each finds out for
    itself; the one that writes tells."""
    writer = region.writer
    record = writer.engine.replica.get(node_key(node_id)) if writer is not None else None
    if writer is not None:
        origin = record.spec.origin if record is not None and record.spec is not None else None
        writer.alert(code, f"{node_id}, written by {origin}: {detail}", origin)


def _attend(writer: Writer, registry: Registry, region: Region, settings: Settings, port: int) -> None:
    """What others want to hear of the writer."""
    writer.on_recovered = registry.recovered
    writer.on_roster = lambda roster: region.tell(_registries(settings, port, roster))


def membership(settings: Settings, job: Assignment, shown: Certificates) -> Membership:
    """This registry's part in a federation; with no secret it is in none, and its engine works for itself."""
    secret = settings.federation_secret.get_secret_value().encode() if settings.federation_secret else None
    identity = Identity(
        settings.identity,
        settings.region,
        settings.peer_url(job.port),
        load_or_create_identity(settings.data_path),
        secret,
    )
    advert = Advert(identity.url, identity.region, identity.public_key, LINK_VERSION)
    digest_key = blake2b(secret, digest_size=32, person=b"dagi-digest").digest() if secret is not None else b""
    config = Config(
        registry_id=settings.identity, advert=pack_advert(advert), digest_key=digest_key, push_when_asked=True
    )

    def make_links(writer: Writer) -> Links:
        rng = random.Random(secrets.randbits(64))  # noqa: S311 - when to dial, never a secret
        named = registry_named if settings.tls_ca else None
        return Links(identity, writer, settings.peer, rng, ssl_context=shown.client, named=named)

    make = make_links if secret is not None else None
    region = canonical_region(settings.region, settings.aliases())
    return Membership(config, make, bool(settings.peer), region, identity.private_key)


def _audit_keeper(
    settings: Settings, region: Region, store: Store, directory: Directory, metrics: Metrics, clock: SystemClock
) -> AuditKeeper:
    """The audit log's. Where its files cannot be read, as at a full disk, the store's word has to do."""
    folder = settings.data_path / AUDIT_FOLDER
    try:
        filed = last_head(folder)
    except OSError as error:
        logs.event("audit_file_failed", 40, folder=str(folder), error=error.strerror)
        filed = START
    region.audit_filed = lambda: filed
    checkpoints = directory.tables.add(audit_checkpoint.table())
    key = load_or_create_identity(settings.data_path)
    every_s = settings.audit_sign_every_s
    witness = Witness(settings.identity, key, checkpoints, region.audit, store, clock, every_s)
    return AuditKeeper(
        region, store, AuditFiles(folder, settings.audit_keep_mb * 2**20), witness, metrics.audit_behind.set
    )


def _parts(
    settings: Settings,
    job: Assignment,
    store: Store,
    directory: Directory,
    metrics: Metrics,
    follower: Follower,
    region: Region,
    clock: SystemClock,
) -> Parts:
    return Parts(
        place=_place(settings, job.port),
        store=store,
        directory=directory,
        auth=_authenticator(settings, directory, job.admin_hash, clock),
        allowlist=Allowlist(directory, settings.allowed_nodes),
        metrics=metrics,
        clock=clock,
        region=region,
        url=settings.url(job.port),
        reasons=lambda: follower.reasons + region.reasons,
        trusted_proxies=settings.trusted_proxies,
        cors_origins=settings.cors_origins,
        started_ms=job.started_ms,
        audit_folder=settings.data_path / AUDIT_FOLDER,
        key_rate=settings.key_rate,
        address_rate=settings.address_rate,
    )


async def _settle_garbage_collector(region: Region) -> None:
    """Nodes live long and hold no cycles: a full collection over 100,000 of them would stall every
    request for a tenth of a second and free nothing. So those loaded, or given to us by peers at the start, are
    left out, and the rest is looked at less often."""
    while region.reasons:  # noqa: ASYNC110 - asked for, as nobody tells
        await asyncio.sleep(SETTLE_EVERY_S)
    gc.freeze()
    gc.set_threshold(1_000, 3, 5_000)
    gc.enable()


def _note(transition: Transition, metrics: Metrics) -> None:
    metrics.transitions.labels(transition.after).inc()
    logs.event(
        "node_status", node_id=transition.node_id, before=transition.before, after=transition.after,
        reason=transition.reason,
    )  # fmt: skip


def _place(settings: Settings, port: int) -> Place:
    return Place(
        registry_id=settings.identity,
        region=settings.region,
        aliases=settings.aliases(),
        config=_config(settings, _registries(settings, port, {})),
    )


def _registries(settings: Settings, port: int, roster: Mapping[str, Advert]) -> list[dict[str, Any]]:
    """Where nodes may go: here first."""
    others = [
        {"url": advert.url, "region": advert.region, "registry_id": registry_id}
        for registry_id, advert in sorted(roster.items())
        if registry_id != settings.identity and advert.url is not None
    ]
    own = {"url": settings.url(port), "region": settings.region, "registry_id": settings.identity}
    return [own, *others]


def _config(settings: Settings, registries: list[dict[str, Any]]) -> dict[str, Any]:
    """What nodes are told."""
    return {
        "heartbeat_interval_s": settings.heartbeat_interval_s,
        "degraded_after_s": settings.degraded_after_s,
        "offline_after_s": settings.offline_after_s,
        "registries": registries,
        "nats_url": settings.nats_url,
    }


def _authenticator(settings: Settings, directory: Directory, admin_hash: bytes, clock: SystemClock) -> Authenticator:
    secret, older = key_secrets(settings)
    return Authenticator(
        settings.auth,
        directory,
        secret,
        [admin_hash],
        settings.on_loopback or settings.allow_open_registration,
        older_secret=older,
        now_ms=clock.wall_ms,
    )
