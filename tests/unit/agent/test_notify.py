"""What a service manager hears: real datagrams, fed by progress alone."""

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.notify import Notifier, notifier

PID = 4711


class Manager:
    """The end of a service manager: what came in so far."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.address = address

    def heard(self) -> list[str]:
        lines = []
        while True:
            try:
                lines.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return lines


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    abstract = f"@dagi-test-{uuid.uuid4().hex}"
    made = Manager(str(tmp_path / "notify") if request.param == "path" else abstract)
    yield made
    made.socket.close()


def of(manager: Manager, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.address, **more}, PID)


def test_it_tells_of_a_whole_life(manager: Manager) -> None:
    tells = of(manager, WATCHDOG_USEC="120000000", WATCHDOG_PID=str(PID))
    tells.status("no registry answers:\n  refused")
    tells.progress(0.0)
    tells.ready()
    tells.ready()
    tells.progress(40.0)
    tells.status("registered")
    tells.stopping()
    assert manager.heard() == [
        "STATUS=no registry answers: refused",
        "EXTEND_TIMEOUT_USEC=120000000",  # registries may be away for longer than a start may take
        "READY=1",
        "WATCHDOG=1",
        "STATUS=registered",
        "STOPPING=1",
    ]


def test_a_status_that_is_known_is_not_said_again(manager: Manager) -> None:
    tells = of(manager)
    for line in ("a", "a", "b", "a"):
        tells.status(line)
    assert manager.heard() == ["STATUS=a", "STATUS=b", "STATUS=a"]


def test_feeding_is_spared_where_it_is_early(manager: Manager) -> None:
    tells = of(manager, WATCHDOG_USEC="40000000")
    tells.ready()
    manager.heard()
    fed = []
    for now_s in range(100, 141, 5):
        tells.progress(float(now_s))
        fed.append(len(manager.heard()))
    assert fed == [1, 0, 1, 0, 1, 0, 1, 0, 1]  # every 10 s of 40
    tells.progress(50.0)  # a clock that went back
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("usec", "pid"), [(None, None), ("", None), ("0", None), ("-5", None), ("soon", None), ("9", "1"), ("9", "x")]
)
def test_without_a_watchdog_of_its_own_nothing_is_fed(manager: Manager, usec: str | None, pid: str | None) -> None:
    given = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    tells = of(manager, **{name: value for name, value in given.items() if value is not None})
    tells.progress(1.0)
    assert manager.heard() == []


@pytest.mark.parametrize(
    "address", ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@nobody-listens", "/" + "x" * 500]
)
def test_where_nobody_listens_it_does_nothing(address: str) -> None:
    tells = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"}, PID)
    tells.ready()
    tells.status("fine")
    tells.progress(1.0)
    tells.stopping()


def test_a_manager_that_does_not_read_never_holds_it(manager: Manager) -> None:
    tells = of(manager)
    for n in range(10_000):  # far more than a socket holds
        tells.status(str(n))
    assert len(manager.heard()) < 10_000


def test_programs_that_it_starts_are_not_told_of_the_manager(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000", "PATH": "/bin"}
    tells = notifier(environ)
    assert environ == {"PATH": "/bin"}
    tells.ready()
    tells.progress(1.0)
    assert manager.heard() == ["READY=1", "WATCHDOG=1"]
