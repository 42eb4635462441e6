"""requirements.txt is compiled by one Python and installed, hashes required, by every one that we support."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = Path(__file__).parents[2] / "requirements.txt"


def needed(environment: dict[str, str]) -> Iterator[str]:
    """Every distribution that ours and its development needs bring along in an environment."""
    todo, seen = [("dagi-registry", frozenset({"dev", ""}))], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        yield name
        try:
            found = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # another Python's: named is enough
            continue
        for requirement in found:
            marker = requirement.marker
            if marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in extras):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras | {""})))


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
@pytest.mark.parametrize("version", ["3.11.0", "3.11.2", "3.11.9", "3.12.0", "3.13.0", "3.14.0"])
def test_every_python_finds_all_it_needs_pinned(version: str, system: str) -> None:
    environment = default_environment() | {
        "python_full_version": version,
        "python_version": version.rpartition(".")[0],
        "platform_system": system,
        "sys_platform": system.lower(),
    }
    pinned = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", PINS.read_text(), re.MULTILINE)}
    missing = set(needed(environment)) - pinned - {"dagi-registry"}
    assert not missing, f"compile requirements.txt under Python {version}, or pin by hand: {sorted(missing)}"
