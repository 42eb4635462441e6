"""Settings: flags over environment over env file, and a sentence for what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentSettings, ConfigurationError, at_home, load, misspelled, written


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without anybody's settings."""
    monkeypatch.chdir(tmp_path)
    for name in AgentSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


DOCUMENTED = """\
# Node Registry URL
NODE_REGISTRY_URL=http://192.0.2.1:9205

NATS_URL=nats://192.0.2.1:4222
NODE_ROLE=worker-node
NODE_LABELS=gpu,inference,home
OLLAMA_BASE_URL=http://localhost:11434
DATABASE_PASSWORD=somebody-elses
"""


def test_the_documented_env_file_is_understood_foreign_keys_included(nowhere: Path) -> None:
    (nowhere / ".env").write_text(DOCUMENTED)
    settings = load({}, None)
    assert settings.node_registry_url == ("http://192.0.2.1:9205",)
    assert settings.node_labels == ("gpu", "inference", "home")
    assert settings.node_role == "worker-node"
    assert settings.nats_url == "nats://192.0.2.1:4222"
    assert settings.ollama_url == "http://localhost:11434"


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("http://127.0.0.1:9000, http://192.0.2.7:8000/v", ("http://127.0.0.1:9000", "http://192.0.2.7:8000/v")),
        ("", ()),
    ],
)
def test_engines_at_ports_of_their_own(monkeypatch: pytest.MonkeyPatch, text: str, urls: tuple[str, ...]) -> None:
    monkeypatch.setenv("NODE_ENGINE_URLS", text)
    assert load({}, None).node_engine_urls == urls


def test_an_engines_address_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_ENGINE_URLS", "127.0.0.1:9000")
    with pytest.raises(ConfigurationError, match=r"NODE_ENGINE_URLS: '127\.0\.0\.1:9000' is not a URL"):
        load({}, None)


def test_flags_stand_over_environment_and_that_over_the_file(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / ".env").write_text("NODE_ROLE=file\nNODE_NAME=file\nNODE_TYPE=file\n")
    monkeypatch.setenv("NODE_ROLE", "environment")
    monkeypatch.setenv("NODE_NAME", "environment")
    settings = load({"node_role": "flag", "node_name": None}, None)
    assert (settings.node_role, settings.node_name, settings.node_type) == ("flag", "environment", "file")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a,b", ("a", "b")),
        (" a , b ,", ("a", "b")),
        ("a", ("a",)),
        (["a,b", "c"], ("a", "b", "c")),
        ("", ()),
    ],
)
def test_lists_are_separated_by_commas(given: Any, wanted: tuple[str, ...]) -> None:
    assert load({"node_labels": given}, None).node_labels == wanted


def test_registries_come_by_commas_and_repeated_flags() -> None:
    urls = load({"node_registry_url": ["http://a:1/,https://b", "http://[::1]:2"]}, None).node_registry_url
    assert urls == ("http://a:1", "https://b", "http://[::1]:2")


def test_where_none_is_named_the_registries_are_those_that_were_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"configured": ["http://eu.example.org:9205"], "learned": []}
    assert at_home(load({}, None), kept).node_registry_url == ("http://eu.example.org:9205",)
    assert at_home(load({}, None), None).node_registry_url == ("http://127.0.0.1:9205",)
    monkeypatch.setenv("NODE_REGISTRY_URL", "http://127.0.0.1:9205")
    assert at_home(load({}, None), kept).node_registry_url == ("http://127.0.0.1:9205",)


def test_a_setting_that_is_empty_is_as_if_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE_REGISTRY_URL", "HEARTBEAT_INTERVAL", "NODE_API_KEY", "OLLAMA_BASE_URL", "CA_CERT"):
        monkeypatch.setenv(name, "")
    settings = load({}, None)
    assert settings.node_registry_url == ("http://127.0.0.1:9205",)
    assert (settings.heartbeat_interval, settings.node_api_key, settings.ollama_url) == (None, None, None)


WRONG = [
    ({"node_registry_url": "registry.example.org:9205"}, "NODE_REGISTRY_URL (--registry-url): .*not a URL such as"),
    ({"node_registry_url": "http://a:99999"}, "not a URL such as"),
    ({"node_registry_url": "http://[::1"}, "not a URL such as"),
    ({"node_registry_url": "http://"}, "not a URL such as"),
    ({"node_registry_url": ","}, "at least one"),
    ({"heartbeat_interval": "often"}, "HEARTBEAT_INTERVAL: .*number"),
    ({"heartbeat_interval": "nan"}, "HEARTBEAT_INTERVAL"),
    ({"heartbeat_interval": 0}, "HEARTBEAT_INTERVAL: .*greater than 0"),
    ({"node_api_key": "two words"}, "NODE_API_KEY: .*paste it again"),
    ({"node_join_token": "sk-join-\u00e9"}, "NODE_JOIN_TOKEN"),
    ({"node_cert": "/x"}, "NODE_CERT and NODE_KEY belong together"),
]


@pytest.mark.parametrize(("flags", "words"), WRONG)
def test_what_is_wrong_is_named_in_a_sentence(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(").replace(")", r"\)")) as caught:
        load(flags, None)
    assert "\n" not in str(caught.value)
    for secret in ("two words", "sk-join"):
        assert secret not in str(caught.value)


def test_a_key_read_from_a_file_loses_its_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_API_KEY", "sk-node-x\r\n")
    key = load({}, None).node_api_key
    assert key is not None
    assert key.get_secret_value() == "sk-node-x"
    assert "sk-node" not in repr(load({}, None))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_an_env_file_that_cannot_be_read_is_named(nowhere: Path, content: bytes | None) -> None:
    path = nowhere / "x.env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"x\.env"):
        load({}, path)
    assert written(path) == set()


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["NODE_LABLES"], ["NODE_LABLES is not a setting; did you mean NODE_LABELS?"]),
        (["NODE_REGISTRY_URLS"], ["NODE_REGISTRY_URLS is not a setting; did you mean NODE_REGISTRY_URL?"]),
        (["NODE_ENV", "NODE_OPTIONS", "NODE_PATH", "NODE_EXTRA_CA_CERTS"], []),
        (["NODE_LABELS", "HOME", "PATH", "NODE_ZEBRA"], []),
    ],
)
def test_misspelled_settings_are_named_and_other_programs_left_alone(names: list[str], wanted: list[str]) -> None:
    assert misspelled(names) == wanted


def test_the_names_of_an_env_file_are_known(nowhere: Path) -> None:
    (nowhere / ".env").write_text("NODE_LABLES=a\nexport NODE_ROLE=b\n# NODE_X=1\n")
    assert written(None) == {"NODE_LABLES", "NODE_ROLE"}
    assert written(nowhere / "none") == set()


def test_ollamas_own_setting_is_read_when_ours_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:11500")
    assert load({}, None).ollama_url == "0.0.0.0:11500"
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    assert load({}, None).ollama_url == "http://127.0.0.1:1"
