"""What workers do for the audit log beside their requests: notes of all of them come to one chain, and to the files."""

from pathlib import Path

import orjson

from federation.ed25519 import PrivateKey
from federation.record import REGISTRY_PREFIX
from federation.roster import Advert, pack_advert
from registry import audit_checkpoint
from registry.audit_chain import Head
from registry.audit_checkpoint import CHECKPOINT_PREFIX, Checkpoint, signed
from registry.audit_files import AuditFiles, read_lines
from registry.audit_keeper import AuditKeeper
from registry.audit_verify import Verifier
from registry.audit_witness import Witness
from registry.writer import Writer
from tests.support.clock import ManualClock
from tests.support.regions import HERE, Worker
from tests.support.stores import Bench

FACTS = {"auth": "key"}
KEY, PEERS_KEY = PrivateKey(b"1" * 32), PrivateKey(b"2" * 32)


class Kept:
    """A worker with its keeper, and a clock by hand for what is due."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        self.worker, self.clock = worker, ManualClock()
        self.table = worker.directory.tables.add(audit_checkpoint.table())
        audit = worker.region.audit
        witness = Witness(HERE, KEY, self.table, audit, worker.store, self.clock, 300.0)
        self.unfiled: list[int] = []
        self.keeper = AuditKeeper(worker.region, worker.store, AuditFiles(folder, 10**9), witness, self.unfiled.append)

    async def step(self) -> None:
        await self.keeper._step()
        if self.worker.region.writer is not None:
            await self.worker.region.writer.flushed()

    async def end(self) -> None:
        await self.keeper.finish()
        await self.worker.region.stop()
        await self.worker.follower.stop()


async def kept(region: Bench, folder: Path, name: str = "w1", address: str = "") -> Kept:
    made = Kept(Worker(await region.worker(name), address=address), folder)
    await made.worker.region.start()
    return made


def entries(folder: Path) -> list[tuple[str, str]]:
    assert Verifier(None).check(read_lines(folder)).problems == []
    found = [orjson.loads(line) for line in read_lines(folder)]
    return [(entry["action"], entry["outcome"]) for entry in found]


async def test_notes_of_every_worker_come_to_one_log(region: Bench, tmp_path: Path) -> None:
    writer = await kept(region, tmp_path, "w1", "/one")
    other = await kept(region, tmp_path, "w2", "/two")
    assert other.worker.region.writer is None
    other.worker.region.audit.note("authentication", None, "", "192.0.2.1", "no_key")
    await other.end()
    await writer.step()
    await writer.end()
    assert ("authentication", "no_key") in entries(tmp_path)
    assert writer.unfiled[-1] == 0


async def test_a_start_says_what_is_different_and_how_the_last_one_ended(region: Bench, tmp_path: Path) -> None:
    for facts, started_ms, ends in ((FACTS, 1, False), (FACTS, 1, True), ({"auth": "open"}, 2, True), (FACTS, 3, True)):
        made = await kept(region, tmp_path, f"w{started_ms}")
        await made.keeper._note_start(facts, started_ms)
        if ends:
            await made.end()
        else:  # killed: nobody says that it stopped
            await made.worker.writer.flushed()
            await made.worker.region.stop()
            await made.worker.follower.stop()
    found = [orjson.loads(line) for line in read_lines(tmp_path)]
    starts = [entry for entry in found if entry["action"] == "registry.started"]
    assert [entry["action"] for entry in found if entry["action"] == "worker.restarted"] == ["worker.restarted"]
    assert [entry["detail"].get("changed") for entry in starts] == [
        None, {"auth": ["key", "open"]}, {"auth": ["open", "key"]},
    ]  # fmt: skip


async def test_it_signs_what_is_new_and_its_own_signatures_are_not(region: Bench, tmp_path: Path) -> None:
    made = await kept(region, tmp_path)
    for _ in range(4):
        await made.step()
        made.clock.advance(400.0)
    assert [action for action, _ in entries(tmp_path)] == ["writer.began", "checkpoint.signed"]
    own = made.table.get(HERE)
    assert own is not None
    assert own.is_by(KEY.public)
    await made.worker.register("n1")
    await made.step()
    made.clock.advance(100.0)
    await made.worker.register("n2")
    await made.step()  # not yet
    made.clock.advance(300.0)
    await made.step()
    actions = [action for action, _ in entries(tmp_path)]
    assert actions[2:] == ["node.registered", "checkpoint.signed", "node.registered", "checkpoint.signed"]
    await made.end()


async def give(writer: Writer, checkpoint: Checkpoint) -> None:
    """As if it had come from a peer."""
    await writer.put(CHECKPOINT_PREFIX + checkpoint.registry_id, checkpoint.encode())


async def test_it_keeps_what_peers_signed_and_tells_of_one_that_goes_back(region: Bench, tmp_path: Path) -> None:
    made = await kept(region, tmp_path)
    writer = made.worker.writer
    identity = PEERS_KEY.public
    await writer.put(REGISTRY_PREFIX + "us", pack_advert(Advert("http://us.example.org:9205", "us", identity, 1)))
    given = [
        signed(PEERS_KEY, "us", Head(5, "a" * 64), "t1"),
        signed(PEERS_KEY, "us", Head(9, "b" * 64), "t2"),
        signed(KEY, "us", Head(10, "c" * 64), "t3"),  # somebody else's
        signed(PEERS_KEY, "nobody", Head(1, "c" * 64), "t3"),  # nobody that we know
        signed(PEERS_KEY, "us", Head(7, "d" * 64), "t4"),  # shorter than it was
    ]
    for checkpoint in given:
        await give(writer, checkpoint)
        await made.step()
        await made.step()  # once is enough
        made.clock.advance(10.0)
    assert dict(writer.alerts)["audit_rewritten"] == 1
    assert dict(writer.alerts)["audit_forged"] >= 1
    found = [action for action, _ in entries(tmp_path) if action in ("checkpoint.witnessed", "checkpoint.contradicts")]
    assert found == ["checkpoint.witnessed", "checkpoint.witnessed", "checkpoint.contradicts"]
    await made.end()
    again = await kept(region, tmp_path, "w2")  # the next writer knows what was seen
    assert again.worker.writer.pinned("us") == identity
    before = len(entries(tmp_path))
    await again.step()
    assert "checkpoint.contradicts" not in [action for action, _ in entries(tmp_path)[before:]]
    await again.end()
