"""The store frozen, dead, read-only, full, cut off, slow, emptied: writes say so at once, reads go on,
nobody is blamed for it, and all is well again afterwards without a restart."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.live import Process, running, session, until
from tests.support.proxy import Proxy, proxied
from tests.support.valkey import Valkey, valkey

NODES = "/api/v1/nodes"
HELD_S = 8.0  # the promise is about 2 s; the rest is room for a slow machine
QUICK = ("--heartbeat-interval-s", "0.2", "--degraded-after-s", "3", "--offline-after-s", "3.5")
OUTAGE_S = 4.0  # longer than both


@dataclass
class Rig:
    """A registry over a real store, with a proxy between them."""

    registry: Process
    store: Valkey
    proxy: Proxy


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("faults")
    with valkey(folder / "store", "appendonly yes") as store, proxied(store.socket) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        with running(folder / "data", "--redis-url", url, "--region", "local") as registry:
            yield Rig(registry, store, proxy)


@pytest.fixture
async def admin(rig: Rig) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(rig.registry.url) as client:
        yield client


@pytest.fixture
async def anyone(rig: Rig) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(rig.registry.url, None) as client:
        yield client


@dataclass(frozen=True)
class Fault:
    """One way to lose a store. `reason` is what /readyz calls it."""

    strike: Callable[[Rig], Any]
    heal: Callable[[Rig], Any]
    reasons: tuple[str, ...]


FAULTS = {
    "frozen": Fault(
        lambda rig: rig.store.signal(signal.SIGSTOP), lambda rig: rig.store.signal(signal.SIGCONT), ("slow",)
    ),
    "killed and started again": Fault(lambda rig: rig.store.kill(), lambda rig: rig.store.start(), ("down",)),
    "demoted to a replica": Fault(
        lambda rig: rig.store.ask("REPLICAOF", "127.0.0.1", "1"),
        lambda rig: rig.store.ask("REPLICAOF", "NO", "ONE"),
        ("read_only",),
    ),
    "out of memory": Fault(
        lambda rig: rig.store.ask("CONFIG", "SET", "maxmemory", "1"),
        lambda rig: rig.store.ask("CONFIG", "SET", "maxmemory", "0"),
        ("out_of_memory",),
    ),
    "cut off": Fault(lambda rig: rig.proxy.cut(), lambda rig: rig.proxy.mend(), ("down", "slow")),
    "behind a dead path": Fault(lambda rig: rig.proxy.stall(), lambda rig: rig.proxy.resume(), ("slow",)),
    "too slow": Fault(lambda rig: rig.proxy.delay(3.0), lambda rig: rig.proxy.delay(0.0), ("slow",)),
    "deaf": Fault(lambda rig: rig.proxy.swallow_answers(), lambda rig: rig.proxy.mend(), ("slow",)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_store(
    rig: Rig, admin: aiohttp.ClientSession, anyone: aiohttp.ClientSession, name: str
) -> None:
    fault = FAULTS[name]
    for node_id in ("beating", "patched", "removed", "renewed"):
        await done(admin, "POST", f"{NODES}/register", json={"node_id": node_id, "labels": ["before"]})
    before = await listed(admin)
    fault.strike(rig)
    try:
        await asyncio.gather(
            refused(admin, "POST", f"{NODES}/register", json={"node_id": "late"}),
            refused(admin, "POST", f"{NODES}/register", json={"node_id": "renewed", "labels": ["after"]}),
            refused(admin, "POST", f"{NODES}/heartbeat", json={"node_id": "beating", "metrics": {"cpu_percent": 99}}),
            refused(admin, "PATCH", f"{NODES}/patched", json={"status": "maintenance"}),
            refused(admin, "DELETE", f"{NODES}/removed"),
            refused(anyone, "POST", f"{NODES}/register", json={"node_id": "stranger"}),
        )
        assert await listed(admin) == before
        await done(admin, "GET", f"{NODES}/discover?label=before")
        await until(lambda: unready(admin, fault.reasons))
        await done(admin, "GET", "/health")
    finally:
        fault.heal(rig)
    await until(lambda: ready(admin))
    await until(lambda: agrees(rig, admin))
    assert {n["status"] for n in await listed(admin)} <= {"online", "maintenance"}
    # Its first key was never shown to anybody: the id must not be lost to that key.
    node = await done(anyone, "POST", f"{NODES}/register", json={"node_id": "stranger"})
    assert node["api_key"].startswith("sk-node-")
    await done(admin, "DELETE", f"{NODES}/stranger")
    await works_again(admin)


async def works_again(admin: aiohttp.ClientSession) -> None:
    """Every kind of write, first time."""
    await done(admin, "POST", f"{NODES}/register", json={"node_id": "fresh"})
    for node_id in ("beating", "renewed", "patched", "removed"):
        await done(admin, "POST", f"{NODES}/register", json={"node_id": node_id})
    await done(admin, "POST", f"{NODES}/heartbeat", json={"node_id": "beating"})
    await done(admin, "PATCH", f"{NODES}/patched", json={"status": "online"})
    for node_id in ("fresh", "removed"):
        await done(admin, "DELETE", f"{NODES}/{node_id}")
    assert "fresh" not in {n["node_id"] for n in await listed(admin)}


async def test_a_registration_whose_answer_was_lost_does_not_lose_the_id(
    rig: Rig, admin: aiohttp.ClientSession, anyone: aiohttp.ClientSession
) -> None:
    """The store took both, the registry could not know. Whether they come again or not, the ids are free."""
    for node_id in ("comes-again", "never-again"):
        rig.proxy.lose_answer_to(node_id.encode())
        await until(partial(_is_lost, rig, anyone, node_id))
        await registered(admin, "another")  # writes are taken again
    node = await registered(anyone, "comes-again")
    assert node["api_key"].startswith("sk-node-")
    await until(lambda: agrees(rig, admin, lacking="never-again"))
    async with session(rig.registry.url, node["api_key"]) as owner:
        await done(owner, "POST", f"{NODES}/heartbeat", json={"node_id": "comes-again"})
        await done(owner, "DELETE", f"{NODES}/comes-again")


async def _is_lost(rig: Rig, anyone: aiohttp.ClientSession, node_id: str) -> bool:
    """Register it, and say whether the store took it; on a busy machine it may be refused before it gets there."""
    if node_id not in rig.store.records():
        await refused(anyone, "POST", f"{NODES}/register", json={"node_id": node_id})
    return node_id in rig.store.records()


async def test_a_registration_with_the_callers_own_key_is_not_taken_back(
    rig: Rig, admin: aiohttp.ClientSession, anyone: aiohttp.ClientSession
) -> None:
    """A registry that has lost it would else delete a node that lives elsewhere, with all that operators said of it."""
    node = await done(anyone, "POST", f"{NODES}/register", json={"node_id": "keyed"})
    await done(admin, "DELETE", f"{NODES}/keyed")
    async with session(rig.registry.url, node["api_key"]) as owner:
        rig.proxy.lose_answer_to(b"n:keyed")
        await refused(owner, "POST", f"{NODES}/register", json={"node_id": "keyed"})
        await until(lambda: ready(admin))
        await works_again(admin)  # what would be taken back, has been
        await done(owner, "POST", f"{NODES}/heartbeat", json={"node_id": "keyed"})
        await done(owner, "DELETE", f"{NODES}/keyed")


async def test_a_change_whose_answer_was_lost_shows_as_the_store_has_it(rig: Rig, admin: aiohttp.ClientSession) -> None:
    for node_id in ("moved", "gone"):
        await done(admin, "POST", f"{NODES}/register", json={"node_id": node_id})
    rig.proxy.lose_answer_to(b"n:moved")
    await refused(admin, "PATCH", f"{NODES}/moved", json={"labels_add": ["new"]})
    await registered(admin, "another")
    rig.proxy.lose_answer_to(b"n:gone")
    await refused(admin, "DELETE", f"{NODES}/gone")
    await until(lambda: agrees(rig, admin, lacking="gone"))
    assert "new" in (await done(admin, "GET", f"{NODES}/moved"))["labels"]


async def test_a_frozen_store_under_load_holds_nobody(tmp_path: Path) -> None:
    """More than the socket takes, over a unix socket, is the case in which closing politely waits for ever."""
    with valkey(tmp_path / "store") as store, running(tmp_path / "data", "--redis-url", store.url) as registry:
        async with session(registry.url) as admin:
            await done(admin, "POST", f"{NODES}/register", json={"node_id": "n"})
            beat = {"node_id": "n", "metrics": {"filler": "x" * 20_000}}
            store.signal(signal.SIGSTOP)
            try:
                await asyncio.gather(*(refused(admin, "POST", f"{NODES}/heartbeat", json=beat) for _ in range(90)))
            finally:
                store.signal(signal.SIGCONT)
            await until(lambda: ready(admin))
            await done(admin, "POST", f"{NODES}/heartbeat", json={"node_id": "n"})


async def test_an_outage_is_nobodys_silence(tmp_path: Path) -> None:
    """The store is away for longer than any node may be silent; no node changes its status for it."""
    with valkey(tmp_path / "store") as store, running(tmp_path / "data", "--redis-url", store.url, *QUICK) as registry:
        async with session(registry.url) as admin:
            for index in range(3):
                await done(admin, "POST", f"{NODES}/register", json={"node_id": f"n{index}"})
            store.signal(signal.SIGSTOP)
            ended = time.monotonic() + OUTAGE_S
            while time.monotonic() < ended:
                assert {n["status"] for n in await listed(admin)} == {"online"}
                await asyncio.sleep(0.1)
            store.signal(signal.SIGCONT)
            await until(lambda: ready(admin))
            for index in range(3):
                beat = await done(admin, "POST", f"{NODES}/heartbeat", json={"node_id": f"n{index}"})
                assert beat["status"] == "online"
            assert "to=" not in await exposed(admin, "dagi_registry_node_transitions_total")


async def test_an_emptied_store_gets_everything_back_and_no_heartbeat_hears_of_it(tmp_path: Path) -> None:
    own_key = {"REGISTRY_ADMIN_KEY": None}  # made at the first start, known to the store alone
    with valkey(tmp_path / "store") as store:
        flags = ("--redis-url", store.url)
        with running(tmp_path / "data", *flags, env=own_key) as registry:
            admin_key = registry.output().split("shown only now: ")[1].split()[0]
            async with session(registry.url, admin_key) as admin, session(registry.url, None) as anyone:
                keys = {}
                for node_id in ("alive", "silent"):
                    node = await done(anyone, "POST", f"{NODES}/register", json={"node_id": node_id})
                    keys[node_id] = node["api_key"]
                await done(admin, "PATCH", f"{NODES}/silent", json={"status": "maintenance"})
                before = await statuses(admin)
                store.ask("FLUSHALL")
                async with session(registry.url, keys["alive"]) as owner:
                    heard = set()

                    async def beats() -> bool:
                        async with owner.post(f"{NODES}/heartbeat", json={"node_id": "alive"}) as answer:
                            heard.add(answer.status)
                            return answer.status == 200 and store.records() == {"alive", "silent"}

                    await until(beats)
                    assert heard <= {200, 503}
                assert await statuses(admin) == before == {"alive": "online", "silent": "maintenance"}
                await until(lambda: ready(admin))
                await until(lambda: said(registry, "store_replaced"))
        with running(tmp_path / "data", *flags, env=own_key) as again:
            async with session(again.url, admin_key) as admin:
                assert await statuses(admin) == before
            assert again.output().count("shown only now") == 1


async def said(registry: Process, words: str) -> bool:
    return words in registry.output()


async def statuses(client: aiohttp.ClientSession) -> dict[str, str]:
    return {node["node_id"]: node["status"] for node in await listed(client)}


async def registered(client: aiohttp.ClientSession, node_id: str) -> Any:
    """The answer to a registration, which may have to wait for the store."""
    found: list[Any] = []

    async def taken() -> bool:
        async with client.post(f"{NODES}/register", json={"node_id": node_id}) as answer:
            assert answer.status in (200, 503), await answer.text()
            found.append(await answer.json())
            return answer.status == 200

    await until(taken)
    return found[-1]


async def done(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> Any:
    async with client.request(method, path, **options) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def refused(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> None:
    """503, with when to come back, as a problem document, and soon."""
    started = time.monotonic()
    async with client.request(method, path, **options) as answer:
        problem = await answer.json(content_type="application/problem+json")
    assert answer.status == 503, problem
    assert problem["code"] == "store_unavailable"
    assert problem["detail"].endswith(".")
    assert int(answer.headers["Retry-After"]) >= 1
    assert time.monotonic() - started < HELD_S


async def listed(client: aiohttp.ClientSession) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = (await done(client, "GET", f"{NODES}?limit=1000"))["nodes"]
    return nodes


async def unready(client: aiohttp.ClientSession, reasons: tuple[str, ...]) -> bool:
    async with client.get("/readyz") as answer:
        said = await answer.json()
    return answer.status == 503 and not said["ready"] and any(f"store: {r}" in said["reasons"] for r in reasons)


async def ready(client: aiohttp.ClientSession) -> bool:
    async with client.get("/readyz") as answer:
        return answer.status == 200


async def agrees(rig: Rig, client: aiohttp.ClientSession, lacking: str = "") -> bool:
    """The registry shows just what the store holds."""
    shown = {n["node_id"] for n in await listed(client)}
    return shown == rig.store.records() and lacking not in shown


async def holds(client: aiohttp.ClientSession, count: int) -> bool:
    return len(await listed(client)) == count


async def exposed(client: aiohttp.ClientSession, name: str) -> str:
    async with client.get("/metrics", headers={"Accept": "text/plain"}) as answer:
        return "\n".join(line for line in (await answer.text()).splitlines() if line.startswith(name))
