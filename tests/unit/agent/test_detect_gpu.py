"""GPUs of Macs and of AMD from recorded machines, and all vendors together."""

from typing import Any

import pytest

from agent.detect.amd import parse_pci_ids, read_amd
from agent.detect.apple import Apple, parse_displays, parse_ioreg
from agent.detect.gpu import SystemMemory, absent, join, measured, troubled
from registry.model import Capabilities, parse
from tests.support.machines import RecordedMachine, recorded

RAM = SystemMemory(96.0, 50.0)
NO_AMD = absent("no AMD GPU")
NO_NVIDIA = absent("no NVIDIA driver is installed")
L4 = {"name": "NVIDIA L4", "vendor": "nvidia", "uuid": "GPU-1", "utilization_percent": 7}
NVIDIA = {"available": True, "gpus": [L4], "count": 1, "reason": None, "driver_version": "580.95.05"}


def test_an_amd_accelerator_tells_everything() -> None:
    found = read_amd(recorded("amd_mi300"))
    assert found["gpus"] == [
        {
            "name": "AMD Instinct MI300X OAM",
            "vendor": "amd",
            "uuid": "GPU-8f2c1a5b3d4e6f70",
            "vram_gb": 191.98,
            "vram_free_gb": 95.98,
            "utilization_percent": 42,
            "unified": False,
            "shared_gb": 502.91,
            "temperature_c": 51,
            "power_w": 160.0,
        }
    ]
    assert (found["available"], found["count"], found["reason"]) == (True, 1, None)


def test_an_amd_chip_is_named_by_the_list_of_pci_ids_and_null_where_it_does_not_tell() -> None:
    (gpu,) = read_amd(recorded("amd_laptop"))["gpus"]
    assert (gpu["name"], gpu["vram_gb"], gpu["shared_gb"]) == ("Strix [Radeon 880M / 890M]", 0.5, 15.0)
    assert (gpu["uuid"], gpu["unified"]) == (None, None)
    assert "uuid: this GPU has no serial number" in gpu["reason"]


@pytest.mark.parametrize(
    ("machine", "words"), [("amd_without_driver", "its driver (amdgpu) is not in use"), ("arm_server", "no AMD GPU")]
)
def test_no_usable_amd_gpu_and_why(machine: str, words: str) -> None:
    found = read_amd(recorded(machine))
    assert (found["available"], found["gpus"]) == (False, [])
    assert words in found["reason"]


@pytest.mark.parametrize(
    ("vendor", "device", "name"),
    [("1002", "744c", "Navi 31"), ("1003", "150e", "Not this one"), ("1002", "1043", None), ("9999", "150e", None)],
)
def test_the_list_of_pci_ids(vendor: str, device: str, name: str | None) -> None:
    text = "1002  AMD\n\t744c  Navi 31\n\t\t1043 0001  A card\n1003  ULSI\n\t150e  Not this one\nC 03  Display\n"
    assert parse_pci_ids(text, vendor, device) == name


def test_apple_silicon_uses_the_systems_memory_and_needs_no_root() -> None:
    machine = recorded("apple_m2_max")
    apple = Apple(machine)
    (gpu,) = apple.read(RAM)["gpus"]
    assert gpu == {
        "name": "Apple M2 Max",
        "vendor": "apple",
        "uuid": None,
        "vram_gb": 96.0,
        "vram_free_gb": 50.0,
        "utilization_percent": 21,
        "unified": True,
        "cores": 38,
        "reason": "uuid: a Mac's GPU has none",
    }
    apple.read(RAM)
    assert [command.split()[0] for command in machine.ran] == ["system_profiler", "sysctl", "ioreg", "ioreg"]


def test_a_limit_that_somebody_set_bounds_what_a_mac_gives_its_gpu() -> None:
    (gpu,) = Apple(recorded("apple_m2_max_wired")).read(RAM)["gpus"]
    assert (gpu["vram_gb"], gpu["wired_limit_gb"], gpu["vram_free_gb"]) == (56.0, 56.0, 50.0)
    assert gpu["utilization_percent"] is None
    assert "ioreg does not tell" in gpu["reason"]


def test_what_the_gpu_itself_holds_is_not_free() -> None:
    (gpu,) = Apple(recorded("apple_m2_max")).read(SystemMemory(96.0, 95.0))["gpus"]
    assert gpu["vram_free_gb"] == 88.0


def test_a_mac_of_before_has_two() -> None:
    found = Apple(recorded("intel_mac")).read(RAM)
    told = [(g["name"], g["vendor"], g["vram_gb"], g["utilization_percent"], g["unified"]) for g in found["gpus"]]
    assert told == [
        ("Intel UHD Graphics 630", "unknown", None, 7, False),
        ("AMD Radeon Pro 5500M", "amd", 4.0, 64, False),
    ]
    assert found["gpus"][1]["vram_free_gb"] == 2.0


@pytest.mark.parametrize(
    ("told", "words"),
    [(None, "does not answer"), ("{}", "no GPU"), ("half of {", "no GPU"), ("[]", "no GPU"), ("[" * 9999, "no GPU")],
)
def test_a_mac_that_tells_nothing(told: str | None, words: str) -> None:
    commands = {} if told is None else {"system_profiler SPDisplaysDataType -json": told}
    found = Apple(RecordedMachine("Darwin", {}, commands)).read(RAM)
    assert (found["available"], found["count"]) == (False, 0)
    assert words in found["reason"]


def test_parsers_take_what_is_no_answer() -> None:
    assert parse_displays('{"SPDisplaysDataType": [1, {"sppci_model": 3}, {"_name": ""}]}') == []
    assert parse_ioreg('+-o X\n "model" = "M"\n+-o Y\n "Device Utilization %"=7\n') == {}


@pytest.mark.parametrize(
    ("blocks", "count", "reason"),
    [
        ([NO_NVIDIA, NO_AMD], 0, "no NVIDIA driver is installed; no AMD GPU"),
        ([NVIDIA, NO_AMD], 1, None),
        ([NVIDIA, troubled("an AMD GPU is there, but")], 1, "an AMD GPU is there, but"),
        ([NO_NVIDIA, {"available": True, "gpus": [{"name": "MI300X"}], "count": 1, "reason": None}], 1, None),
        ([], 0, "no GPU that this agent knows how to look for"),
    ],
)
def test_the_vendors_together(blocks: list[dict[str, Any]], count: int, reason: str | None) -> None:
    found = join(blocks)
    assert (found["available"], found["count"], len(found["gpus"])) == (count > 0, count, count)
    assert found["reason"] == reason
    assert "absent" not in found
    parse(Capabilities, {"gpu": found})


def test_gpus_of_two_vendors_are_all_told() -> None:
    found = join([NVIDIA, read_amd(recorded("amd_mi300"))])
    assert [gpu["vendor"] for gpu in found["gpus"]] == ["nvidia", "amd"]
    assert found["driver_version"] == "580.95.05"


def test_a_heartbeat_does_not_repeat_the_reasons() -> None:
    (gpu,) = measured(Apple(recorded("apple_m2_max")).read(RAM)["gpus"])
    assert "reason" not in gpu
    assert gpu["utilization_percent"] == 21
