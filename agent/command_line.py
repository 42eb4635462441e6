"""What all commands of `dagi-agent` share: how a flag is declared, and how a wrong setting is told."""

from collections.abc import Callable
from typing import Any, TypeVar

import typer

from agent.config import ConfigurationError

T = TypeVar("T")


def flag(text: str, *names: str) -> Any:
    """A flag with its help; its default is said there, as most come from settings."""
    return typer.Option(*names, help=text, show_default=False)


def or_explain(make: Callable[[], T]) -> T:
    """Make something of the settings; where they are wrong, say which and exit 2."""
    try:
        return make()
    except ConfigurationError as error:
        typer.echo(f"dagi-agent: {error}", err=True)
        raise typer.Exit(2) from None
