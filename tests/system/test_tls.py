"""A registry that speaks TLS: whom it lets in, and what it refuses before it takes or shows anything."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.live import Process, session, until
from tests.support.tls import certificate


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


async def listening(process: Process) -> str:
    """Its URL. `wait_ready` asks it without a certificate."""

    async def told() -> str:
        assert process.popen.poll() is None, process.output()
        _, _, url = process.output().partition("listening on ")
        return url.split()[0] if url.endswith("\n") else ""

    url: str = await until(told)
    return url


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    return certificate(tmp_path / "tls")[0]


@pytest.fixture
def mutual(tmp_path: Path, pem: Path) -> Iterator[Process]:
    flags = ("--tls-cert", str(pem), "--tls-key", str(pem.with_name("key.pem")), "--tls-ca", str(pem))
    process = Process(tmp_path / "data", *flags)
    yield process
    assert process.stop() == 0, process.output()


async def test_with_a_ca_only_who_has_a_certificate_is_heard(mutual: Process, pem: Path) -> None:
    url = await listening(mutual)
    assert url.startswith("https://")
    known = trusting(pem)
    known.load_cert_chain(pem, pem.with_name("key.pem"))
    async with session(url) as client:
        async with client.post("/api/v1/nodes/register", json={"node_id": "store.example.org"}, ssl=known) as answer:
            assert answer.status == 200
            here = {"url": url, "region": "local", "registry_id": "local"}
            assert (await answer.json())["config"]["registries"] == [here]
        for stranger in (trusting(pem), trusting(certificate(pem.parent / "other")[0])):
            with pytest.raises((aiohttp.ClientError, ssl.SSLError, OSError)):
                async with session(url) as other, other.get("/healthz", ssl=stranger):
                    pass
        async with client.get("/api/v1/nodes/store.example.org", ssl=known) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--tls-cert", "none.pem", "--tls-key", "none.pem"), "--tls-cert"),
        (("--tls-cert", "rubbish", "--tls-key", "rubbish"), "--tls-cert"),
        (("--regions-file", "none.toml"), "--regions-file"),
        (("--regions-file", "rubbish"), "--regions-file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_anything_is_made(
    tmp_path: Path, flags: tuple[str, ...], named: str
) -> None:
    (tmp_path / "rubbish").write_text("[not a file of ours")
    process = Process(tmp_path / "data", *flags, env={"REGISTRY_ADMIN_KEY": None})
    process.popen.wait(20)
    assert process.stop() == 2
    output = process.output()
    assert output.startswith(f"dagi-registry: {named}"), output
    assert output.count("\n") == 1
    assert not (tmp_path / "data").exists()
