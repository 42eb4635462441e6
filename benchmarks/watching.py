"""Watching: 1,000 watchers of one registry while 500 changes a second are made; from sending a write until the
last watcher has it."""

import argparse
import asyncio
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from benchmarks import fleet
from benchmarks.cluster import at, own_cpu_s, run
from benchmarks.harness import ADMIN_KEY, Report, Server, Target, registry, scratch
from benchmarks.load import Exchange, exchange

P99_MS = 250.0
WRITERS, NODES = 32, 20  # connections, and nodes that each of them writes
SETTLE_S = 1.0
LAST_S = 10.0  # for the last watcher of the last change
MOST_READ = 2**20
DISCARD = socket.MSG_TRUNC if sys.platform == "linux" else 0  # elsewhere they are read, and thrown away then


class Watcher:
    """One watcher. Once it has its snapshot it counts bytes and throws them away unread: all get the same ones, and
    to look at a gigabyte a second would be what is measured. `marks`: of one that does read them, where each ends."""

    def __init__(self, connection: socket.socket, *, reads: bool) -> None:
        self._socket = connection
        self._reads = reads
        self._text = b""
        self._before = 0  # bytes that came before the text
        self.got: list[tuple[float, int]] = []  # when there were how many bytes
        self.marks: dict[str, int] = {}
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Ask, and take what comes."""
        self._socket.sendall(fleet.request_bytes("GET", "/api/v1/nodes/watch?label=watched", ADMIN_KEY))
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._take)

    @property
    def total(self) -> int:
        """Bytes since the snapshot."""
        return self.got[-1][1] if self.got else 0

    def close(self) -> None:
        """Hang up."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _take(self) -> None:
        try:
            if not self.begun.done():
                self._text += self._socket.recv(MOST_READ)
                if b'"more":false}\n\n\r\n' in self._text:
                    self._text = b""
                    self.begun.set_result(None)
                return
            if self._reads:
                size = self._read(self._socket.recv(MOST_READ))
            else:
                size = self._socket.recv_into(_UNREAD, MOST_READ, DISCARD)
        except BlockingIOError:
            return
        if not size:
            raise SystemExit("the registry closed a watcher's connection")
        self.got.append((time.monotonic(), self.total + size))

    def _read(self, data: bytes) -> int:
        text, start = self._text + data, 0
        while (found := text.find(b'"mark-', start)) >= 0 and (end := text.find(b'"', found + 1)) >= 0:
            self.marks.setdefault(text[found + 1 : end].decode(), self._before + end)
            start = end + 1
        rest = max(start, len(text) - 64)
        self._before, self._text = self._before + rest, text[rest:]
        return len(data)


_UNREAD = bytearray(MOST_READ)


async def _watchers(count: int, port: int) -> list[Watcher]:
    found = []
    for index in range(count):
        watcher = Watcher(socket.create_connection(("127.0.0.1", port)), reads=not index)
        watcher.start()
        await watcher.begun
        found.append(watcher)
    return found


def _lags_ms(watchers: Sequence[Watcher], sent_s: Mapping[str, float]) -> tuple[list[float], int]:
    """From sending each change until the last watcher had it, and how many did not get one."""
    ends = sorted((end, mark) for mark, end in watchers[0].marks.items())
    last_s = dict.fromkeys(sent_s, 0.0)
    missing = len(watchers) * (len(sent_s) - len(ends))
    for watcher in watchers:
        at_s = iter(watcher.got)
        now_s, total = next(at_s, (0.0, 0))
        for end, mark in ends:
            while total < end and (following := next(at_s, None)) is not None:
                now_s, total = following
            missing += total < end
            last_s[mark] = max(last_s[mark], now_s)
    return sorted((last_s[mark] - sent_s[mark]) * 1000 for _, mark in ends), missing


async def _main(report: Report, count: int, rate: float, seconds: float, server: Server) -> int:
    port, sent_s = server.port, dict[str, float]()
    watchers = await _watchers(count, port)
    await asyncio.sleep(SETTLE_S)
    writers = [await exchange("127.0.0.1", port) for _ in range(WRITERS)]
    began_s, before = time.monotonic(), (server.cpu_s()[0], own_cpu_s())
    made = await asyncio.gather(
        *(_write(writer, index, sent_s, began_s, rate, seconds) for index, writer in enumerate(writers))
    )
    took_s = time.monotonic() - began_s
    used = (server.cpu_s()[0] - before[0]) / took_s, (own_cpu_s() - before[1]) / took_s
    deadline_s = time.monotonic() + LAST_S
    while time.monotonic() < deadline_s:
        if len(watchers[0].marks) == len(sent_s) and len({watcher.total for watcher in watchers}) == 1:
            break
        await asyncio.sleep(0.25)
    lags_ms, missing = _lags_ms(watchers, sent_s)
    for watcher in watchers:
        watcher.close()
    for writer in writers:
        writer.close()
    shares = {f"p{share * 100:g}": at(lags_ms, share) for share in (0.5, 0.9, 0.99)} | {"max": lags_ms[-1]}
    report.table(
        "from sending a write until the last watcher has it",
        ["", "changes", "a second", *shares, "not delivered", "MB/s", "registry|client CPU"],
        [[f"{count:,} watchers", f"{sum(made):,}", f"{sum(made) / took_s:,.0f}",
          *(f"{value:.0f} ms" for value in shares.values()), str(missing),
          f"{sum(watcher.total for watcher in watchers) / took_s / 1e6:,.0f}", f"{used[0]:.2f}|{used[1]:.2f}"]],
    )  # fmt: skip
    report.facts["watching"] = {
        "watchers": count, "per_s": sum(made) / took_s, "missing": missing, "cpu": used, **shares,
    }  # fmt: skip
    report.targets = [
        Target("to the last watcher, p99", shares["p99"], P99_MS, "ms", at_most=True),
        Target("changes a second", sum(made) / took_s, 0.9 * rate, "/s"),
        Target("events not delivered", missing, 0, at_most=True),
    ]
    return report.finish()


async def _write(
    writer: Exchange, index: int, sent_s: dict[str, float], began_s: float, rate: float, seconds: float
) -> int:
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
        sent_s[mark] = time.monotonic()
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
        return run(_main(report, given.watchers, given.rate, given.seconds, ours))


if __name__ == "__main__":
    sys.exit(main())
