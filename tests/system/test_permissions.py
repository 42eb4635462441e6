"""Who may do what, as data: every route, every kind of caller, both modes, bound to loopback or wider.

The sets of statuses stand in the order of COLUMNS, and of BESIDE for who shows a certificate, or is not on the
allowlist; callers that are to be treated alike share one. A route of the app without a row fails.
"""

import contextlib
import gc
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web

from federation.config import Config
from federation.record import KEY_PREFIX
from registry.allowlist import Allowlist
from registry.api_key import ApiKey
from registry.app import Parts, make_app
from registry.auth import Authenticator
from registry.clock import SystemClock
from registry.directory import Directory
from registry.follower import Follower
from registry.http.server import Runner
from registry.keys import Grant, key_hash, key_id_of
from registry.lifecycle import Windows
from registry.metrics import Metrics
from registry.region import Membership, Region
from registry.service import Place
from registry.store import RedisStore
from tests.support.live import ADMIN_KEY
from tests.support.tls import Authority, dialling
from tests.support.valkey import Valkey, valkey

# aiohttp's client leaves sockets of TLS connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SECRET = b"s" * 32
Mode = Literal["key", "open"]
COLUMNS = ("none", "bad", "own", "other", "read", "scoped", "join", "admin")
CALLERS = {
    "none": "none", "malformed": "bad", "unknown": "bad", "expired": "bad", "ended": "bad", "revoked": "bad",
    "revoked-read": "bad", "own": "own", "other": "other", "read": "read", "scoped": "scoped", "join": "join",
    "admin": "admin", "minted-admin": "admin",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A route, how to call it on the node `mine`, and what each of COLUMNS gets."""

    method: str
    route: str
    key: str
    open: str
    body: dict[str, Any] | None = None
    wide: str = ""  # in mode key, when others than this machine can reach the registry; the same by default
    listed: bool = False  # whether it is for nodes on the allowlist alone, where there is one


#           none bad own other read scoped join admin
EVERYONE = "200 200 200 200 200 200 200 200"
OPEN = "    200 401 200 200 200 200 200 200"
READ = "    401 401 200 200 200 200 403 200"
OBSERVE = " 401 401 200 200 200 403 403 200"
JOIN = "    200 401 200 200 403 403 200 200"
JOIN_WIDE = "401 401 200 200 403 403 200 200"
AGAIN = "   409 401 200 409 409 409 409 200"
OWN = "     401 401 200 403 403 403 403 200"
OPERATE = " 401 401 403 403 403 403 403 200"
UNKNOWN = " 401 401 404 404 404 404 403 404"  # there is no such reservation
UNKNOWN_OPEN = OPEN.replace("200", "404")
FORGET = "  401 401 403 403 403 403 403 404"  # there is nothing of that id
NOBODY = "  403 403 403 403 403 403 403 403"

# Who shows a certificate (with which key): of this node, of another, of another with this node's key, of a registry.
# And who sends a key where the node is not on the allowlist: its own, one to join with, which then waits for approval.
LISTED = ("own", "join")
BESIDE = [("none", "mine"), ("none", "other"), ("own", "other"), ("none", "registry"), ("own", ""), ("join", "")]
BESIDE_KEY = {
    EVERYONE: "200 200 200 200 200 200",
    JOIN: "    403 403 403 200 200 200",
    AGAIN: "   200 403 403 409 200 409",
    OWN: "     200 403 403 401 200 403",
    READ: "    200 200 403 401 403 403",
    OBSERVE: " 200 200 403 401 403 403",
    OPERATE: " 403 403 403 401 403 403",
    FORGET: "  403 403 403 401 403 403",
    UNKNOWN: " 404 404 403 401 403 403",
    NOBODY: "  403 403 403 403 403 403",
}
BESIDE_OPEN = {
    **BESIDE_KEY,
    AGAIN: "   200 403 403 200 200 200",
    OWN: "     200 403 403 200 200 200",
    READ: "    200 200 403 200 200 200",
    OBSERVE: " 200 200 403 200 200 200",
    UNKNOWN: " 404 404 403 404 404 404",
}
NODES, ONE = "/api/v1/nodes", "/api/v1/nodes/{node_id}"

ROWS = [
    *(
        Row("GET", route, EVERYONE, EVERYONE)
        for route in ("/", "/health", "/healthz", "/readyz", "/docs", "/openapi.json", "/bootstrap/node_bootstrap.py")
    ),
    Row("POST", f"{NODES}/register", JOIN, OPEN, {"node_id": "new"}, wide=JOIN_WIDE, listed=True),
    Row("POST", f"{NODES}/register", AGAIN, OPEN, {"node_id": "mine"}, listed=True),
    Row("POST", f"{NODES}/heartbeat", OWN, OPEN, {"node_id": "mine"}, listed=True),
    Row("POST", f"{ONE}/heartbeat", OWN, OPEN, {}, listed=True),
    Row("DELETE", ONE, OWN, OPEN),
    Row("PATCH", ONE, OWN, OPEN, {"status": "draining"}),
    Row("PATCH", ONE, OWN, OPEN, {"status": "online"}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"status": "maintenance"}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"labels_add": ["x"]}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"labels_remove": ["x"]}),
    Row("PATCH", ONE, OPERATE, OPERATE, {"status": "draining", "labels_add": ["x"]}),
    Row("GET", NODES, READ, OPEN),
    Row("GET", f"{NODES}/discover", READ, OPEN),
    Row("POST", f"{NODES}/discover", READ, OPEN, {}),
    Row("GET", f"{NODES}/watch", READ, OPEN),
    Row("GET", ONE, READ, OPEN),
    Row("GET", f"{ONE}/reservations", READ, OPEN),
    Row("POST", f"{ONE}/reservations", READ, OPEN, {"ttl_s": 1}),
    Row("DELETE", f"{ONE}/reservations/{{reservation_id}}", UNKNOWN, UNKNOWN_OPEN),
    Row("GET", f"{ONE}/profile", READ, OPEN),
    Row("GET", f"{ONE}/dashboard", READ, OPEN),
    Row("GET", "/metrics", OBSERVE, OPEN),
    Row("POST", "/api/v1/maintenance/cleanup", OPERATE, OPERATE),
    Row("GET", "/api/v1/allowlist", OPERATE, OPERATE),
    Row("GET", "/api/v1/allowlist/pending", OPERATE, OPERATE),
    Row("POST", "/api/v1/allowlist", OPERATE, OPERATE, {"entry": "gpu-7"}),
    Row("PATCH", "/api/v1/allowlist", OPERATE, OPERATE, {"approvals": True}),
    Row("DELETE", "/api/v1/allowlist/{entry}", FORGET, FORGET),  # nothing of that text is on the list
    Row("POST", f"{ONE}/approve", FORGET, FORGET, {}),  # nobody asked
    Row("POST", f"{ONE}/deny", FORGET, FORGET, {}),
    Row("POST", "/api/v1/keys", OPERATE, OPERATE, {"kind": "read"}),
    Row("GET", "/api/v1/keys", OPERATE, OPERATE),
    Row("GET", "/api/v1/keys/{key_id}", FORGET, FORGET),
    Row("POST", "/api/v1/keys/{key_id}/rotate", FORGET, FORGET),
    Row("DELETE", "/api/v1/keys/{key_id}", OPERATE, OPERATE),
    Row("POST", f"{ONE}/key", OWN, OWN, {"overlap_s": 60}),
    Row("GET", "/api/v1/audit", OPERATE, OPERATE),
    Row("GET", "/api/v1/federation", OBSERVE, OPEN),
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
    certified: dict[str, aiohttp.ClientSession]
    headers: dict[str, dict[str, str]]
    region: Region
    mode: Mode
    wide: bool

    def expected(self, row: Row) -> dict[str, int]:
        """What each column should get."""
        text = row.open if self.mode == "open" else (row.wide or row.key) if self.wide else row.key
        return dict(zip(COLUMNS, map(int, text.split()), strict=True))

    def expected_beside(self, row: Row) -> list[int]:
        """What each of BESIDE should get."""
        is_open = self.mode == "open" and row.open != row.key
        found = [int(status) for status in (BESIDE_OPEN if is_open else BESIDE_KEY)[row.key].split()]
        if row.wide and self.wide and not is_open:
            found[3] = 401  # a registry's certificate lets nobody join
        return found if not row.listed else [*found[:4], *(status if status == 409 else 403 for status in found[4:])]

    async def call(self, row: Row, caller: str, certificate: str = "") -> int:
        path = row.route.replace("{node_id}", "mine").replace("{registry_id}", "nobody").replace("{entry}", "nobody")
        path = path.replace("{reservation_id}", "0" * 16).replace("{key_id}", "0" * 24)
        client = self.certified[certificate] if certificate else self.client
        async with client.request(row.method, path, json=row.body, headers=self.headers[caller]) as answer:
            if answer.content_type != "text/event-stream":  # which has no end
                await answer.read()
            return answer.status

    async def listing(self, *, enforced: bool) -> None:
        body = {"enforced": enforced, "approvals": enforced}
        async with self.client.patch("/api/v1/allowlist", json=body, headers=self.headers["admin"]) as answer:
            assert answer.status == 200

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
            allowlist=Allowlist(directory), metrics=Metrics(), clock=clock, region=region, url="http://127.0.0.1:9205",
            reasons=list,
        )
    )  # fmt: skip
    return app, gate, auth, region


@pytest.fixture(params=[("key", False), ("key", True), ("open", False), ("open", True)], ids=lambda p: f"{p[0]}-{p[1]}")
async def house(store_server: Valkey, authority: Authority, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    mode, wide = request.param
    store = RedisStore(store_server.url, region=f"{mode}-{wide}", worker_id="w", beat_window_ms=300_000)
    await store.start()
    app, gate, auth, region = built(store, mode, wide)
    await region.start()
    runner = Runner(app, gate, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_side(authority)).start()
    keys = await keys_of_callers(auth, region)
    headers = {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}
    headers |= {"none": {}, "malformed": {"Authorization": f"Token {keys['own']}"}}
    assert headers.keys() == CALLERS.keys()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}"))
        certified = {
            name: await stack.enter_async_context(
                aiohttp.ClientSession(
                    f"https://127.0.0.1:{runner.addresses[1][1]}", connector=aiohttp.TCPConnector(ssl=context)
                )
            )
            for name, context in shown_by(authority).items()
        }
        yield House(client, certified, headers, region, mode, wide)
    await runner.cleanup()
    gc.collect()  # here, and not in somebody else's test
    await region.stop()
    await region._follower.stop()
    await store.aclose()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def server_side(authority: Authority) -> ssl.SSLContext:
    own = authority.issue("registry", "local", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(own.cert), str(own.key))
    context.load_verify_locations(str(own.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def shown_by(authority: Authority) -> dict[str, ssl.SSLContext]:
    issued = [
        authority.issue("node", "mine"),
        authority.issue("node", "other"),
        authority.issue("registry", "elsewhere"),
    ]
    return dict(zip(("mine", "other", "registry"), map(dialling, issued), strict=True))


async def keys_of_callers(auth: Authenticator, region: Region) -> dict[str, str]:
    writer = region.writer
    assert writer is not None
    stranger = Authenticator("key", Directory(WINDOWS, 0.0, "local"), b"x" * 32, [], True)
    keys = {
        "unknown": stranger.mint("mine"),  # well formed, of another federation
        "own": auth.mint("mine"),
        "other": auth.mint("other"),
        "revoked": auth.mint("mine"),
        "ended": auth.mint("mine"),  # by its record: it was replaced
        "expired": auth.mint_grant(Grant("read", 1_000))[0],
        "admin": ADMIN_KEY,
    }
    grants = {
        "read": Grant("read"), "revoked-read": Grant("read"), "scoped": Grant("read", scopes=("nodes", "role:worker")),
        "join": Grant("join"), "minted-admin": Grant("admin"),
    }  # fmt: skip
    keys |= {name: auth.mint_grant(grant)[0] for name, grant in grants.items()}
    ids = {name: key_id_of(key_hash(key)) for name, key in keys.items()}
    for name in ("revoked", "revoked-read"):
        await writer.revoke(KEY_PREFIX + ids[name], "a test")
    ended = ApiKey(ids["ended"], "node", node_id="mine", expires_at_ms=1_000)
    await writer.put(KEY_PREFIX + ended.key_id, ended.encode())
    return keys


async def test_every_caller_may_do_what_the_table_says_and_a_refusal_changes_nothing(house: House) -> None:
    await house.prepare()
    before = state(house)
    for row in ROWS:
        found, wanted = {}, {}
        for caller, column in CALLERS.items():
            found[caller], wanted[caller] = await house.call(row, caller), house.expected(row)[column]
            if found[caller] == 200 and row.method != "GET":
                await house.prepare()
                before = state(house)
            else:
                assert state(house) == before, (row, caller)
        assert found == wanted, row


async def test_certificates_and_the_list_stand_beside_keys(house: House) -> None:
    await house.prepare()
    for row in ROWS:
        found = []
        for caller, certificate in BESIDE:
            await house.listing(enforced=caller in LISTED)
            found.append(await house.call(row, caller, certificate))
            if found[-1] == 200 and row.method != "GET":
                await house.listing(enforced=False)
                await house.prepare()
        assert found == house.expected_beside(row), row
    await house.listing(enforced=False)


def state(subject: House) -> tuple[object, ...]:
    """Everything that a call might have changed: what is replicated, and what is shown."""
    writer = subject.region.writer
    assert writer is not None
    nodes = [(entry.static, entry.word, entry.metrics) for entry in subject.region._directory.entries()]
    return dict(writer.engine.replica.vector), nodes


def test_every_route_has_a_row(store_server: Valkey) -> None:
    store = RedisStore(store_server.url, region="routes", worker_id="w", beat_window_ms=1)
    app, _, _, _ = built(store, "key", False)
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "*")  # GET's twin; "only these methods"
    }
    assert routes == {(row.method, row.route) for row in ROWS}
