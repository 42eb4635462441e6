"""Limits on the wire: whoever asks too much, sends too much or keeps us waiting is refused, and nobody else notices."""

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop
from aiohttp import web

from registry.audit import Audit
from registry.auth import Authenticator
from registry.clock import SystemClock
from registry.directory import Directory
from registry.http import door as door_module
from registry.http import wire
from registry.http.caller import Callers
from registry.http.door import Door
from registry.http.limits import HEAD_SWEEPS, MOST_HEAD_BYTES, Limits
from registry.http.refusals import Refusals
from registry.http.server import Gate, Runner
from registry.http.wire import MAX_BODY_BYTES, answer_json, read_json
from registry.keys import key_hash
from registry.lifecycle import Windows
from registry.metrics import Metrics
from tests.support.live import ADMIN_KEY, Process, running, session, until
from tests.support.tls import certificate

SOON_S = 5.0
BASE = "/api/v1/nodes"


async def ask(port: int, sent: bytes, address: str = "127.0.0.1") -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of the answer; status 0 where the connection ended without one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    except OSError:
        return 0, {}, {}
    try:
        writer.write(sent)
        async with asyncio.timeout(SOON_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status, *fields = head.split("\r\n")
            headers = {name.casefold(): value for name, _, value in (field.partition(": ") for field in fields)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, json.loads(body)
    except (OSError, asyncio.IncompleteReadError):
        return 0, {}, {}
    finally:
        writer.transport.abort()


def get(path: str, key: str | None = None, more: bytes = b"") -> bytes:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"GET {path} HTTP/1.1\r\nHost: registry.example.org\r\n{authorization}".encode() + more + b"\r\n"


def post(body: bytes, more: bytes = b"") -> bytes:
    head = b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + more
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


# As operators run it


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    flags = ("--address-rate", "20", "--key-rate", "20")  # 200 and 100 at once
    with running(tmp_path_factory.mktemp("limits") / "data", *flags) as process:
        yield process


def port_of(process: Process) -> int:
    return int(process.url.rpartition(":")[2])


async def test_a_flood_of_bad_keys_is_refused_and_good_ones_are_served(registry: Process) -> None:
    port, wrong = port_of(registry), get(BASE, "sk-node-wrong")
    statuses = [(await ask(port, wrong, "127.0.0.2"))[0] for _ in range(500)]
    assert set(statuses) <= {401, 429}

    async def refused() -> dict[str, str] | None:
        status, headers, problem = await ask(port, wrong, "127.0.0.2")
        return headers if (status, problem.get("code")) == (429, "too_many_bad_keys") else None

    headers = await until(refused)
    assert int(headers["retry-after"]) >= 1
    assert headers["connection"] == "close"
    assert (await ask(port, get(BASE, ADMIN_KEY), "127.0.0.2"))[0] == 200  # a good key, behind the same address
    assert (await ask(port, wrong, "127.0.0.5"))[0] == 401
    assert await refusals(registry, "bad_keys") >= 1


async def test_who_has_no_key_is_counted_by_address_and_who_has_one_by_it(registry: Process) -> None:
    port = port_of(registry)
    async with session(registry.url, None) as client:
        async with client.post(f"{BASE}/register", json={"node_id": "limited"}) as answer:
            key = (await answer.json())["api_key"]
    for sent, address, most in ((get("/healthz"), "127.0.0.3", 200), (get(f"{BASE}/limited", key), "127.0.0.4", 100)):
        answers = [await ask(port, sent, address) for _ in range(most + 40)]
        while answers[-1][0] != 429:
            answers.append(await ask(port, sent, address))
            assert len(answers) < 4 * most
        assert {status for status, _, _ in answers} == {200, 429}
        assert answers[-1][2]["code"] == "too_many_requests"
        assert [status for status, _, _ in answers[: most - 1]] == [200] * (most - 1)
    assert (await ask(port, get("/nowhere"), "127.0.0.3"))[0] in (404, 429)
    assert (await ask(port, get("/healthz"), "127.0.0.6"))[0] == 200
    assert await refusals(registry, "address_rate") >= 1
    assert await refusals(registry, "key_rate") >= 1


async def refusals(registry: Process, limit: str) -> float:
    headers = {"Accept": "text/plain"}
    async with session(registry.url) as admin, admin.get("/metrics", headers=headers) as answer:
        lines = (await answer.text()).splitlines()
    found = [line for line in lines if line.startswith(f'dagi_registry_refused_total{{limit="{limit}"}}')]
    return float(found[0].split()[-1]) if found else 0.0


# In this process: the waits are ended by hand


class House:
    """A gate and a door of the registry's before one handler that reads a body."""

    def __init__(self, tls: Any) -> None:
        self.counted: list[str] = []
        loop = asyncio.get_running_loop()
        limits = Limits(loop.time, self.counted.append)
        directory = Directory(Windows(30, 90, 300), 0.0, "local")
        auth = Authenticator("key", directory, b"s" * 32, [key_hash(ADMIN_KEY)], True)
        callers = Callers(auth, (), limits)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/register", self._register)
        app.router.add_get("/", callers.public(self._long))
        refusals = Refusals(Audit(SystemClock()), callers)
        gate = Gate(app, Metrics(), (), {}, self._forward, callers, limits, refusals)
        self.runner = Runner(app, gate, shutdown_timeout=0.1)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.lines: list[Line] = []
        self._limits, self._tls = limits, tls

    async def start(self) -> "House":
        await self.runner.setup()
        self.door = Door(self.runner, self.listener, self._limits, (), self._tls)
        await self.door.start()
        return self

    def pass_s(self, seconds: int) -> None:
        """So long passes for those that we wait for."""
        for _ in range(seconds):
            self.runner._patience.sweep()

    @staticmethod
    async def _register(request: web.Request) -> web.StreamResponse:
        return answer_json({"keys": len(await read_json(request))})

    @staticmethod
    async def _long(request: web.Request) -> web.StreamResponse:
        return answer_json("x" * 2**24)

    @staticmethod
    async def _forward(request: web.Request) -> web.StreamResponse | None:
        raise AssertionError("nothing is passed on")


class Line:
    """A connection to it, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def to_end(self) -> bytes:
        """Everything that comes until the other side hangs up."""
        found = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(SOON_S):
                while piece := await self.reader.read(65_536):
                    found += piece
        return found

    async def flood(self) -> None:
        """Send until that fails."""
        async with asyncio.timeout(SOON_S):
            while True:
                self.writer.write(b" " * 65_536)
                await self.writer.drain()


@contextlib.asynccontextmanager
async def running_house(tls: Any = None) -> AsyncIterator[House]:
    made = await House(tls).start()
    try:
        yield made
    finally:
        for line in made.lines:
            line.writer.transport.abort()
        await made.runner.cleanup()
        await asyncio.sleep(0.01)  # the lines' ends


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with running_house() as made:
        yield made


async def connect(house: House, sent: bytes = b"", address: str = "127.0.0.1") -> Line:
    line = Line(*await asyncio.open_connection("127.0.0.1", house.port, local_addr=(address, 0)))
    house.lines.append(line)
    line.send(sent)
    return line


async def counted(house: House, name: str, times: int = 1) -> None:
    async def enough() -> bool:
        return house.counted.count(name) >= times

    await until(enough)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", b""), (b"GET / HTTP/1.1\r\nHo", b""), (get("/no") + b"GET /", b"HTTP/1.1 404 Not Found")],
    ids=["silent", "first", "second"],
)
async def test_a_head_that_does_not_end_is_cut(house: House, sent: bytes, answered: bytes) -> None:
    line = await connect(house, sent)

    async def waited_for() -> bool:
        return len(house.runner._patience.heads) == (0 if answered else 1) and house.runner.server.connections != []

    await until(waited_for)
    if answered:
        await line.reader.readuntil(b"\r\n\r\n")
    for _ in range(HEAD_SWEEPS):
        if sent:
            line.send(b"a")
            await asyncio.sleep(0.01)  # it drips
        house.pass_s(1)
    if answered:
        house.pass_s(1)
    await line.to_end()
    assert house.counted == ["head_time"]


async def test_a_body_that_does_not_end_is_answered_and_cut(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BODY_S", 0.1)
    line = await connect(house, post(b"{")[:-1])
    found = await line.to_end()
    assert found.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"
    assert house.counted == ["body_time"]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_answer_that_nobody_takes_is_cut(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def ask_and_take_nothing() -> None:
        async with running_house() as house:
            line = await connect(house, get("/"))
            line.writer.transport.pause_reading()

            async def stuck() -> bool:
                return bool(house.runner._patience.answers)

            await until(stuck)
            house.pass_s(30)
            assert house.counted == ["answer_time"]
            line.writer.transport.resume_reading()
            assert len(await line.to_end()) < 2**24

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(ask_and_take_nothing())


async def test_who_keeps_on_sending_after_the_answer_is_cut(house: House) -> None:
    line = await connect(house, post(b"")[:-5] + b"9999999999\r\n\r\n")
    with pytest.raises(ConnectionError):
        await line.flood()
    assert house.counted == ["body_size"]


SIZES: list[tuple[str, bytes, int, str]] = [
    ("a header of 9 KB", get("/", None, b"X: " + b"a" * 9_000 + b"\r\n"), 431, "head_size"),
    ("200 headers", get("/", None, b"".join(b"X-%d: a\r\n" % i for i in range(200))), 431, "head_size"),
    ("a long URL", get("/" + "a" * 9_000), 414, "head_size"),
    ("a long body", post(b" " * (MAX_BODY_BYTES + 1)), 413, "body_size"),
    ("a bomb", post(gzip.compress(b" " * 100_000_000), b"Content-Encoding: gzip\r\n"), 413, "body_size"),
    ("half a compressed body", post(gzip.compress(b"{}" * 100)[:-9], b"Content-Encoding: gzip\r\n"), 400, ""),
    ("an unknown coding", post(b"{}", b"Content-Encoding: br\r\n"), 415, ""),
    ("a compressed body", post(gzip.compress(b'{"a":1}'), b"Content-Encoding: gzip\r\n"), 200, ""),
]


@pytest.mark.parametrize(("sent", "status", "limit"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
async def test_sizes(house: House, sent: bytes, status: int, limit: str) -> None:
    found, headers, body = await ask(house.port, sent)
    assert (found, house.counted) == (status, [limit] if limit else [])
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        assert body["detail"].endswith(".")


async def test_a_head_that_comes_piece_by_piece_has_an_end_too(house: House) -> None:
    line = await connect(house, b"GET / HTTP/1.1\r\n")
    for number in range(MOST_HEAD_BYTES // 4_000 + 1):
        line.send(b"X-%d: %b\r\n" % (number, b"a" * 4_000))
        await asyncio.sleep(0.01)
    assert (await line.to_end()).startswith(b"HTTP/1.0 431 ")
    assert house.counted == ["head_size"]


async def test_connections_are_counted_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "MOST_OF_ADDRESS", 4)
    monkeypatch.setattr(door_module, "MOST_CONNECTIONS", 6)
    async with running_house() as house:
        greedy = [await connect(house, address="127.0.0.2") for _ in range(4)]
        assert (await ask(house.port, get("/no"), "127.0.0.2"))[0] == 0
        assert house.counted == ["connections_of_address"]
        others = [await connect(house, address=f"127.0.0.{number}") for number in (3, 4, 5)]
        assert await greedy[0].to_end() == b""  # the first of whoever holds the most makes room
        await counted(house, "connections")
        assert (await ask(house.port, get("/no"), "127.0.0.6"))[0] == 404
        assert await greedy[1].to_end() == b""
        assert [line.reader.at_eof() for line in (*greedy[2:], *others)] == [False] * 5
        assert house.counted == ["connections_of_address", "connections", "connections"]


async def test_a_handshake_that_does_not_end_is_cut(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "HANDSHAKE_S", 0.2)
    async with running_house(certificate(tmp_path / "tls")[1]) as house:
        for line in [*[await connect(house) for _ in range(3)], await connect(house, get("/"))]:
            await line.to_end()
        await counted(house, "handshake", 4)
        assert len(house.door._crowd) == 0
