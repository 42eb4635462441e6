"""Who is let in, as one worker decides it: what an asker can bring about, and what becomes of it with time."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from registry import enforcement as enforcement_module
from registry.allow_commands import AllowCommands
from registry.allow_requests import DAY_MS, MAX_FROM_ONE_ADDRESS
from registry.allowlist import LISTED_AGAIN, UNLISTED
from registry.auth import Authenticator
from registry.certificates import Certificate
from registry.enforcement import Enforcement
from registry.errors import ApiError
from registry.keys import Principal
from registry.model import AllowlistQuery, AllowRequest, RegisterRequest, SwitchRequest, parse
from registry.service import NotWriter
from registry.writer import Writer
from tests.contract.test_region import one_spec
from tests.support.clock import ManualClock
from tests.support.regions import ADMIN, ANYONE, HERE, FakeLinks, Peer, Worker, becomes, working
from tests.support.stores import Bench


class House:
    """A worker whose list is on, its operator, and who knocks."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.commands = AllowCommands(
            worker.allowlist, worker.directory, worker.region.audit, worker.clock, worker.directory.registry_id
        )

    async def turn(self, enforced: bool = True, approvals: bool = True) -> dict[str, Any]:
        asked = SwitchRequest(enforced=enforced, approvals=approvals)
        return await self.commands.turn(ADMIN, asked, self.worker.writer)

    async def add(self, entry: str, note: str | None = None) -> dict[str, Any]:
        return await self.commands.add(ADMIN, AllowRequest(entry=entry, note=note), self.worker.writer)

    async def remove(self, entry: str) -> dict[str, Any]:
        return await self.commands.remove(ADMIN, entry, self.worker.writer)

    async def knock(self, node_id: str, claim: str = "c" * 32, ip: str = "192.0.2.7") -> str:
        """`in`, or why not."""
        request = parse(RegisterRequest, {"node_id": node_id, "claim": claim})
        return await refusal(self.worker.registry.register(ANYONE, request, ip)) or "in"

    @property
    def waiting(self) -> list[str]:
        return [row["node_id"] for row in self.commands.pending()["pending"]]

    def word(self, node_id: str) -> tuple[str, str | None]:
        entry = self.worker.directory.get(node_id)
        assert entry is not None
        return entry.status, entry.word.why


async def refusal(call: Any) -> str | None:
    try:
        await call
    except ApiError as error:
        return error.code
    return None


@contextlib.asynccontextmanager
async def house(region: Bench, **options: Any) -> AsyncIterator[House]:
    async with working(await region.worker(), **options) as worker:
        yield House(worker)


@contextlib.asynccontextmanager
async def enforcing(subject: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(enforcement_module, "LOOK_EVERY_S", 0.02)
    worker = subject.worker
    made = Enforcement(worker.allowlist, worker.directory, worker.region, worker.clock, HERE)
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        while not task.done():  # redis-py swallows a cancellation that comes while it connects
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)


async def test_a_flood_of_askers_is_kept_small_and_asking_again_writes_nothing(region: Bench) -> None:
    async with house(region) as subject:
        await subject.turn()
        found = await asyncio.gather(*(subject.knock(f"n{i}") for i in range(100)))
        assert Counter(found) == {"pending": MAX_FROM_ONE_ADDRESS, "not_allowlisted": 100 - MAX_FROM_ONE_ADDRESS}
        assert len(subject.waiting) == MAX_FROM_ONE_ADDRESS
        assert await subject.knock("n0", ip="192.0.2.8") == "pending"  # the same one, from elsewhere
        before = subject.worker.writer.position
        assert {await subject.knock(node_id) for node_id in subject.waiting} == {"pending"}
        assert await subject.knock("n99") == "not_allowlisted"
        assert subject.worker.writer.position == before
        assert await subject.knock("n99", ip="192.0.2.8") == "pending"


async def test_the_same_asker_twice_at_once_is_one_request(region: Bench) -> None:
    async with house(region) as subject:
        await subject.turn()
        assert set(await asyncio.gather(*(subject.knock("gpu-7") for _ in range(20)))) == {"pending"}
        assert subject.waiting == ["gpu-7"]


async def test_without_approvals_nobody_may_ask(region: Bench) -> None:
    async with house(region) as subject:
        await subject.turn(approvals=False)
        assert await subject.knock("gpu-7") == "not_allowlisted"
        assert subject.waiting == []
        await subject.turn(enforced=False, approvals=True)
        assert await subject.knock("gpu-7") == "in"


async def test_a_denied_asker_stays_denied_for_a_day_and_can_be_approved_by_its_code(region: Bench) -> None:
    clock = ManualClock()
    async with house(region, clock=clock) as subject:
        await subject.turn()
        assert await subject.knock("gpu-7") == "pending"
        row = await subject.commands.deny(ADMIN, "gpu-7", None, subject.worker.writer)
        assert await subject.knock("gpu-7") == "not_allowlisted"
        code = await refusal(subject.commands.approve(ADMIN, "gpu-7", None, subject.worker.writer))
        assert code == "no_such_request"
        clock.advance(DAY_MS / 1000)
        assert await subject.knock("gpu-7") == "pending"
        await subject.commands.deny(ADMIN, "gpu-7", row["code"], subject.worker.writer)
        await subject.commands.approve(ADMIN, "gpu-7", row["code"], subject.worker.writer)
        assert await subject.knock("gpu-7", claim="d" * 32) == "pending"
        assert await subject.knock("gpu-7") == "in"
        # What an approval has bound is not unbound by listing the id once more.
        added = await subject.add("gpu-7", "the new one")
        assert (added["source"], added["note"]) == ("approved", "the new one")
        assert row["code"] in added["warnings"][0]
        await subject.worker.delete("gpu-7")
        assert await subject.knock("gpu-7", claim="d" * 32) == "pending"


async def test_requests_whose_day_is_over_are_removed_one_after_the_other(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with house(region, clock=clock) as subject, enforcing(subject, monkeypatch):
        await subject.turn()
        for i in range(3):
            await subject.knock(f"n{i}")
        clock.advance(DAY_MS / 1000 - 1)
        await subject.knock("late")
        clock.advance(1)
        assert subject.waiting == ["late"]  # the others are shown no more
        await becomes(lambda: len(subject.worker.allowlist.requests) == 1)


async def test_nodes_that_are_not_covered_go_offline_and_come_back(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(region) as subject, enforcing(subject, monkeypatch):
        for node_id in ("a", "b", "c"):
            await subject.worker.register(node_id)  # from 192.0.2.7
        preview = await subject.commands.overview(AllowlistQuery(unlisted=True))
        assert preview["unlisted"] == {"total": 3, "node_ids": ["a", "b", "c"]}
        await subject.add("a")
        assert (await subject.turn())["warnings"] == []
        await becomes(lambda: subject.word("b") == subject.word("c") == ("offline", UNLISTED))
        assert subject.word("a") == ("online", None)
        assert await refusal(subject.worker.beat("b")) == "not_allowlisted"
        assert await refusal(subject.worker.beat("a")) is None
        await subject.add("192.0.2.0/24")
        await becomes(lambda: subject.word("b") == ("offline", LISTED_AGAIN))
        assert await refusal(subject.worker.beat("b")) is None
        assert subject.word("b") == ("online", None)
        assert "another entry covers it" in (await subject.remove("a"))["warnings"][0]
        await subject.turn(enforced=False)
        await subject.remove("192.0.2.0/24")
        await becomes(lambda: subject.word("c") == ("offline", LISTED_AGAIN))


async def test_a_refused_heartbeat_of_a_node_whose_home_is_gone_takes_it_offline_here(region: Bench) -> None:
    made: list[FakeLinks] = []

    def make_links(writer: Writer) -> FakeLinks:
        made.append(FakeLinks())
        return made[-1]

    async with house(region, links=make_links) as subject:
        worker = subject.worker
        peer = Peer(worker.writer, made[0])
        peer.connect()
        spec = await one_spec(worker)
        word = b'["online",null,null,null]'
        _, effects = peer.engine.register("n:t", spec, peer.now, incarnation=0, judgement=word)
        peer.do(effects)
        await becomes(lambda: "t" in worker.statuses())
        await subject.turn()
        entry = worker.directory.get("t")
        assert entry is not None
        peer.tick()  # it is there, and speaks for its nodes
        worker.writer._tick()
        await becomes(lambda: entry.owner.reachable)
        assert await refusal(worker.beat("t")) == "not_allowlisted"
        assert (entry.status, entry.owner.registry_id) == ("online", "there")
        worker.directory.hear("there", reachable=False, age_s=60, now_ms=0, generation=1, known=[])
        assert await refusal(worker.beat("t")) == "not_allowlisted"
        assert (entry.status, entry.word.why, entry.owner.registry_id) == ("offline", UNLISTED, HERE)


async def test_a_worker_that_does_not_write_refuses_by_itself(region: Bench) -> None:
    async with house(region, address="/one") as subject:
        other = Worker(await region.worker("w2"), address="/two")
        await other.region.start()
        try:
            await subject.worker.register("a")
            await subject.turn()
            await becomes(lambda: other.allowlist.on)
            with pytest.raises(NotWriter):  # the word on it is still to be said
                await other.beat("a")
            assert await refusal(subject.worker.beat("a")) == "not_allowlisted"
            await becomes(lambda: other.statuses() == {"a": "offline"})
            assert await refusal(other.beat("a")) == "not_allowlisted"
        finally:
            await other.stop()


async def test_the_list_outlives_a_restart(region: Bench) -> None:
    async with house(region) as subject:
        await subject.turn()
        await subject.add("2001:db8::/32")
        await subject.knock("gpu-7")
    async with house(region) as subject:
        assert subject.worker.allowlist.on
        assert subject.waiting == ["gpu-7"]
        assert await subject.knock("gpu-8", ip="2001:db8::1") == "in"
        assert await subject.knock("gpu-9", ip="2001:db9::1") == "pending"


async def test_a_certificate_is_listed_by_what_it_names_and_asks_as_itself(
    region: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate("gpu-8", None, ("urn:dagi:node:gpu-8", "cn:box"), 4e9)
    who = Principal("node", "gpu-8", certificate=certificate)

    def knocks(subject: House, ip: str) -> Any:
        return refusal(subject.worker.registry.register(who, parse(RegisterRequest, {"node_id": "gpu-8"}), ip))

    async with house(region) as subject, enforcing(subject, monkeypatch):
        await subject.turn()
        assert await knocks(subject, "192.0.2.7") == "pending"
        assert await knocks(subject, "192.0.2.9") == "pending"
        [row] = subject.commands.pending()["pending"]  # one, wherever it asks from
        assert (row["bound_to"], row["certificate"], row["key"]) == ("certificate", "urn:dagi:node:gpu-8", "none")
        await subject.add("cert:cn:box")
        assert await knocks(subject, "192.0.2.9") is None
        assert subject.word("gpu-8") == ("online", None)
        await subject.remove("cert:cn:box")
        await becomes(lambda: subject.word("gpu-8") == ("offline", UNLISTED))
        assert not subject.worker.allowlist.admits_caller("gpu-8", certificate)
        await subject.add("cert:gpu-8")
        await becomes(lambda: subject.word("gpu-8") == ("offline", LISTED_AGAIN))
        assert subject.worker.allowlist.admits_caller("gpu-8", certificate)


async def test_a_key_reads_nothing_by_its_node_having_been_deleted(region: Bench) -> None:
    async with house(region) as subject:
        await subject.turn(enforced=False)
        auth, registry = subject.worker.registry.auth, subject.worker.registry
        auth.is_listed = subject.worker.allowlist.admits_caller
        key = orjson.loads(await registry.register(ANYONE, parse(RegisterRequest, {"node_id": "gpu-7"}), "192.0.2.7"))
        header = f"Bearer {key['api_key']}"
        await subject.turn()
        assert await refusal(reads(auth, header)) == "not_allowlisted"
        await registry.deregister(auth.identify(header), "gpu-7")
        assert await refusal(reads(auth, header)) == "not_allowlisted"
        await subject.turn(enforced=False)
        assert await refusal(reads(auth, header)) is None


async def reads(auth: Authenticator, header: str) -> None:
    auth.require(auth.identify(header), "read")
