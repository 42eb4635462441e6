"""The agent's settings: flags, then environment, then the env file."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_REGISTRY_URL = "http://127.0.0.1:9205"
_NOT_OURS = frozenset({"NODE_ENV", "NODE_OPTIONS", "NODE_PATH", "NODE_VERSION", "NODE_EXTRA_CA_CERTS"})


class ConfigurationError(Exception):
    """A setting is wrong; one sentence says which and what to do."""


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list):
        return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
    return value


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class AgentSettings(BaseSettings):
    """One agent's settings; the names are those of the environment, in lower case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file_encoding="utf-8")

    node_registry_url: Listed = (DEFAULT_REGISTRY_URL,)
    node_role: Annotated[str, Field(min_length=1, max_length=255)] = "worker"
    node_labels: Listed = ()
    node_name: str | None = None
    node_region: str | None = None
    node_type: str | None = None
    node_api_key: SecretStr | None = None
    node_join_token: SecretStr | None = None
    node_agents: str | None = None
    node_cert: Path | None = None
    node_key: Path | None = None
    ca_cert: Path | None = None
    node_advertise_addr: str | None = None
    nats_url: str | None = None
    ollama_base_url: str | None = None
    heartbeat_interval: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] | None = None

    @field_validator("node_registry_url")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            split = urlsplit(url)
            if split.scheme not in ("http", "https") or not split.hostname:
                raise ValueError(f"{url!r} is not a URL such as http://registry.example.org:9205")
        if not value:
            raise ValueError("needs at least one registry's URL")
        return tuple(url.rstrip("/") for url in value)


def load(flags: Mapping[str, Any], env_file: Path | None) -> AgentSettings:
    """Settings from flags, environment and env file. Raises ConfigurationError."""
    if env_file is not None and not env_file.is_file():
        raise ConfigurationError(f"--env-file {env_file}: there is no such file")
    given = {name: value for name, value in flags.items() if value not in (None, [], "")}
    try:
        return AgentSettings(_env_file=env_file or Path(".env"), **given)  # type: ignore[call-arg]  # pydantic-settings takes it
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{str(first['loc'][0]).upper()}: {message}") from None


def misspelled(environ: Mapping[str, str] | None = None) -> list[str]:
    """Warnings for variables that look like one of ours and are not."""
    ours = {name.upper() for name in AgentSettings.model_fields}
    found = []
    for name in sorted(environ if environ is not None else os.environ):
        if not name.startswith("NODE_") or name in ours or name in _NOT_OURS:
            continue
        close = difflib.get_close_matches(name, ours, n=1, cutoff=0.75)
        if close:
            found.append(f"{name} is not a setting; did you mean {close[0]}?")
    return found
