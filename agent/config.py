"""The agent's settings: flags, then environment, then the env file."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agent.wire import is_url, kept_urls, secret

DEFAULT_REGISTRY_URL = "http://127.0.0.1:9205"
DEFAULT_ENV_FILE = Path(".env")
_NOT_OURS = frozenset({"NODE_ENV", "NODE_OPTIONS", "NODE_PATH", "NODE_VERSION", "NODE_EXTRA_CA_CERTS"})


class ConfigurationError(Exception):
    """A setting is wrong; one sentence says which and what to do."""


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list):
        return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
    return value


def _sendable(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    if secret(text) is None:
        raise ValueError("holds spaces or characters that no key has; paste it again, on one line")
    return SecretStr(text)


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Key = Annotated[SecretStr, AfterValidator(_sendable)]


class AgentSettings(BaseSettings):
    """One agent's settings; the names are those of the environment, in lower case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file_encoding="utf-8", env_ignore_empty=True)

    node_registry_url: Listed = (DEFAULT_REGISTRY_URL,)
    node_role: Annotated[str, Field(min_length=1, max_length=255)] = "worker"
    node_labels: Listed = ()
    node_name: str | None = None
    node_region: str | None = None
    node_type: str | None = None
    node_api_key: Key | None = None
    node_join_token: Key | None = None
    node_agents: str | None = None
    node_engine_urls: Listed = ()
    node_cert: Path | None = None
    node_key: Path | None = None
    ca_cert: Path | None = None
    node_advertise_addr: str | None = None
    nats_url: str | None = None
    ollama_base_url: str | None = None
    ollama_host: str | None = None
    heartbeat_interval: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] | None = None

    @field_validator("node_registry_url")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not is_url(url):
                raise ValueError(f"{url!r} is not a URL such as http://registry.example.org:9205")
        if not value:
            raise ValueError("needs at least one registry's URL")
        return tuple(url.rstrip("/") for url in value)

    @field_validator("node_engine_urls")
    @classmethod
    def _engines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not is_url(url):
                raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8001")
        return value

    @model_validator(mode="after")
    def _pairs(self) -> "AgentSettings":
        if (self.node_cert is None) != (self.node_key is None):
            raise ValueError("NODE_CERT and NODE_KEY belong together; give both")
        return self

    @property
    def ollama_url(self) -> str | None:
        """Where Ollama is: said to us, else as its own server is told to listen."""
        return self.ollama_base_url or self.ollama_host


def load(flags: Mapping[str, Any], env_file: Path | None) -> AgentSettings:
    """Settings from flags, environment and env file. Raises ConfigurationError."""
    if env_file is not None and not env_file.is_file():
        raise ConfigurationError(f"--env-file {env_file}: there is no such file")
    given = {name: value for name, value in flags.items() if value not in (None, [], "")}
    try:
        return AgentSettings(_env_file=env_file or DEFAULT_ENV_FILE, **given)  # type: ignore[call-arg]  # pydantic-settings takes it
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{env_file or DEFAULT_ENV_FILE} cannot be read as text: {error}") from None


def at_home(settings: AgentSettings, kept: object) -> AgentSettings:
    """Where no setting names a registry, the node's are those that it registered with, as they were kept."""
    urls = kept_urls(kept)
    if "node_registry_url" in settings.model_fields_set or not urls:
        return settings
    return settings.model_copy(update={"node_registry_url": urls})


_FLAGS = {
    "node_registry_url": "--registry-url", "node_role": "--role", "node_labels": "--labels", "node_name": "--node-name",
    "node_region": "--region", "node_advertise_addr": "--advertise-addr", "node_join_token": "--join-token",
}  # fmt: skip


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    flag = f" ({_FLAGS[name]})" if name in _FLAGS else ""
    return f"{name.upper()}{flag}: {message}"


def written(env_file: Path | None) -> set[str]:
    """The names that an env file sets; none when it cannot be read."""
    try:
        return set(dotenv_values(env_file or DEFAULT_ENV_FILE, interpolate=False))
    except (OSError, UnicodeDecodeError):
        return set()


def misspelled(names: Iterable[str]) -> list[str]:
    """Warnings for names of settings that look like one of ours and are not."""
    ours = {name.upper() for name in AgentSettings.model_fields}
    found = []
    for name in sorted(set(names)):
        if not name.startswith("NODE_") or name in ours or name in _NOT_OURS:
            continue
        close = difflib.get_close_matches(name, ours, n=1, cutoff=0.75)
        if close:
            found.append(f"{name} is not a setting; did you mean {close[0]}?")
    return found
