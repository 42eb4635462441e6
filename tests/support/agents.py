"""A real agent for tests: the real process, in a home and a working folder of its own."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.live import clean_environment, until

_SETTINGS = ("OLLAMA_", "HEARTBEAT_INTERVAL", "CA_CERT", "DAGI_HOME")
NO_OLLAMA = "http://127.0.0.1:1"


class AgentProcess:
    """A Python command of the agent's, its output in one file."""

    def __init__(
        self, folder: Path, *command: str, env: dict[str, str] | None = None, home: Path | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.home = home or folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self._log = folder / "agent.log"
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**_environment(), "HOME": str(self.home), **(env or {})},
            )

    @property
    def output(self) -> str:
        """Everything that was printed here, by earlier agents of this folder too."""
        return self._log.read_text(errors="replace")

    @property
    def node_id(self) -> str:
        """The id that its home keeps."""
        return (self.home / ".dagi" / "node_id").read_text().strip()

    async def says(self, words: str, times: int = 1) -> None:
        """Wait for it to print that (so many times)."""

        async def said() -> bool:
            assert self.popen.poll() is None, f"the agent ended by itself: {self.output}"
            return self.output.count(words) >= times

        try:
            await until(said)
        except AssertionError as error:
            raise AssertionError(f"{words!r} was not said: {self.output}") from error

    async def ends(self) -> int:
        """Wait for it to end by itself; its exit status."""
        return await asyncio.to_thread(self.popen.wait, 20)

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return await self.ends()

    def kill(self) -> None:
        """SIGKILL."""
        self.popen.kill()
        self.popen.wait(10)


@contextlib.asynccontextmanager
async def agent(
    folder: Path, *command: str, env: dict[str, str] | None = None, home: Path | None = None
) -> AsyncIterator[AgentProcess]:
    """An agent that is gone afterwards, and has crashed in no way meanwhile."""
    process = AgentProcess(folder, *command, env=env, home=home)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.kill()
        for fault in ("Traceback", "a fault of this agent"):
            assert fault not in process.output, process.output


def _environment() -> dict[str, str]:
    """Nobody's settings, and no Ollama that happens to run on the machine of the tests."""
    clean = {name: value for name, value in clean_environment().items() if not name.startswith(_SETTINGS)}
    return {**clean, "OLLAMA_BASE_URL": NO_OLLAMA, "PYTHONUNBUFFERED": "1"}
