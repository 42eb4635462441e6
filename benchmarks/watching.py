"""Watching: 1,000 watchers of one registry while 500 changes a second are made; from sending a write until the
last watcher has it."""

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from benchmarks import fleet
from benchmarks.cluster import at, run
from benchmarks.harness import ADMIN_KEY, Report, Target, registry, scratch
from benchmarks.load import Exchange, exchange

P99_MS = 250.0
WRITERS, NODES = 32, 20  # connections, and nodes that each of them writes
SETTLE_S = 1.0
LAST_S = 10.0  # for the last watcher of the last change


@dataclass(slots=True)
class Seen:
    """Per marked change: when it was sent, and how many watchers have it, the last one when."""

    sent_s: dict[str, float] = field(default_factory=dict)
    got: dict[str, int] = field(default_factory=dict)
    last_s: dict[str, float] = field(default_factory=dict)


class Watcher(asyncio.Protocol):
    """One watcher: counts marks as they come in, and reads nothing else of it."""

    def __init__(self, seen: Seen, port: int) -> None:
        self._seen, self._port = seen, port
        self._rest = b""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        asked = fleet.request_bytes("GET", "/api/v1/nodes/watch?label=watched", ADMIN_KEY)
        cast(asyncio.Transport, transport).write(asked)  # uvloop's own, which is none by class

    def data_received(self, data: bytes) -> None:
        """Find the marks."""
        if not self.begun.done() and b"event: snapshot" in data:
            self.begun.set_result(None)
        now_s = time.monotonic()
        seen, text = self._seen, self._rest + data
        start = 0
        while (found := text.find(b'"mark-', start)) >= 0:
            end = text.find(b'"', found + 1)
            if end < 0:
                break
            mark = text[found + 1 : end].decode()
            seen.got[mark] = seen.got.get(mark, 0) + 1
            seen.last_s[mark] = now_s
            start = end + 1
        self._rest = text[max(start, len(text) - 64) :]


async def _main(report: Report, watchers: int, rate: float, seconds: float, port: int) -> int:
    loop, seen = asyncio.get_running_loop(), Seen()
    transports, protocols = [], []
    for _ in range(watchers):
        transport, protocol = await loop.create_connection(lambda: Watcher(seen, port), "127.0.0.1", port)
        transports.append(transport)
        protocols.append(protocol)
    await asyncio.gather(*(protocol.begun for protocol in protocols))
    await asyncio.sleep(SETTLE_S)
    writers = [await exchange("127.0.0.1", port) for _ in range(WRITERS)]
    began_s = time.monotonic()
    made = await asyncio.gather(
        *(_write(writer, index, seen, began_s, rate, seconds) for index, writer in enumerate(writers))
    )
    took_s = time.monotonic() - began_s
    deadline_s = time.monotonic() + LAST_S
    while time.monotonic() < deadline_s and any(seen.got.get(mark, 0) < watchers for mark in seen.sent_s):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.05)
    missing = sum(watchers - seen.got.get(mark, 0) for mark in seen.sent_s)
    lags_ms = sorted((seen.last_s[mark] - sent_s) * 1000 for mark, sent_s in seen.sent_s.items() if mark in seen.last_s)
    for transport in transports:
        transport.close()
    for writer in writers:
        writer.close()
    shares = {f"p{share * 100:g}": at(lags_ms, share) for share in (0.5, 0.9, 0.99)} | {"max": lags_ms[-1]}
    report.table(
        "from sending a write until the last watcher has it",
        ["", "changes", "a second", *shares, "not delivered"],
        [[f"{watchers:,} watchers", f"{sum(made):,}", f"{sum(made) / took_s:,.0f}",
          *(f"{value:.0f} ms" for value in shares.values()), str(missing)]],
    )  # fmt: skip
    report.facts["watching"] = {"watchers": watchers, "per_s": sum(made) / took_s, "missing": missing, **shares}
    report.targets = [
        Target("to the last watcher, p99", shares["p99"], P99_MS, "ms", at_most=True),
        Target("changes a second", sum(made) / took_s, 0.9 * rate, "/s"),
        Target("events not delivered", missing, 0, at_most=True),
    ]
    return report.finish()


async def _write(writer: Exchange, index: int, seen: Seen, began_s: float, rate: float, seconds: float) -> int:
    """Register nodes, one after the other and each again after a while, marked anew each time, in step with the
    rate. Two changes of a node between two pieces would be one event."""
    count, gap_s = 0, WRITERS / rate
    nodes = [
        {**fleet.registration(30_000_000 + index * NODES + number), "labels": ["watched"]} for number in range(NODES)
    ]
    while True:
        due_s = began_s + (count + index / WRITERS) * gap_s
        if due_s - began_s > seconds:
            return count
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        mark = f"mark-{index}-{count}"
        body: dict[str, Any] = {**nodes[count % NODES], "node_name": mark}
        request = fleet.request_bytes("POST", "/api/v1/nodes/register", ADMIN_KEY, body)
        seen.sent_s[mark] = time.monotonic()
        status, answer = await writer.ask(request)
        if status != 200:
            raise SystemExit(f"a registration was answered with {status}: {orjson.loads(answer)}")
        count += 1


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    report = Report("watching")
    with scratch() as folder, registry(folder / "data") as ours:
        return run(_main(report, given.watchers, given.rate, given.seconds, ours.port))


if __name__ == "__main__":
    sys.exit(main())
