"""What every test shares: Hypothesis draws the same examples each time, with no clock on them.

HYPOTHESIS_PROFILE=full draws 5,000 of each law (`make laws`); a law that sets a number of its own keeps it.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("same-every-time", derandomize=True, database=None, deadline=None)
settings.register_profile(
    "full",
    settings.get_profile("same-every-time"),
    max_examples=5_000,
    suppress_health_check=[HealthCheck.too_slow],  # other work may share the machine for minutes
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same-every-time"))

LONGEST = (
    "test_chaos", "test_simulation", "test_region", "test_stop", "test_members", "test_openapi", "test_demo",
    "test_agent", "test_store_faults", "test_stores", "test_mutants",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: begun last, one would keep all other processes waiting for it."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
