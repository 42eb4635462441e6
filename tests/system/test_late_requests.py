"""A registry that stood still finds requests whose callers have given up: doing them now would be doing them late."""

import asyncio
import signal
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.live import running, session, until

NODES = "/api/v1/nodes"
QUICK = aiohttp.ClientTimeout(total=0.5)
LATE = [
    ("POST", f"{NODES}/heartbeat", {"node_id": "n", "metrics": {"cpu_percent": 50}}),
    ("POST", f"{NODES}/register", {"node_id": "n", "labels": ["late"]}),
    ("PATCH", f"{NODES}/n", {"labels_add": ["late"]}),
    ("DELETE", f"{NODES}/n", None),
]  # fmt: skip


async def test_what_its_caller_gave_up_on_is_not_done_late(tmp_path: Path) -> None:
    """A heartbeat taken late would take the node over from where it has gone since, with a newer stamp."""
    with running(tmp_path / "data") as registry:
        async with AsyncExitStack() as stack:
            admin, *others = [await stack.enter_async_context(session(registry.url)) for _ in range(1 + len(LATE))]
            before = await _json(admin, "POST", f"{NODES}/register", {"node_id": "n", "labels": ["first"]})
            for other in others:
                await _json(other, "GET", "/health")  # they are connected
            registry.popen.send_signal(signal.SIGSTOP)
            try:
                given_up = await asyncio.gather(
                    *(other.request(method, path, json=body, timeout=QUICK)
                      for other, (method, path, body) in zip(others, LATE, strict=True)),
                    return_exceptions=True,
                )  # fmt: skip
            finally:
                registry.popen.send_signal(signal.SIGCONT)
            assert all(isinstance(outcome, TimeoutError) for outcome in given_up), given_up

            async def ready() -> bool:
                async with admin.get("/readyz") as answer:
                    return answer.status == 200

            await until(ready)
            await until(partial(_written, admin, "m"))  # writes are done in their order
            after = await _json(admin, "GET", f"{NODES}/n")
            assert (after["labels"], after["metrics"]) == (["first"], {})
            assert after["last_heartbeat"] == before["last_heartbeat"]


async def _written(client: aiohttp.ClientSession, node_id: str) -> bool:
    """Its lease may have run out while it stood."""
    async with client.post(f"{NODES}/register", json={"node_id": node_id}) as answer:
        assert answer.status in (200, 503)
        return answer.status == 200


async def _json(client: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with client.request(method, path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()
