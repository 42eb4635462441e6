"""Whether a wait was what it should have been: a laptop that slept, a clock that was set, a network that changed.

`Watch` decides on readings that it is given; `read` takes one.
"""

import contextlib
import socket
import sys
import time
from dataclasses import dataclass
from typing import Literal

SLICE_S = 5.0  # how soon such a thing is noticed; each look costs a wake-up
STILL_S = 10.0  # a wait that took so much longer was no wait of ours
JUMP_S = 5.0  # clocks that are kept right move by far less at a time
Kind = Literal["woke", "clock", "network"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One look. `monotonic_s` stands still while the machine sleeps, `boot_s` does not; None: no such clock here.

    `address` is this machine's own on its way out, None while it has no way out.
    """

    monotonic_s: float
    wall_s: float
    boot_s: float | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Surprise:
    """What happened during a wait, and the words for it."""

    kind: Kind
    said: str


class Watch:
    """Compares each reading with the one before."""

    def __init__(self, first: Reading) -> None:
        self._last = first
        self._address = first.address  # the last one there was

    def look(self, reading: Reading, planned_s: float) -> Surprise | None:
        """What was not as planned since the last look, after which `planned_s` were to pass; the most telling thing."""
        before, self._last = self._last, reading
        address, self._address = self._address, reading.address or self._address
        away_s = _away_s(before, reading, planned_s)
        if away_s is not None:
            return Surprise("woke", f"the machine, or this program, stood still for {duration(away_s)}")
        if reading.address is not None and address is not None and reading.address != address:
            return Surprise("network", f"the network changed: this machine is {reading.address} there")
        if reading.address is not None and before.address is None:
            return Surprise("network", "the network is back")
        jump_s = _jump_s(before, reading)
        if abs(jump_s) >= JUMP_S:
            way = "forward" if jump_s > 0 else "back"
            return Surprise("clock", f"the clock was set {way} by {duration(abs(jump_s))}")
        return None


def read() -> Reading:
    """This machine's clocks and address now."""
    return Reading(time.monotonic(), time.time(), _boot_s(), _own_address())


def duration(seconds: float) -> str:
    """A span of time for people: its largest unit, and the next."""
    whole = round(seconds)
    for size, unit, rest, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            more = whole % size // rest
            return f"{whole // size} {unit}" + (f" {more} {smaller}" if more else "")
    return f"{whole} s"


def _away_s(before: Reading, now: Reading, planned_s: float) -> float | None:
    """How long it stood still, asleep or stopped; None: it did not."""
    late_s = now.monotonic_s - before.monotonic_s + _asleep_s(before, now) - planned_s
    return late_s if late_s >= STILL_S else None


def _asleep_s(before: Reading, now: Reading) -> float:
    """How long the machine slept, where it has a clock that tells."""
    if now.boot_s is None or before.boot_s is None:
        return 0.0
    return (now.boot_s - before.boot_s) - (now.monotonic_s - before.monotonic_s)


def _jump_s(before: Reading, now: Reading) -> float:
    passed_s = now.monotonic_s - before.monotonic_s + _asleep_s(before, now)
    return now.wall_s - before.wall_s - passed_s


def _boot_s() -> float | None:
    """A clock that goes on while the machine sleeps."""
    if sys.platform == "darwin":  # there `time.monotonic` stands still in sleep, and this one does not
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return None


def _own_address() -> str | None:
    """The address of this machine towards the rest of the world; a UDP connect sends nothing, and looks no name up."""
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))
            return str(probe.getsockname()[0])
    return None
