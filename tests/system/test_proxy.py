"""The proxy that chaos tests and benchmarks put between registries does what it says, and little else."""

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.live import until
from tests.support.proxy import Forwarder, Network, Way

SOON_S = 5.0
_DIAL = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as line:
    sys.stdin.readline()
    line.sendall(b"x")
    sys.stdout.buffer.write(line.recv(1))
"""


class Echo:
    """A server that sends back what it gets, and a forwarder before it with a way there and a way back."""

    def __init__(self, port: int) -> None:
        self.there, self.back = Way(), Way()
        self.forwarder = Forwarder(port, self._ways)

    async def _ways(self, _port: int) -> tuple[Way, Way]:
        return self.there, self.back

    @contextlib.asynccontextmanager
    async def line(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection through the forwarder."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.forwarder.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def _send_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write(b"bye")
        writer.write_eof()
    writer.close()


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[int]:
    server = await asyncio.start_server(_send_back, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with _server() as port:
        found = Echo(port)
        await found.forwarder.start()
        yield found
        await found.forwarder.close()
        await asyncio.sleep(0.01)  # the server's side ends


async def _round_trip_s(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = b"ping") -> float:
    started_s = time.monotonic()
    writer.write(data)
    async with asyncio.timeout(SOON_S):
        assert await reader.readexactly(len(data)) == data
    return time.monotonic() - started_s


async def test_it_passes_everything_and_one_sided_ends(echo):
    data = bytes(range(256)) * 20_000
    async with echo.line() as (reader, writer):
        await _round_trip_s(reader, writer, data)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), SOON_S) == b"bye"


async def test_without_faults_it_adds_less_than_a_millisecond(echo):
    async with echo.line() as (reader, writer):
        took_s = [await _round_trip_s(reader, writer) for _ in range(200)]
    assert statistics.median(took_s) < 0.002  # there and back


async def test_a_delay_is_of_each_direction_and_takes_no_bandwidth(echo):
    data = b"x" * 4_000_000
    async with echo.line() as (reader, writer):
        echo.there.delay_s = 0.1
        # The quickest of some, as a busy machine delays what it likes.
        assert 0.1 <= min([await _round_trip_s(reader, writer) for _ in range(5)]) < 0.2
        echo.back.delay_s = 0.1
        assert 0.2 <= await _round_trip_s(reader, writer, data) < 4.0  # piece by piece it would be 6 s and more


async def test_jitter_and_loss_keep_the_order(echo):
    echo.there.jitter_s, echo.there.loss = 0.01, 0.2
    data = bytes(range(200))
    async with echo.line() as (reader, writer):
        for byte in data:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        async with asyncio.timeout(SOON_S):
            assert await reader.readexactly(len(data)) == data


async def test_what_is_held_arrives_afterwards(echo):
    async with echo.line() as (reader, writer):
        echo.back.hold()
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(4), 0.1)
        echo.back.release()
        assert await asyncio.wait_for(reader.readexactly(4), SOON_S) == b"held"


async def test_a_connection_that_lost_something_stays_dead_and_others_do_not(echo):
    async with echo.line() as (reader, writer):
        echo.there.lose()
        writer.write(b"lost")
        await until(lambda: asyncio.sleep(0, any(pipe.dead for pipe in echo.there._pipes)))
        echo.there.mend()
        writer.write(b"more")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        async with echo.line() as (another, way_in):
            await _round_trip_s(another, way_in)


async def test_a_reset_is_one(echo):
    async with echo.line() as (reader, writer):
        await _round_trip_s(reader, writer)
        echo.there.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), SOON_S)
    assert echo.there.connections == 0


async def test_new_connections_are_refused_while_old_ones_live(echo):
    async with echo.line() as (reader, writer):
        await _round_trip_s(reader, writer)
        echo.there.refuses = True
        with pytest.raises(OSError, match="reset"):
            async with echo.line() as (refused, _):
                await asyncio.wait_for(refused.read(1), SOON_S)
        await _round_trip_s(reader, writer)


async def test_a_slow_reader_slows_its_sender(echo):
    async with echo.line() as (reader, writer):
        writer.write(b"x" * 50_000_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        del reader


async def test_where_nobody_listens_a_dialler_is_cut(unused_tcp_port):
    found = Echo(unused_tcp_port)
    await found.forwarder.start()
    async with found.line() as (reader, _):
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), SOON_S)
    await found.forwarder.close()


async def test_a_network_knows_who_dials(tmp_path):
    """Only the way from the dialler that is meant is held."""
    async with _server() as port:
        network = Network()
        url = await network.add("eu", port)
        diallers = {
            name: await asyncio.create_subprocess_exec(
                sys.executable, "-c", _DIAL, url.rpartition(":")[2],
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=tmp_path,
            )
            for name in ("us", "asia")
        }  # fmt: skip
        try:
            for name, process in diallers.items():
                network.runs_as(name, process.pid)

            async def linked() -> bool:
                return all(network.way(name, "eu").connections == 1 for name in diallers)

            network.way("eu", "us").hold()
            await until(linked)
            assert network.strangers == 0
            answers = {name: asyncio.create_task(process.communicate(b"\n")) for name, process in diallers.items()}
            assert (await asyncio.wait_for(answers["asia"], SOON_S))[0] == b"x"
            assert not (await asyncio.wait({answers["us"]}, timeout=0.1))[0]
            network.way("eu", "us").release()
            assert (await asyncio.wait_for(answers["us"], SOON_S))[0] == b"x"
        finally:
            for process in diallers.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()
            await network.close()
        await asyncio.sleep(0.01)
