"""The files that operators edit: every name is a setting, and nothing starts with a placeholder in it."""

import os
from pathlib import Path

import pytest
from dotenv import dotenv_values

from agent.config import AgentSettings
from agent.config import load as load_agent
from agent.config import misspelled as misspelled_agent
from registry.settings import ConfigurationError, Settings, load, misspelled

CONFIG = Path(__file__).parents[2] / "config"
REGISTRIES = [CONFIG / "registry-eu.env", CONFIG / "registry-us.env"]
ADMIN, SECRET = ("REGISTRY_ADMIN_KEY", "sk-admin-" + "k" * 40), ("REGISTRY_FEDERATION_SECRET", "f" * 64)


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("REGISTRY_", "NODE_")) or name in ("REDIS_URL", "ALLOWED_NODES", "NATS_URL", "CA_CERT"):
            monkeypatch.delenv(name)


def edited(file: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    lines = file.read_text().splitlines()
    for name, value in changes:
        assert [line for line in lines if line.startswith(f"{name}=")], f"{file} has no {name}"
        lines = [f"{name}={value}" if line.startswith(f"{name}=") else line for line in lines]
    (folder / file.name).write_text("\n".join(lines))
    return folder / file.name


def uncommented(file: Path, folder: Path) -> Path:
    """With its `#NAME=value` lines in force."""
    lines = [line.removeprefix("#") if line[1:2].isupper() else line for line in file.read_text().splitlines()]
    (folder / file.name).write_text("\n".join(lines))
    return folder / file.name


@pytest.mark.parametrize("file", REGISTRIES, ids=lambda file: file.stem)
def test_a_registry_refuses_its_placeholders_by_name(file: Path, tmp_path: Path) -> None:
    for changes, named in (((), ADMIN), ((SECRET,), ADMIN), ((ADMIN,), SECRET)):
        with pytest.raises(ConfigurationError, match=f"^{named[0]}: must "):
            load({}, edited(file, tmp_path, *changes))


def test_two_registries_of_one_federation_are_different_and_name_each_other(tmp_path: Path) -> None:
    eu, us = (load({}, edited(file, tmp_path, ADMIN, SECRET)) for file in REGISTRIES)
    assert (eu.identity, us.identity) == ("eu", "us")
    assert eu.peer == (us.peer_url(us.port),)
    assert us.peer == (eu.peer_url(eu.port),)
    assert eu.windows == us.windows


@pytest.mark.parametrize("file", REGISTRIES, ids=lambda file: file.stem)
def test_every_name_of_a_registrys_file_is_a_setting(file: Path, tmp_path: Path) -> None:
    names = set(dotenv_values(uncommented(file, tmp_path)))
    known = {f"REGISTRY_{name.upper()}" for name in Settings.model_fields} | {"REGISTRY_PEERS", "REGISTRY_URL"}
    assert names <= known
    assert misspelled(dict.fromkeys(names, "x")) == []


def test_every_name_of_an_agents_file_is_a_setting(tmp_path: Path) -> None:
    file = uncommented(CONFIG / "agent.env", tmp_path)
    names = set(dotenv_values(file))
    assert names <= {name.upper() for name in AgentSettings.model_fields}
    assert misspelled_agent(names) == []
    assert len(load_agent({}, CONFIG / "agent.env").node_registry_url) == 2
