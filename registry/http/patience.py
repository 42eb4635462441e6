"""Who keeps us waiting: requests that do not come to an end, answers that are not taken."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from registry.http.limits import ANSWER_SWEEPS, HEAD_SWEEPS, SWEEP_S


class Waited(Protocol):
    """A connection, as far as it is cut here."""

    def cut(self) -> None:
        """End it now, whatever is left to be written."""


class Patience:
    """Connections that we wait for, and for how many more sweeps. Only those: most are never here for long."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """`count` hears `head_time` or `answer_time` for each that is cut."""
        self.count = count
        self.heads: dict[Waited, int] = {}
        self.answers: dict[Waited, int] = {}

    def sweep(self) -> None:
        """Another second has passed."""
        for waiting, name in ((self.heads, "head_time"), (self.answers, "answer_time")):
            late = []
            for connection, left in waiting.items():
                waiting[connection] = left - 1
                if left <= 1:
                    late.append(connection)
            for connection in late:
                del waiting[connection]
                self.count(name)
                connection.cut()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def await_head(self, connection: Waited) -> None:
        """A request's head has begun, or should; the first call counts."""
        self.heads.setdefault(connection, HEAD_SWEEPS)

    def await_reader(self, connection: Waited) -> None:
        """What we wrote is not taken."""
        self.answers.setdefault(connection, ANSWER_SWEEPS)

    def forget(self, connection: Waited) -> None:
        """It is closed."""
        self.heads.pop(connection, None)
        self.answers.pop(connection, None)
