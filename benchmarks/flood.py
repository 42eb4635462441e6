"""A flood of bad keys: one client process, from 127.0.0.2, that asks as fast as it can, and comes back at once
whenever it is thrown out."""

import argparse
import asyncio
import contextlib
import json
import os
import random
import time
from base64 import urlsafe_b64encode
from collections import Counter
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.fleet import heartbeat, request_bytes

ADDRESS = "127.0.0.2"
KEYS = 1_000
_PATH = "/api/v1/nodes/heartbeat"


def requests() -> list[bytes]:
    """Heartbeats with keys that look like a node's and are none."""
    rng = random.Random(7)
    keys = ["sk-node-" + urlsafe_b64encode(rng.randbytes(40)).decode().rstrip("=") for _ in range(KEYS)]
    return [request_bytes("POST", _PATH, key, heartbeat("node-of-nobody", 1)) for key in keys]


class _Seen:
    """What became of the flood."""

    def __init__(self, sent: list[bytes]) -> None:
        self.requests = sent
        self.counts: Counter[str] = Counter()


class _Attack(asyncio.Protocol):
    def __init__(self, seen: _Seen) -> None:
        self._seen = seen
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own, which is none by class
        self._send()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 "):
            self._seen.counts[data[9:12].decode()] += 1
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self) -> None:
        assert self._transport is not None
        self._seen.counts["sent"] += 1
        self._transport.write(self._seen.requests[self._seen.counts["sent"] % KEYS])


async def _attack(port: int, seen: _Seen) -> None:
    loop = asyncio.get_running_loop()
    while True:
        seen.counts["connects"] += 1
        with contextlib.suppress(OSError):
            transport, protocol = await loop.create_connection(
                lambda: _Attack(seen), "127.0.0.1", port, local_addr=(ADDRESS, 0)
            )
            try:
                await protocol.ended
            finally:
                transport.abort()


async def flood(port: int, connections: int, seconds: float) -> dict[str, float]:
    """Attack for so long; how often each thing happened."""
    seen, started = _Seen(requests()), time.perf_counter()
    tasks = [asyncio.create_task(_attack(port, seen)) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    return {**seen.counts, "seconds": time.perf_counter() - started, "cpu_s": sum(os.times()[:2])}


def main() -> None:
    """Run as a process of its own; one JSON object on standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    with contextlib.suppress(OSError):  # Linux may share a core out by session first, and by `nice` within each
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")
    print(json.dumps(uvloop.run(flood(given.port, given.connections, given.seconds))))


if __name__ == "__main__":
    main()
