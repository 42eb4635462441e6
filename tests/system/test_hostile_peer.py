"""A registry that knows the secret and means harm, against a real one: what it sends is refused or held, counted
and shown, and the healthy peer beside it notices nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
import pytest

from agent.discovery import AsyncNodeDiscovery
from federation.clock import hlc_of
from federation.handshake import Identity
from federation.links import Links
from federation.messages import Entry, Hello, Message, Push, Segment, Watermark, Watermarks
from federation.record import Item, Section, SectionKind
from federation.roster import Advert, pack_advert
from federation.seals import sealed
from federation.signed import Proof, incarnation_of, join, read, spec_of
from tests.support.agents import agent
from tests.support.live import ADMIN_KEY, Process, session, until
from tests.support.rosters import advert, registry_key
from tests.support.signing import body

SECRET = "a secret of the federation, long enough"
NODES, FEDERATION = "/api/v1/nodes", "/api/v1/federation"
YEAR_MS = 365 * 86_400_000
MANY = 150  # more than one registry may delete in a minute
SPEC, _, JUDGEMENT, END = SectionKind


class Evil:
    """A member of the federation that says whatever a test wants it to."""

    def __init__(self, name: str, seeds: list[str], secret: str = SECRET) -> None:
        self.identity = Identity(name, name, None, registry_key(name), secret.encode())
        self.name = name
        self.links = Links(self.identity, self, seeds, Random(1))
        self.heard: list[Message] = []
        self.up: set[str] = set()
        self._frame = self._seq = 0
        self.generation = time.time_ns()

    def connected(self, peer: str) -> None:
        """See Member."""
        self.up.add(peer)
        self.links.send(peer, Hello(self.name, self.generation, {}, {}, 0, (), self.now_ms))

    def disconnected(self, peer: str) -> None:
        """See Member."""
        self.up.discard(peer)

    async def ready(self) -> None:
        """See Member."""

    def received(self, peer: str, message: Message) -> None:
        """See Member."""
        self.heard.append(message)

    def alert(self, code: str, detail: str, peer: str | None = None) -> None:
        """See Member."""

    def pinned(self, registry_id: str) -> bytes | None:
        """See Member."""
        return None

    @property
    def now_ms(self) -> int:
        """The wall clock."""
        return time.time_ns() // 1_000_000

    def push(self, peer: str, *items: tuple[str, int, SectionKind, bytes, int]) -> None:
        """Write records (key, life, kind, payload, milliseconds ahead) in its own chain."""
        entries = []
        after = self._seq
        for key, life, kind, payload, ahead_ms in items:
            self._seq += 1
            section = Section(hlc_of(self.now_ms + ahead_ms), self.name, 0, payload, self.generation, self._seq)
            entries.append(Entry(self._seq, sealed(Item(key, life, 0, kind, section), self.identity.private_key)))
        self._send(peer, Segment((self.name, self.generation), after, self._seq, tuple(entries)))

    def alter(self, peer: str, key: str, payload: bytes, incarnation: int) -> None:
        """Write a node of another, later than everybody."""
        self._seq += 1
        section = Section(hlc_of(self.now_ms + 5_000), self.name, 0, payload, self.generation, self._seq)
        entry = Entry(self._seq, Item(key, 1, incarnation, SPEC, section))
        self._send(peer, Segment((self.name, self.generation), self._seq - 1, self._seq, (entry,)))

    def forge(self, peer: str, generation: int) -> None:
        """Say what another registry has written, which it has not."""
        section = Section(hlc_of(self.now_ms), peer, 0, b"[]", generation, 2**40)
        self._seq += 1
        entry = Entry(self._seq, Item("n:forged", 1, 0, SPEC, section))
        self._send(peer, Segment((self.name, self.generation), self._seq - 1, self._seq, (entry,)))
        self._send(peer, Segment((peer, generation), 2**40 - 1, 2**40, (Entry(2**40, entry.item),)))

    def relay(self, peer: str, origin: str, generation: int, key: str, payload: bytes) -> None:
        """Pass on what another registry has written, which it has not."""
        section = Section(hlc_of(self.now_ms), origin, 0, payload, generation, 2**40, seal=bytes(64))
        entry = Entry(2**40, Item(key, 1, 0, SPEC, section))
        self._send(peer, Segment((origin, generation), 2**40 - 1, 2**40, (entry,)))

    def _send(self, peer: str, segment: Segment) -> None:
        self._frame += 1
        self.links.send(peer, Push(self._frame, (segment,)))


@contextlib.asynccontextmanager
async def evil(url: str, name: str = "evil", secret: str = SECRET) -> AsyncIterator[Evil]:
    """It dials the registry."""
    made = Evil(name, [url], secret)
    await made.links.start()
    try:
        yield made
    finally:
        await made.links.stop()


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    """eu, and us that is linked with it."""
    folder: Path = tmp_path_factory.mktemp("hostile")
    env: dict[str, str | None] = {"REGISTRY_FEDERATION_SECRET": SECRET}
    eu = Process(folder / "eu", "--region", "eu", env=env)
    started = [eu]
    try:
        url = eu.wait_ready()
        us = Process(folder / "us", "--region", "us", "--peer", url, env=env)
        started.append(us)
        us.wait_ready()
        yield eu, us
    finally:
        for process in started:
            process.stop()


@pytest.fixture
async def eu(regions: tuple[Process, Process]) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(regions[0].url) as client:
        yield client


async def view(client: aiohttp.ClientSession) -> dict[str, Any]:
    async with client.get(FEDERATION) as answer:
        assert answer.status == 200
        found: dict[str, Any] = await answer.json()
        return found


async def alerted(client: aiohttp.ClientSession, code: str) -> dict[str, Any]:
    async def told() -> Any:
        return (await view(client))["alerts"].get(code)

    found: dict[str, Any] = await until(told)
    return found


async def total(client: aiohttp.ClientSession) -> int:
    async with client.get(NODES, params={"limit": 1}) as answer:
        return int((await answer.json())["total"])


async def shown(client: aiohttp.ClientSession, node_id: str) -> bool:
    async with client.get(f"{NODES}/{node_id}") as answer:
        return answer.status == 200


async def visible(client: aiohttp.ClientSession, node_id: str, version: str) -> bool:
    """A read that asks for a write gives up after two seconds, with 503."""
    async with client.get(f"{NODES}/{node_id}", params={"min_version": version}) as answer:
        assert answer.status in (200, 503)
        return answer.status == 200


async def linked(peer: Evil) -> None:
    async def up() -> bool:
        return "eu" in peer.up

    await until(up)


async def test_what_it_sends_is_refused_or_held_and_the_healthy_notice_nothing(
    regions: tuple[Process, Process], eu: aiohttp.ClientSession
) -> None:
    first, second = regions
    for number in range(MANY):
        async with eu.post(f"{NODES}/register", json={"node_id": f"n{number}"}) as answer:
            assert answer.status == 200

    async def heard() -> Any:
        return next((peer for peer in (await view(eu))["peers"] if peer["reachable"]), None)

    before = await until(heard)
    async with evil(first.url) as peer, session(second.url) as us:
        await linked(peer)

        # a node that is none, and measurements of nobody
        peer.push("eu", ("n:junk", 1, SPEC, b"\xff not JSON", 0), ("n:odd", 1, SPEC, b'[1,2,{"a":[]}]', 0))
        # a clock that is a year ahead
        peer.push("eu", ("n:next-year", 1, SPEC, b"[]", YEAR_MS))
        assert "further ahead" in (await alerted(eu, "clock_ahead"))["detail"]
        # another's origin
        peer.forge("eu", (await view(eu))["self"]["generation"])
        assert "in our name" in (await alerted(eu, "forged"))["detail"]
        # an API key that us is to have made, and that us is to be found elsewhere
        generation = (await view(us))["self"]["generation"]
        for key, payload in (("k:relayed", b"{}"), ("r:us", advert("us"))):
            peer.relay("eu", "us", generation, key, payload)

            async def refused(key: str = key) -> bool:
                return key in (await alerted(eu, "forged"))["detail"]

            await until(refused)
        assert (await alerted(eu, "forged"))["peer"] == "evil"
        # an owner that it has invented, and a word on another's behalf
        marks = tuple(Watermark(name, 2**62 - 1, ((2**62 - 1, 9),), 0) for name in ("us", "nobody"))
        peer.links.send("eu", Watermarks(peer.now_ms, 1, marks))
        # mass deletion, as a member
        peer.push("eu", ("r:evil", 1, SPEC, pack_advert(Advert(None, "evil", peer.identity.public_key, 2)), 0))
        peer.push("eu", *((f"n:n{number}", 2, END, b"gone", 0) for number in range(MANY)))
        assert "evil" in (await alerted(eu, "quarantined"))["detail"]

        async def some_gone() -> bool:
            return await total(eu) <= MANY - 95

        await until(some_gone)
        assert await total(eu) >= MANY - 105  # a few a minute more than a hundred
        for node_id in ("junk", "odd", "next-year", "forged"):
            assert not await shown(eu, node_id)

        # the healthy peer: still the same link, and writes arrive
        async with eu.post(f"{NODES}/register", json={"node_id": "after"}) as answer:
            version = (await answer.json())["version"]
        await until(lambda: visible(us, "after", version))
        after = next(peer for peer in (await view(eu))["peers"] if peer["registry_id"] == "us")
        assert after["state"] == "up"
        assert after["reachable"]
        assert after["link"] == before["link"]
        mine = {peer["registry_id"]: peer for peer in (await view(us))["peers"]}
        assert mine["eu"]["state"] == "up"
        # its own view of it: evil has written where it may, and no more
        async with us.get(NODES, params={"limit": 1000}) as answer:
            ids = {node["node_id"] for node in (await answer.json())["nodes"]}
        assert not ids & {"junk", "odd", "next-year", "forged"}


async def test_a_signed_node_that_it_alters_is_found_everywhere_and_mended_by_the_node(
    regions: tuple[Process, Process], eu: aiohttp.ClientSession
) -> None:
    async with eu.post(f"{NODES}/register", json=body("signed", counter=1)) as answer:
        assert answer.status == 200, await answer.text()
        token = (await answer.json())["token"]

    async def signature(client: aiohttp.ClientSession) -> Any:
        async with client.get(f"{NODES}/signed") as answer:
            return (await answer.json()).get("signature") if answer.status == 200 else None

    async with evil(regions[0].url) as peer, session(regions[1].url) as us:

        async def verified_there() -> bool:
            return await signature(us) == "verified"

        await until(verified_there)
        await linked(peer)
        async with us.get(f"{NODES}/signed", params={"proof": 1}) as answer:
            shown = await answer.json()
        made = Proof.of_json(shown["signed"])
        told = orjson.dumps([spec_of(read(made.document), "eu"), "", "192.0.2.1", 1, 1, None])
        altered = join(told.replace(b"11434", b"6666"), made, 1)
        peer.alter("eu", "n:signed", told, 0)  # unsigned, and later: less than what is signed
        peer.alter("eu", "n:signed", altered, incarnation_of(made.key))

        async def forged_everywhere() -> bool:
            return [await signature(client) for client in (eu, us)] == ["invalid", "invalid"]

        await until(forged_everywhere)
        for client in (eu, us):
            told_of = await alerted(client, "signature_invalid")
            assert (told_of["peer"], "signed" in told_of["detail"]) == ("evil", True)
            async with client.get(f"{NODES}/discover", params={"status": "any", "limit": 1000}) as answer:
                assert "signed" not in {node["node_id"] for node in (await answer.json())["nodes"]}

        beat = {"node_id": "signed", "token": token}
        async with eu.post(f"{NODES}/heartbeat", json=beat) as answer:
            assert answer.status == 404  # the agent registers again
        async with eu.post(f"{NODES}/register", json={**body("signed", counter=2), "token": token}) as answer:
            assert (await answer.json())["signature"] == "verified"
        await until(verified_there)
        async with us.get(f"{NODES}/signed") as answer:
            assert (await answer.json())["endpoints"] == {"ollama": "http://198.51.100.7:11434"}


async def test_an_agents_node_is_verified_in_another_region_and_by_the_client(
    regions: tuple[Process, Process], tmp_path: Path
) -> None:
    eu, us = (region.url for region in regions)
    env = {"NODE_REGION": "europe", "NODE_LABELS": "a,b"}
    command = ("-m", "agent", "bootstrap", "--registry-url", eu)
    async with agent(tmp_path, *command, env=env) as running, AsyncNodeDiscovery(us, ADMIN_KEY, verify=True) as mine:
        await running.says("registered as")

        async def found() -> Any:
            nodes = {node.node_id: node for node in await mine.list_nodes(label="a")}
            node = nodes.get(running.node_id)
            return node if node is not None and node["signature"] == "verified" else None

        node = await until(found)
        assert (node["region"], node["home_registry"]) == ("eu", "eu")
        assert "signed as that" in running.output
        async with session(us) as client, client.post(f"{NODES}/register", json={"node_id": "unsigned"}) as answer:
            assert answer.status == 200
        assert {node["signature"] for node in await mine.find_nodes(status="any")} == {"verified"}
        assert (await mine.get_nearest_node())["signature"] == "verified"
        assert mine.rejected == {}


async def test_who_has_another_secret_is_shown_with_what_to_do(
    regions: tuple[Process, Process], eu: aiohttp.ClientSession
) -> None:
    async with evil(regions[0].url, "stranger", "another secret, also long enough to be one") as peer:
        told = await alerted(eu, "refused")
        assert "wrong_secret" in told["detail"]
        assert "REGISTRY_FEDERATION_SECRET" in told["detail"]
        assert "eu" not in peer.up
    log = regions[0].output()
    assert SECRET not in log
    assert log.count("wrong_secret") <= 1, "once a cause"


async def test_another_registry_of_an_id_that_is_taken_is_refused(
    regions: tuple[Process, Process], eu: aiohttp.ClientSession
) -> None:
    async with evil(regions[0].url, "us") as peer:
        told = await alerted(eu, "identity_changed")
        assert "--forget us" in told["detail"]
        assert not peer.up


async def test_a_thousand_half_open_links_hinder_nobody(
    regions: tuple[Process, Process], eu: aiohttp.ClientSession
) -> None:
    host, port = regions[0].url.removeprefix("http://").split(":")
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(1_000):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"GET /federation/v1/link HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            writers.append(writer)
        async with eu.post(f"{NODES}/register", json={"node_id": "meanwhile"}) as answer:
            assert answer.status == 200
            version = (await answer.json())["version"]
        async with session(regions[1].url) as us:
            await until(lambda: visible(us, "meanwhile", version))
    finally:
        for writer in writers:
            writer.transport.abort()
