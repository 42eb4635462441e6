"""What a service manager is told of the agent, by systemd's sd_notify protocol: a datagram with a line a fact."""

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping

_FEEDS_A_PERIOD = 4  # so that one that is late is no reason to be ended


class Notifier:
    """Tells the service manager; without one, nobody, and no call ever fails or waits.

    The watchdog is fed by `progress` alone: who calls it has just finished something. Until `ready` the same call
    puts off the manager's limit for starting, as a registry may be away for hours.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        """`environ`: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as a service manager sets them."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog_usec = _watchdog_usec(environ, pid)
        self._ready = False
        self._fed_s: float | None = None
        self._status = ""

    def status(self, line: str) -> None:
        """What it is doing now, for people who ask the service manager."""
        line = " ".join(line.split())
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def ready(self) -> None:
        """It has started: said once."""
        if not self._ready:
            self._ready = True
            self._send("READY=1")

    def progress(self, now_s: float) -> None:
        """It gets on. `now_s`: monotonic seconds."""
        if self._watchdog_usec is None:
            return
        if self._fed_s is not None and 0 <= now_s - self._fed_s < self._watchdog_usec / 1e6 / _FEEDS_A_PERIOD:
            return
        self._fed_s = now_s
        self._send("WATCHDOG=1" if self._ready else f"EXTEND_TIMEOUT_USEC={self._watchdog_usec}")

    def stopping(self) -> None:
        """It was told to stop, and is about to."""
        self._send("STOPPING=1")

    def _send(self, line: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not hold the agent
            sender.sendto(line.encode(), self._address)


def notifier(environ: MutableMapping[str, str] | None = None) -> Notifier:
    """One for this process. What it was told by is taken out of the environment: programs that the agent starts are
    not the service."""
    environ = os.environ if environ is None else environ
    made = Notifier(environ, os.getpid())
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        environ.pop(name, None)
    return made


def _address(given: str) -> bytes | None:
    """A path, or a name in Linux' abstract space; other kinds of addresses are for other machines."""
    if given.startswith("@"):
        return b"\0" + os.fsencode(given[1:])
    return os.fsencode(given) if given.startswith("/") else None


def _watchdog_usec(environ: Mapping[str, str], pid: int) -> int | None:
    try:
        usec = int(environ.get("WATCHDOG_USEC", ""))
        meant = int(environ.get("WATCHDOG_PID") or pid)
    except ValueError:
        return None
    return usec if usec > 0 and meant == pid else None
