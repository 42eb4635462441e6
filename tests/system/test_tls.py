"""A registry with mutual TLS over real sockets: whom it lets in, for whom they may act, and files that change under
traffic. It has two workers: what one of them is told of a caller holds in the other."""

import asyncio
import contextlib
import json
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.client import RegistryClient
from agent.discovery import AsyncNodeDiscovery
from federation.ed25519 import PrivateKey
from federation.handshake import Dialler, Identity
from federation.link import DialledSocket
from federation.links import LINK_PATH
from federation.tls import Files, abort
from registry.certificates import Certificate
from registry.certificates import packed as packed_certificate
from registry.http.presented import HEADER
from tests.support.agents import agent
from tests.support.live import ADMIN_KEY, START_S, Process, running, until
from tests.support.tls import NOW, Authority, dialling, flags

SECRET = "s" * 64
CONNECTIONS = 6  # the kernel chooses a worker for each
NODES = "/api/v1/nodes"


class Site:
    """The registry, its authority, and what it has issued."""

    def __init__(self, process: Process, authority: Authority, own: Files) -> None:
        self.process, self.authority, self.own = process, authority, own
        self.url = process.url
        self._context = lru_cache(dialling)
        self.box, self.other = (authority.issue("node", name) for name in ("box", "other"))

    @contextlib.asynccontextmanager
    async def caller(self, files: Files, key: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
        """Whoever shows that certificate, over connections of its own."""
        connector = aiohttp.TCPConnector(ssl=self._context(files))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with aiohttp.ClientSession(
            self.url, connector=connector, headers=headers, ws_response_class=DialledSocket
        ) as client:
            yield client

    async def answers(self, files: Files, method: str, path: str, key: str | None = None, **send: Any) -> set[Any]:
        """Status and code of the same request over many connections."""

        async def once() -> Any:
            async with self.caller(files, key) as client, client.request(method, path, **send) as answer:
                body = await answer.json()
                return answer.status, body.get("code") if isinstance(body, dict) else None

        return set(await asyncio.gather(*(once() for _ in range(CONNECTIONS))))

    async def metrics(self) -> str:
        async with self.caller(self.own, ADMIN_KEY) as client:
            async with client.get("/metrics", headers={"Accept": "text/plain"}) as answer:
                return await answer.text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "ca")
    own = authority.issue("registry", "eu", "127.0.0.1", days=10)  # within what is warned of
    (folder / "data").mkdir()
    settings = ("--region", "eu", "--workers", "2", *flags(own))
    with running(folder / "data", *settings, env={"REGISTRY_FEDERATION_SECRET": SECRET}, tls=dialling(own)) as process:
        yield Site(process, authority, own)


# who is let in


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "it wants a certificate, and was shown none; set NODE_CERT and NODE_KEY to what it takes"),
        ("another authority's", "it does not know the authority of the certificate"),
        ("expired", "the certificate that it was shown has expired"),
        ("http", "does it speak TLS (https://)?"),
    ],
)
async def test_an_agent_that_is_not_let_in_is_told_why(site: Site, tmp_path: Path, name: str, words: str) -> None:
    files = {
        "none": Files(ca=site.own.ca),
        "another authority's": replace(Authority(tmp_path).issue("node", "box"), ca=site.own.ca),
        "expired": site.authority.issue("node", "box", made=NOW - timedelta(days=3), days=2, to="expired"),
        "http": site.box,
    }[name]
    url = site.url.replace("https:", "http:") if name == "http" else site.url
    client = RegistryClient([url], ca_cert=files.ca, cert=files.cert, key=files.key)
    try:
        outcome, _ = await client.call("GET", "/healthz")
    finally:
        await client.close()
    assert outcome.status is None
    assert words in outcome.detail


async def test_older_tls_is_not_spoken(site: Site) -> None:
    context = dialling(site.box)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with aiohttp.ClientSession(site.url) as client:
        with pytest.raises(aiohttp.ClientConnectorSSLError):
            await client.get("/healthz", ssl=context)


# for whom they may act


async def test_a_node_needs_no_key_and_acts_for_itself_alone(site: Site) -> None:
    own, other = {"node_id": "box"}, {"node_id": "other"}
    assert await site.answers(site.other, "POST", f"{NODES}/register", json=other) == {(200, None)}
    for method, path, send in (
        ("POST", f"{NODES}/register", own),
        ("POST", f"{NODES}/heartbeat", own),
        ("POST", f"{NODES}/box/heartbeat", {}),
        ("PATCH", f"{NODES}/box", {"status": "draining"}),
        ("GET", f"{NODES}/discover", None),
    ):
        assert await site.answers(site.box, method, path, json=send) == {(200, None)}, (method, path)

    async def shown() -> bool:  # a worker that does not write hears of it a moment later
        return await site.answers(site.box, "GET", f"{NODES}/other") == {(200, None)}

    await until(shown)
    for method, path, send in (
        ("POST", f"{NODES}/register", other),
        ("POST", f"{NODES}/register", {"node_id": "new"}),
        ("POST", f"{NODES}/heartbeat", other),
        ("POST", f"{NODES}/other/heartbeat", {}),
        ("PATCH", f"{NODES}/other", {"status": "draining"}),
        ("DELETE", f"{NODES}/other", None),
    ):
        assert await site.answers(site.box, method, path, json=send) == {(403, "wrong_certificate")}, (method, path)
    async with site.caller(site.box) as client:  # without an id it is the one that its certificate names
        async with client.post(f"{NODES}/register", json={}) as answer:
            assert (await answer.json())["node_id"] == "box"


async def test_what_only_workers_may_say_is_not_believed_of_others(site: Site) -> None:
    told = packed_certificate(Certificate("other", "us", (), time.time() + 1e6))
    for path in (f"{NODES}/other", f"{NODES}/new"):
        answers = await site.answers(site.box, "DELETE", path, headers={HEADER: told})
        assert answers == {(403, "wrong_certificate")}


async def test_certificate_and_key_must_agree(site: Site) -> None:
    alone = site.authority.issue("node", "alone")
    async with site.caller(alone) as client:
        async with client.post(f"{NODES}/register", json={"node_id": "alone"}) as answer:
            key = (await answer.json())["api_key"]
    beat = {"node_id": "alone"}
    assert await site.answers(alone, "POST", f"{NODES}/heartbeat", key, json=beat) == {(200, None)}
    assert await site.answers(site.box, "POST", f"{NODES}/heartbeat", key, json=beat) == {(403, "wrong_certificate")}
    assert await site.answers(site.box, "GET", NODES, key) == {(403, "wrong_certificate")}
    assert await site.answers(site.box, "GET", NODES, "sk-read-x") == {(401, "unauthenticated")}
    # One that names no node: the key says who it is.
    assert await site.answers(site.own, "POST", f"{NODES}/heartbeat", key, json=beat) == {(200, None)}
    assert await site.answers(site.own, "GET", NODES) == {(401, "unauthenticated")}
    assert await site.answers(site.own, "GET", NODES, ADMIN_KEY) == {(200, None)}
    assert await site.answers(site.box, "DELETE", f"{NODES}/alone", ADMIN_KEY) <= {(200, None), (404, "no_such_node")}


@pytest.mark.parametrize("named", ["us", "ap", None])
async def test_a_peer_is_the_registry_that_its_certificate_names(site: Site, named: str | None) -> None:
    """Also where it meets a worker that passes the link on."""
    files = site.authority.issue("registry", named) if named else site.box

    async def said() -> str:
        key = PrivateKey(b"us".ljust(32, b"."))
        dialler = Dialler(Identity("us", "us", None, key, SECRET.encode()), ssl.RAND_bytes(32), lambda _: None)
        async with site.caller(files) as client, client.ws_connect(LINK_PATH) as ws:
            await ws.send_str(dialler.first())
            proof = dialler.receive(await ws.receive_str(timeout=20))
            assert proof is not None
            await ws.send_str(proof)
            message = await ws.receive(timeout=20)
            assert isinstance(ws, DialledSocket)
            assert ws.transport is not None
            abort(ws.transport)  # aiohttp would leave it waiting for the other side's goodbye
            return str(message.extra or json.loads(message.data))

    answers = [await said() for _ in range(CONNECTIONS)]
    assert set(answers) == {"{'welcome': True}" if named == "us" else "wrong_certificate"}


# an agent


async def test_an_agent_is_the_node_that_its_certificate_names(site: Site, tmp_path: Path) -> None:
    files = site.authority.issue("node", "gpu-box")
    given = {"CA_CERT": files.ca, "NODE_CERT": files.cert, "NODE_KEY": files.key}
    env = {"NODE_REGISTRY_URL": site.url, **{name: str(path) for name, path in given.items()}}
    async with agent(tmp_path, "-m", "agent", "bootstrap", "--once", env=env) as process:
        assert await process.ends() == 0, process.output
    assert process.node_id == "gpu-box"
    (tmp_path / "home" / ".dagi" / "credentials.json").unlink()
    async with AsyncNodeDiscovery(site.url, ca_cert=files.ca, cert=files.cert, cert_key=files.key) as discovery:
        assert "gpu-box" in [node.node_id for node in await discovery.find_nodes()]


# files that change, and what expires


async def test_what_expires_soon_is_warned_of_and_harms_nothing(site: Site) -> None:
    assert site.process.output().count(f"{site.own.cert} expires in ") == 1  # not by each worker
    found = await site.metrics()
    line = next(line for line in found.splitlines() if "expires_in_seconds" in line and str(site.own.cert) in line)
    assert 9 * 86_400 < float(line.rsplit(" ", 1)[1]) < 10 * 86_400
    assert await site.answers(site.box, "GET", "/readyz") == {(200, None)}


async def test_a_connection_ends_with_its_certificate(site: Site) -> None:
    """Who heartbeats keeps one open for ever; what comes next is a handshake, with the new certificate or none."""
    short = site.authority.issue("node", "box", made=datetime.now(UTC) + timedelta(seconds=4, days=-1), days=1, to="s")
    async with site.caller(short) as client:
        async with client.get(f"{NODES}/box") as answer:
            assert answer.status in (200, 404)

        async def ended() -> bool:
            try:
                async with client.get(f"{NODES}/box") as answer:
                    assert answer.status in (200, 404)
            except aiohttp.ClientError as error:
                return "certificate expired" in str(error)
            return False

        await until(ended)


async def test_a_new_certificate_under_traffic(site: Site) -> None:
    """Nobody is cut off or refused: neither who is connected, nor who comes meanwhile."""
    failures: list[object] = []
    serials: list[str] = []
    ending = asyncio.Event()

    async def kept() -> None:
        async with site.caller(site.box) as client:
            while not ending.is_set():
                async with client.post(f"{NODES}/heartbeat", json={"node_id": "box"}) as answer:
                    failures.extend([answer.status] if answer.status not in (200, 404) else [])
                await asyncio.sleep(0.05)

    async def coming() -> None:
        while not ending.is_set():
            async with site.caller(site.box) as client, client.get("/healthz") as answer:
                assert answer.connection is None or answer.connection.transport is not None
            host, port = site.url.removeprefix("https://").split(":")
            _, writer = await asyncio.open_connection(host, int(port), ssl=site._context(site.box))
            serials.append(writer.get_extra_info("peercert")["serialNumber"])
            writer.transport.abort()
            await asyncio.sleep(0.1)

    async def said(words: str) -> bool:
        return site.process.output().count(words) >= 1

    assert site.own.cert is not None
    assert site.own.key is not None
    traffic = [asyncio.create_task(work()) for work in (kept, coming)]
    newer = site.authority.issue("registry", "eu", "127.0.0.1", days=20, to="newer")
    await until(lambda: asyncio.sleep(0, bool(serials)))
    (before,) = set(serials)

    site.own.cert.write_text("not a certificate")
    await until(lambda: said("certificate_unusable"))
    assert f"{site.own.cert}: holds no certificate in PEM form" in site.process.output()
    assert set(serials) == {before}

    assert newer.key is not None
    shutil.copy(newer.key, site.own.key)  # one after the other, as people do it
    await asyncio.sleep(0.1)
    assert newer.cert is not None
    shutil.copy(newer.cert, site.own.cert)
    after = newer_serial(newer)
    await until(lambda: asyncio.sleep(0, [int(serial, 16) for serial in serials[-6:]] == [after] * 6))
    assert site.process.output().count("certificate_unusable") == 1

    async def both_use_it() -> bool:
        return 'certificate_reloads_total{outcome="reloaded"} 2.0' in await site.metrics()

    await until(both_use_it)
    ending.set()
    await asyncio.gather(*traffic)
    assert not failures
    assert await site.answers(site.box, "GET", "/readyz") == {(200, None)}


def newer_serial(files: Files) -> int:
    from cryptography import x509

    assert files.cert is not None
    return x509.load_pem_x509_certificate(files.cert.read_bytes()).serial_number


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--tls-cert", "none.pem", "--tls-key", "none.pem"), "--tls-cert"),
        (("--tls-cert", "rubbish", "--tls-key", "rubbish"), "--tls-cert"),
        (("--regions-file", "none.toml"), "--regions-file"),
        (("--regions-file", "rubbish"), "--regions-file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_anything_is_made(
    tmp_path: Path, given: tuple[str, ...], named: str
) -> None:
    (tmp_path / "rubbish").write_text("[not a file of ours")
    process = Process(tmp_path / "data", *given, env={"REGISTRY_ADMIN_KEY": None})
    process.popen.wait(START_S)
    assert process.stop() == 2
    output = process.output()
    assert output.startswith(f"dagi-registry: {named}"), output
    assert output.count("\n") == 1
    assert not (tmp_path / "data").exists()
