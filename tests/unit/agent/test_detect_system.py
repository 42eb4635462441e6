"""The machine's own facts: the processor's name, how busy it is, a container's share, disks, battery and heat."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detect import system
from agent.detect.disks import GB, Disk, disks, look, model_folders, models_disk
from agent.detect.limits import Limits, read_limits
from agent.detect.network import local_ip
from agent.detect.power import battery, heat, parse_pmset_therm
from agent.detect.system import CpuMeter, Host, busy_percent, memory_used, parse_cpu_model, system_facts
from tests.support.machines import recorded

BIG = Host("box", "6.8.0", "x86_64", "", 64, 32, 256 * GB)

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 1\nmodel name\t: AMD EPYC 9354\nstepping\t: 1\n"
PI = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B\n"
ARM_SERVER = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [(X86, "AMD EPYC 9354"), (PI, "BCM2835"), (ARM_SERVER, "Arm Neoverse-N1"), ("", None), ("model name\t:\n", None)],
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


@pytest.mark.parametrize(
    ("machine", "limits"),
    [
        ("container_v2", Limits(1.5, 8 * GB, 3 * GB, "cgroup v2")),
        ("container_v2_host_namespace", Limits(4.0, 16 * GB, 1 * GB, "cgroup v2")),
        ("container_v1", Limits(2.0, 4 * GB, 2 * GB, "cgroup v1")),
        ("service_with_a_limit_of_its_own", Limits(64.0, None, None, "cgroup v2")),
        ("host_v1", Limits(64.0, None, None, "cgroup v1")),
        ("arm_server", Limits()),
        ("apple_m2_max", Limits()),
    ],
)
def test_a_containers_limits_and_no_others(machine: str, limits: Limits) -> None:
    assert read_limits(recorded(machine)) == limits


@pytest.mark.parametrize(
    ("machine", "cores", "ram_gb"),
    [
        ("container_v2", 1.5, 8),
        ("container_v1", 2, 4),
        ("service_with_a_limit_of_its_own", 64, 256),
        ("host_v1", 64, 256),
    ],
)
def test_what_a_machine_has_is_what_can_be_used_there(machine: str, cores: float, ram_gb: float) -> None:
    facts = system_facts(recorded(machine), BIG)
    assert (facts["cpu_cores"], facts["ram_gb"]) == (cores, ram_gb)
    bounded = cores != 64
    whole = {"cpu_cores": 64, "ram_gb": 256.0}
    assert facts.get("container", {}).get("host") == (whole if bounded else None)


def test_limits_above_the_machines_own_bound_nothing() -> None:
    small = Host("box", "", "", "", 1, 1, 2 * GB)
    facts = system_facts(recorded("container_v2"), small)
    assert (facts["cpu_cores"], facts["ram_gb"]) == (1, 2.0)
    assert "container" not in facts


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("container_v2", "AMD EPYC 9354 32-Core Processor"),
        ("arm_server", "Arm Neoverse-N1"),
        ("apple_m2_max", "Apple M2 Max"),
        ("hot_laptop", None),
    ],
)
def test_the_processors_name_on_every_platform(machine: str, name: str | None) -> None:
    facts = system_facts(recorded(machine), BIG)
    assert facts["cpu_model"] == name
    assert facts["reason"] == (None if name else "cpu_model: the system names no processor")


@pytest.mark.parametrize(
    ("limits", "used"),
    [
        (Limits(), (5 * GB, 64 * GB)),
        (Limits(2.0, 8 * GB, 3 * GB, "cgroup v2"), (3 * GB, 8 * GB)),
        (Limits(2.0, 8 * GB, None, "cgroup v2"), (5 * GB, 64 * GB)),
        (Limits(2.0, 128 * GB, 3 * GB, "cgroup v2"), (5 * GB, 64 * GB)),
    ],
)
def test_a_containers_memory_is_its_own(limits: Limits, used: tuple[int, int]) -> None:
    assert memory_used(5 * GB, 64 * GB, limits) == used


FOLDERS = {
    "/": Disk(1, 100 * GB, 40 * GB),
    "/data": Disk(2, 4000 * GB, 1000 * GB),
    "/boot": Disk(3, 1 * GB, 1 * GB),
    "/home/me/.ollama/models": Disk(1, 100 * GB, 40 * GB),
    "/data/hub": Disk(2, 4000 * GB, 1000 * GB),
    "/srv/models": Disk(9, 10 * GB, 1 * GB),
}


def test_every_disk_once_and_whose_models_lie_on_it() -> None:
    folders = model_folders({"HF_HUB_CACHE": "/data/hub", "LLAMA_CACHE": "/srv/models"}, "/home/me")
    found = disks(["/", "/data", "/", "/gone", "/boot"], folders, FOLDERS.get)
    assert [(disk["mount"], disk["free_gb"], disk.get("models_of")) for disk in found] == [
        ("/", 40.0, ["ollama"]),
        ("/data", 1000.0, ["huggingface"]),
        ("/boot", 1.0, None),
        (None, 1.0, ["llamacpp"]),
    ]


@pytest.mark.parametrize(
    ("environ", "device"),
    [
        ({}, 1),
        ({"OLLAMA_MODELS": "/data/hub"}, 2),
        ({"OLLAMA_MODELS": "/no/such/folder", "HF_HUB_CACHE": "/data/hub"}, 2),
        ({"OLLAMA_MODELS": "/no/such/folder"}, None),
        ({"OLLAMA_MODELS": "/no/such/folder", "HF_HOME": "/data"}, 2),
    ],
)
def test_the_disk_that_models_lie_on(environ: dict[str, str], device: int | None) -> None:
    found = models_disk(model_folders(environ, "/home/me"), FOLDERS.get)
    assert (found.device if found else None) == device


def test_a_real_folder_and_one_that_is_not(tmp_path: Path) -> None:
    found = look(str(tmp_path))
    assert found is not None
    assert 0 < found.free_bytes <= found.total_bytes
    assert look(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ("hot_laptop", {"temperature_c": 97.0, "thermal_state": "throttled"}),
        ("arm_server", {"temperature_c": 44.5}),
        ("host_v1", {}),
        ("apple_m2_max", {"thermal_state": "nominal"}),
        ("apple_m2_max_wired", {"thermal_state": "throttled", "cpu_speed_limit_percent": 63}),
        ("intel_mac", {}),
    ],
)
def test_heat(machine: str, told: dict[str, Any]) -> None:
    assert heat(recorded(machine)) == told


def test_a_mac_that_warns_is_throttled() -> None:
    assert parse_pmset_therm("Thermal warning level = 2\n") == {"thermal_state": "throttled"}


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (None, {}),
        (SimpleNamespace(percent=86.6, power_plugged=False), {"battery_percent": 87, "on_battery": True}),
        (SimpleNamespace(percent=100.2, power_plugged=True), {"battery_percent": 100, "on_battery": False}),
        (SimpleNamespace(percent=50, power_plugged=None), {"battery_percent": 50}),
    ],
)
def test_a_battery(told: Any, shown: dict[str, Any]) -> None:
    assert battery(told) == shown
