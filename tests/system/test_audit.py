"""The audit log of real registries: kills, tampering, peers who saw it, and disks that fail."""

import asyncio
import json
import resource
from pathlib import Path
from typing import Any

import aiohttp
from click.testing import Result
from typer.testing import CliRunner

from federation.identity import load_or_create_identity
from registry import audit_chain
from registry.audit_chain import START
from registry.audit_checkpoint import signed
from registry.audit_files import paths, read_lines
from registry.cli import app
from tests.support.live import ADMIN_KEY, Process, running, session, until

SECRET = "f" * 32
NODES, AUDIT = "/api/v1/nodes", "/api/v1/audit"


def cli(*arguments: str) -> Result:
    """`dagi-registry audit ...` as an operator runs it."""
    return CliRunner().invoke(app, ["audit", *arguments], env={"REGISTRY_ADMIN_KEY": ADMIN_KEY})


def entries(data_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_lines(data_dir / "audit") if line.endswith(b"\n")]


async def filed(data_dir: Path, action: str, count: int = 1) -> list[dict[str, Any]]:
    async def there() -> list[dict[str, Any]]:
        found = [entry for entry in entries(data_dir) if entry["action"] == action]
        return found if len(found) >= count else []

    found: list[dict[str, Any]] = await until(there)
    return found


async def register(client: aiohttp.ClientSession, *node_ids: str) -> None:
    for node_id in node_ids:
        async with client.post(f"{NODES}/register", json={"node_id": node_id}) as answer:
            assert answer.status == 200


async def test_two_regions_sign_for_each_other_and_a_rewritten_history_is_found(tmp_path: Path) -> None:
    eu_dir, us_dir = tmp_path / "eu", tmp_path / "us"
    env = {"REGISTRY_FEDERATION_SECRET": SECRET}
    flags = ("--audit-sign-every-s", "0.2")
    with running(eu_dir, "--registry-id", "eu", *flags, env=env) as eu:
        peer = ("--registry-id", "us", "--peer", eu.url, *flags)
        with running(us_dir, *peer, env=env) as us:
            async with session(eu.url) as client:
                await register(client, "n1", "n2")
                async with client.patch(f"{NODES}/n1", json={"labels_add": ["x"]}) as answer:
                    assert answer.status == 200
                async with client.delete(f"{NODES}/n1") as answer:
                    assert answer.status == 200
                (gone,) = await filed(eu_dir, "node.deregistered")
                async with client.get(AUDIT, params={"limit": 2, "action": "node."}) as answer:
                    page = await answer.json()

            async def seen() -> bool:
                heads = [e["detail"]["seq"] for e in await filed(us_dir, "checkpoint.witnessed") if e["target"] == "eu"]
                return bool(heads) and max(heads) >= gone["seq"]

            await until(seen)
            live = cli("verify", "--url", eu.url, "--peer", us.url)
            assert (live.exit_code, "sound" in live.stdout) == (0, True), live.stderr
            shown = cli("list", "--url", eu.url, "--action", "node.")
    assert [entry["target"] for entry in page["entries"]] == ["n1", "n2"]
    assert page["next_after"] == page["entries"][-1]["seq"]
    assert gone["by"]["kind"] == "admin"
    assert gone["from"] == "127.0.0.1"
    assert ADMIN_KEY not in str(entries(eu_dir))
    assert shown.stdout.count("node.registered") == 2
    exported = tmp_path / "us.jsonl"
    exported.write_text(cli("export", "--data-dir", str(us_dir)).stdout)
    proof = ("verify", "--data-dir", str(eu_dir), "--witness", str(exported))
    assert cli(*proof).exit_code == 0
    _rewrite(eu_dir, leave_out=gone["seq"])
    assert cli("verify", "--data-dir", str(eu_dir)).exit_code == 0  # by itself it looks as good as before
    found = cli(*proof, "--json")
    assert found.exit_code == 1
    assert "history was rewritten" in found.stderr
    assert json.loads(found.stdout)["ok"] is False


def _rewrite(data_dir: Path, leave_out: int) -> None:
    """Another history, whole, with the registry's own key: all that somebody can do who owns its machine."""
    key = load_or_create_identity(data_dir)
    head, lines = START, []
    for entry in entries(data_dir):
        if entry["seq"] == leave_out:
            entry = {**entry, "target": "somebody-else"}
        detail = entry["detail"]
        if entry["action"] == "checkpoint.signed" and entry["seq"] > leave_out:
            made = signed(key, "eu", head, detail["signed_at"])
            detail = {**detail, "seq": head.seq, "hash": head.hash, "signature": made.signature}
        head, line = audit_chain.link(
            head,
            audit_chain.body(
                at=entry["at"], action=entry["action"], by=entry["by"], target=entry["target"], address=entry["from"],
                outcome=entry["outcome"], detail=detail,
            ),
        )  # fmt: skip
        lines.append(line)
    first, *others = paths(data_dir / "audit")
    first.write_bytes(b"".join(line + b"\n" for line in lines))
    assert others == []


async def test_a_kill_in_the_midst_of_writes_leaves_a_sound_log(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    acknowledged: list[str] = []
    process = Process(data_dir)
    process.wait_ready()
    async with session(process.url) as client:

        async def write(number: int) -> None:
            for turn in range(1_000):
                await register(client, f"n{number}-{turn}")
                acknowledged.append(f"n{number}-{turn}")

        writing = [asyncio.create_task(write(number)) for number in range(4)]
        await filed(data_dir, "node.registered", 50)
        process.kill()
        await asyncio.wait(writing, timeout=10)
        assert all(task.exception() is not None for task in writing)
    assert cli("verify", "--data-dir", str(data_dir)).exit_code == 0
    with running(data_dir) as again:
        async with session(again.url) as client:
            await register(client, "last")
        await filed(data_dir, "registry.started", 2)
        await until(lambda: _has(data_dir, "last"))
    noted = [entry["target"] for entry in entries(data_dir) if entry["action"] == "node.registered"]
    assert set(acknowledged) <= set(noted)
    assert len(noted) == len(set(noted))
    starts = [entry["detail"] for entry in entries(data_dir) if entry["action"] == "registry.started"]
    assert "killed" in starts[1]["before"]
    assert entries(data_dir)[-1]["action"] in ("registry.stopped", "checkpoint.signed")
    sound = cli("verify", "--data-dir", str(data_dir))
    assert (sound.exit_code, sound.stderr) == (0, "")


async def _has(data_dir: Path, target: str) -> bool:
    return any(entry["target"] == target for entry in entries(data_dir))


async def test_a_disk_that_takes_nothing_delays_the_files_and_nothing_else(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir) as process:
        async with session(process.url) as client:
            await register(client, "before")
            await until(lambda: _has(data_dir, "before"))
            _, most = resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (0, most))
            await register(client, "meanwhile")
            await until(lambda: _unfiled(client))
            assert not await _has(data_dir, "meanwhile")
            resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (most, most))
            await until(lambda: _has(data_dir, "meanwhile"))
    assert cli("verify", "--data-dir", str(data_dir)).exit_code == 0


async def _unfiled(client: aiohttp.ClientSession) -> bool:
    async with client.get("/metrics", headers={"Accept": "text/plain"}) as answer:
        return "dagi_registry_audit_entries_unfiled 1.0" in await answer.text()
