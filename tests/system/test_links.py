"""Links over real sockets, with peers that lie, stall, flood, repeat and break off."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket as sockets
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from federation.clock import Now
from federation.config import Config
from federation.ed25519 import PrivateKey
from federation.effects import Alert, Close, Effect, Send
from federation.engine import Engine
from federation.handshake import LINK_VERSION, Acceptor, Dialler
from federation.links import (
    LINK_PATH,
    Identity,
    IdentityError,
    Limits,
    Links,
    PeerState,
    load_or_create_identity,
)
from federation.messages import PROTOCOL_VERSION, Ack, Message, Prune
from federation.replica import Replica
from federation.roster import Advert
from federation.tls import Certificates, Files
from federation.wire import MAX_FRAME_SIZE, encode
from registry.certificates import registry_named
from tests.support.tls import Authority, certificate

SECRET = b"a secret of the federation, long enough"
DEADLINE_S = 10.0
QUICK = Limits(tick_s=0.02, shunned_s=0.0)


async def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Wait for something to be true."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.005)
    return value


class Recorder:
    """A member that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.messages: list[tuple[str, Message]] = []
        self.alerts: list[tuple[str, str, str | None]] = []
        self.pins: dict[str, bytes] = {}

    def connected(self, peer: str) -> None:
        self.events.append(("connected", peer))

    def disconnected(self, peer: str) -> None:
        self.events.append(("disconnected", peer))

    async def ready(self) -> None:
        pass

    def received(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))

    def alert(self, code: str, detail: str, peer: str | None = None) -> None:
        self.alerts.append((code, detail, peer))

    def pinned(self, registry_id: str) -> bytes | None:
        return self.pins.get(registry_id)

    def codes(self) -> list[str]:
        return [code for code, _, _ in self.alerts]


class Member(Recorder):
    """One with a real engine behind it."""

    def __init__(self, registry_id: str) -> None:
        super().__init__()
        self.engine = Engine(Config(registry_id, advert=b"a"), Replica(registry_id), Random(registry_id), self.now())
        self.links: Links | None = None

    def now(self) -> Now:
        return Now(time.monotonic(), int(time.time() * 1000))

    def connected(self, peer: str) -> None:
        super().connected(peer)
        self.perform(self.engine.connected(peer, self.now()))

    def disconnected(self, peer: str) -> None:
        super().disconnected(peer)
        self.perform(self.engine.disconnected(peer, self.now()))

    def received(self, peer: str, message: Message) -> None:
        self.perform(self.engine.receive(peer, message, self.now()))

    def perform(self, effects: list[Effect]) -> None:
        assert self.links is not None
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self.links.send(peer, message)
                case Close(peer, reason):
                    self.links.close(peer, reason)
                case Alert(code, detail, peer):
                    self.alert(code, detail, peer)


class Site:
    """A registry's port with its links behind."""

    def __init__(self, name: str, member: Recorder, links: Links, url: str, runner: web.AppRunner) -> None:
        self.name, self.member, self.links, self.url, self.runner = name, member, links, url, runner

    def state(self, peer: str | None) -> PeerState | None:
        return next((state for state in self.links.peers() if state.registry_id == peer), None)

    def is_up(self, peer: str) -> bool:
        state = self.state(peer)
        return state is not None and state.state == "up"

    async def close(self) -> None:
        started = time.monotonic()
        await self.links.stop()
        assert time.monotonic() - started < DEADLINE_S / 2, "nobody's silence holds it"
        await self.runner.cleanup()


Build = Callable[..., Awaitable[Site]]


def key_of(name: str) -> PrivateKey:
    return PrivateKey(name.encode().ljust(32, b"."))


def identity_of(
    name: str, *, key: str | None = None, url: str | None = None, secret: bytes | None = SECRET
) -> Identity:
    return Identity(name, "here", url, key_of(key or name), secret)


def advert_of(site: Site) -> Advert:
    return Advert(site.url, "here", key_of(site.name).public, LINK_VERSION)


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """Makes registries, and closes them: nothing may be left."""
    sites: list[Site] = []
    before = asyncio.all_tasks()

    async def make(
        name: str, *seeds: str, key: str | None = None, secret: bytes | None = SECRET, limits: Limits = QUICK,
        member: Recorder | None = None, port: int = 0, tls: Any = None, trust: Any = None, mutual: Files | None = None,
        start: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Site:  # fmt: skip
        listener = sockets.create_server(("127.0.0.1", port), backlog=1024)
        url = f"{'https' if tls or mutual else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        member = member or Recorder()
        shown = Certificates(mutual, listens=True) if mutual else None
        identity = identity_of(name, key=key, url=url, secret=secret)
        links = Links(
            identity, member, seeds, Random(name), ssl_context=shown.client if shown else trust,
            named=registry_named if shown else None, limits=limits, monotonic=monotonic,
        )  # fmt: skip
        if isinstance(member, Member):
            member.links = links
        app = web.Application()

        async def accept(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            return await links.accept(request, registry_named(request.transport.get_extra_info("peercert")))

        app.router.add_get(LINK_PATH, accept)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = shown.server if shown else tls
        await web.SockSite(runner, listener, ssl_context=context, backlog=1024).start()
        if start:
            await links.start()
        sites.append(Site(name, member, links, url, runner))
        return sites[-1]

    yield make
    for site in sites:
        await site.close()
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    for site in sites:
        assert site.links.peers() == [] or all(state.state == "down" for state in site.links.peers())
        ups = [peer for event, peer in site.member.events if event == "connected"]
        downs = [peer for event, peer in site.member.events if event == "disconnected"]
        assert sorted(ups) == sorted(downs)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.asynccontextmanager
async def opened(client: aiohttp.ClientSession, site: Site) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A WebSocket to a registry, before any handshake."""
    timeout = aiohttp.ClientWSTimeout(ws_close=0.5)
    async with client.ws_connect(site.url + LINK_PATH, timeout=timeout, max_msg_size=MAX_FRAME_SIZE + 1) as ws:
        yield ws


async def proved(ws: aiohttp.ClientWebSocketResponse, identity: Identity) -> list[str]:
    """Shake hands over it as that registry; what was said."""
    dialler = Dialler(identity, os.urandom(32), lambda registry_id: None)
    said = [dialler.first()]
    await ws.send_str(said[0])
    said.append(await ws.receive_str(timeout=DEADLINE_S))
    proof = dialler.receive(said[-1])
    assert proof is not None
    said.append(proof)
    await ws.send_str(proof)
    said.append(await ws.receive_str(timeout=DEADLINE_S))
    dialler.receive(said[-1])
    return said


@contextlib.asynccontextmanager
async def linked(
    client: aiohttp.ClientSession, site: Site, name: str = "evil"
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A link that the registry takes for one to `name`, in the hands of the test."""
    async with opened(client, site) as ws:
        await proved(ws, identity_of(name))
        await until(lambda: site.is_up(name))
        yield ws


async def closing_reason(ws: aiohttp.ClientWebSocketResponse) -> str:
    """The code word with which the registry ends the connection."""
    while True:
        message = await ws.receive(timeout=DEADLINE_S)
        if message.type is WSMsgType.CLOSE:
            return str(message.extra)
        assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message


@contextlib.asynccontextmanager
async def impostor(handler: Callable[[web.WebSocketResponse], Awaitable[None]]) -> AsyncIterator[str]:
    """A server at which registries may dial, in the hands of the test; its URL."""

    async def handle(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(timeout=0.1)
        await ws.prepare(request)
        await handler(ws)
        return ws

    app = web.Application()
    app.router.add_get(LINK_PATH, handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def answering_as(name: str) -> Callable[[web.WebSocketResponse], Awaitable[None]]:
    """What an impostor does that knows the secret: it proves to be that registry, and then only listens."""

    async def answer(ws: web.WebSocketResponse) -> None:
        acceptor = Acceptor(identity_of(name), os.urandom(32), lambda registry_id: None)
        with contextlib.suppress(aiohttp.WSMessageTypeError):
            for _ in range(2):
                await ws.send_str(acceptor.receive(await ws.receive_str()))
            async for _ in ws:
                pass

    return answer


# Links that work


async def test_a_link_carries_messages_both_ways(build: Build) -> None:
    eu = await build("eu")
    us = await build("us", eu.url)
    await until(lambda: eu.is_up("us") and us.is_up("eu"))
    us.links.send("eu", Ack(1))
    eu.links.send("us", Ack(2))
    await until(lambda: eu.member.messages == [("us", Ack(1))] and us.member.messages == [("eu", Ack(2))])
    await until(lambda: us.state("eu").rtt_ms is not None and eu.state("us").rtt_ms is not None)
    seen = us.state("eu")
    assert seen is not None
    assert (seen.url, seen.region, seen.dialled, seen.last_error) == (eu.url, "here", True, None)
    assert seen.identity == key_of("eu").public
    assert (seen.frames_in, seen.bytes_in) == (1, len(encode(Ack(2))))
    assert seen.frames_out >= 2
    assert 0 < seen.rtt_ms < 1_000
    assert seen.queued_bytes == 0
    assert not eu.member.alerts
    assert not us.member.alerts


async def test_two_registries_replicate_a_record(build: Build) -> None:
    eu = await build("eu", member=Member("eu"))
    us = await build("us", eu.url, member=Member("us"))
    one, other = eu.member, us.member
    assert isinstance(one, Member)
    assert isinstance(other, Member)
    await until(lambda: any(link.greeted for link in one.engine.links.values()))
    await until(lambda: any(link.greeted for link in other.engine.links.values()))
    _, effects = one.engine.register("n:a", b"payload", one.now(), incarnation=1, judgement=b"online")
    one.perform(effects)
    record = await until(lambda: other.engine.replica.get("n:a"))
    assert record.spec.payload == b"payload"
    assert not one.alerts + other.alerts


async def test_a_link_over_tls(build: Build, tmp_path: Path) -> None:
    import ssl

    cert, server = certificate(tmp_path / "tls")
    eu = await build("eu", tls=server)
    us = await build("us", eu.url, trust=ssl.create_default_context(cafile=str(cert)))
    await until(lambda: us.is_up("eu") and eu.is_up("us"))
    stranger = await build("ap", eu.url)
    error = await until(lambda: stranger.state(None).last_error)
    assert "ertificate" in error
    us.links.send("eu", Ack(1))
    await until(lambda: eu.member.messages)


async def test_with_mutual_tls_each_shows_that_it_is_the_registry_it_proves_to_be(build: Build, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = {name: authority.issue("registry", name, "127.0.0.1") for name in ("eu", "us")}
    eu = await build("eu", mutual=own["eu"])
    us = await build("us", eu.url, mutual=own["us"])
    await until(lambda: us.is_up("eu") and eu.is_up("us"))
    us.links.send("eu", Ack(1))
    await until(lambda: eu.member.messages)
    assert not eu.member.alerts + us.member.alerts


@pytest.mark.parametrize("kind", ["another registry's", "a node's"])
async def test_a_dialler_with_a_certificate_that_is_not_its_own(build: Build, tmp_path: Path, kind: str) -> None:
    """It knows the secret, and the certificate is another's."""
    authority = Authority(tmp_path)
    eu = await build("eu", mutual=authority.issue("registry", "eu", "127.0.0.1"))
    stolen = authority.issue("registry", "ap") if kind == "another registry's" else authority.issue("node", "us")
    # It takes whatever certificate the other side has, as somebody who means ill would.
    us = await build("us", eu.url, trust=Certificates(stolen).client)
    await until(lambda: eu.member.alerts and us.member.alerts)
    assert eu.member.codes() == ["wrong_certificate"]
    shown = "its certificate is ap's" if kind == "another registry's" else "no certificate of it names a registry"
    assert eu.member.alerts[0][1].startswith(f"us: it proved to be us, but {shown}; it needs one of its own")
    assert "dagi-registry ca issue --registry us" in eu.member.alerts[0][1]
    assert us.member.codes() == ["refused"]
    assert "dagi-registry ca issue --registry us" in us.member.alerts[0][1]
    assert not eu.member.events + us.member.events


async def test_a_dialled_one_with_a_certificate_that_is_not_its_own(build: Build, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    eu = await build("eu", mutual=authority.issue("registry", "ap", "127.0.0.1"))
    us = await build("us", eu.url, mutual=authority.issue("registry", "us"))
    await until(lambda: eu.member.alerts and us.member.alerts)
    assert us.member.codes() == ["wrong_certificate"]
    assert "it proved to be eu, but its certificate is ap's" in us.member.alerts[0][1]
    assert eu.member.codes() == ["refused"]
    assert not eu.member.events + us.member.events


async def test_with_mutual_tls_a_peer_without_any_is_no_peer(build: Build, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    eu = await build("eu")  # http
    us = await build("us", eu.url, mutual=authority.issue("registry", "us", "127.0.0.1"))
    await until(lambda: us.member.alerts)
    assert us.member.codes() == ["wrong_certificate"]
    bare = await build("ap", us.url, trust=Certificates(Files(ca=authority.ca)).client)
    error = await until(lambda: bare.state(None).last_error)
    assert error == "TLS failed: it wants a certificate, and was shown none"
    assert not us.member.events


async def test_a_message_on_an_idle_link_leaves_at_once(build: Build) -> None:
    eu = await build("eu")
    us = await build("us", eu.url)
    await until(lambda: eu.is_up("us") and us.is_up("eu"))
    turns = []
    for number in range(50):
        us.links.send("eu", Ack(number))
        deadline = time.monotonic() + DEADLINE_S
        turns.append(0)
        while len(eu.member.messages) <= number:
            await asyncio.sleep(0)
            turns[-1] += 1
            assert time.monotonic() < deadline
    assert sorted(turns)[25] <= 4, "one to be written, one to be read, one to be handed over"


async def test_small_messages_do_not_wait_for_acknowledgements(build: Build) -> None:
    eu = await build("eu")
    us = await build("us", eu.url)
    await until(lambda: eu.is_up("us") and us.is_up("eu"))
    for site, peer in ((eu, "us"), (us, "eu")):
        transport = site.links._links[peer].socket.transport
        raw = transport.get_extra_info("socket")
        assert raw.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY)


async def test_all_are_linked_to_all_by_one_seed(build: Build) -> None:
    """The roster comes from the first one, as the engine would bring it."""
    first = await build("r0")
    sites = [first] + [await build(f"r{index}", first.url) for index in range(1, 6)]
    roster = {site.name: advert_of(site) for site in sites}
    for site in sites:
        site.links.know(roster)
    await until(lambda: all(one.is_up(two.name) for one in sites for two in sites if one is not two))
    for site in sites:
        assert [state.registry_id for state in site.links.peers()].count(None) == 0
        assert len(site.links.peers()) == len(sites) - 1


async def test_both_dial_at_once_and_one_link_is_left(build: Build) -> None:
    for round_ in range(5):
        eu, us = await build(f"eu{round_}", start=False), await build(f"us{round_}", start=False)
        for one, other in ((eu, us), (us, eu)):
            one.links.know({other.name: advert_of(other)})
        await asyncio.gather(eu.links.start(), us.links.start())
        await until(lambda eu=eu, us=us: eu.is_up(us.name) and us.is_up(eu.name))
        await until(lambda eu=eu, us=us: len(eu.links._tasks) == len(us.links._tasks) == 1)
        assert eu.state(us.name).dialled is not us.state(eu.name).dialled
        us.links.send(eu.name, Ack(1))
        await until(lambda eu=eu: eu.member.messages)


# Links that end


async def test_a_cut_link_is_dialled_again(build: Build) -> None:
    eu = await build("eu")
    us = await build("us", eu.url)
    await until(lambda: eu.is_up("us") and us.is_up("eu"))
    for site, peer in ((eu, "us"), (us, "eu")):
        site.links._links[peer].socket.transport.abort()
        await until(lambda: us.member.events[-2:] == [("disconnected", "eu"), ("connected", "eu")])
        await until(lambda: eu.is_up("us") and us.is_up("eu"))
        us.member.events += [("disconnected", "?"), ("connected", "?")]
    del us.member.events[:]
    us.member.events += [("connected", "eu")]


async def test_a_frame_that_breaks_off_ends_the_link_and_nothing_of_it_arrives(
    build: Build, client: aiohttp.ClientSession
) -> None:
    eu = await build("eu")
    async with linked(client, eu) as ws:
        transport = ws._response.connection.transport
        frame = encode(Ack(1))
        transport.write(bytes((0x82, 0x80 | len(frame))) + b"\0\0\0\0" + frame[:-1])
        transport.close()
        await until(lambda: ("disconnected", "evil") in eu.member.events)
    assert eu.member.messages == []
    assert not eu.member.alerts


async def test_stopping_says_goodbye_and_leaves_nothing(build: Build) -> None:
    eu = await build("eu")
    us = await build("us", eu.url)
    await until(lambda: eu.is_up("us") and us.is_up("eu"))
    await eu.links.stop()
    assert eu.member.events == [("connected", "us"), ("disconnected", "us")]
    await until(lambda: us.member.events == [("connected", "eu"), ("disconnected", "eu")])
    error = await until(lambda: us.state("eu").last_error)
    assert "stopped" in error or "503" in error
    assert us.state("eu").state == "down"
    await eu.links.stop()


async def test_a_pause_closes_all_and_lets_nobody_in(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    us = await build("us", eu.url)
    await until(lambda: eu.is_up("us") and us.is_up("eu"))
    eu.links.pause("the store is away")
    assert not eu.member.messages
    await until(lambda: eu.member.events == [("connected", "us"), ("disconnected", "us")])
    async with client.get(eu.url + LINK_PATH) as answer:
        assert answer.status == 503
        assert "the store is away" in (await answer.json())["detail"]
    await until(lambda: "503" in (us.state("eu").last_error or ""))
    eu.links.resume()
    await until(lambda: eu.is_up("us") and us.is_up("eu"))


async def test_who_pauses_dials_nobody(build: Build) -> None:
    eu = await build("eu")
    us = await build("us", eu.url, start=False)
    us.links.pause("another worker links")
    await us.links.start()
    us.links._tick(time.monotonic())
    assert not us.links._tasks
    us.links.resume()
    await until(lambda: us.is_up("eu"))


async def test_silence_is_suspected_and_then_ended(build: Build, client: aiohttp.ClientSession) -> None:
    clock = [100.0]
    eu = await build("eu", monotonic=lambda: clock[0], limits=Limits(tick_s=60))
    async with linked(client, eu):
        for _ in range(24):
            clock[0] += 0.1
            eu.links._tick(clock[0])
        assert eu.state("evil").state == "up"
        clock[0] += 0.2
        eu.links._tick(clock[0])
        assert eu.state("evil").state == "suspect"
        assert eu.state("evil").since_s == pytest.approx(0.1, abs=0.05)
        for _ in range(25):
            clock[0] += 0.1
            eu.links._tick(clock[0])
        await until(lambda: ("disconnected", "evil") in eu.member.events)
    assert eu.links.counts["silent"] == 1
    assert not eu.member.alerts


async def test_after_our_own_standstill_nobody_is_blamed(build: Build, client: aiohttp.ClientSession) -> None:
    clock = [100.0]
    eu = await build("eu", monotonic=lambda: clock[0], limits=Limits(tick_s=60))
    async with linked(client, eu) as ws:
        clock[0] += 60  # SIGSTOP, SIGCONT
        eu.links._tick(clock[0])
        assert eu.state("evil").state == "up"
        await ws.send_bytes(encode(Ack(1)))
        await until(lambda: eu.member.messages)
        assert eu.member.events == [("connected", "evil")]


async def test_a_process_that_was_stopped_comes_back(build: Build) -> None:
    """SIGSTOP: its peer lets it go; afterwards it sees that, and links again."""
    eu = await build("eu", limits=Limits(tick_s=0.02, suspect_s=0.7, silent_s=1.5, ping_s=0.1))
    process = started(eu.url)
    try:
        await until(lambda: eu.is_up("us"))
        process.send_signal(signal.SIGSTOP)
        await until(lambda: eu.member.events[-1] == ("disconnected", "us"))
        assert eu.links.counts["silent"] == 1
        process.send_signal(signal.SIGCONT)
        await until(lambda: eu.is_up("us"))
        await until(lambda: eu.state("us").rtt_ms)
        assert not eu.member.alerts
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        printed, _ = process.communicate(timeout=10)
    assert printed == b"stopped\n"
    assert process.returncode == 0


async def test_a_suspected_link_gives_way_to_whoever_dials(build: Build, client: aiohttp.ClientSession) -> None:
    """The other side may know that it is dead, and we do not yet."""
    clock = [100.0]
    eu = await build("eu", monotonic=lambda: clock[0], limits=Limits(tick_s=60))
    async with linked(client, eu) as old:
        clock[0] += 2.6
        async with opened(client, eu) as new:
            await proved(new, identity_of("evil"))
            assert await closing_reason(old) == "replaced"
    assert eu.member.events[:3] == [("connected", "evil"), ("disconnected", "evil"), ("connected", "evil")]


async def test_of_two_that_dialled_each_other_the_smaller_ids_link_stays_unless_it_is_suspected(
    build: Build, client: aiohttp.ClientSession
) -> None:
    clock = [100.0]
    async with impostor(answering_as("evil")) as url:
        eu = await build("eu", url, monotonic=lambda: clock[0], limits=Limits(tick_s=60))
        await until(lambda: eu.is_up("evil"))
        async with opened(client, eu) as ws:
            with pytest.raises(aiohttp.WSMessageTypeError, match="4409"):
                await proved(ws, identity_of("evil"))
        assert eu.member.events == [("connected", "evil")]
        clock[0] += 2.6
        async with opened(client, eu) as ws:
            await proved(ws, identity_of("evil"))
            await until(lambda: eu.state("evil").dialled is False)
        await eu.links.stop()


async def test_a_url_that_leads_to_who_is_linked_already_changes_nothing(
    build: Build, client: aiohttp.ClientSession
) -> None:
    eu = await build("eu")
    async with linked(client, eu), impostor(answering_as("evil")) as url:
        eu.links.know({"liar": Advert(url, "here", b"i" * 32, 1)})
        await until(lambda: eu.links.counts["duplicate"] >= 2)
        assert eu.member.events == [("connected", "evil")]
        assert not eu.member.alerts
        await eu.links.stop()


async def test_nothing_arrives_after_the_member_has_closed_the_link(
    build: Build, client: aiohttp.ClientSession
) -> None:
    class Closing(Recorder):
        def received(self, peer: str, message: Message) -> None:
            super().received(peer, message)
            eu.links.close(peer, "enough")

    eu = await build("eu", member=Closing())
    async with linked(client, eu) as ws:
        for number in range(5):
            await ws.send_bytes(encode(Ack(number)))
        assert await closing_reason(ws) == "closed"
    assert eu.member.messages == [("evil", Ack(0))]


async def test_a_member_in_the_midst_of_something_is_not_called(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    async with linked(client, eu) as ws:
        eu.links.close("evil", "it lies")
        assert eu.member.events == [("connected", "evil")]
        eu.links.send("evil", Ack(1))
        assert await closing_reason(ws) == "closed"
    assert eu.member.events == [("connected", "evil"), ("disconnected", "evil")]
    assert eu.state("evil") is None
    assert eu.member.alerts[0][0] == "closed"
    assert "it lies" in eu.member.alerts[0][1]


async def test_what_cannot_be_encoded_is_our_fault_and_the_link_stays(
    build: Build, client: aiohttp.ClientSession
) -> None:
    eu = await build("eu")
    async with linked(client, eu):
        eu.links.send("evil", Prune(("no id!",)))
        eu.links.send("evil", Ack(-1))
        eu.links.send("nobody", Ack(-1))
        assert eu.member.codes() == ["unsendable"]
        assert eu.member.alerts[0][2] == "evil"
        assert eu.is_up("evil")


# Who is refused


async def test_another_secret(build: Build) -> None:
    eu = await build("eu")
    us = await build("us", eu.url, secret=b"another secret, which is long as well")
    await until(lambda: us.member.alerts and eu.member.alerts)
    assert us.member.codes() == ["wrong_secret"]
    assert "REGISTRY_FEDERATION_SECRET" in us.member.alerts[0][1]
    assert us.member.alerts[0][2] is None
    assert eu.member.codes() == ["refused"]
    await until(lambda: us.links.counts["wrong_secret"] >= 3)
    assert len(us.member.alerts) == len(eu.member.alerts) == 1, "once a minute"
    assert not eu.member.events + us.member.events
    everything = json.dumps([us.member.alerts, eu.member.alerts])
    assert SECRET.decode() not in everything


async def test_no_secret(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu", secret=None)
    us = await build("us", eu.url)
    await until(lambda: "403" in (us.state(None).last_error or ""))
    async with client.get(eu.url + LINK_PATH) as answer:
        assert answer.status == 403
        assert list(await answer.json()) == ["detail"]
    eu.links.know({"us": advert_of(us)})
    assert not eu.links._tasks


async def test_what_is_no_websocket(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    async with client.get(eu.url + LINK_PATH) as answer:
        assert answer.status == 426
        assert "WebSocket" in (await answer.json())["detail"]
    assert not eu.links._half_open


async def test_another_version(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    async with opened(client, eu) as ws:
        await ws.send_str(f'{{"version":{LINK_VERSION + 1},"what":"ever"}}')
        assert await closing_reason(ws) == "wrong_version"
    assert eu.member.codes() == ["wrong_version"]
    assert "upgrade the older" in eu.member.alerts[0][1]


async def test_another_identity_than_the_pinned_one(build: Build) -> None:
    eu = await build("eu")
    eu.member.pins["us"] = key_of("us").public
    us = await build("us", eu.url, key="stolen")
    await until(lambda: eu.member.alerts and us.member.alerts)
    code, detail, peer = eu.member.alerts[0]
    assert (code, peer) == ("identity_changed", None)
    assert "us shows another identity than the one pinned" in detail
    assert "dagi-registry members --forget us" in detail
    assert eu.links._errors.get("us")
    assert us.member.codes() == ["refused"]
    assert "members --forget us" in us.member.alerts[0][1]


async def test_another_registry_of_the_same_id(build: Build) -> None:
    eu = await build("eu")
    twin = await build("eu", eu.url, key="twin")
    await until(lambda: twin.member.alerts and eu.member.alerts)
    assert twin.member.codes() == ["same_id"]
    assert "--registry-id" in twin.member.alerts[0][1]
    assert eu.member.codes() == ["refused"]


async def test_one_registry_twice_has_the_newer_link(build: Build, client: aiohttp.ClientSession) -> None:
    """It was started again, and we do not know yet that the older link is dead."""
    eu = await build("eu")
    async with linked(client, eu) as old, opened(client, eu) as new:
        await proved(new, identity_of("evil"))
        assert await closing_reason(old) == "replaced"
        await new.send_bytes(encode(Ack(1)))
        await until(lambda: eu.member.messages)
        assert eu.is_up("evil")
        assert len(eu.links.peers()) == 1


async def test_dialling_oneself(build: Build) -> None:
    eu = await build("eu", start=False)
    eu.links._dialling = type(eu.links._dialling)("eu", [eu.url], Random(1))
    await eu.links.start()
    await until(lambda: eu.links.counts["myself"])
    await until(lambda: not eu.links._tasks)
    eu.links._tick(time.monotonic() + 1e6)
    assert not eu.links._tasks
    assert not eu.member.events
    assert not eu.member.alerts
    assert eu.links.peers() == []


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda ws: ws.send_str("hello"), "malformed"),
        (lambda ws: ws.send_str("[" * 4_000), "malformed"),
        (lambda ws: ws.send_str(json.dumps({"version": 1, "id": "x" * 9_000})), "malformed"),
        (lambda ws: ws.send_bytes(encode(Ack(1))), "malformed"),
        (lambda ws: ws.send_bytes(b"\0" * (MAX_FRAME_SIZE + 1)), "malformed"),
    ],
)
async def test_garbage_instead_of_a_handshake(
    build: Build, client: aiohttp.ClientSession, send: Callable[[Any], Awaitable[None]], code: str
) -> None:
    eu = await build("eu")
    async with opened(client, eu) as ws:
        await send(ws)
        await until(lambda: eu.links.counts[code] == 1)
    assert eu.member.codes() == [code]
    assert eu.member.alerts[0][1].startswith("127.0.0.1")
    assert not eu.member.events


async def test_a_handshake_that_does_not_go_on(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu", limits=Limits(handshake_s=0.1))
    async with opened(client, eu) as ws:
        assert await closing_reason(ws) == "timeout"
    await until(lambda: not eu.links._half_open)
    assert not eu.member.alerts


async def test_a_recorded_handshake(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    async with opened(client, eu) as ws:
        said = await proved(ws, identity_of("us"))
    await until(lambda: len(eu.member.events) == 2)
    async with opened(client, eu) as ws:
        await ws.send_str(said[0])
        await ws.receive_str(timeout=DEADLINE_S)
        await ws.send_str(said[2])
        assert await closing_reason(ws) == "wrong_secret"
    assert len(eu.member.events) == 2


async def test_own_words_sent_back(build: Build, client: aiohttp.ClientSession) -> None:
    """By who is dialled, and by who dials."""

    async def echo(ws: web.WebSocketResponse) -> None:
        async for message in ws:
            await ws.send_str(message.data)

    async with impostor(echo) as url:
        eu = await build("eu", url)
        await until(lambda: eu.links.counts["malformed"])
        async with opened(client, eu) as ws:
            await ws.send_str(Dialler(identity_of("us", secret=b"x"), b"n" * 32, lambda _: None).first())
            answer = json.loads(await ws.receive_str(timeout=DEADLINE_S))
            await ws.send_str(json.dumps(answer["proof"]))
            assert await closing_reason(ws) == "wrong_secret"
        await eu.links.stop()
    assert not eu.member.events


async def test_a_dialler_relayed_to_another_registry_gets_that_one(build: Build, client: aiohttp.ClientSession) -> None:
    """Somebody between who only passes on may listen, but is nobody. (Against listening there is TLS.)"""
    us = await build("us")

    async def pass_on(ws: web.WebSocketResponse) -> None:
        async with opened(client, us) as other:
            for _ in range(2):
                await other.send_str(await ws.receive_str())
                await ws.send_str(await other.receive_str())
            async for _ in ws:
                pass

    async with impostor(pass_on) as url:
        eu = await build("eu", url)
        await until(lambda: eu.is_up("us"))
        await eu.links.stop()


async def test_a_url_that_redirects_or_is_no_registry(build: Build) -> None:
    target = await build("ap")

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(target.url + LINK_PATH)

    app = web.Application()
    app.router.add_get("/moved" + LINK_PATH, redirect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    eu = await build("eu", url + "/moved", url)
    errors = await until(
        lambda: all(s.last_error for s in eu.links.peers()) and [s.last_error for s in eu.links.peers()]
    )
    assert "redirects" in errors[0]
    assert "404" in errors[1]
    assert not target.member.events
    await eu.links.stop()
    await runner.cleanup()


async def test_a_thousand_half_open_connections_hinder_nobody(build: Build) -> None:
    """From an address of their own: each has its share of the half-open ones."""
    eu = await build("eu")
    us = await build("us", eu.url)
    await until(lambda: eu.is_up("us"))
    port = int(eu.url.rsplit(":", 1)[1])
    request = (
        f"GET {LINK_PATH} HTTP/1.1\r\nHost: eu\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    crowd: list[sockets.socket] = []
    try:
        for _ in range(1_000):
            crowd.append(sockets.create_connection(("127.0.0.1", port), 5, ("127.0.0.9", 0)))
            crowd[-1].sendall(request)
            if len(crowd) % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: eu.links.counts["busy"] > 900)
        assert eu.links._half_open.total() <= 16
        ap = await build("ap", eu.url)
        await until(lambda: ap.is_up("eu") and eu.is_up("ap"))
        us.links.send("eu", Ack(1))
        await until(lambda: eu.member.messages)
    finally:
        for one in crowd:
            one.close()


# Peers that proved themselves, and are hostile or broken all the same

ZIP_BOMB = bytes((0xDA, PROTOCOL_VERSION, 0x80 | 3)) + zlib.compress(b"\0" * 50_000_000, 9)
BAD_FRAMES = {
    "empty": (b"", "0 bytes"),
    "garbage": (b"\xff" + os.urandom(1_000), "another protocol"),
    "another protocol": (b"\x00\x01\x04\x01", "another protocol"),
    "another version": (bytes((0xDA, 9, 4, 1)), "version 9"),
    "unknown type": (bytes((0xDA, PROTOCOL_VERSION, 99, 1)), "type 99"),
    "cut": (encode(Ack(2**40))[:-1], "ends within a number"),
    "with more behind": (encode(Ack(1)) + b"x", "1 bytes follow"),
    "zip bomb": (ZIP_BOMB, "inflates to over"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_a_bad_frame_ends_the_link(build: Build, client: aiohttp.ClientSession, name: str) -> None:
    frame, why = BAD_FRAMES[name]
    eu = await build("eu")
    async with linked(client, eu) as ws:
        await ws.send_bytes(encode(Ack(1)))
        await ws.send_bytes(frame)
        await ws.send_bytes(encode(Ack(2)))
        assert await closing_reason(ws) == "bad_frame"
    assert eu.member.messages == [("evil", Ack(1))]
    assert eu.member.codes() == ["bad_frame"]
    assert why in eu.member.alerts[0][1]
    assert eu.member.alerts[0][2] == "evil"


async def test_the_largest_frame_is_taken_and_a_larger_one_is_cut(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    async with linked(client, eu) as ws:
        await ws.send_bytes(b"\xda" + b"\0" * (MAX_FRAME_SIZE - 1))
        assert await closing_reason(ws) == "bad_frame"
    assert "version 0" in eu.member.alerts[0][1], "it was read"
    await until(lambda: eu.state("evil") is None)
    async with linked(client, eu, "worse") as ws:
        await ws.send_bytes(b"\xda" + b"\0" * MAX_FRAME_SIZE)
        await until(lambda: ("disconnected", "worse") in eu.member.events)
    assert eu.links.counts["bad_frame_websocket"] == 1


@pytest.mark.parametrize("text", ["hello", "ping", "ping -1", "ping 1\n", "pong x", "ping " + "9" * 11, "x" * 100_000])
async def test_a_text_that_is_no_ping(build: Build, client: aiohttp.ClientSession, text: str) -> None:
    eu = await build("eu")
    async with linked(client, eu) as ws:
        await ws.send_str(text)
        assert await closing_reason(ws) == "bad_frame"


async def test_pings_are_answered_and_stray_pongs_passed_over(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    async with linked(client, eu) as ws:
        assert await ws.receive_str(timeout=DEADLINE_S) == "ping 1"
        await ws.send_str("pong 77")
        await ws.send_str("ping 5")
        assert await ws.receive_str(timeout=DEADLINE_S) == "pong 5"
        assert eu.state("evil").rtt_ms is None
        await ws.send_str("pong 1")
        await until(lambda: eu.state("evil").rtt_ms is not None)


async def test_who_broke_the_protocol_may_not_come_back_at_once(build: Build, client: aiohttp.ClientSession) -> None:
    clock = [100.0]
    eu = await build("eu", monotonic=lambda: clock[0], limits=Limits(tick_s=60, shunned_s=5))
    async with linked(client, eu) as ws:
        await ws.send_bytes(b"\0\0\0")
        assert await closing_reason(ws) == "bad_frame"
    async with opened(client, eu) as ws:
        with pytest.raises(aiohttp.WSMessageTypeError, match="4415"):
            await proved(ws, identity_of("evil"))
    clock[0] += 5.1
    async with linked(client, eu):
        assert eu.member.events[-1] == ("connected", "evil")


async def test_a_peer_that_never_reads_blocks_nobody(build: Build, client: aiohttp.ClientSession) -> None:
    """What is queued for it has an end; the healthy one hears everything meanwhile."""
    eu = await build("eu", limits=Limits(tick_s=0.02, suspect_s=60, silent_s=60))
    us = await build("us", eu.url)
    await until(lambda: us.is_up("eu") and eu.is_up("us"))
    async with linked(client, eu) as ws:
        ws._response.connection.transport.pause_reading()  # type: ignore[union-attr]  # it is open
        transport = eu.links._links["evil"].socket.transport
        sent = 0
        noise = [
            Prune(tuple(f"{Random(n).getrandbits(250):x}" for n in range(seed, seed + 4_000))) for seed in range(9)
        ]
        frame_size = len(encode(noise[0]))
        assert frame_size > 100_000
        while eu.is_up("evil"):
            eu.links.send("evil", noise[sent % 9])
            sent += 1
            eu.links.send("us", Ack(sent))
            state = eu.state("evil")
            assert state is None or state.queued_bytes < 17 * 2**20 + 200_000
            assert sent * frame_size < 64 * 2**20
            await asyncio.sleep(0)
        assert sent * frame_size > 16 * 2**20
        await until(lambda: ("disconnected", "evil") in eu.member.events)
        await until(lambda: us.member.messages[-1:] == [("eu", Ack(sent))])
        assert [message for _, message in us.member.messages] == [Ack(number + 1) for number in range(sent)]
        await until(lambda: len(eu.links._tasks) == 1)
        assert transport.get_write_buffer_size() == 0, "its socket is gone, with what was meant for it"
        assert eu.member.codes() == ["slow"]


async def test_a_peer_that_takes_nothing_for_long_is_let_go(build: Build, client: aiohttp.ClientSession) -> None:
    clock = [100.0]
    eu = await build("eu", monotonic=lambda: clock[0], limits=Limits(tick_s=60, silent_s=1e9))
    async with linked(client, eu) as ws:
        ws._response.connection.transport.pause_reading()  # type: ignore[union-attr]  # it is open
        noise = Prune(tuple(f"{Random(n).getrandbits(250):x}" for n in range(4_000)))
        while eu.links._links["evil"]._queued_bytes < 1_000_000:
            eu.links.send("evil", noise)
            await asyncio.sleep(0)
        for _ in range(98):
            clock[0] += 0.1
            eu.links._tick(clock[0])
        assert eu.member.events == [("connected", "evil")]
        for _ in range(5):
            clock[0] += 0.1
            eu.links._tick(clock[0])
        await until(lambda: ("disconnected", "evil") in eu.member.events)
    assert eu.member.codes() == ["slow"]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: how long that takes is a matter of all the tests before."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_a_flood_of_frames_leaves_turns_to_others(build: Build, client: aiohttp.ClientSession) -> None:
    eu = await build("eu")
    async with linked(client, eu) as ws:
        flood = [encode(Ack(number)) for number in range(20_000)]

        async def send() -> None:
            for number, frame in enumerate(flood):
                await ws.send_bytes(frame)
                if number % 100 == 0:
                    await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        longest_s, last_s = 0.0, time.process_time()  # a busy machine is not our fault
        began_s = last_s
        while len(eu.member.messages) < len(flood):
            await asyncio.sleep(0)
            now_s = time.process_time()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
        await sending
        assert longest_s < (last_s - began_s) / 4
        assert [message for _, message in eu.member.messages] == [Ack(number) for number in range(20_000)]


@pytest.mark.usefixtures("uncollected")
async def test_frames_that_take_long_leave_turns_to_others(build: Build, client: aiohttp.ClientSession) -> None:
    class Slow(Recorder):
        def received(self, peer: str, message: Message) -> None:
            super().received(peer, message)
            until_s = time.process_time() + 0.002
            while time.process_time() < until_s:
                pass

    eu = await build("eu", member=Slow())
    async with linked(client, eu) as ws:
        for number in range(200):
            await ws.send_bytes(encode(Ack(number)))
        longest_s, last_s = 0.0, time.process_time()
        began_s = last_s
        while len(eu.member.messages) < 200:
            await asyncio.sleep(0)
            now_s = time.process_time()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
        assert longest_s < (last_s - began_s) / 4


async def test_an_error_of_the_member_ends_that_link_only(
    build: Build, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Recorder):
        def received(self, peer: str, message: Message) -> None:
            if peer == "evil":
                raise KeyError("oh")
            super().received(peer, message)

    eu = await build("eu", member=Broken())
    us = await build("us", eu.url)
    async with linked(client, eu) as ws:
        await ws.send_bytes(encode(Ack(1)))
        assert await closing_reason(ws) == "fault"
    await until(lambda: eu.is_up("us") and us.is_up("eu"))
    us.links.send("eu", Ack(2))
    await until(lambda: eu.member.messages == [("us", Ack(2))])
    assert eu.member.codes() == ["fault"]
    assert "by our fault" in caplog.text


async def test_alerts_of_strangers_have_an_end(build: Build) -> None:
    eu = await build("eu")
    for number in range(100):
        eu.links._advise("malformed", f"10.0.0.{number}", "garbage", None)
        eu.links._advise("malformed", "10.0.0.1", "garbage", None)
    assert len(eu.member.alerts) == 20
    for number in range(3_000):
        eu.links._note(f"id{number}", "x")
    assert len(eu.links._errors._values) <= 1_024


# What it is told, and tells


async def test_peers_tells_of_whoever_is_known(build: Build) -> None:
    eu = await build("eu", "http://127.0.0.1:1")
    gone = Advert("http://127.0.0.1:2", "far", b"i" * 32, 1)
    eu.links.know({"gone": gone, "nat": Advert(None, "home", b"j" * 32, 1), "eu": gone})
    await until(lambda: all(state.last_error for state in eu.links.peers() if state.url))
    found: Mapping[str | None, PeerState] = {state.registry_id: state for state in eu.links.peers()}
    assert found.keys() == {None, "gone", "nat"}
    assert {state.state for state in found.values()} == {"down"}
    assert (found["gone"].url, found["gone"].region, found["gone"].identity) == (gone.url, "far", b"i" * 32)
    assert (found["nat"].url, found["nat"].dialled) == (None, None)
    assert "onnect" in (found[None].last_error or "")


@pytest.mark.parametrize("seed", ["eu.example.org", "ftp://eu", "http://a@eu"])
def test_a_seed_that_is_no_url(seed: str) -> None:
    with pytest.raises(ValueError, match="is no URL of a registry"):
        Links(identity_of("eu"), Recorder(), [seed], Random(1))


# The identity's file


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key = load_or_create_identity(folder)
    assert load_or_create_identity(folder).seed == key.seed
    assert [path.name for path in folder.iterdir()] == ["identity.key"]
    assert stat.S_IMODE((folder / "identity.key").stat().st_mode) == 0o600


def test_an_identity_open_to_others_is_closed(tmp_path: Path) -> None:
    load_or_create_identity(tmp_path)
    (tmp_path / "identity.key").chmod(0o644)
    load_or_create_identity(tmp_path)
    assert stat.S_IMODE((tmp_path / "identity.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_an_identity_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.key").write_bytes(content)
    with pytest.raises(IdentityError, match=r"restore it from a backup.*members --forget"):
        load_or_create_identity(tmp_path)
    assert (tmp_path / "identity.key").read_bytes() == content


def test_an_identity_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "identity.key").mkdir()
    with pytest.raises(IdentityError, match="cannot be used"):
        load_or_create_identity(tmp_path)


def started(url: str) -> subprocess.Popen[bytes]:
    """A registry in a process of its own, which dials that URL."""
    command = [sys.executable, "-m", "tests.system.test_links", url]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


async def _serve(url: str) -> None:
    """What that process does, until SIGTERM."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    member = Recorder()
    links = Links(identity_of("us"), member, [url], Random(1), limits=Limits(tick_s=0.02, ping_s=0.1))
    await links.start()
    await over.wait()
    await links.stop()
    print(*member.alerts, "stopped")


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
