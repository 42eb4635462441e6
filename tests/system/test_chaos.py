"""Three real registries over real stores, each fault of tests/chaos once: what was acknowledged stands, nobody
alive looks dead, nobody deleted comes back, and all agree afterwards. `make chaos` is the long form."""

from pathlib import Path

import pytest

from tests.chaos.faults import SHORT
from tests.chaos.federation import Federation


@pytest.mark.slow
@pytest.mark.timeout(180)  # a minute, and room for a loaded machine
async def test_a_federation_survives_each_fault(tmp_path: Path) -> None:
    outcome = await Federation(tmp_path, 1, SHORT).run()
    assert not outcome.violation, f"{outcome}\nto replay it: python -m tests.chaos --short --seed 1"
