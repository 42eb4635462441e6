"""Battery and heat, where the system tells: a laptop's work depends on both."""

import re
from typing import Any

import psutil

from agent.detect.machine import Machine, ThisMachine, whole

_ZONES = "/sys/class/thermal"
MAX_ZONES = 16  # some firmware takes milliseconds for each
MAX_TRIPS = 4
_PLAUSIBLE_C = (1, 130)  # sensors without a probe say 0, -273 or 200


def measure_power() -> dict[str, Any]:
    """Battery and heat now; only what the system tells."""
    sensors = getattr(psutil, "sensors_battery", None)  # not on every platform
    told = sensors() if sensors else None
    return {**battery(told), **heat(ThisMachine())}


def battery(told: Any) -> dict[str, Any]:
    """`battery_percent`, `on_battery` of psutil's reading; nothing for a machine without a battery."""
    if told is None:
        return {}
    found: dict[str, Any] = {"battery_percent": round(min(max(told.percent, 0), 100))}
    if told.power_plugged is not None:
        found["on_battery"] = not told.power_plugged
    return found


def heat(machine: Machine) -> dict[str, Any]:
    """`temperature_c` of the hottest sensor, and `thermal_state`: nominal or throttled."""
    if machine.platform == "Linux":
        return _linux_heat(machine)
    if machine.platform == "Darwin":
        return parse_pmset_therm(machine.run("pmset", "-g", "therm") or "")
    return {}


def parse_pmset_therm(text: str) -> dict[str, Any]:
    """What macOS's `pmset -g therm` tells: a processor that is slowed down, or none."""
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d{1,3})\b", text)
    if limit:
        percent = int(limit[1])
        return {"thermal_state": "throttled" if percent < 100 else "nominal", "cpu_speed_limit_percent": percent}
    if re.search(r"warning level\s*=?\s*[1-9]", text):
        return {"thermal_state": "throttled"}
    return {"thermal_state": "nominal"} if "No thermal warning level" in text else {}


def _linux_heat(machine: Machine) -> dict[str, Any]:
    zones = [name for name in machine.folder(_ZONES) if name.startswith("thermal_zone")][:MAX_ZONES]
    hottest: float | None = None
    state: str | None = None
    for zone in zones:
        temperature = _celsius(machine.read(f"{_ZONES}/{zone}/temp"))
        if temperature is None:
            continue
        hottest = temperature if hottest is None else max(hottest, temperature)
        trip = _slowing_at(machine, f"{_ZONES}/{zone}")
        if trip is not None:
            state = "throttled" if temperature >= trip or state == "throttled" else "nominal"
    found: dict[str, Any] = {"temperature_c": round(hottest, 1)} if hottest is not None else {}
    return {**found, "thermal_state": state} if state else found


def _slowing_at(machine: Machine, zone: str) -> float | None:
    """From which temperature on the kernel slows this zone's processor down."""
    for index in range(MAX_TRIPS):
        kind = machine.read(f"{zone}/trip_point_{index}_type")
        if kind is None:
            return None
        if kind.strip() == "passive":
            return _celsius(machine.read(f"{zone}/trip_point_{index}_temp"))
    return None


def _celsius(text: str | None) -> float | None:
    value = whole(text)
    return value / 1000 if value is not None and _PLAUSIBLE_C[0] <= value / 1000 <= _PLAUSIBLE_C[1] else None
