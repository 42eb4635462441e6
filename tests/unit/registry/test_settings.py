"""Settings: flags over environment over file, and words for whoever mistyped one."""

import os
from pathlib import Path
from typing import Any

import pytest

from registry.settings import DEFAULT_ALIASES, ConfigurationError, Settings, load, misspelled

ADMIN_KEY = "sk-admin-" + "k" * 40
SECRET = "f" * 40


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("REGISTRY_") or name in ("REDIS_URL", "ALLOWED_NODES", "NATS_URL"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refused(**flags: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(flags, None)
    return str(caught.value)


def test_defaults() -> None:
    made = load({}, None)
    assert (made.region, made.identity, made.host, made.port, made.auth) == ("local", "local", "127.0.0.1", 9205, "key")
    assert (made.heartbeat_interval_s, made.degraded_after_s, made.offline_after_s) == (30, 90, 300)
    assert made.data_path == Path.home() / ".dagi" / "registry" / "local"
    assert made.redis_url is None
    assert made.aliases() == DEFAULT_ALIASES


def test_flags_stand_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file.env"
    file.write_text("REGISTRY_REGION=file\nREGISTRY_PORT=1\nREGISTRY_WORKERS=3\nSOMETHING=else\n")
    monkeypatch.setenv("REGISTRY_REGION", "env")
    monkeypatch.setenv("REGISTRY_PORT", "2")
    made = load({"region": "flag", "port": None}, file)
    assert (made.region, made.port, made.workers) == ("flag", 2, 3)


def test_the_file_in_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("REGISTRY_REGION=here\n")
    assert load({}, None).region == "here"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--env-file .*none\.env: there is no such file"):
        load({}, tmp_path / "none.env")


@pytest.mark.parametrize(
    ("name", "field", "value", "listed"),
    [
        ("REGISTRY_PEERS", "peer", "http://a, http://b", ("http://a", "http://b")),
        ("REGISTRY_PEER", "peer", "http://a", ("http://a",)),
        (
            "ALLOWED_NODES",
            "allowed_nodes",
            "node-a,192.0.2.0/24,2001:db8::/32,",
            ("node-a", "192.0.2.0/24", "2001:db8::/32"),
        ),
        ("REGISTRY_ALLOWED_NODES", "allowed_nodes", "node-a", ("node-a",)),
        ("REGISTRY_TRUSTED_PROXIES", "trusted_proxies", "192.0.2.1,10.0.0.0/8", ("192.0.2.1", "10.0.0.0/8")),
        ("REGISTRY_CORS_ORIGINS", "cors_origins", "https://page.example.org", ("https://page.example.org",)),
    ],
)
def test_lists_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, name: str, field: str, value: str, listed: tuple[str, ...]
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("REGISTRY_FEDERATION_SECRET", SECRET)  # peers need it
    assert getattr(load({}, None), field) == listed
    monkeypatch.delenv(name)
    another = "http://c" if field == "peer" else "192.0.2.9"
    assert getattr(load({field: [value, another]}, None), field) == (*listed, another)


def test_the_redis_url_has_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://env.example.org")
    made = load({}, None)
    assert made.redis_url is not None
    assert made.redis_url.get_secret_value() == "redis://env.example.org"
    made = load({"redis_url": "redis://flag.example.org"}, None)
    assert made.redis_url is not None
    assert made.redis_url.get_secret_value() == "redis://flag.example.org"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "", "registry.example.org"])
def test_a_wide_bind_is_refused_and_the_words_name_every_choice(host: str) -> None:
    text = refused(host=host)
    choices = ("--host 127.0.0.1", "REGISTRY_ADMIN_KEY", "--auth key", "--allowed-nodes", "--tls-cert", "--tls-key")
    for choice in (*choices, "--tls-ca", "--allow-open-registration"):
        assert choice in text


def test_without_keys_an_admin_key_does_not_say_who_may_register() -> None:
    assert "with --auth key" in refused(host="0.0.0.0", auth="open", admin_key=ADMIN_KEY)


@pytest.mark.parametrize(
    "choice",
    [
        {"host": "127.0.0.1"},
        {"host": "127.9.9.9"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "allow_open_registration": True},
        {"host": "0.0.0.0", "allow_open_registration": True, "auth": "open"},
        {"host": "0.0.0.0", "admin_key": ADMIN_KEY},
        {"host": "0.0.0.0", "allowed_nodes": ["node-a"]},
        {"host": "0.0.0.0", "tls_cert": Path("c"), "tls_key": Path("k"), "tls_ca": Path("ca")},
    ],
)
def test_each_choice_lets_it_start(choice: dict[str, Any]) -> None:
    assert load(choice, None).host == choice["host"]


@pytest.mark.parametrize("entry", ["node-a", "0.0.0.0/0", "::/0"])
def test_what_anybody_can_claim_keeps_nobody_out_where_no_key_is_asked_for(entry: str) -> None:
    flags = {"host": "0.0.0.0", "auth": "open", "allowed_nodes": ["192.0.2.0/24", entry]}
    assert f"{entry} in --allowed-nodes keeps nobody out" in refused(**flags)
    for choice in ({"auth": "key"}, {"host": "127.0.0.1"}, {"allow_open_registration": True}):
        load({**flags, **choice}, None)
    load({**flags, "allowed_nodes": ["192.0.2.0/24"]}, None)


def test_a_network_that_is_far_too_large_is_warned_of() -> None:
    assert load({"allowed_nodes": ["node-a", "192.0.2.0/24"]}, None).allowlist_warnings() == []
    [warning] = load({"allowed_nodes": ["0.0.0.0/0"]}, None).allowlist_warnings()
    assert "every IPv4 address" in warning


def test_tls_without_a_ca_does_not_say_who_may_register() -> None:
    assert "--tls-ca" in refused(host="0.0.0.0", tls_cert=Path("c"), tls_key=Path("k"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": 70_000}, "--port: "),
        ({"auth": "none"}, "--auth: "),
        ({"region": "EU West"}, "--region: has small letters, digits and . _ - alone"),
        ({"registry_id": "a/b"}, "--registry-id: has letters, digits and . _ - alone"),
        ({"workers": 0}, "--workers: "),
        ({"heartbeat_interval_s": 0}, "--heartbeat-interval-s: "),
        ({"heartbeat_interval_s": float("nan")}, "--heartbeat-interval-s: "),
        ({"degraded_after_s": 300.0}, "must grow in this order"),
        ({"heartbeat_interval_s": 100.0}, "must grow in this order"),
        ({"tls_cert": Path("c")}, "--tls-cert and --tls-key belong together"),
        ({"tls_ca": Path("c")}, "--tls-ca needs both"),
        ({"trusted_proxies": ["proxy"]}, "--trusted-proxies: "),
        ({"allowed_nodes": ["node-a,10.0.0.0/99"]}, "ALLOWED_NODES: '10.0.0.0/99'"),
        ({"allowed_nodes": ["node-a", "a box"]}, "ALLOWED_NODES: 'a box' is neither"),
        ({"allowed_nodes": ["box/1"]}, "ALLOWED_NODES: 'box/1'"),
        ({"allowed_nodes": ["192.0.2.7/24"]}, "ALLOWED_NODES: '192.0.2.7/24' has bits set"),
        ({"advertise_url": "registry.example.org:9205"}, "--advertise-url: "),
        ({"advertise_url": "https://"}, "--advertise-url: "),
        ({"advertise_url": "http://[::1"}, "--advertise-url: "),
        ({"redis_url": "http://x"}, "REDIS_URL: must begin with redis://"),
        ({"admin_key": "short"}, "REGISTRY_ADMIN_KEY: must begin with sk-admin-"),
        ({"federation_secret": "short"}, "REGISTRY_FEDERATION_SECRET: must have 32"),
        ({"peer": ["http://192.0.2.1:9205"]}, "--peer needs REGISTRY_FEDERATION_SECRET, the same 32 characters"),
        ({"peer": ["192.0.2.1:9205"], "federation_secret": SECRET}, "REGISTRY_PEERS: "),
        ({"peer": ["ftp://192.0.2.1"], "federation_secret": SECRET}, "REGISTRY_PEERS: "),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_expected(flags: dict[str, Any], words: str) -> None:
    assert words in refused(**flags)


def test_secrets_show_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "REGISTRY_ADMIN_KEY": ADMIN_KEY,
        "REGISTRY_FEDERATION_SECRET": SECRET,
        "REDIS_URL": "redis://u:passw0rd@redis.example.org",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    made = load({}, None)
    for text in (repr(made), str(made), made.model_dump_json()):
        assert not [part for part in (ADMIN_KEY, SECRET, "passw0rd") if part in text]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_ADMIN_KEY", "oops-my-secret"),
        ("REGISTRY_FEDERATION_SECRET", "oops-my-secret"),
        ("REDIS_URL", "redis://u:oops-my-secret/x@redis.example.org"),
        ("REDIS_URL", "http://u:oops-my-secret@redis.example.org"),
    ],
)
def test_a_refused_secret_is_not_echoed(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    text = refused()
    assert name in text
    assert "oops" not in text


def test_settings_do_not_change() -> None:
    made = load({}, None)
    with pytest.raises(ValueError, match="frozen"):
        made.port = 1


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"REGISTRY_REGON": "x"}, [("REGISTRY_REGON", "REGISTRY_REGION")]),
        ({"REGISTRY_HEARTBEAT_INTERVAL": "1"}, [("REGISTRY_HEARTBEAT_INTERVAL", "REGISTRY_HEARTBEAT_INTERVAL_S")]),
        ({"REGISTRY_ALLOWED_NODE": "x"}, [("REGISTRY_ALLOWED_NODE", "REGISTRY_ALLOWED_NODES")]),
        ({"REGISTRY_REGION": "x", "REDIS_URL": "x", "REGISTRY_PEERS": "x"}, []),
        ({"NODE_ENV": "x", "NODE_OPTIONS": "x", "REGISTRY_STORAGE_DELETE_ENABLED": "x"}, []),
        ({"REGISTRY_URL": "x", "REGISTRY_READ_KEY": "x"}, []),  # of `members` and `status`
    ],
)
def test_misspelled_variables_are_named_with_the_right_spelling(
    environ: dict[str, str], named: list[tuple[str, str]]
) -> None:
    warnings = misspelled(environ)
    assert len(warnings) == len(named)
    for warning, (wrong, right) in zip(warnings, named, strict=True):
        assert wrong in warning
        assert right in warning


def test_every_setting_but_secrets_and_messages_is_documented_as_given() -> None:
    documented = (
        "region registry_id host port data_dir redis_url auth allow_open_registration workers peer advertise_url"
    )
    documented += " heartbeat_interval_s degraded_after_s offline_after_s allowed_nodes tls_cert tls_key tls_ca"
    documented += " trusted_proxies cors_origins log_format log_level regions_file nats_url admin_key federation_secret"
    assert set(documented.split()) <= set(Settings.model_fields)


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        ({}, "http://127.0.0.1:9205"),
        ({"host": "0.0.0.0", "allow_open_registration": True}, "http://127.0.0.1:9205"),
        ({"host": "::1"}, "http://[::1]:9205"),
        ({"tls_cert": Path("c"), "tls_key": Path("k")}, "https://127.0.0.1:9205"),
        ({"advertise_url": "https://registry.example.org/"}, "https://registry.example.org"),
    ],
)
def test_the_url_that_others_are_told(flags: dict[str, Any], url: str) -> None:
    assert load(flags, None).url(9205) == url


def test_region_aliases_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "regions.toml"
    file.write_text('[aliases]\nEurope = "EU"\n')
    assert load({"regions_file": file}, None).aliases() == {"europe": "eu"}
    for text in ("[aliases\n", "[aliases]\nx = 1\n"):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match="--regions-file"):
            load({"regions_file": file}, None).aliases()
    with pytest.raises(ConfigurationError, match="--regions-file"):
        load({"regions_file": tmp_path / "none"}, None).aliases()


def test_the_regions_file_that_ships_says_what_the_defaults_say() -> None:
    shipped = Path(__file__).parents[3] / "config" / "regions.toml"
    assert load({"regions_file": shipped}, None).aliases() == DEFAULT_ALIASES
