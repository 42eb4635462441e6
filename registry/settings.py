"""One frozen settings object from flags, environment and an env file, in that order of weight."""

import difflib
import ipaddress
import os
import signal
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from registry.allow_entries import parse_entry
from registry.http.limits import ADDRESS_PER_S, KEY_PER_S
from registry.keys import is_admin_key
from registry.lifecycle import Windows
from registry.redis_url import parse as parse_redis_url
from registry.redis_url import password_of, redacted

ADMIN_KEY_HASH = "admin_key_hash"  # the store's setting, where the admin key is not given
LAST = signal.SIGUSR2  # the supervisor's word to a worker in a stop: all others have ended


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the supervisor decided for a worker."""

    worker_id: str
    redis_url: str
    listener: socket.socket
    admin_hash: bytes
    started_ms: int
    address: str = ""  # the socket file where the other workers reach this one; none: there are no others

    @property
    def port(self) -> int:
        """The port that the listener has, where 0 was asked for."""
        number: int = self.listener.getsockname()[1]
        return number


DEFAULT_ALIASES = {"europe": "eu", "eu-*": "eu", "america": "us", "us-*": "us"}


class ConfigurationError(Exception):
    """A setting is wrong; the text names it and says what is expected."""


def _split(value: Any) -> Any:
    """Names with commas, or a list of such (a flag may be repeated)."""
    if not isinstance(value, str | list | tuple):
        return value
    items = [value] if isinstance(value, str) else value
    return tuple(part.strip() for item in items for part in str(item).split(",") if part.strip())


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]

Rate = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]  # a second; 0: no limit


class Settings(BaseSettings):
    """What `dagi-registry serve` runs by; each field is a flag and `REGISTRY_<FLAG>`."""

    model_config = SettingsConfigDict(
        env_prefix="REGISTRY_", frozen=True, extra="ignore", env_file_encoding="utf-8", populate_by_name=True
    )

    region: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "local"
    registry_id: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$")] = ""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 9205
    data_dir: Path | None = None
    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("REGISTRY_REDIS_URL", "REDIS_URL"))
    auth: Literal["key", "open"] = "key"
    allow_open_registration: bool = False
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    peer: Listed = Field((), validation_alias=AliasChoices("REGISTRY_PEERS", "REGISTRY_PEER"))
    advertise_url: str | None = None
    heartbeat_interval_s: Seconds = 30.0
    degraded_after_s: Seconds = 90.0
    offline_after_s: Seconds = 300.0
    allowed_nodes: Listed = Field((), validation_alias=AliasChoices("REGISTRY_ALLOWED_NODES", "ALLOWED_NODES"))
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    key_rate: Rate = KEY_PER_S
    address_rate: Rate = ADDRESS_PER_S
    trusted_proxies: Listed = ()
    cors_origins: Listed = ()
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    regions_file: Path | None = None
    audit_keep_mb: Annotated[int, Field(ge=64, le=1_048_576)] = 1024
    audit_sign_every_s: Seconds = 300.0
    nats_url: str | None = Field(None, validation_alias=AliasChoices("REGISTRY_NATS_URL", "NATS_URL"))
    admin_key: SecretStr | None = None
    federation_secret: SecretStr | None = None

    @field_validator("redis_url")
    @classmethod
    def _known_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value():
            parse_redis_url(value.get_secret_value())
            return value
        return None

    @field_validator("admin_key")
    @classmethod
    def _admin_key_form(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_admin_key(value.get_secret_value()):
            raise ValueError("must begin with sk-admin- and have 40 characters or more, without spaces")
        return value

    @field_validator("federation_secret")
    @classmethod
    def _long_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("must have 32 characters or more")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            ipaddress.ip_network(item, strict=False)
        return value

    @field_validator("allowed_nodes")
    @classmethod
    def _allowlist_entries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_entry(item).text for item in value)

    @field_validator("peer")
    @classmethod
    def _peer_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            split = urlsplit(item)
            if not (split.scheme in ("http", "https") and split.hostname):
                raise ValueError(f"{redacted(item)!r} is not a URL such as https://registry.example.org:9205")
        return value

    @field_validator("advertise_url")
    @classmethod
    def _dialable(cls, value: str | None) -> str | None:
        split = urlsplit(value or "")
        if value and not (split.scheme in ("http", "https") and split.hostname):
            raise ValueError(f"{redacted(value)!r} is not a URL such as https://registry.example.org:9205")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if not self.heartbeat_interval_s <= self.degraded_after_s < self.offline_after_s:
            raise ValueError("--heartbeat-interval-s, --degraded-after-s and --offline-after-s must grow in this order")
        if bool(self.tls_cert) != bool(self.tls_key) or (self.tls_ca and not self.tls_cert):
            raise ValueError("--tls-cert and --tls-key belong together, and --tls-ca needs both")
        if self.peer and self.federation_secret is None:
            raise ValueError(
                "--peer needs REGISTRY_FEDERATION_SECRET, the same 32 characters or more at every registry of the "
                "federation; make one with: openssl rand -hex 32"
            )
        if not self.says_who_may_join:
            raise ValueError(
                f"--host {self.host} lets other machines reach this registry: say who may register nodes. Choose one: "
                "--host 127.0.0.1 (this machine only), REGISTRY_ADMIN_KEY with --auth key (whoever has a join token, "
                "made with that key: dagi-registry join-token create), --allowed-nodes (who is listed), --tls-cert "
                "with --tls-key and --tls-ca (mutual TLS: whoever has a certificate), or --allow-open-registration "
                "(anyone)"
            )
        claimable = next((item for item in self.allowed_nodes if not parse_entry(item).proves_something), None)
        if self.auth == "open" and claimable and not (self.on_loopback or self.tls_ca or self.allow_open_registration):
            raise ValueError(
                f"{claimable} in --allowed-nodes keeps nobody out with --auth open, where anybody can claim it: list "
                "addresses and networks of your own, or choose --auth key, or --allow-open-registration (anyone)"
            )
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the registry."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def says_who_may_join(self) -> bool:
        """Whether it was said who may register, where other machines can ask. In mode `key` a registry that says
        nothing else takes join tokens alone; whoever gave it the admin key can make them."""
        by_token = self.auth == "key" and self.admin_key is not None
        listed = bool(self.allowed_nodes or self.tls_ca)
        return self.on_loopback or self.allow_open_registration or by_token or listed

    def allowlist_warnings(self) -> list[str]:
        """What is odd about the entries of `allowed_nodes`."""
        return [warning for item in self.allowed_nodes if (warning := parse_entry(item).warning) is not None]

    @property
    def identity(self) -> str:
        """The registry's id: the origin in vector clocks."""
        return self.registry_id or self.region

    @property
    def secrets(self) -> list[str]:
        """What must never be seen in a log."""
        given = [each.get_secret_value() for each in (self.admin_key, self.federation_secret) if each is not None]
        url = self.redis_url.get_secret_value() if self.redis_url is not None else ""
        password = password_of(url)
        return [*given, *([password] if password else [])]

    @property
    def audited(self) -> dict[str, Any]:
        """What decides who is let in, as the audit log says it at each start. No secrets."""
        return {
            "auth": self.auth,
            "host": self.host,
            "allow_open_registration": self.allow_open_registration,
            "allowed_nodes": list(self.allowed_nodes),
            "tls": self.tls_cert is not None,
            "mutual_tls": self.tls_ca is not None,
            "trusted_proxies": list(self.trusted_proxies),
            "federation": self.federation_secret is not None,
            "own_admin_key": self.admin_key is not None,
            "embedded_store": self.redis_url is None,
            "workers": self.workers,
        }

    @property
    def data_path(self) -> Path:
        """Where this registry keeps what it owns."""
        return (self.data_dir or Path.home() / ".dagi" / "registry" / self.identity).expanduser().absolute()

    @property
    def windows(self) -> Windows:
        """The liveness windows."""
        return Windows(self.heartbeat_interval_s, self.degraded_after_s, self.offline_after_s)

    @property
    def scheme(self) -> str:
        """`https` when TLS is configured."""
        return "https" if self.tls_cert else "http"

    def url(self, port: int) -> str:
        """What peers and agents are told to dial."""
        if self.advertise_url:
            return self.advertise_url.rstrip("/")
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - not bound here
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def peer_url(self, port: int) -> str | None:
        """What peers are told to dial; None where nobody but this machine could know an address."""
        wildcard = self.host in ("0.0.0.0", "::", "")  # noqa: S104 - not bound here
        return None if wildcard and not self.advertise_url else self.url(port)

    def aliases(self) -> Mapping[str, str]:
        """Region aliases of the regions file, or the ones that come with us."""
        if self.regions_file is None:
            return DEFAULT_ALIASES
        try:
            table = tomllib.loads(self.regions_file.read_text(encoding="utf-8")).get("aliases", {})
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"--regions-file {self.regions_file}: {why}") from None
        if not all(isinstance(value, str) for value in table.values()):
            raise ConfigurationError(f"--regions-file {self.regions_file}: an alias must name a region")
        return {key.casefold(): value.casefold() for key, value in table.items()}


def load(flags: Mapping[str, Any], env_file: Path | None) -> Settings:
    """Settings from the flags that were given, the environment, and the env file.

    Raises ConfigurationError in one sentence.
    """
    if env_file is not None and not env_file.is_file():
        raise ConfigurationError(f"--env-file {env_file}: there is no such file")
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    renamed = {_ALIASED.get(name, name): value for name, value in given.items()}
    try:
        return Settings(_env_file=env_file or Path(".env"), **renamed)  # type: ignore[call-arg]  # pydantic-settings takes it
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from None


_ALIASED = {
    name: str(field.validation_alias.choices[0])
    for name, field in Settings.model_fields.items()
    if isinstance(field.validation_alias, AliasChoices)
}


_PATTERNS = {
    "region": "has small letters, digits and . _ - alone, and begins with a letter or digit",
    "registry_id": "has letters, digits and . _ - alone, and begins with a letter or digit",
}


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = str(first["loc"][0]) if first["loc"] else ""
    message = _PATTERNS.get(where) if first["type"] == "string_pattern_mismatch" else None
    message = message or first["msg"].removeprefix("Value error, ")
    name = where if where.isupper() else where.replace("_", "-")
    secret = where in ("admin_key", "federation_secret")
    label = f"REGISTRY_{where.upper()}" if secret else name if name.isupper() else f"--{name}"
    return f"{label}: {message}." if where else f"{message}."


_COMMANDS_OWN = ("REGISTRY_URL", "REGISTRY_READ_KEY")  # of `members` and `status`; `serve` has no use for them


def misspelled(environ: Mapping[str, str] | None = None) -> list[str]:
    """Warnings for environment variables that look like one of ours and are not."""
    ours = set(_COMMANDS_OWN)
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        ours.update(map(str, alias.choices) if isinstance(alias, AliasChoices) else [f"REGISTRY_{name.upper()}"])
    warnings = []
    for name in sorted(environ if environ is not None else os.environ):
        if name.startswith("REGISTRY_") and name not in ours:
            close = difflib.get_close_matches(name, ours, n=1, cutoff=0.75)
            if close:
                warnings.append(f"{name} is not a setting; did you mean {close[0]}?")
    return warnings
