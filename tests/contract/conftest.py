"""The servers that the store's contract is held to: a fake one and a real one, and the way to that, which breaks."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from registry.embedded import EmbeddedValkey
from tests.support.proxy import Proxy, proxied
from tests.support.stores import Bench, bench


@pytest.fixture(scope="session")
def embedded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedValkey(tmp_path_factory.mktemp("contract") / "data")
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(params=["fakeredis", "valkey"])
async def region(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    url = request.getfixturevalue("embedded_url") if request.param == "valkey" else None
    async with bench(url) as made:
        yield made


@pytest.fixture
async def real_region(embedded_url: str) -> AsyncIterator[Bench]:
    async with bench(embedded_url) as made:
        yield made


@pytest.fixture
def way(embedded_url: str) -> Iterator[Proxy]:
    """A way to the real server that a test can cut."""
    with proxied(Path(embedded_url.removeprefix("unix://"))) as proxy:
        yield proxy
