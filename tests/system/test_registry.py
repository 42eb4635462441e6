"""A registry as operators run it: real process, real Valkey, real sockets."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.live import START_S, Process, running, session, until

REPORT = {
    "hostname": "gpu-box",
    "labels": ["gpu", "home"],
    "capabilities": {"gpu": "NVIDIA L4", "models": ["qwen3:8b"], "ram_gb": 64.0},
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("one") / "data") as process:
        yield process


async def test_a_node_registers_and_is_found_by_what_it_can_do(registry: Process) -> None:
    async with session(registry.url, None) as anyone, anyone.post("/api/v1/nodes/register", json=REPORT) as answer:
        assert answer.status == 200
        node = await answer.json()
    assert node["api_key"].startswith("sk-node-")
    async with session(registry.url, node["api_key"]) as client:
        async with client.get("/api/v1/nodes/discover?capability=gpu&model=QWEN3:8b&min_ram_gb=32") as answer:
            found = await answer.json()
        assert [n["node_id"] for n in found["nodes"]] == [node["node_id"]]
        async with client.get("/api/v1/nodes/discover?model=qwen3") as answer:
            assert (await answer.json())["nodes"] == []
        beat = {"node_id": node["node_id"], "metrics": {"cpu_percent": 12.5}}
        async with client.post("/api/v1/nodes/heartbeat", json=beat) as answer:
            assert answer.status == 200
        async with client.get(f"/api/v1/nodes/{node['node_id']}") as answer:
            assert (await answer.json())["metrics"] == {"cpu_percent": 12.5}


async def test_a_question_asked_again_and_again_is_answered_as_its_nodes_fare_now(registry: Process) -> None:
    """An order is kept for a second, and an answer with it: what it says of its nodes is not."""
    async with session(registry.url) as admin:
        async with admin.post("/api/v1/nodes/register", json={"node_id": "asked", "role": "oracle"}) as answer:
            assert answer.status == 200
        for percent in (10, 20, 30):
            beat = {"node_id": "asked", "metrics": {"cpu_percent": percent}}
            async with admin.post("/api/v1/nodes/heartbeat", json=beat) as answer:
                assert answer.status == 200
            for _ in range(40):  # each of the lots more than once
                async with admin.get("/api/v1/nodes/discover?role=oracle") as answer:
                    found = await answer.json()
                assert [node["metrics"] for node in found["nodes"]] == [{"cpu_percent": percent}]


async def test_answers_to_writes_carry_a_version_that_reads_can_ask_for(registry: Process) -> None:
    async with session(registry.url) as admin:
        async with admin.post("/api/v1/nodes/register", json={"node_id": "versioned"}) as answer:
            registered = await answer.json()
        async with admin.patch("/api/v1/nodes/versioned", json={"labels_add": ["v"]}) as answer:
            patched = await answer.json()
        async with admin.delete("/api/v1/nodes/versioned") as answer:
            deleted = await answer.json()
        versions = [made["version"] for made in (registered, patched, deleted)]
        assert len(set(versions)) == 3
        assert (registered["status_age_s"], registered["status_reason"], patched["labels"]) == (0, None, ["v"])
        for version in versions:
            asked = {"min_version": version}
            async with admin.get("/api/v1/nodes/versioned", params=asked) as answer:
                assert answer.status == 404
            for path in ("/api/v1/nodes", "/api/v1/nodes/discover"):
                async with admin.get(path, params={**asked, "status": "any"}) as answer:
                    assert "versioned" not in {node["node_id"] for node in (await answer.json())["nodes"]}
            async with admin.post("/api/v1/nodes/discover", json=asked) as answer:
                assert answer.status == 200
        origin, generation, seq = versions[-1].split(":")
        for text, status, code in (
            (f"{origin}:{generation}:{int(seq) + 1_000}", 503, "not_yet_visible"),
            (f"{origin}:{generation}", 422, "invalid"), ("", 422, "invalid"),
        ):  # fmt: skip
            async with admin.get("/api/v1/nodes/versioned", params={"min_version": text}) as answer:
                assert (answer.status, (await answer.json())["code"]) == (status, code)
                assert ("Retry-After" in answer.headers) == (status == 503)


async def test_a_registry_in_no_federation_tells_so(registry: Process) -> None:
    async with session(registry.url) as admin, admin.get("/api/v1/federation") as answer:
        view = await answer.json()
    assert view["self"]["federated"] is False
    assert (view["self"]["registry_id"], view["self"]["ready"], view["peers"]) == ("local", True, [])
    assert view["self"]["version"].startswith("local:")


async def test_the_same_machine_without_an_id_gets_the_same_one(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--auth", "open") as process:
        async with session(process.url, None) as anyone:
            ids = []
            for _ in range(2):
                async with anyone.post("/api/v1/nodes/register", json=REPORT) as answer:
                    ids.append((await answer.json())["node_id"])
            assert ids[0] == ids[1]
            async with anyone.get("/api/v1/nodes") as answer:
                assert (await answer.json())["total"] == 1


async def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    first = Process(tmp_path / "data")
    first.wait_ready()
    async with session(first.url, None) as anyone:
        nodes = []
        for index in range(50):
            async with anyone.post("/api/v1/nodes/register", json={**REPORT, "node_id": f"n{index}"}) as answer:
                nodes.append(await answer.json())
    async with session(first.url) as admin, admin.get("/api/v1/nodes?limit=1000") as answer:
        before = (await answer.json())["nodes"]
    first.kill()
    with running(tmp_path / "data") as second:
        async with session(second.url) as admin, admin.get("/api/v1/nodes?limit=1000") as answer:
            after = (await answer.json())["nodes"]
        assert after == before
        for node in (nodes[0], nodes[-1]):
            async with session(second.url, node["api_key"]) as client:
                async with client.post("/api/v1/nodes/heartbeat", json={"node_id": node["node_id"]}) as answer:
                    assert answer.status == 200


async def test_silence_leads_to_degraded_then_offline_and_a_heartbeat_back(tmp_path: Path) -> None:
    flags = ("--heartbeat-interval-s", "0.1", "--degraded-after-s", "0.5", "--offline-after-s", "3")
    with running(tmp_path / "data", *flags) as process:
        async with session(process.url) as admin:
            async with admin.post("/api/v1/nodes/register", json={"node_id": "quiet"}) as answer:
                assert (await answer.json())["status"] == "online"

            async def status() -> str:
                async with admin.get("/api/v1/nodes/quiet") as reply:
                    return str((await reply.json())["status"])

            for wanted in ("degraded", "offline"):
                await until(lambda wanted=wanted: _equals(status, wanted))
            async with admin.post("/api/v1/nodes/heartbeat", json={"node_id": "quiet"}) as answer:
                assert (await answer.json())["status"] == "online"


async def _equals(call: Callable[[], Awaitable[str]], wanted: str) -> bool:
    return await call() == wanted


def test_a_second_registry_on_the_same_folder_is_refused(registry: Process, tmp_path: Path) -> None:
    folder = Path(registry.popen.args[registry.popen.args.index("--data-dir") + 1])
    second = Process(folder)
    second.popen.wait(START_S)
    assert second.stop() == 2
    assert "another registry" in second.output()


def test_sigterm_ends_it_with_status_zero_within_five_seconds(tmp_path: Path) -> None:
    process = Process(tmp_path / "data")
    process.wait_ready()
    assert process.stop() == 0
