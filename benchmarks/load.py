"""The load generator: a process of its own that sends pre-built requests and does nothing else.

wrk, where it is installed, measures throughput; this module does so elsewhere, and always paces
the open-loop runs, because wrk has no rate option. A request that is due while every connection
is busy waits, and its latency counts from when it was due: a slow server cannot hide its queue.
"""

import argparse
import asyncio
import itertools
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import uvloop

_WRK_SCRIPT = """
local requests, at = {}, 0
function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local size = file:read("*n")
    if not size then break end
    file:read(1)
    requests[#requests + 1] = file:read(size)
  end
  file:close()
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"requests": %d, "seconds": %f, "errors": %d, "p50_ms": %f, "p99_ms": %f}',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the generator saw. `generator` names it; `errors` are answers other than 200."""

    generator: str
    requests: int
    seconds: float
    errors: int
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds


def generator_name() -> str:
    """Which generator measures throughput on this machine."""
    return "wrk" if shutil.which("wrk") else "python"


def run(
    port: int, requests: Sequence[bytes], *, connections: int, seconds: float, rate_per_s: float | None = None,
    cores: frozenset[int] = frozenset(), scheme: str = "http",
) -> Load:  # fmt: skip
    """Send `requests` round and round: as fast as answers come, or paced at `rate_per_s`, which is without TLS."""
    wrk = shutil.which("wrk") if rate_per_s is None else None
    with tempfile.TemporaryDirectory(prefix="dagi-load-") as folder:
        file = Path(folder, "requests")
        file.write_bytes(b"".join(b"%d\n%b" % (len(each), each) for each in requests))
        if wrk:
            script = Path(folder, "script.lua")
            script.write_text(_WRK_SCRIPT)
            command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
            command += [f"{scheme}://127.0.0.1:{port}", "--", str(file)]
        else:
            command = [sys.executable, "-m", "benchmarks.load", str(port), str(file), str(connections), str(seconds)]
            command += [str(rate_per_s)] if rate_per_s else []
            command += ["--tls"] if scheme == "https" else []
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 60,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )  # fmt: skip
    if ended.returncode:
        raise SystemExit(f"the load generator failed: {(ended.stderr or ended.stdout)[-2000:]}")
    told = ended.stderr if wrk else ended.stdout
    return Load("wrk" if wrk else "python", **json.loads(told[told.index("{") :]))


class Exchange(asyncio.Protocol):
    """One connection that has one request under way at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own, which is none by class

    def data_received(self, data: bytes) -> None:
        """Collect the answer's bytes; hand it on when it is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.find(b"Content-Length: ", 0, head)
        end = head + 4 + (int(self._buffer[at + 16 : self._buffer.find(b"\r", at)]) if at > 0 else 0)
        if len(self._buffer) >= end:
            status, body = int(self._buffer[9:12]), self._buffer[head + 4 : end]
            self._buffer = self._buffer[end:]
            self.answered(status, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """A server that hangs up on a benchmark is a failure of the benchmark."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("the server closed the connection"))

    def answered(self, status: int, body: bytes) -> None:
        """An answer came."""
        assert self._waiter is not None
        if not self._waiter.done():
            self._waiter.set_result((status, body))

    def send(self, request: bytes) -> None:
        """Write one request."""
        assert self._transport is not None
        self._transport.write(request)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to `request`."""
        self._waiter = asyncio.get_running_loop().create_future()
        self.send(request)
        return await self._waiter

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


async def exchange(host: str, port: int) -> Exchange:
    """A connection to the server."""
    _, protocol = await asyncio.get_running_loop().create_connection(Exchange, host, port)
    return protocol


class _Run:
    """The numbers of one run, shared by its connections."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.requests = requests
        self.latencies_s: list[float] = []
        self.errors = 0
        self.stopped = False
        self.idle: deque[_Connection] = deque()
        self.due: deque[float] = deque()
        self.paced = False


class _Connection(Exchange):
    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run
        self._since = 0.0

    def begin(self, since: float) -> None:
        self._since = since
        self.send(next(self._run.requests))

    def answered(self, status: int, body: bytes) -> None:
        run, now = self._run, time.perf_counter()
        if run.stopped:
            return
        run.latencies_s.append(now - self._since)
        run.errors += status != 200
        if not run.paced:
            self.begin(now)
        elif run.due:
            self.begin(run.due.popleft())
        else:
            run.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.errors += not self._run.stopped


async def paced(
    port: int, requests: list[bytes], connections: int, seconds: float, rate: float | None,
    tls: ssl.SSLContext | None = None,
) -> Load:  # fmt: skip
    """Load one server from within this process; without a rate, as fast as answers come."""
    loop = asyncio.get_running_loop()
    run = _Run(itertools.cycle(requests))
    opened = [
        (await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port, ssl=tls))[1]
        for _ in range(connections)
    ]
    started = time.perf_counter()
    if rate is None:
        for connection in opened:
            connection.begin(time.perf_counter())
        await asyncio.sleep(seconds)
    else:
        run.paced = True
        run.idle.extend(opened)
        await _pace(run, rate, started, seconds)
    run.stopped = True
    took = time.perf_counter() - started
    for connection in opened:
        connection.close()
    overdue = [time.perf_counter() - due for due in run.due]  # never sent: they count as slow as they are
    ordered = sorted(run.latencies_s + overdue)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
    return Load("python", len(run.latencies_s), took, run.errors, p50, p99)


async def _pace(run: _Run, rate: float, started: float, seconds: float) -> None:
    """Requests come due one by one, evenly; each is sent at once if a connection is free."""
    sent, total = 0, int(rate * seconds)
    while sent < total:
        now = time.perf_counter()
        while sent < total and (due := started + sent / rate) <= now:
            sent += 1
            if run.idle:
                run.idle.popleft().begin(due)
            else:
                run.due.append(due)
        wait_s = started + sent / rate - time.perf_counter()
        await asyncio.sleep(max(0.001, wait_s))  # the loop's finest step; less would spin


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while size := file.readline():
        yield file.read(int(size))


def main() -> None:
    """Run as the generator's process; one JSON object on standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("rate", type=float, nargs="?")
    parser.add_argument("--tls", action="store_true", help="whatever the certificate")
    given = parser.parse_args()
    with given.file.open("rb") as file:
        requests = list(_read(file))
    context = None
    if given.tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    seen = uvloop.run(paced(given.port, requests, given.connections, given.seconds, given.rate, context))
    names = ("requests", "seconds", "errors", "p50_ms", "p99_ms")
    print(json.dumps({name: getattr(seen, name) for name in names}))


if __name__ == "__main__":
    main()
