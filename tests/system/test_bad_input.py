"""Bad input at every endpoint: its 4xx problem document, nothing stored, the next good request works."""

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.support.live import ADMIN_KEY, Process, running, session

BASE = "/api/v1/nodes"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
DEEP = b'{"node_id":"x","metrics":' + b'{"a":' * 200 + b"1" + b"}" * 201
ABYSS = b'{"capabilities":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("bad") / "data", "--cors-origins", "https://page.example.org") as process:
        yield process


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


REGISTER: list[tuple[str, bytes, int, str]] = [
    ("not json", b"{", 400, ""),
    ("empty", b"", 400, ""),
    ("not utf-8", b'{"node_id":"\xff"}', 400, ""),
    ("a lone surrogate", b'{"node_name":"\\ud800"}', 400, ""),
    ("a list", b"[]", 422, "body"),
    ("a string", b'"x"', 422, "body"),
    ("null", b"null", 422, "body"),
    ("id empty", body({"node_id": ""}), 422, "node_id"),
    ("id of 256", body({"node_id": "a" * 256}), 422, "node_id"),
    ("id with a slash", body({"node_id": "a/b"}), 422, "node_id"),
    ("id with a newline", body({"node_id": "a\n"}), 422, "node_id"),
    ("id in unicode", body({"node_id": "вузол"}), 422, "node_id"),
    ("id with NUL", body({"node_id": "a\x00"}), 422, "node_id"),
    ("id reserved", body({"node_id": "discover"}), 422, "node_id"),
    ("id of dots", body({"node_id": ".."}), 422, "node_id"),
    ("id a number", body({"node_id": 7}), 422, "node_id"),
    ("NaN", b'{"capabilities":{"ram_gb":NaN}}', 422, "body"),
    ("Infinity", b'{"capabilities":{"x":{"y":[-Infinity]}}}', 422, "body"),
    ("1e999", b'{"capabilities":{"ram_gb":1e999}}', 422, "body"),
    ("number as string", body({"capabilities": {"ram_gb": "64"}}), 422, "capabilities.ram_gb"),
    ("boolean as number", body({"capabilities": {"cpu_cores": True}}), 422, "capabilities.cpu_cores"),
    ("negative", body({"capabilities": {"system": {"disk_gb": -1}}}), 422, "capabilities.system.disk_gb"),
    ("capabilities a list", body({"capabilities": []}), 422, "capabilities"),
    ("gpu wrong inside", body({"capabilities": {"gpu": {"gpus": [{"vram_gb": "x"}]}}}), 422, "capabilities.gpu"),
    ("model a number", body({"capabilities": {"models": [7]}}), 422, "capabilities.models"),
    ("labels a string", body({"labels": "gpu"}), 422, "labels"),
    ("10,000 labels", body({"labels": [str(i) for i in range(10_000)]}), 422, "labels"),
    ("label with control character", body({"labels": ["a\x1b[31m"]}), 422, "labels"),
    ("endpoint a number", body({"endpoints": {"api": 1}}), 422, "endpoints.api"),
    ("deep", DEEP, 422, "body"),
    ("abyss", ABYSS, 400, ""),
    ("2 MB", body({"node_name": "x" * 2_000_000}), 413, ""),
    ("address with spaces", body({"ip_address": "1.2.3.4 OR 1"}), 422, "ip_address"),
]


@pytest.mark.parametrize(("data", "status", "path"), [row[1:] for row in REGISTER], ids=[row[0] for row in REGISTER])
async def test_register(registry: Process, data: bytes, status: int, path: str) -> None:
    await refused(registry, "POST", f"{BASE}/register", status, path, data=io.BytesIO(data))


OTHERS: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("POST", f"{BASE}/heartbeat", {"data": b"{}"}, 422, "node_id"),
    ("POST", f"{BASE}/heartbeat", {"data": b'{"node_id":"no"}'}, 404, ""),
    ("POST", f"{BASE}/heartbeat", {"data": b'{"node_id":"good","metrics":[]}'}, 422, "metrics"),
    ("POST", f"{BASE}/heartbeat", {"data": b'{"node_id":"good","metrics":{"a":1e999}}'}, 422, "body"),
    ("POST", f"{BASE}/heartbeat", {"data": DEEP.replace(b'"x"', b'"good"')}, 422, "body"),
    ("POST", f"{BASE}/heartbeat?x=1", {"data": b'{"node_id":"good"}'}, 422, "query.x"),
    ("POST", f"{BASE}/other/heartbeat", {"data": b'{"node_id":"good"}'}, 422, "node_id"),
    ("GET", f"{BASE}?limit=0", {}, 422, "query.limit"),
    ("GET", f"{BASE}?limit=1001", {}, 422, "query.limit"),
    ("GET", f"{BASE}?limit=1e3", {}, 422, "query.limit"),
    ("GET", f"{BASE}?limit=1&limit=2", {}, 422, "query.limit"),
    ("GET", f"{BASE}?offset=-1", {}, 422, "query.offset"),
    ("GET", f"{BASE}?status=alive", {}, 422, "query.status.0"),
    ("GET", f"{BASE}?cursor=%FF", {}, 422, "query.cursor"),
    ("GET", f"{BASE}?colour=red", {}, 422, "query.colour"),
    ("GET", f"{BASE}?role={'x' * 5000}", {}, 422, "query"),
    ("GET", f"{BASE}/discover?min_vram_gb=nan", {}, 422, "query.min_vram_gb"),
    ("GET", f"{BASE}/discover?min_vram_gb=inf", {}, 422, "query.min_vram_gb"),
    ("GET", f"{BASE}/discover?min_vram_gb=-1", {}, 422, "query.min_vram_gb"),
    ("GET", f"{BASE}/discover?min_vram_gb=1_0", {}, 422, "query.min_vram_gb"),
    ("GET", f"{BASE}/discover?max_load=2", {}, 422, "query.max_load"),
    ("GET", f"{BASE}/discover?latency=max", {}, 422, "query.latency"),
    ("GET", f"{BASE}/discover?match=regex", {}, 422, "query.match"),
    ("GET", f"{BASE}/discover?sort=colour", {}, 422, "query.sort"),
    ("GET", f"{BASE}/discover?explain=maybe", {}, 422, "query.explain"),
    ("POST", f"{BASE}/discover", {"data": b'{"limit":"5"}'}, 422, "limit"),
    ("POST", f"{BASE}/discover", {"data": b'{"min_vram_gb":true}'}, 422, "min_vram_gb"),
    ("GET", f"{BASE}/nobody", {}, 404, ""),
    ("GET", f"{BASE}/nobody/profile", {}, 404, ""),
    ("GET", f"{BASE}/nobody/dashboard", {}, 404, ""),
    ("DELETE", f"{BASE}/nobody", {}, 404, ""),
    ("PATCH", f"{BASE}/nobody", {"data": b"{}"}, 404, ""),
    ("PATCH", f"{BASE}/good", {"data": b'{"status":"offline"}'}, 422, "status"),
    ("PATCH", f"{BASE}/good", {"data": b'{"labels_add":"x"}'}, 422, "labels_add"),
    ("PUT", f"{BASE}/good", {}, 405, ""),
    ("GET", f"{BASE}/register", {}, 405, ""),
    ("DELETE", f"{BASE}/heartbeat", {}, 405, ""),
    ("DELETE", BASE, {}, 405, ""),
    ("GET", "/nowhere", {}, 404, ""),
    ("GET", f"{BASE}/a/b/c", {}, 404, ""),
    ("POST", f"{BASE}/register", {"data": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, ""),
    ("POST", f"{BASE}/register", {"data": b"a=1", "headers": FORM}, 415, ""),
    ("POST", f"{BASE}/register", {"data": b"junk", "headers": {**JSON, "Content-Encoding": "gzip"}}, 400, ""),
    ("POST", f"{BASE}/register", {"data": b"{}", "headers": {**JSON, "Expect": "magic<b>"}}, 417, ""),
    ("GET", "/nowhere", {"headers": {"Expect": "magic<b>"}}, 417, ""),
    ("POST", "/api/v1/maintenance/cleanup?older_than_s=-1", {}, 422, "query.older_than_s"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "url", "options", "status", "path"), OTHERS, ids=[f"{r[0]} {r[1][:60]} {r[3]}" for r in OTHERS]
)
async def test_everything_else(
    registry: Process, method: str, url: str, options: dict[str, Any], status: int, path: str
) -> None:
    await refused(registry, method, url, status, path, **options)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic dTpw", 401),
        ("Bearer sk-node-wrong", 401),
        ("Bearer sk-admin-" + "w" * 40, 401),
        ("Bearer " + "x" * 4000, 401),
        ("Bearer sk-node-ключ", 401),
        (None, 401),
    ],
)
async def test_bad_keys(registry: Process, header: str | None, status: int) -> None:
    headers = {"Authorization": header} if header else {}
    for method, url in (("GET", BASE), ("GET", f"{BASE}/discover"), ("GET", "/metrics"), ("DELETE", f"{BASE}/x")):
        await refused(registry, method, url, status, "", key=None, headers=headers)


async def test_another_nodes_key_changes_nothing(registry: Process) -> None:
    async with session(registry.url, None) as anyone, anyone.post(f"{BASE}/register", json={"node_id": "thief"}) as a:
        key = (await a.json())["api_key"]
    async with session(registry.url, None) as anyone, anyone.post(f"{BASE}/register", json={"node_id": "owner"}) as a:
        assert a.status == 200
    await refused(registry, "POST", f"{BASE}/heartbeat", 403, "", key=key, data=b'{"node_id":"owner"}')
    await refused(registry, "DELETE", f"{BASE}/owner", 403, "", key=key)
    await refused(registry, "PATCH", f"{BASE}/owner", 403, "", key=key, data=b'{"status":"draining"}')
    await refused(registry, "PATCH", f"{BASE}/thief", 403, "", key=key, data=b'{"status":"maintenance"}')
    await refused(registry, "POST", f"{BASE}/register", 409, "", key=key, data=b'{"node_id":"owner"}')
    await refused(registry, "POST", f"{BASE}/register", 409, "", key=None, data=b'{"node_id":"owner"}')
    await refused(registry, "POST", "/api/v1/maintenance/cleanup", 403, "", key=key)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header<script>: 1\r\n\r\n",
        b"NONSENSE<script>\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api/v1/nodes/register HTTP/1.1\r\nHost: x\r\nContent-Length: minus\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_a_problem_that_echoes_nothing(registry: Process, raw: bytes) -> None:
    host, port = registry.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4") or head.startswith(b"HTTP/1.0 4")
    assert b"application/problem+json" in head
    assert json.loads(content)["code"] == "bad_request"
    assert b"script" not in answer


async def refused(
    registry: Process,
    method: str,
    url: str,
    status: int,
    path: str,
    *,
    key: str | None = ADMIN_KEY,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> None:
    """The problem is the right one, nothing was stored, and the next good request works."""
    async with session(registry.url) as admin:
        await admin.post(f"{BASE}/register", json={"node_id": "good"})
        before = await nodes(admin)
        async with session(registry.url, key) as client:
            sent = headers if headers is not None else JSON if "data" in options else {}
            async with client.request(method, url, headers=sent, **options) as answer:
                problem = await answer.json(content_type="application/problem+json")
        assert (answer.status, problem["status"]) == (status, status), problem
        assert problem["detail"].endswith(".")
        assert "Traceback" not in json.dumps(problem)
        if path:
            assert any(error["path"].startswith(path) for error in problem["errors"]), problem
        if status == 401:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        if status == 405:
            assert answer.headers["Allow"]
        assert await nodes(admin) == before
        async with admin.post(f"{BASE}/heartbeat", json={"node_id": "good"}) as after:
            assert after.status == 200


async def nodes(client: aiohttp.ClientSession) -> list[tuple[str, str, dict[str, Any]]]:
    async with client.get(f"{BASE}?limit=1000") as answer:
        return [(n["node_id"], n["updated_at"], n["metrics"]) for n in (await answer.json())["nodes"]]
