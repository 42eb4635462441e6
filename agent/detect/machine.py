"""What detectors ask of a machine: its files and its commands. All else that they do is parsing, so that a
recorded machine stands in for any platform."""

import os
import platform
import subprocess
from typing import Protocol

COMMAND_LIMIT_S = 2.5  # under the limit of a whole detector, so that its other facts are still told
READ_LIMIT = 2**20


class Machine(Protocol):
    """A machine: this one, or a recorded one. What it does not tell is None."""

    @property
    def platform(self) -> str:
        """As Python names it: Linux, Darwin, Windows."""

    def read(self, path: str, limit: int = READ_LIMIT) -> str | None:
        """A file's text, its first `limit` bytes; None when it cannot be read."""

    def folder(self, path: str) -> list[str]:
        """The names in a folder, in order; none when it cannot be read."""

    def run(self, *command: str) -> str | None:
        """What a command prints; None when there is no such command, or it fails or hangs."""


class ThisMachine:
    """The machine that this program runs on."""

    @property
    def platform(self) -> str:
        """As Python names it: Linux, Darwin, Windows."""
        return platform.system()

    def read(self, path: str, limit: int = READ_LIMIT) -> str | None:
        """A file's text; None when it cannot be read."""
        try:
            with open(path, "rb") as file:
                return file.read(limit).decode(errors="replace")
        except OSError:  # not there, not for us, or a sensor that does not answer just now
            return None

    def folder(self, path: str) -> list[str]:
        """The names in a folder, in order; none when it cannot be read."""
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def run(self, *command: str) -> str | None:
        """What a command prints; None when there is no such command, or it fails or hangs."""
        try:
            done = subprocess.run(  # noqa: S603 - our own words, no shell
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_LIMIT_S,
                env={**os.environ, "LC_ALL": "C"},
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def whole(text: str | None) -> int | None:
    """The whole number that a kernel's file holds; None for anything else."""
    word = (text or "").strip()
    return int(word) if word.isascii() and word.lstrip("-").isdecimal() and len(word) < 20 else None
