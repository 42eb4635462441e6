"""What surrounds the workers: the embedded store, the port, the admin key, and their processes."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from registry import logs
from registry.auth import key_secrets, local_secret
from registry.embedded import DataDirLocked, EmbeddedValkey
from registry.keys import NONCE_BYTES, Grant, key_hash, mint
from registry.ports import StoreUnavailable
from registry.redis_url import redacted
from registry.settings import ADMIN_KEY_HASH, LAST, Assignment, ConfigurationError, Settings
from registry.store import RedisStore
from registry.tls import certificates

STOP_S = 3.3  # for the workers; the embedded store's own time comes after
REFUSED = 2  # exit status: what was asked for cannot be
STORE_LOST = 3  # exit status: a worker started while the store was away
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name


def serve(settings: Settings) -> int:
    """Run a registry until it is told to stop; the process's exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    url = ""
    with contextlib.ExitStack() as stack:
        try:
            _check_files(settings)
            _make_data_dir(settings)
            listener = _bind(settings)
            stack.callback(listener.close)
            url, tend = _store(settings, stack)
            admin_hash = _run(_admin_hash(settings, url))
        except (DataDirLocked, ConfigurationError) as error:
            return _refused(str(error))
        except StoreUnavailable as error:
            hint = "; is it running? --redis-url or REGISTRY_REDIS_URL names it" if settings.redis_url else ""
            return _refused(f"the store at {redacted(url)} cannot be used: {error}{hint}")
        if settings.workers == 1:
            return _guarded(settings, Assignment(_worker_id(0), url, listener, admin_hash, _now_ms()), tend)
        return _many(settings, url, listener, admin_hash, tend, stack)


def _leave(_number: int, _frame: object) -> None:
    """A stop that comes before there is anything to finish: only unwind."""
    raise SystemExit(0)


def _stay() -> None:
    """The end is bounded: a second Ctrl-C must not leave the embedded store behind."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _check_files(settings: Settings) -> None:
    """Read what the workers will read: before a port is taken or an admin key is shown."""
    settings.aliases()
    certificates(settings)


def _make_data_dir(settings: Settings) -> None:
    try:
        settings.data_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        local_secret(settings.data_path)
    except (OSError, ValueError) as error:
        why = "it is no folder" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or error
        raise ConfigurationError(f"--data-dir {settings.data_path} cannot be used: {why}") from None


def _guarded(settings: Settings, job: Assignment, tend: Callable[[], None], *, announce: bool = True) -> int:
    # Only now: prometheus_client decides when it is imported whether processes share their numbers.
    from registry.serve import run_worker

    try:
        _run(run_worker(settings, job, tend, announce=announce))
    except ConfigurationError as error:
        return _refused(str(error))
    except StoreUnavailable as error:
        _refused(f"the store cannot be used: {error}")
        return STORE_LOST
    return 0


def _many(
    settings: Settings,
    url: str,
    listener: socket.socket,
    admin_hash: bytes,
    tend: Callable[[], None],
    stack: contextlib.ExitStack,
) -> int:
    """Several workers on one port. Each is a fork that binds beside the others; one that dies is
    started again."""
    shared = tempfile.mkdtemp(prefix="dagi-metrics-")
    stack.callback(shutil.rmtree, shared, ignore_errors=True)
    os.environ[METRICS_DIR] = shared
    started_ms = _now_ms()
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    signal.signal(signal.SIGINT, lambda number, _: stopping.append(number))

    def start(index: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 70
        for number in (signal.SIGTERM, signal.SIGINT):  # until the worker has its own way to stop
            signal.signal(number, signal.SIG_DFL)
        signal.signal(LAST, signal.SIG_IGN)
        try:
            own = _bound(settings, listener.getsockname()[1], shared=True)
            name = _worker_id(index)
            job = Assignment(name, url, own, admin_hash, started_ms, os.path.join(shared, f"{name}.sock"))
            status = _guarded(settings, job, lambda: None, announce=index == 0)
        finally:
            os._exit(status)

    workers = {start(index): index for index in range(settings.workers)}
    status = 0
    while not stopping:
        for pid, code in _ended(workers):
            index = workers.pop(pid)
            if code == REFUSED:  # a configuration error: starting again changes nothing
                status = REFUSED
                stopping.append(signal.SIGTERM)
                break
            logs.event("worker_died", 40, worker=index, status=code)
            time.sleep(0.5 if code == STORE_LOST else 0.2)
            workers[start(index)] = index
        tend()
        time.sleep(0.05)
    _stop(workers)
    return status


def _ended(workers: dict[int, int]) -> list[tuple[int, int]]:
    found = []
    for pid in list(workers):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _stop(workers: dict[int, int]) -> None:
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    told_last = False
    while workers and time.monotonic() < deadline:
        for pid, _ in _ended(workers):
            del workers[pid]
        if len(workers) == 1 and not told_last:
            told_last = True
            os.kill(next(iter(workers)), LAST)  # not waited for yet: its number is still its own
        time.sleep(0.02)
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _bind(settings: Settings) -> socket.socket:
    """Take the port, or say who may have it. With several workers the sockets share the port, which
    would let a second registry in unseen: so first make sure that nobody has it."""
    alone = _bound(settings, settings.port, shared=False)
    if settings.workers == 1:
        return alone
    port = alone.getsockname()[1]
    alone.close()
    return _bound(settings, port, shared=True)


def _bound(settings: Settings, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((settings.host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(
            f"--host {settings.host} --port {port} cannot be used ({getattr(error, 'strerror', error)}); "
            "stop what uses it or choose another"
        ) from None
    return listener


def _store(settings: Settings, stack: contextlib.ExitStack) -> tuple[str, Callable[[], None]]:
    """The store's URL, and what keeps it up: only an embedded one is ours to start again."""
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value(), lambda: None
    embedded = EmbeddedValkey(settings.data_path)
    stack.callback(embedded.stop)
    stack.callback(_stay)
    return embedded.start(), embedded.revive


async def _admin_hash(settings: Settings, url: str) -> bytes:
    """The admin key's hash. The first start of a region makes a key and shows it, once. All registries of the
    federation know it, as they know every key that was minted."""
    store = RedisStore(url, region=settings.identity, worker_id="setup", beat_window_ms=1000)
    try:
        await store.start()
        if settings.admin_key is not None:
            return key_hash(settings.admin_key.get_secret_value())
        key = mint(key_secrets(settings)[0], Grant("admin"), secrets.token_bytes(NONCE_BYTES))
        mine = key_hash(key)
        kept = await store.setting(ADMIN_KEY_HASH, mine)
    finally:
        await store.aclose()
    if kept == mine:
        print(f"{settings.identity}: admin key, shown only now: {key}", flush=True)
    return kept


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _worker_id(index: int) -> str:
    return f"{index}-{secrets.token_hex(6)}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _refused(message: str) -> int:
    print(f"dagi-registry: {message}", file=sys.stderr)
    return REFUSED
