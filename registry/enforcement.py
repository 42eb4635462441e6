"""Keeps the word on our nodes in step with the allowlist, and forgets requests whose day is over.

Runs in every worker; the one that writes acts. Heartbeats are refused by each worker by itself: this takes the node out
of discovery, at every registry, without waiting for its next heartbeat.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from registry.admission import unlisted
from registry.allow_requests import REQUEST_PREFIX
from registry.allowlist import LISTED_AGAIN, UNLISTED, Allowlist
from registry.clock import Clock
from registry.directory import Directory, Due
from registry.directory import Entry as Node
from registry.ports import Fenced, StoreUnavailable
from registry.writer import Writer

AT_ONCE = 500  # nodes looked at between two turns of the event loop: some milliseconds
LOOK_EVERY_S = 1.0  # for a role that has changed, and for requests whose day is over
MANY = 1_000  # node ids that changed; beyond, all nodes are looked at


class Role(Protocol):
    """What is asked of this worker's role."""

    writer: Writer | None

    @property
    def reasons(self) -> list[str]:
        """Why the region must not be written yet."""


class Enforcement:
    """See the module."""

    def __init__(self, allowlist: Allowlist, directory: Directory, role: Role, clock: Clock, registry_id: str) -> None:
        self._allowlist = allowlist
        self._directory = directory
        self._role = role
        self._clock = clock
        self._registry_id = registry_id
        self._woken = asyncio.Event()
        self._changed: set[str] = set()  # nodes that may be concerned
        self._all_changed = True
        self._swept_by: Writer | None = None
        allowlist.on_change = self._note

    async def run(self) -> None:
        """For ever."""
        while True:
            writer = self._role.writer
            if writer is not None and writer.available and not self._role.reasons:
                with contextlib.suppress(StoreUnavailable, Fenced):  # the next round does it
                    await self._act(writer)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._woken.wait()
            self._woken.clear()

    def _note(self, node_id: str | None) -> None:
        if node_id is None or len(self._changed) >= MANY:
            self._all_changed = True
        else:
            self._changed.add(node_id)
        self._woken.set()

    async def _act(self, writer: Writer) -> None:
        changed, everything = self._changed, self._all_changed or writer is not self._swept_by
        self._changed, self._all_changed = set(), False
        try:
            if everything:
                await self._sweep(writer, list(self._directory.entries()))
                self._swept_by = writer
            elif changed:
                await self._sweep(writer, [node for each in changed if (node := self._directory.get(each)) is not None])
        except BaseException:
            self._all_changed = True
            raise
        await self._forget_one(writer)

    async def _sweep(self, writer: Writer, nodes: list[Node]) -> None:
        for start in range(0, len(nodes), AT_ONCE):
            due = list(self._due(nodes[start : start + AT_ONCE]))
            if due:
                await writer.judge(due)
            await asyncio.sleep(0)

    def _due(self, nodes: Iterable[Node]) -> Iterable[Due]:
        for node in nodes:
            if not node.owner.is_us:
                continue
            if not self._allowlist.admits(node):
                if node.word.why != UNLISTED:
                    yield unlisted(node)
            elif node.word.why == UNLISTED:
                yield Due(node.node_id, replace(node.word, why=LISTED_AGAIN), node.word)

    async def _forget_one(self, writer: Writer) -> None:
        """A deletion a second: many at once would look like an attack to peers. What is over is shown to nobody."""
        now_ms = self._clock.wall_ms()
        for name, held in self._allowlist.requests.items():
            if held.is_to_be_removed(now_ms, self._registry_id):
                await writer.remove(REQUEST_PREFIX + name, "its day is over")
                return
