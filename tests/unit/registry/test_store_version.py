"""Which servers a registry takes: Redis 6.2 or newer, and Valkey, which says it is Redis 7.2."""

from typing import Any, cast

import pytest
from redis.asyncio import Redis

from registry import store_scripts
from registry.ports import StoreUnavailable
from registry.store import RedisStore


class Server:
    """As much of a client as a start needs."""

    def __init__(self, version: str | None) -> None:
        self._version = version
        self.scripts: list[str] = []

    async def info(self, _section: str) -> dict[str, Any]:
        return {} if self._version is None else {"redis_version": self._version}

    async def script_load(self, script: str) -> str:
        self.scripts.append(script)
        return ""


def store(server: Server) -> RedisStore:
    def client(*_: Any, **__: Any) -> Redis:
        return cast(Redis, server)

    return RedisStore("redis://store.example.org", region="r", worker_id="w", beat_window_ms=1, client=client)


@pytest.mark.parametrize("version", ["2.8.19", "5.0.14", "6.0.16", "6.1.240", "0", None])
async def test_an_old_server_is_refused_and_the_message_says_which_is_needed(version: str | None) -> None:
    with pytest.raises(StoreUnavailable, match=r"6\.2 or newer is needed") as caught:
        await store(Server(version)).start()
    assert caught.value.reason == "refused"
    if version is not None:
        assert version in str(caught.value)


@pytest.mark.parametrize("version", ["6.2.0", "7.2.4", "8.0", "10.1.3", "255.255.255", "7"])
async def test_a_newer_one_is_taken_and_given_the_scripts(version: str) -> None:
    server = Server(version)
    await store(server).start()
    assert server.scripts == list(store_scripts.ALL)
