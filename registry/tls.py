"""TLS of the registry's own port and of what it dials, mutual when a CA is given; and its certificates' ageing."""

import asyncio
import logging
import time
from collections.abc import Callable

from federation.tls import Certificates, Event, Files, UnusableError
from registry import logs
from registry.settings import ConfigurationError, Settings

LOOK_EVERY_S = 1.0
_LEVELS = {"reloaded": logging.INFO, "unusable": logging.ERROR, "expiring": logging.WARNING}


def certificates(settings: Settings, told: Callable[[Event, str], None] = lambda event, detail: None) -> Certificates:
    """What the registry shows and trusts, as its settings name the files. Raises ConfigurationError."""
    files = Files(settings.tls_cert, settings.tls_key, settings.tls_ca)
    try:
        return Certificates(files, listens=settings.tls_cert is not None, told=told)
    except UnusableError as error:
        raise ConfigurationError(f"--tls-cert, --tls-key or --tls-ca cannot be used: {error}") from None


def log(what: Event, detail: str) -> None:
    """Log what happens to certificates."""
    logs.event(f"certificate_{what}", _LEVELS[what], detail=detail)


async def keep_watching(watched: Certificates) -> None:
    """Use files that were replaced, and warn of what expires, for ever."""
    while True:
        watched.look()
        watched.warn(time.time())
        await asyncio.sleep(LOOK_EVERY_S)
