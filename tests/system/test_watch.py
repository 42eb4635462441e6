"""Watching nodes: server-sent events and the long poll, from a real registry."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.live import ADMIN_KEY, Process, running, session, until

NODES, WATCH = "/api/v1/nodes", "/api/v1/nodes/watch"
WITHIN_S = 10.0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("watched") / "data") as process:
        yield process


@dataclass(frozen=True)
class Event:
    kind: str
    cursor: str | None
    data: Any


class Stream:
    """One watch, event by event; comments are passed over."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def next(self) -> Event:
        fields: dict[str, str] = {}
        async with asyncio.timeout(WITHIN_S):
            while True:
                line = (await self._answer.content.readline()).decode().rstrip("\n")
                if not line and "event" in fields:
                    return Event(fields["event"], fields.get("id"), json.loads(fields["data"]))
                name, colon, value = line.partition(": ")
                assert colon or not line
                if name:
                    fields[name] = value

    async def ended(self) -> bool:
        async with asyncio.timeout(WITHIN_S):
            with contextlib.suppress(aiohttp.ClientError):
                while await self._answer.content.read(65_536):
                    pass
        return True


@contextlib.asynccontextmanager
async def watching(client: aiohttp.ClientSession, query: str = "", last: str | None = None) -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": last} if last is not None else {}
    async with client.get(WATCH + query, headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        yield Stream(answer)


async def register(client: aiohttp.ClientSession, node_id: str, **fields: Any) -> None:
    async with client.post(f"{NODES}/register", json={"node_id": node_id, **fields}) as answer:
        assert answer.status == 200


async def patch(client: aiohttp.ClientSession, node_id: str, **fields: Any) -> None:
    async with client.patch(f"{NODES}/{node_id}", json=fields) as answer:
        assert answer.status == 200


async def delete(client: aiohttp.ClientSession, node_id: str) -> None:
    async with client.delete(f"{NODES}/{node_id}") as answer:
        assert answer.status == 200


async def test_a_snapshot_then_what_changes(registry: Process) -> None:
    async with session(registry.url) as admin:
        await register(admin, "s1", labels=["story"])
        await register(admin, "s2", labels=["other"])
        async with watching(admin, "?label=story") as stream:
            first = await stream.next()
            assert (first.kind, [n["node_id"] for n in first.data["nodes"]], first.data["more"]) == (
                "snapshot", ["s1"], False,
            )  # fmt: skip
            await register(admin, "s3", labels=["story"])
            came = await stream.next()
            assert (came.kind, came.data["node_id"], came.data["status"]) == ("upsert", "s3", "online")
            async with admin.get(f"{NODES}/s3") as answer:
                shown = await answer.json()
            assert {**came.data, "status_age_s": 0} == {**shown, "status_age_s": 0}
            await patch(admin, "s3", status="maintenance")
            changed = await stream.next()
            assert (changed.kind, changed.data["status"]) == ("upsert", "maintenance")
            await patch(admin, "s2", labels_add=["unseen"])
            await patch(admin, "s1", labels_remove=["story"])
            left = await stream.next()
            assert (left.kind, left.data) == ("remove", {"node_id": "s1"})
            await delete(admin, "s3")
            gone = await stream.next()
            assert (gone.kind, gone.data) == ("remove", {"node_id": "s3"})
            assert None not in {first.cursor, came.cursor, changed.cursor, left.cursor, gone.cursor}


async def test_who_comes_back_gets_what_was_missed(registry: Process) -> None:
    async with session(registry.url) as admin:
        await register(admin, "r1", labels=["resumed"])
        async with watching(admin, "?label=resumed") as stream:
            cursor = (await stream.next()).cursor
        await register(admin, "r2", labels=["resumed"])
        await delete(admin, "r1")
        async with watching(admin, "?label=resumed", cursor) as stream:
            missed = [await stream.next(), await stream.next()]
            assert [(e.kind, e.data["node_id"]) for e in missed] == [("upsert", "r2"), ("remove", "r1")]
        async with watching(admin, "?label=resumed", missed[0].cursor) as stream:
            assert (await stream.next()).data == {"node_id": "r1"}
        for strange in ("0000-1", "nonsense", "-", f"{cursor}9999"):
            async with watching(admin, "?label=resumed", strange) as stream:
                kinds = [(await stream.next()), (await stream.next())]
                assert [e.kind for e in kinds] == ["resync", "snapshot"]
                assert [n["node_id"] for n in kinds[1].data["nodes"]] == ["r2"]


async def test_a_large_snapshot_comes_in_pieces_of_which_the_last_has_the_cursor(registry: Process) -> None:
    async with session(registry.url) as admin:
        for number in range(120):
            await register(admin, f"big{number:03d}", labels=["big"])
        async with watching(admin, "?label=big") as stream:
            pieces = [await stream.next(), await stream.next()]
        assert [(len(p.data["nodes"]), p.data["more"], p.cursor is None) for p in pieces] == [
            (100, True, True), (20, False, False),
        ]  # fmt: skip


async def test_a_watcher_that_does_not_read_is_cut_off_and_others_notice_nothing(registry: Process) -> None:
    async with session(registry.url) as admin:
        host, port = registry.url.removeprefix("http://").split(":")
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            stuck.connect((host, int(port)))
            ask = f"GET {WATCH}?label=flood HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n"
            stuck.sendall(ask.encode())
            async with watching(admin, "?label=flood") as stream:
                assert (await stream.next()).kind == "snapshot"
                reading = asyncio.create_task(_newest(stream, 79))
                large = {"note": "x" * 100_000}  # shown twice; 16 MB in all, more than any kernel keeps
                for number in range(80):
                    await register(admin, f"flood{number}", labels=["flood"], capabilities={**large, "n": number})

                async def cut() -> bool:
                    async with admin.get("/metrics", headers={"Accept": "text/plain"}) as answer:
                        return 'dagi_registry_watchers_total{event="slow"} 1.0' in await answer.text()

                await until(cut)
                assert await reading


async def _newest(stream: Stream, number: int) -> bool:
    while True:
        event = await stream.next()
        if event.data["capabilities"].get("n") == number:
            return True


async def test_the_long_poll_answers_as_soon_as_something_has_changed(registry: Process) -> None:
    async with session(registry.url) as admin:
        await register(admin, "p1", labels=["polled"])
        async with admin.get(f"{NODES}?label=polled") as answer:
            listed = await answer.json()
        asked = asyncio.create_task(_poll(admin, listed["since"]))
        began_s = time.monotonic()
        await asyncio.sleep(0.2)
        assert not asked.done(), "nothing has changed"
        await register(admin, "p2", labels=["polled"])
        changed = await asked
        assert time.monotonic() - began_s < WITHIN_S
        assert ([n["node_id"] for n in changed["nodes"]], changed["removed"], changed["total"]) == (["p2"], [], 2)
        await delete(admin, "p1")
        again = await _poll(admin, changed["since"])
        assert (again["nodes"], again["removed"], again["total"], again["resync"]) == ([], ["p1"], 1, False)
        for name in ("p3", "p4", "p5"):
            await register(admin, name, labels=["polled"])
        seen: list[str] = []
        since = again["since"]
        while len(seen) < 3:
            page = await _poll(admin, since, limit="2")
            assert 0 < len(page["nodes"]) <= 2
            seen += [n["node_id"] for n in page["nodes"]]
            since = page["since"]
        assert seen == ["p3", "p4", "p5"], "page by page"
        assert (await _poll(admin, "no-1"))["resync"] is True
        async with admin.get(f"{NODES}?since=x&offset=1") as answer:
            assert (answer.status, (await answer.json())["errors"][0]["path"]) == (422, "query.since")


async def _poll(client: aiohttp.ClientSession, since: str, **more: str) -> Any:
    async with client.get(NODES, params={"label": "polled", "since": since, **more}) as answer:
        assert answer.status == 200
        return await answer.json()


async def test_who_has_gone_does_not_take_the_place_of_others(registry: Process) -> None:
    async with session(registry.url) as admin:
        await register(admin, "there")
        host, port = registry.url.removeprefix("http://").split(":")
        ask = f"GET {WATCH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n".encode()
        for _ in range(2_010):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(ask)
            assert await reader.read(1)
            writer.close()
        async with watching(admin) as stream:
            assert (await stream.next()).kind == "snapshot"


async def test_stopping_does_not_wait_for_watchers(tmp_path: Path) -> None:
    with running(tmp_path / "data") as process:
        async with session(process.url) as admin, watching(admin) as stream:
            assert (await stream.next()).kind == "snapshot"
            began_s = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(process.stop))
            assert await stream.ended()
            assert await stopping == 0
            assert time.monotonic() - began_s < 5.0
