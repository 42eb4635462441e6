"""Runs one worker: builds every part from the settings, serves until told to stop."""

import asyncio
import gc
import signal
from collections.abc import Callable
from typing import Any

from aiohttp import web

from registry import logs
from registry.app import Parts, make_app
from registry.auth import Allowlist, Authenticator, local_secret
from registry.directory import Directory
from registry.feed import Feed
from registry.follower import Follower
from registry.http.server import Runner
from registry.lifecycle import Transition
from registry.metrics import Metrics
from registry.ports import Store
from registry.service import Place, SystemClock
from registry.settings import ADMIN_KEY_HASH, Assignment, Settings
from registry.store import RedisStore
from registry.tls import server_context

DRAIN_S = 2.0  # of the 5 s that a stop may take; a frozen store holds a call for less
CUT_S = 0.2  # for handlers to see that they are cancelled
TEND_EVERY_S = 0.25


async def run_worker(settings: Settings, job: Assignment, tend: Callable[[], None], *, announce: bool) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is in flight. `tend` is called now and then,
    and keeps up what the worker depends on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
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
        await _serve(settings, job, store, metrics, stop, announce=announce)
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
    settings: Settings, job: Assignment, store: Store, metrics: Metrics, stop: asyncio.Event, *, announce: bool
) -> None:
    clock, feed = SystemClock(), Feed()
    directory = Directory(settings.windows, clock.monotonic())
    kept = {} if settings.admin_key is not None else {ADMIN_KEY_HASH: job.admin_hash}
    follower = Follower(store, directory, settings.windows, clock, feed, kept)
    feed.subscribe(lambda transition: _note(transition, metrics))
    parts = _parts(settings, job, store, directory, metrics, follower, clock, feed)
    stopped = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(follower.start())
    await asyncio.wait({stopped, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        await _cancelled(loading)
        return
    loading.result()
    _settle_garbage_collector()
    app, gate = make_app(parts)
    runner = Runner(app, gate, shutdown_timeout=CUT_S, keepalive_timeout=75.0)
    await runner.setup()
    await web.SockSite(runner, job.listener, ssl_context=server_context(settings), backlog=1024).start()
    if announce:
        print(f"{settings.identity}: listening on {settings.url(job.port)}", flush=True)
    failed = asyncio.create_task(follower.failed())
    try:
        await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
    finally:
        for task in (stopped, failed):
            await _cancelled(task)
        await runner.drain(DRAIN_S)
        await runner.cleanup()
        await follower.stop()


def _parts(
    settings: Settings,
    job: Assignment,
    store: Store,
    directory: Directory,
    metrics: Metrics,
    follower: Follower,
    clock: SystemClock,
    feed: Feed,
) -> Parts:
    return Parts(
        place=_place(settings, job.port),
        store=store,
        directory=directory,
        auth=_authenticator(settings, directory, job.admin_hash),
        allowlist=Allowlist(settings.allowed_nodes),
        metrics=metrics,
        clock=clock,
        feed=feed,
        reasons=lambda: follower.reasons,
        trusted_proxies=settings.trusted_proxies,
        cors_origins=settings.cors_origins,
        started_ms=job.started_ms,
    )


def _settle_garbage_collector() -> None:
    """Nodes live long and hold no cycles: a full collection over 100,000 of them would stall every
    request for a tenth of a second and free nothing. So those loaded are left out, and the rest
    is looked at less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


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
        config={
            "heartbeat_interval_s": settings.heartbeat_interval_s,
            "degraded_after_s": settings.degraded_after_s,
            "offline_after_s": settings.offline_after_s,
            "registries": [{"url": settings.url(port), "region": settings.region}],
            "nats_url": settings.nats_url,
        },
    )


def _authenticator(settings: Settings, directory: Directory, admin_hash: bytes) -> Authenticator:
    secret = settings.federation_secret
    return Authenticator(
        settings.auth,
        directory,
        secret.get_secret_value().encode() if secret else local_secret(settings.data_path),
        [admin_hash],
        settings.on_loopback or settings.allow_open_registration,
    )
