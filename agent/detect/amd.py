"""AMD's GPUs through the kernel's own files (sysfs): nothing to install, no root."""

import re
from typing import Any

from agent.detect.gpu import GB, absent, entry, troubled
from agent.detect.machine import Machine, ThisMachine, whole

_CARDS = "/sys/class/drm"
_AMD = "0x1002"
_PCI_IDS = ("/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids")
_PCI_IDS_LIMIT = 4 * 2**20


def detect_amd() -> dict[str, Any]:
    """`{available, gpus, count, reason}` of this machine's AMD GPUs."""
    return read_amd(ThisMachine())


def read_amd(machine: Machine) -> dict[str, Any]:
    """The same of any machine that runs Linux."""
    cards = [name for name in machine.folder(_CARDS) if re.fullmatch(r"card\d+", name)]
    cards = [name for name in cards if _line(machine, f"{_CARDS}/{name}/device/vendor") == _AMD]
    if not cards:
        return absent("no AMD GPU")
    gpus = [_gpu(machine, f"{_CARDS}/{card}/device") for card in cards]
    if all(gpu["vram_gb"] is None and gpu["utilization_percent"] is None for gpu in gpus):
        return troubled("an AMD GPU is there, but its driver (amdgpu) is not in use")
    return {"available": True, "gpus": gpus, "count": len(gpus), "reason": None}


def _gpu(machine: Machine, device: str) -> dict[str, Any]:
    total, used = (whole(machine.read(f"{device}/mem_info_vram_{what}")) for what in ("total", "used"))
    shared = whole(machine.read(f"{device}/mem_info_gtt_total"))
    serial = _line(machine, f"{device}/unique_id")
    own = _line(machine, f"{device}/mem_info_vram_vendor")
    busy = whole(machine.read(f"{device}/gpu_busy_percent"))
    sensors = next(iter(machine.folder(f"{device}/hwmon")), None)
    temperature = whole(machine.read(f"{device}/hwmon/{sensors}/temp1_input")) if sensors else None
    power = whole(machine.read(f"{device}/hwmon/{sensors}/power1_average")) if sensors else None
    return entry(
        vendor="amd",
        name=_line(machine, f"{device}/product_name") or _listed_name(machine, device),
        uuid=f"GPU-{serial}" if serial else None,  # as AMD's own tools write it
        vram_gb=total / GB if total is not None else None,
        vram_free_gb=(total - used) / GB if total is not None and used is not None else None,
        utilization_percent=busy if busy is not None and 0 <= busy <= 100 else None,
        # Only memory of its own has a maker. Without one it may be a part of the system's, or an older driver.
        unified=False if own else None,
        why={
            "name": "neither the GPU nor a list of PCI ids tells it",
            "uuid": "this GPU has no serial number",
            "vram_gb": "the driver does not tell",
            "utilization_percent": "the driver does not tell",
            "unified": "the driver does not tell whose memory it is",
        },
        shared_gb=round(shared / GB, 2) if shared else None,
        temperature_c=round(temperature / 1000) if temperature else None,
        power_w=round(power / 1e6, 1) if power else None,
    )


def _line(machine: Machine, path: str) -> str | None:
    return (machine.read(path) or "").strip()[:255] or None


def _listed_name(machine: Machine, device: str) -> str | None:
    number = (_line(machine, f"{device}/device") or "").removeprefix("0x")
    for path in _PCI_IDS:
        text = machine.read(path, _PCI_IDS_LIMIT)
        if text and number:
            return parse_pci_ids(text, _AMD.removeprefix("0x"), number)
    return None


def parse_pci_ids(text: str, vendor: str, device: str) -> str | None:
    """A device's name in the text of pci.ids: vendors at the margin, their devices after one tab."""
    block = re.search(rf"^{re.escape(vendor)}\s.*$((?:\n(?:\t.*|#.*)?$)*)", text, re.MULTILINE)
    found = re.search(rf"^\t{re.escape(device)}\s+(.+)$", block[1], re.MULTILINE) if block else None
    return found[1].strip()[:255] if found else None
