"""The region's store over a fake Redis and over a real one, behind one door."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from fakeredis import FakeServer
from fakeredis.aioredis import FakeRedis
from redis.asyncio import Redis

from registry.ports import Change, Loaded, Put, Store
from registry.redis_url import connect
from registry.store import RedisStore

LONG_MS = 60_000

_regions = itertools.count()


class _Fake(FakeRedis):
    """fakeredis has no INFO."""

    async def info(self, section: str | None = None, *args: Any, **options: Any) -> dict[str, Any]:
        return {"redis_version": "7.0.0"}


class Bench:
    """One region of one server, with as many workers as a test wants."""

    def __init__(self, url: str | None) -> None:
        self._url = url or "redis://192.0.2.1"  # a fake asks nobody
        self._server = FakeServer(version=(7,)) if url is None else None
        self.region = f"region{next(_regions)}"
        self.round_trips = 0
        self._open = contextlib.AsyncExitStack()

    def key(self, name: str) -> str:
        """A key of this region."""
        return f"dagi:{{{self.region}}}:{name}"

    def client(self, url: str, **options: Any) -> Redis:
        """A client of the server; whatever is sent to it at once is counted."""
        made = _Fake(server=self._server) if self._server is not None else connect(url, **options)
        pool = made.connection_pool
        make_connection = pool.make_connection

        def counting() -> Any:
            connection = make_connection()  # type: ignore[no-untyped-call]  # the library has no types here
            send = connection.send_packed_command

            async def counted(*args: Any, **kwargs: Any) -> None:
                self.round_trips += 1
                await send(*args, **kwargs)

            connection.send_packed_command = counted
            return connection

        pool.make_connection = counting  # type: ignore[method-assign]  # to count, not to change
        return made

    async def raw(self) -> Redis:
        """The server as its operator sees it."""
        client = self.client(self._url)
        self._open.push_async_callback(client.aclose)
        return client

    async def worker(
        self,
        name: str = "w1",
        *,
        window_ms: int = 60_000,
        kind: type[RedisStore] = RedisStore,
        url: str | None = None,
        on_commit: Callable[[int, float], None] | None = None,
    ) -> Any:
        """A worker's store, started; closed with the bench. `url`: another way to the server."""
        store = kind(
            url or self._url,
            region=self.region,
            worker_id=name,
            beat_window_ms=window_ms,
            on_commit=on_commit,
            client=self.client,
        )
        self._open.push_async_callback(store.aclose)
        await store.start()
        return store

    async def writer(self, store: Store | None = None, token: str = "t1") -> "Writer":
        """A worker that holds the region's lease."""
        made = Writer(store or await self.worker(), token)
        assert (await made.store.lease(token, "", LONG_MS)).token == token
        made.number = await made.store.version()
        return made

    async def aclose(self) -> None:
        """Close every client."""
        await self._open.aclose()


class Writer:
    """Numbers its commits one after the other, as the one writer of a region does."""

    def __init__(self, store: Store, token: str) -> None:
        self.store = store
        self.token = token
        self.number = 0

    async def commit(self, *puts: Put, meta: bytes | None = None) -> int:
        """One commit on the one before; its number."""
        await self.commit_on({self.number}, *puts, meta=meta)
        return self.number

    async def commit_on(self, expected: Collection[int] | None, *puts: Put, meta: bytes | None = None) -> None:
        """The next commit, if the newest is one of these."""
        await self.store.commit(self.token, expected, self.number + 1, puts, meta)
        self.number += 1

    async def put(self, *keys: str, data: bytes = b"x") -> int:
        """Keep the data under each key; the commit's number."""
        return await self.commit(*(Put(key, data) for key in keys))

    async def remove(self, *keys: str) -> int:
        """Remove each key; the commit's number."""
        return await self.commit(*(Put(key, None) for key in keys))


@contextlib.asynccontextmanager
async def bench(url: str | None) -> AsyncIterator[Bench]:
    """A region of the server at `url`, or of a fake one."""
    made = Bench(url)
    try:
        yield made
    finally:
        await made.aclose()


async def loaded(store: Store) -> dict[str, Loaded]:
    """Every record by its key."""
    return {record.key: record async for chunk in store.load() for record in chunk}


async def heard(store: Store, at_ms: int) -> bool:
    """A heartbeat of "a", sent by a task of its own."""
    return await store.beat("a", b"{}", at_ms)


async def told(store: Store, position: str, number: int) -> list[Change]:
    """The next changes after a position."""
    changes: list[Change] = []
    async with asyncio.timeout(5), contextlib.aclosing(store.tail(position)) as tail:  # type: ignore[type-var]  # a port promises no aclose
        async for some in tail:
            changes += some
            if len(changes) >= number:
                return changes
    return changes
