"""Everything that README and the API's document show is run against a real registry, as it stands there."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import ADMIN_KEY, Process, running, session

README = Path(__file__).parents[2] / "README.md"
SHOWN_AT = "http://127.0.0.1:9205"
NODES = "/api/v1/nodes"
WATCH_S = 1  # a stream has no end


def commands() -> list[str]:
    """The lines of curl in the section on finding nodes, those that go on joined."""
    section = README.read_text(encoding="utf-8").split("## Find nodes")[1].split("\n## ")[0]
    return [line.strip() for line in re.findall(r"^    (curl (?:[^\\\n]|\\\n)*)", section, flags=re.M)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("examples") / "data", "--region", "eu") as process:
        yield process


@pytest.fixture
async def reservation(registry: Process) -> str:
    """Of the node that the examples speak of."""
    async with session(registry.url) as admin:
        report = {
            "node_id": "node-a-1", "labels": ["lab"],
            "capabilities": {"models": ["qwen3:8b"], "gpus": [{"vram_gb": 24}], "features": ["inference"], "slots": 64},
        }  # fmt: skip
        async with admin.post(f"{NODES}/register", json=report) as answer:
            assert answer.status == 200
        async with admin.post(f"{NODES}/node-a-1/reservations") as answer:
            return str((await answer.json())["reservation_id"])


def test_there_are_examples() -> None:
    assert len(commands()) >= 7
    assert sum("/discover" in command for command in commands()) >= 4


@pytest.mark.skipif(shutil.which("curl") is None, reason="README shows it with curl")
@pytest.mark.parametrize("command", commands(), ids=lambda command: re.sub(r"\s+", " ", command)[-60:])
def test_what_readme_shows_works(registry: Process, reservation: str, command: str) -> None:
    own = {"KEY": ADMIN_KEY, "NODE": "node-a-1", "RESERVATION": reservation}
    run = subprocess.run(
        ["bash", "-euc", command.replace("curl ", f"curl -sS --fail-with-body --max-time {WATCH_S} ", 1)
         .replace(SHOWN_AT, registry.url)],
        capture_output=True, text=True, timeout=20, env={"PATH": os.environ["PATH"], **own}, check=False,
    )  # fmt: skip
    if "/watch" in command:
        assert "event: snapshot" in run.stdout, run.stderr
        assert run.returncode == 28, "it was cut off by the clock, and by nothing else"
        return
    assert run.returncode == 0, run.stdout + run.stderr
    answer = json.loads(run.stdout)
    if "model=qwen3:8b" in command:
        assert [node["node_id"] for node in answer["nodes"]] == ["node-a-1"]
    elif "/reservations" in command:
        assert answer["node_id"] == "node-a-1"
    else:
        assert isinstance(answer["nodes"], list)
    assert ("explain=1" in command) == ("explain" in answer)


async def test_what_the_document_shows_works(registry: Process, reservation: str) -> None:
    async with session(registry.url) as admin:
        async with admin.get("/openapi.json") as answer:
            document = await answer.json()
        shown = 0
        for path, operations in document["paths"].items():
            url = path.replace("{node_id}", "node-a-1").replace("{reservation_id}", reservation)
            for method, operation in operations.items():
                for body in bodies(document, operation):
                    async with admin.request(method, url, json=body) as answer:
                        assert answer.status == 200, (method, path, body, await answer.text())
                    shown += 1
                for params in queries(operation):
                    async with admin.request(method, url, params=params) as answer:
                        assert answer.status == 200, (method, path, params, await answer.text())
                        if path.endswith("/discover"):
                            asked = (await answer.json())["query"]
                            assert set(asked) >= {name for name, _ in params} - {"limit"}, "it was understood"
                    shown += 1
        assert shown >= 20


def bodies(document: Any, operation: Any) -> list[Any]:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    examples: list[Any] = document["components"]["schemas"].get(name, {}).get("examples", [])
    return examples


def queries(operation: Any) -> list[list[tuple[str, str]]]:
    """Each parameter's example by itself, a list as one name with commas and as several parameters; then all."""
    found = []
    for parameter in operation.get("parameters", []):
        for example in parameter["schema"].get("examples", []):
            values = example if isinstance(example, list) else [example]
            texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
            found += [[(parameter["name"], text) for text in texts], [(parameter["name"], ",".join(texts))]]
    return [*found, [pair for pairs in found[::2] for pair in pairs]] if found else []
