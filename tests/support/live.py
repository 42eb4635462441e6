"""A real registry for tests: the real app on a real port over a real embedded Valkey."""

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

ADMIN_KEY = "sk-admin-" + "t" * 40
DEADLINE_S = 20.0
START_S = 60.0  # two seconds of a processor, of which a busy machine gives little


class Process:
    """`dagi-registry serve` as operators start it."""

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        port: int = 0,
        env: dict[str, str | None] | None = None,
        module: str = "registry",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`env` is added to a clean environment with an admin key; None takes a variable out. `tls`: how to ask it
        whether it is ready, where it speaks TLS."""
        command = [sys.executable, "-m", module, "serve", "--port", str(port), "--data-dir", str(data_dir), *flags]
        # A module run from another folder: the installed distribution, and nobody's .env.
        self._log = data_dir.parent / f"{data_dir.name}.log"
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._log.open("ab")
        wanted: dict[str, str | None] = {**clean_environment(), "REGISTRY_ADMIN_KEY": ADMIN_KEY, **(env or {})}
        self.popen = subprocess.Popen(
            command,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            cwd=data_dir.parent,
            env={name: value for name, value in wanted.items() if value is not None},
        )
        self.url = ""
        self._tls = tls
        self._askings = 16 if "--workers" in flags else 1  # the kernel chooses who of them answers

    def wait_ready(self) -> str:
        """The URL that it printed. Where there is none, the process is gone."""
        deadline = time.monotonic() + START_S
        seen = self._log.read_text().count("listening on")
        while time.monotonic() < deadline:
            text = self._log.read_text()
            if "listening on" in text and self.popen.poll() is None:
                self.url = text.rsplit("listening on ", 1)[1].split()[0]
                if all(self._answers() for _ in range(self._askings)):
                    return self.url
            if self.popen.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"no registry after {seen} starts: {self.output()}")

    def output(self) -> str:
        """Everything it printed."""
        return self._log.read_text()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(DEADLINE_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: nothing of it is flushed or told."""
        self.popen.kill()
        self.popen.wait(10)
        self._out.close()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2, context=self._tls) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def clean_environment() -> dict[str, str]:
    """The environment without anybody's settings of ours."""
    ours = ("REGISTRY_", "NODE_", "REDIS_URL", "ALLOWED_NODES", "NATS_URL", "PROMETHEUS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@contextlib.contextmanager
def running(data_dir: Path, *flags: str, **options: Any) -> Iterator[Process]:
    """A registry that is ready, and is gone afterwards."""
    process = Process(data_dir, *flags, **options)
    try:
        process.wait_ready()
        yield process
    finally:
        process.stop()


@contextlib.asynccontextmanager
async def session(url: str, key: str | None = ADMIN_KEY) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of one registry."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(url, headers=headers) as client:
        yield client


async def until(condition: Any, deadline_s: float = DEADLINE_S) -> Any:
    """Wait for a coroutine function to give something true."""
    deadline = time.monotonic() + deadline_s
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)
