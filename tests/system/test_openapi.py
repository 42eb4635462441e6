"""The OpenAPI document of a live registry, held against that registry by schemathesis."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import ADMIN_KEY, Process, running, session

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("openapi") / "data") as process:
        yield process


@pytest.mark.slow
@pytest.mark.timeout(180)  # half a minute, and room for a loaded machine
def test_the_registry_does_what_its_document_says(registry: Process, tmp_path: Path) -> None:
    """Valid requests are taken, invalid ones refused, every answer is as documented, keys are
    needed where it says so. Deterministic: the same requests every time."""
    # A read that asks for a write which has not arrived is answered 503, as documented; so it is a made-up one.
    (tmp_path / "schemathesis.toml").write_text(
        '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "503"]\n'
        # What is too long for a URL is refused as that.
        "[checks.negative_data_rejection]\nexpected-statuses = "
        '["400", "401", "403", "404", "405", "406", "409", "414", "415", "422", "428", "429", "431", "5xx"]\n'
        # No schema says which documents a key has signed.
        '[[operations]]\ninclude-name = "POST /api/v1/nodes/register"\n'
        '[operations.checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "403", "409", "422", "503"]\n'
        # What has changed has no pages: no schema says that two parameters exclude each other.
        '[[operations]]\ninclude-name = "GET /api/v1/nodes"\n'
        '[operations.checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "422", "503"]\n'
        # And what is asked for with `sort` and `node_id` goes with some other parameters, and not with all.
        '[[operations]]\ninclude-path = "/api/v1/nodes/discover"\n'
        '[operations.checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "422", "503"]\n'
        # No schema says what an address is, and what has bits set after its prefix.
        '[[operations]]\ninclude-path = ["/api/v1/allowlist", "/api/v1/allowlist/{entry}"]\n'
        '[operations.checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "404", "422"]\n'
        # A revoked key is still shown: who revoked it, and when.
        '[[operations]]\ninclude-name = "GET /api/v1/keys/{key_id}"\n'
        "[operations.checks.use_after_free]\nenabled = false\n"
    )
    run = subprocess.run(
        [
            SCHEMATHESIS, "run", f"{registry.url}/openapi.json", "--checks", "all", "--mode", "all",
            "--phases", "coverage,fuzzing,stateful", "--header", f"Authorization: Bearer {ADMIN_KEY}",
            "--exclude-path", "/api/v1/nodes/watch",  # a stream: see test_watch.py
            "--generation-deterministic", "--max-examples", "2", "--no-shrink", "--no-color",
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=160,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "Tested: 36" in run.stdout  # every operation was reached


async def test_the_document_says_where_a_key_is_needed(registry: Process) -> None:
    async with session(registry.url, None) as anyone, anyone.get("/openapi.json") as answer:
        document = await answer.json()
        assert document["openapi"] == "3.1.0"
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                url = path.replace("{node_id}", "nobody").replace("{registry_id}", "nobody")
                url = url.replace("{reservation_id}", "0" * 16).replace("{entry}", "nobody")
                url = url.replace("{key_id}", "0" * 24)
                body = {"node_id": "nobody"} if "requestBody" in operation else None
                if path.endswith(("/cleanup", "/reservations")):
                    body = {}
                async with anyone.request(method, url, json=body) as refused:
                    needed = operation["security"] == [{"key": []}]
                    assert (refused.status == 401) == needed, (method, path, refused.status)
