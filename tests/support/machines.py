"""Recorded machines: their files and what their commands print, from tests/fixtures/detect/machines."""

import json
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "fixtures" / "detect"


class RecordedMachine:
    """Plays one back. What was not recorded is not there; `ran` are the commands that were asked for."""

    def __init__(self, platform: str, files: dict[str, Any], commands: dict[str, Any]) -> None:
        self.platform = platform
        self._files = {path: _text(told) for path, told in files.items()}
        self._commands = {command: _text(told) for command, told in commands.items()}
        self.ran: list[str] = []

    def read(self, path: str, limit: int = 2**20) -> str | None:
        """A recorded file's text."""
        text = self._files.get(path)
        return None if text is None else text[:limit]

    def folder(self, path: str) -> list[str]:
        """The names under a folder in which files were recorded."""
        under = f"{path}/"
        return sorted({file[len(under) :].split("/")[0] for file in self._files if file.startswith(under)})

    def run(self, *command: str) -> str | None:
        """What a recorded command printed."""
        self.ran.append(" ".join(command))
        return self._commands.get(" ".join(command))


def recorded(name: str) -> RecordedMachine:
    """The machine of that file."""
    return RecordedMachine(**json.loads((FIXTURES / "machines" / f"{name}.json").read_text()))


def _text(told: Any) -> str:
    return "\n".join(told) + "\n" if isinstance(told, list) else str(told)
