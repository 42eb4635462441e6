"""Stores other than the embedded one: over sockets, with passwords, over TLS, behind Sentinel."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from tests.support.live import START_S, Process, running, session, until
from tests.support.proxy import proxied
from tests.support.tls import certificate
from tests.support.valkey import Valkey, free_port, valkey

NODES = "/api/v1/nodes"
PASSWORD = "p@ss/wörd:?#"
FAILOVER_S = 30.0  # Sentinel's own time-outs below are a second each; the rest is room for a slow machine


async def works(url: str) -> None:
    """Register, heartbeat, find, remove."""
    async with session(url) as admin:
        for method, path in (
            ("POST", f"{NODES}/register"),
            ("POST", f"{NODES}/heartbeat"),
            ("GET", f"{NODES}/n"),
            ("DELETE", f"{NODES}/n"),
        ):
            async with admin.request(method, path, json={"node_id": "n"} if method == "POST" else None) as answer:
                assert answer.status == 200, await answer.text()


def over_a_socket(store: Valkey, _folder: Path, stack: ExitStack) -> str:
    return f"unix://:{quote(PASSWORD, safe='')}@{store.socket}?db=3"


def as_a_user(store: Valkey, _folder: Path, stack: ExitStack) -> str:
    store.ask(
        "ACL", "SETUSER", "dagi", "on", f">{PASSWORD}", "~dagi:*", "+@all", "-@dangerous", "+info", password=PASSWORD
    )
    proxy = stack.enter_context(proxied(store.socket))
    return f"redis://dagi:{quote(PASSWORD, safe='')}@127.0.0.1:{proxy.port}"


def over_tls(store: Valkey, folder: Path, stack: ExitStack) -> str:
    trusted, context = certificate(folder / "tls")
    proxy = stack.enter_context(proxied(store.socket, context))
    return f"rediss://:{quote(PASSWORD, safe='')}@127.0.0.1:{proxy.port}?ssl_ca_certs={quote(str(trusted))}"


@pytest.mark.parametrize("reach", [over_a_socket, as_a_user, over_tls], ids=lambda f: f.__name__)
async def test_a_store_that_is_reached(tmp_path: Path, reach: Callable[[Valkey, Path, ExitStack], str]) -> None:
    with valkey(tmp_path / "store", f"requirepass {quoted(PASSWORD)}") as store, ExitStack() as stack:
        url = reach(store, tmp_path, stack)
        with running(tmp_path / "data", "--redis-url", url) as registry:
            await works(registry.url)
        assert not (tmp_path / "data" / "appendonlydir").exists()
        assert PASSWORD not in registry.output()
        assert "Traceback" not in registry.output()


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def wrong_password(store: Valkey, _folder: Path, _stack: ExitStack) -> str:
    return f"unix://:wr0ng-one@{store.socket}"


def no_password(store: Valkey, _folder: Path, _stack: ExitStack) -> str:
    return f"unix://{store.socket}"


def nobody_there(_store: Valkey, folder: Path, _stack: ExitStack) -> str:
    return f"unix://:wr0ng-one@{folder}/nothing"


def not_trusted(store: Valkey, folder: Path, stack: ExitStack) -> str:
    _, context = certificate(folder / "tls")
    return f"rediss://:wr0ng-one@127.0.0.1:{stack.enter_context(proxied(store.socket, context)).port}"


def no_sentinel(_store: Valkey, _folder: Path, _stack: ExitStack) -> str:
    return f"redis+sentinel://:wr0ng-one@127.0.0.1:{free_port()}/main"


REFUSALS = [wrong_password, no_password, nobody_there, not_trusted, no_sentinel]


def test_a_store_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with valkey(tmp_path / "store", f"requirepass {quoted(PASSWORD)}") as store, ExitStack() as stack:
        processes = {
            reach.__name__: Process(
                tmp_path / reach.__name__, "--workers", str(1 + number % 2),
                env={"REDIS_URL": reach(store, tmp_path / "certificates" / reach.__name__, stack)},
            )
            for number, reach in enumerate(REFUSALS)
        }  # fmt: skip
        for name, process in processes.items():
            process.popen.wait(START_S)
            assert process.stop() == 2, name
            said = process.output().strip().splitlines()
            assert len(said) == 1, said
            assert "the store at" in said[0]
            assert "wr0ng-one" not in said[0]


async def test_sentinel_fails_over_and_the_registry_goes_on(tmp_path: Path) -> None:
    with ExitStack() as stack:
        main = stack.enter_context(valkey(tmp_path / "main", "repl-diskless-sync-delay 0", port=free_port()))
        follows = f"replicaof 127.0.0.1 {main.port}"
        replica = stack.enter_context(valkey(tmp_path / "replica", follows, port=free_port()))
        sentinel = stack.enter_context(valkey(tmp_path / "sentinel", port=free_port(), sentinel=sentinel_of(main)))

        async def following() -> bool:
            linked = replica.ask("INFO", "replication")["master_link_status"] == "up"
            return linked and len(sentinel.ask("SENTINEL", "REPLICAS", "main")) == 1

        await until(following)
        url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/main/0"  # the first one is down
        with running(tmp_path / "data", "--redis-url", url, "--workers", "2") as registry:
            async with session(registry.url) as admin:
                await registered(admin, "before", 200)
                assert int(main.ask("WAIT", 1, 5000)) == 1
                main.kill()
                await registered(admin, "during", 503)

                async def writes_again() -> bool:
                    return (await attempt(admin, "after")) == 200

                await until(writes_again, FAILOVER_S)

                async def ready() -> bool:
                    async with admin.get("/readyz") as answer:
                        return answer.status == 200

                await until(ready)

                async def complete() -> bool:
                    async with admin.get(NODES) as answer:
                        return {n["node_id"] for n in (await answer.json())["nodes"]} == {"before", "after"}

                await until(complete)
            assert replica.records() == {"before", "after"}


def sentinel_of(main: Valkey) -> str:
    return (
        f"sentinel monitor main 127.0.0.1 {main.port} 1\nsentinel down-after-milliseconds main 1000\n"
        "sentinel failover-timeout main 3000"
    )


async def attempt(admin: aiohttp.ClientSession, node_id: str) -> int:
    async with admin.post(f"{NODES}/register", json={"node_id": node_id}) as answer:
        return answer.status


async def registered(admin: aiohttp.ClientSession, node_id: str, status: int) -> None:
    assert await attempt(admin, node_id) == status
