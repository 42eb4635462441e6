"""Who may do what, as data: every route, every kind of caller, both modes, bound to loopback or wider.

The sets of statuses stand in the order of the callers below. A route of the app without a row fails.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web

from federation.config import Config
from registry.app import Parts, make_app
from registry.auth import Allowlist, Authenticator
from registry.clock import SystemClock
from registry.directory import Directory
from registry.follower import Follower
from registry.http.server import Runner
from registry.keys import key_hash
from registry.lifecycle import Windows
from registry.metrics import Metrics
from registry.region import Membership, Region
from registry.service import Place
from registry.store import RedisStore
from tests.support.live import ADMIN_KEY
from tests.support.valkey import Valkey, valkey

SECRET = b"s" * 32
Mode = Literal["key", "open"]
CALLERS = ("none", "malformed", "unknown", "own", "other", "admin")


@dataclass(frozen=True)
class Row:
    """A route, how to call it on the node `mine`, and what each of CALLERS gets."""

    method: str
    route: str
    key: str
    open: str
    body: dict[str, Any] | None = None
    wide: str = ""  # in mode key, when others than this machine can reach the registry; the same by default


EVERYONE = "200 200 200 200 200 200"
READ = "401 401 401 200 200 200"
READ_OPEN = "200 401 401 200 200 200"
OWN = "401 401 401 200 403 200"
OWN_OPEN = READ_OPEN
OPERATE = "401 401 401 403 403 200"
FORGET = "401 401 401 403 403 404"  # nobody of that id is in the roster
NOBODY = "403 403 403 403 403 403"
NODES, ONE = "/api/v1/nodes", "/api/v1/nodes/{node_id}"

ROWS = [
    *(
        Row("GET", route, EVERYONE, EVERYONE)
        for route in ("/", "/health", "/healthz", "/readyz", "/docs", "/openapi.json", "/bootstrap/node_bootstrap.py")
    ),
    Row("POST", f"{NODES}/register", READ_OPEN, READ_OPEN, {"node_id": "new"}, wide=READ),
    Row("POST", f"{NODES}/register", "409 401 401 200 409 200", READ_OPEN, {"node_id": "mine"}),
    Row("POST", f"{NODES}/heartbeat", OWN, OWN_OPEN, {"node_id": "mine"}),
    Row("POST", f"{ONE}/heartbeat", OWN, OWN_OPEN, {}),
    Row("DELETE", ONE, OWN, OWN_OPEN),
    Row("PATCH", ONE, OWN, OWN_OPEN, {"status": "draining"}),
    Row("PATCH", ONE, OWN, OWN_OPEN, {"status": "online"}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"status": "maintenance"}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"labels_add": ["x"]}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"labels_remove": ["x"]}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"status": "draining", "labels_add": ["x"]}),
    Row("GET", NODES, READ, READ_OPEN),
    Row("GET", f"{NODES}/discover", READ, READ_OPEN),
    Row("POST", f"{NODES}/discover", READ, READ_OPEN, {}),
    Row("GET", f"{NODES}/watch", READ, READ_OPEN),
    Row("GET", ONE, READ, READ_OPEN),
    Row("GET", f"{ONE}/profile", READ, READ_OPEN),
    Row("GET", f"{ONE}/dashboard", READ, READ_OPEN),
    Row("GET", "/metrics", READ, READ_OPEN),
    Row("POST", "/api/v1/maintenance/cleanup", OPERATE, OPERATE),
    Row("GET", "/api/v1/federation", READ, READ_OPEN),
    Row("DELETE", "/api/v1/federation/members/{registry_id}", FORGET, FORGET),
    # Peers prove themselves on the link, with the federation's secret and their identities; this one has neither.
    Row("GET", "/federation/v1/link", NOBODY, NOBODY),
]


@pytest.fixture(scope="module")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("permissions")) as server:
        yield server


@dataclass
class House:
    """A registry, and the keys of its callers."""

    client: aiohttp.ClientSession
    headers: dict[str, dict[str, str]]

    async def call(self, row: Row, caller: str) -> int:
        path = row.route.replace("{node_id}", "mine").replace("{registry_id}", "nobody")
        async with self.client.request(row.method, path, json=row.body, headers=self.headers[caller]) as answer:
            if answer.content_type != "text/event-stream":  # which has no end
                await answer.read()
            return answer.status

    async def prepare(self) -> None:
        """The node that is asked about stands, the one that is to be new does not."""
        admin = self.headers["admin"]
        async with self.client.post(f"{NODES}/register", json={"node_id": "mine"}, headers=self.headers["own"]) as a:
            assert a.status == 200
        async with self.client.delete(f"{NODES}/new", headers=admin) as a:
            assert a.status in (200, 404)


WINDOWS = Windows(30, 90, 300)


def built(store: RedisStore, mode: Mode, wide: bool) -> tuple[web.Application, Any, Authenticator, Region]:
    clock = SystemClock()
    directory = Directory(WINDOWS, clock.monotonic(), "local")
    auth = Authenticator(mode, directory, SECRET, [key_hash(ADMIN_KEY)], not wide)
    follower = Follower(store, directory, WINDOWS, clock)
    member = Membership(Config("local"), None, False)
    region = Region(member, store, directory, follower, WINDOWS, clock, address="", alone=True)
    app, gate, *_ = make_app(
        Parts(
            place=Place("local", "local", {}, {}), store=store, directory=directory, auth=auth,
            allowlist=Allowlist(()), metrics=Metrics(), clock=clock, region=region, url="http://127.0.0.1:9205",
            reasons=list,
        )
    )  # fmt: skip
    return app, gate, auth, region


@pytest.fixture(params=[("key", False), ("key", True), ("open", False), ("open", True)], ids=lambda p: f"{p[0]}-{p[1]}")
async def house(store_server: Valkey, request: pytest.FixtureRequest) -> AsyncIterator[tuple[House, Mode, bool]]:
    mode, wide = request.param
    store = RedisStore(store_server.url, region=f"{mode}-{wide}", worker_id="w", beat_window_ms=300_000)
    await store.start()
    app, gate, auth, region = built(store, mode, wide)
    await region.start()
    runner = Runner(app, gate, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stranger = Authenticator("key", Directory(WINDOWS, 0.0, "local"), b"x" * 32, [], True)
    keys = {
        "unknown": stranger.mint("mine"),  # well formed, of another federation
        "own": auth.mint("mine"),
        "other": auth.mint("other"),
        "admin": ADMIN_KEY,
    }
    headers = {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}
    headers |= {"none": {}, "malformed": {"Authorization": f"Token {keys['own']}"}}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
        yield House(client, headers), mode, wide
    await runner.cleanup()
    await region.stop()
    await region._follower.stop()
    await store.aclose()


async def test_every_caller_may_do_what_the_table_says(house: tuple[House, Mode, bool]) -> None:
    subject, mode, wide = house
    found, wanted = [], []
    for row in ROWS:
        statuses = []
        for caller in CALLERS:
            await subject.prepare()
            statuses.append(str(await subject.call(row, caller)))
        found.append((row.method, row.route, row.body, " ".join(statuses)))
        expected = (row.wide or row.key) if mode == "key" and wide else row.key if mode == "key" else row.open
        wanted.append((row.method, row.route, row.body, expected))
    assert found == wanted


async def test_a_refusal_changes_nothing(house: tuple[House, Mode, bool]) -> None:
    subject, _, _ = house
    for row in ROWS:
        for caller in CALLERS:
            await subject.prepare()
            before = await state(subject)
            if await subject.call(row, caller) != 200:
                assert await state(subject) == before, (row, caller)


async def state(subject: House) -> list[dict[str, Any]]:
    async with subject.client.get(NODES, headers=subject.headers["admin"]) as answer:
        nodes: list[dict[str, Any]] = (await answer.json())["nodes"]
    async with subject.client.get("/api/v1/federation", headers=subject.headers["admin"]) as answer:
        view = await answer.json()
    return [*nodes, {"vector": view["vector"], "records": view["self"]["records"]}]


def test_every_route_has_a_row(store_server: Valkey) -> None:
    store = RedisStore(store_server.url, region="routes", worker_id="w", beat_window_ms=1)
    app, _, _, _ = built(store, "key", False)
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "*")  # GET's twin; "only these methods"
    }
    assert routes == {(row.method, row.route) for row in ROWS}
