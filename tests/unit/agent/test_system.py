"""The machine's own facts: the processor's name, and how busy it is."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detect import system
from agent.detect.network import local_ip
from agent.detect.system import CpuMeter, busy_percent, parse_cpu_model

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 1\nmodel name\t: AMD EPYC 9354\nstepping\t: 1\n"
PI = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B\n"
ARM_SERVER = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [(X86, "AMD EPYC 9354"), (PI, "BCM2835"), (ARM_SERVER, None), ("", None), ("model name\t:\n", None)],
)
def test_the_processors_name(text: str, name: str | None) -> None:
    assert parse_cpu_model(text) == name


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        ((0, 0), (50, 100), 50),
        ((10, 100), (10, 200), 0),
        ((10, 100), (110, 200), 100),
        ((10, 100), (10, 100), None),
        ((10, 100), (9, 200), 0),
        ((10, 100), (5, 50), None),
    ],
)
def test_how_busy_between_two_readings(
    before: tuple[float, float], after: tuple[float, float], percent: float | None
) -> None:
    assert busy_percent(before, after) == percent


reading = st.tuples(st.floats(0, 1e9), st.floats(0, 1e9))


@given(reading, reading)
def test_a_share_is_a_share(before: tuple[float, float], after: tuple[float, float]) -> None:
    found = busy_percent(before, after)
    assert found is None or 0 <= found <= 100


def test_the_meter_counts_from_its_last_reading_whatever_thread_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(0.0, 0.0), (1.0, 4.0), (4.0, 8.0), (4.0, 12.0)])
    monkeypatch.setattr(system, "_cpu_times", lambda: next(readings))
    monkeypatch.setattr(system, "FIRST_READING_S", 0)
    meter, found = CpuMeter(), []
    for _ in range(3):
        thread = threading.Thread(target=lambda: found.append(meter.percent()))
        thread.start()
        thread.join()
    assert found == [25.0, 75.0, 0.0]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9205", "127.0.0.1"),
        ("http://nothing.invalid:1", None),
        ("http://a..b:1", None),
        ("http://[", None),
    ],
)
def test_the_local_address_or_none(url: str, address: str | None) -> None:
    assert local_ip(url) == address
