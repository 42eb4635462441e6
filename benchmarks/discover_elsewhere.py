"""The same questions to what one would take instead: a node a key in Redis, which is scanned, or in etcd, which is
read as a range; what comes back is filtered and sorted here, as the naive loop does.

Redis is the Valkey that comes with the registry, over its socket file, with hiredis. etcd is measured where its
program is on the PATH (Debian has it as etcd-server), one member without fsync, by its JSON gateway: a Go client
would save the base64. Both hold what the naive loop holds.
"""

import base64
import contextlib
import http.client
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from redis import Redis

from benchmarks.discover_engine import Timed, best_of
from registry.model import DiscoverQuery
from tests.support.valkey import Valkey, free_port

PAGE, PUTS = 1_000, 100
START_S = 20.0
PREFIX = b"node:"
Facts = Sequence[dict[str, Any]]
Everything = Callable[[], Iterator[bytes]]


def compared(folder: Path, facts: Facts, asked: Sequence[DiscoverQuery], say: Callable[[str], None]) -> list[Timed]:
    """What can be measured here. `folder` exists."""
    with _redis(folder, facts) as everything:
        found = [_timed("Redis, SCAN and filter", everything, asked)]
    if shutil.which("etcd") is None:
        say("etcd: not installed, not compared")
        return found
    with _etcd(folder, facts) as everything:
        found.append(_timed("etcd, range read and filter", everything, asked))
    return found


def _timed(label: str, everything: Everything, asked: Sequence[DiscoverQuery]) -> Timed:
    taken: list[float] = []
    found: list[int] = []
    for query in asked:
        began_s = time.perf_counter()
        total, _ = best_of([orjson.loads(each) for each in everything()], query)
        taken.append((time.perf_counter() - began_s) * 1000)
        found.append(total)
    return Timed(label, sorted(taken), sorted(found)[len(found) // 2])


@contextlib.contextmanager
def _redis(folder: Path, facts: Facts) -> Iterator[Everything]:
    server = Valkey(folder / "redis")
    server.start()
    try:
        client = Redis(unix_socket_path=str(server.socket))
        for start in range(0, len(facts), PAGE):
            client.mset({PREFIX + node["node_id"].encode(): orjson.dumps(node) for node in facts[start : start + PAGE]})

        def everything() -> Iterator[bytes]:
            cursor = 0
            while True:
                cursor, keys = client.scan(cursor, match=PREFIX + b"*", count=PAGE)
                for value in client.mget(keys):
                    assert isinstance(value, bytes)
                    yield value
                if not cursor:
                    return

        yield everything
        client.close()
    finally:
        server.close()


@contextlib.contextmanager
def _etcd(folder: Path, facts: Facts) -> Iterator[Everything]:
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = ["etcd", "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--log-level", "error"]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
    command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ask = _gateway(client.removeprefix("http://"))
        for start in range(0, len(facts), PUTS):
            puts = [
                {"requestPut": {"key": _text(PREFIX + node["node_id"].encode()), "value": _text(orjson.dumps(node))}}
                for node in facts[start : start + PUTS]
            ]
            ask("/v3/kv/txn", {"success": puts})

        def everything() -> Iterator[bytes]:
            after, more = PREFIX, True
            while more:
                page = ask("/v3/kv/range", {"key": _text(after), "range_end": _text(b"node;"), "limit": PAGE})
                for pair in page["kvs"]:
                    yield base64.b64decode(pair["value"])
                more = page.get("more", False)
                after = base64.b64decode(page["kvs"][-1]["key"]) + b"\0"

        yield everything
    finally:
        server.kill()
        server.wait()


def _gateway(address: str) -> Callable[[str, Any], Any]:
    """Ask etcd, once it is there."""
    connection = http.client.HTTPConnection(address, timeout=START_S)

    def ask(path: str, body: Any) -> Any:
        connection.request("POST", path, orjson.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = answer.read()
        if answer.status != 200:
            raise SystemExit(f"etcd answered with {answer.status}: {told[:200]!r}")
        return orjson.loads(told)

    deadline_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError, SystemExit):
            ask("/v3/kv/range", {"key": _text(b"ready")})
            return ask
        connection.close()
        if time.monotonic() > deadline_s:
            raise SystemExit("etcd did not start")
        time.sleep(0.1)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
