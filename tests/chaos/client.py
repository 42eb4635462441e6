"""Requests to registries, with what a caller can know of one that failed."""

from dataclasses import dataclass, field
from typing import Any

import aiohttp

REQUEST_S = 2.0  # what an agent waits
READ_S = 5.0


class Unanswered(Exception):
    """No answer came. `sent`: it may have been done all the same."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


@dataclass(frozen=True)
class Answer:
    """A status and decoded JSON."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.status == 200


class Client:
    """One for everybody. Connections last, as agents' do, but for reads: those must not fail because a
    connection of before a restart is still in the pool."""

    def __init__(self) -> None:
        self._lasting = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._passing = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))

    async def close(self) -> None:
        """End all connections."""
        await self._lasting.close()
        await self._passing.close()

    async def ask(
        self, method: str, url: str, key: str | None, body: dict[str, Any] | None = None, *, within_s: float = REQUEST_S
    ) -> Answer:
        """Raises Unanswered."""
        session = self._passing if method == "GET" else self._lasting
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=within_s)
        try:
            async with session.request(method, url, json=body, headers=headers, timeout=timeout) as answer:
                return Answer(answer.status, await answer.json(content_type=None))
        except aiohttp.ClientConnectorError as error:
            raise Unanswered(f"refused ({error.os_error.strerror or error.os_error})", sent=False) from None
        except TimeoutError:
            raise Unanswered(f"no answer within {within_s:g} s", sent=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unanswered(f"{type(error).__name__}: {error}", sent=True) from None

    async def read(self, url: str, key: str, within_s: float = READ_S) -> Answer:
        """GET."""
        return await self.ask("GET", url, key, within_s=within_s)
