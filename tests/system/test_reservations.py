"""Reservations over HTTP: two federated registries, one of them of two workers."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from agent.discovery import AsyncNodeDiscovery, NodeDiscovery, RequestRefused
from tests.support.live import ADMIN_KEY, Process, running, session, until

SECRET = {"REGISTRY_FEDERATION_SECRET": "f" * 40}
NODES = "/api/v1/nodes"


@pytest.fixture(scope="module")
def eu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("eu") / "data", "--region", "eu", "--workers", "2", env=SECRET) as process:
        yield process


@pytest.fixture(scope="module")
def us(tmp_path_factory: pytest.TempPathFactory, eu: Process) -> Iterator[Process]:
    flags = ("--region", "us", "--peer", eu.url)
    with running(tmp_path_factory.mktemp("us") / "data", *flags, env=SECRET) as process:
        yield process


async def register(client: aiohttp.ClientSession, node_id: str, **report: Any) -> str:
    """Its key."""
    async with client.post(f"{NODES}/register", json={"node_id": node_id, **report}) as answer:
        return str((await answer.json())["api_key"])


async def call(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with client.request(method, f"{NODES}/{path}", **options) as answer:
        return answer.status, await answer.json()


async def listed(client: aiohttp.ClientSession, node_id: str) -> list[str]:
    status, answer = await call(client, "GET", f"{node_id}/reservations")
    return [each["reservation_id"] for each in answer["reservations"]] if status == 200 else []


async def test_a_hold_is_seen_everywhere_and_ends_by_itself_or_when_it_is_released_anywhere(
    eu: Process, us: Process
) -> None:
    async with session(eu.url) as here, session(us.url) as there:
        await register(here, "held", labels=["held"], capabilities={"slots": 3})
        status, long = await call(here, "POST", "held/reservations", json={"slots": 2, "ttl_s": 60})
        assert (status, long["slots"], long["reserved_slots"], long["registry_id"]) == (200, 2, 2, "eu")

        async def has(client: aiohttp.ClientSession, *ids: str) -> bool:
            return set(await listed(client, "held")) == set(ids)

        await until(lambda: has(there, long["reservation_id"]))
        _, node = await call(there, "GET", "held")
        assert node["reserved_slots"] == 2
        status, problem = await call(there, "POST", "held/reservations", json={"slots": 2})
        assert (status, problem["code"]) == (409, "fully_reserved")
        status, short = await call(there, "POST", "held/reservations", json={"slots": 1, "ttl_s": 4})
        assert (status, short["reserved_slots"]) == (200, 3)
        for _ in range(8):  # both workers have it: the kernel chooses which one answers
            async with session(eu.url) as fresh:
                await until(lambda fresh=fresh: has(fresh, long["reservation_id"], short["reservation_id"]))
        for client in (here, there):
            await until(lambda client=client: has(client, long["reservation_id"]))
        _, explained = await call(there, "GET", "discover?label=held&explain=1&node_id=held")
        assert explained["explain"]["reserved"] == {"nodes": 1, "slots": 2}
        assert (explained["explain"]["node"]["slots"], explained["explain"]["node"]["reserved_slots"]) == (3, 2)

        status, released = await call(there, "DELETE", f"held/reservations/{long['reservation_id']}")
        assert (status, released["success"], released["reserved_slots"]) == (200, True, 0)
        await until(lambda: has(here))

        async def is_over() -> bool:  # a worker may show so before the one that writes does: that one ends it again
            status, problem = await call(here, "DELETE", f"held/reservations/{long['reservation_id']}")
            return (status, problem.get("code")) == (404, "no_such_reservation")

        await until(is_over)
        _, node = await call(here, "GET", "held")
        assert "reserved_slots" not in node


async def test_how_far_registries_are_from_each_other_is_known_at_both(eu: Process, us: Process) -> None:
    async with session(eu.url) as here, session(us.url) as there:
        await register(here, "far", labels=["far"], region="eu")
        for client, nearest, source in ((here, "us", "region"), (there, "auto", "region"), (here, "eu", None)):

            async def answered(
                client: aiohttp.ClientSession = client, nearest: str = nearest, source: str | None = source
            ) -> bool:
                _, found = await call(client, "GET", f"discover?label=far&nearest={nearest}")
                return [(n["latency_source"], n["latency_ms"] is None) for n in found["nodes"]] == [
                    (source, source is None)
                ]

            await until(answered)


async def test_callers_who_discover_and_reserve_do_not_land_on_one_node(eu: Process) -> None:
    """One is idle, five are half busy: whoever only discovers takes the idle one, whoever reserves does not."""
    async with session(eu.url) as client:
        for number in range(6):
            await register(client, f"herd-{number}", labels=["herd"], capabilities={"slots": 4})
            await call(client, "POST", "heartbeat", json={
                "node_id": f"herd-{number}", "metrics": {"cpu_percent": 50 if number else 0},
            })  # fmt: skip

        async def discovered() -> str:
            _, found = await call(client, "GET", "discover?label=herd&limit=1")
            return str(found["nodes"][0]["node_id"])

        async def idle_first() -> bool:
            return [await discovered() for _ in range(8)] == ["herd-0"] * 8

        await until(idle_first)

        async def one(place: int) -> str:
            for _ in range(24):
                node_id = await discovered()
                status, _ = await call(client, "POST", f"{node_id}/reservations", json={"ttl_s": 30})
                if status == 200:
                    return node_id
                assert status == 409, place
            raise AssertionError("no node had room")

        got = Counter(await asyncio.gather(*(one(place) for place in range(12))))
        assert sum(got.values()) == 12
        assert max(got.values()) <= 4, "no node took more than it has slots"
        assert len(got) >= 3, got


async def test_who_may_release(eu: Process) -> None:
    async with session(eu.url) as admin:
        keys = [await register(admin, node_id) for node_id in ("mine", "other", "third")]
        for releaser, wanted in ((0, 200), (1, 200), (2, 403)):  # the node itself, who took it, anybody else
            async with session(eu.url, keys[1]) as taker, session(eu.url, keys[releaser]) as client:
                _, taken = await call(taker, "POST", "mine/reservations", json={"ttl_s": 5})
                path = f"mine/reservations/{taken['reservation_id']}"
                status, _ = await call(client, "DELETE", path)
                assert status == wanted, releaser
                if status != 200:
                    assert (await call(admin, "DELETE", path))[0] == 200


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"slots": 0}, "slots"), ({"slots": 1025}, "slots"), ({"slots": "1"}, "slots"), ({"slots": True}, "slots"),
        ({"slots": 1.5}, "slots"), ({"slots": None}, "slots"), ({"ttl_s": 0.9}, "ttl_s"), ({"ttl_s": 301}, "ttl_s"),
        ({"ttl_s": "10"}, "ttl_s"), ({"ttl": 10}, "ttl"), ([], "body"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(eu: Process, body: Any, path: str) -> None:
    async with session(eu.url) as client:
        status, problem = await call(client, "POST", "mine/reservations", json=body)
        assert (status, [each["path"] for each in problem["errors"]]) == (422, [path])


async def test_no_caller_and_no_node_holds_without_bound(eu: Process) -> None:
    async with session(eu.url) as client:
        await register(client, "soft")  # it does not say how many slots it has
        statuses = await asyncio.gather(*(call(client, "POST", "soft/reservations") for _ in range(140)))
        assert Counter(status for status, _ in statuses) == {200: 128, 409: 12}

        async def full() -> bool:  # in a worker that does not write a moment later
            return (await call(client, "GET", "soft"))[1].get("reserved_slots") == 128

        await until(full)


async def test_the_client_reserves_where_it_can_and_releases(eu: Process, us: Process) -> None:
    async with session(eu.url) as here, session(us.url) as there:
        await register(here, "for-client", labels=["client"], capabilities={"slots": 1})

        async def held_are(client: aiohttp.ClientSession, *ids: str) -> bool:
            return await listed(client, "for-client") == [*ids]

        async def arrived() -> bool:
            return (await call(there, "GET", "for-client"))[0] == 200

        await until(arrived)
        options: dict[str, Any] = {"api_key": ADMIN_KEY, "fresh_s": 3600}
        async with AsyncNodeDiscovery(["http://127.0.0.1:9", us.url], **options) as discovery:
            node = (await discovery.find_nodes(label="client"))[0]
            async with discovery.reserve(node, ttl_s=30) as held:
                assert (held.node_id, held.slots, held.ttl_s) == ("for-client", 1, 30.0)
                assert await held_are(there, held.reservation_id)
                again = await discovery.find_nodes(label="client")
                assert again[0]["reserved_slots"] == 1, "the answer of before would lead there again"
                with pytest.raises(RequestRefused) as refused:
                    async with discovery.reserve("for-client"):
                        pass
                assert refused.value.status == 409
                await until(lambda: held_are(here, held.reservation_id))
            assert await held_are(there)
            with pytest.raises(ZeroDivisionError):
                async with discovery.reserve(node):
                    raise ZeroDivisionError
            assert await held_are(there)

    def plainly() -> str:
        with NodeDiscovery(us.url, api_key=ADMIN_KEY) as discovery, discovery.reserve("for-client", ttl_s=5) as held:
            return held.node_id

    assert await asyncio.to_thread(plainly) == "for-client"
