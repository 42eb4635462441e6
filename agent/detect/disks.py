"""Disks, and among them the one that models lie on, which is often not the system's."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

GB = 2**30
MAX_DISKS = 16  # a storage server has more; a report stays small


@dataclass(frozen=True, slots=True)
class Disk:
    """One file system: what tells it from others, and its size. `free_bytes`: what a user may still write."""

    device: int
    total_bytes: int
    free_bytes: int


Look = Callable[[str], Disk | None]


def look(path: str) -> Disk | None:
    """The disk that a folder lies on; None when there is no such folder, or it is not for us."""
    try:
        device, usage = os.stat(path).st_dev, psutil.disk_usage(path)
    except OSError:
        return None
    return Disk(device, usage.total, usage.free)


def model_folders(environ: Mapping[str, str], home: str) -> list[tuple[str, str]]:
    """(engine, folder) where engines keep their models, the likeliest first; settings stand over defaults."""
    cache = environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    hub = environ.get("HF_HUB_CACHE") or f"{environ.get('HF_HOME') or f'{cache}/huggingface'}/hub"
    ollama = environ.get("OLLAMA_MODELS")
    return [
        *((("ollama", ollama),) if ollama else ()),
        *((("ollama", f"{home}/.ollama/models"), ("ollama", "/usr/share/ollama/.ollama/models")) if not ollama else ()),
        ("huggingface", hub),
        ("lmstudio", f"{home}/.lmstudio/models"),
        ("lmstudio", f"{cache}/lm-studio/models"),
        ("llamacpp", environ.get("LLAMA_CACHE") or f"{cache}/llama.cpp"),
    ]


def disks(mounts: Iterable[str], folders: Iterable[tuple[str, str]], find: Look) -> list[dict[str, Any]]:
    """Every disk once, with the engines whose models lie on it under `models_of`."""
    found: dict[int, dict[str, Any]] = {}
    for mount in mounts:
        disk = find(mount)
        if disk is not None and disk.total_bytes > 0 and len(found) < MAX_DISKS:
            found.setdefault(disk.device, _shown(mount, disk))
    for engine, folder in folders:
        disk = find(folder)
        if disk is None or disk.total_bytes <= 0:
            continue
        # A folder's own name would tell the user's; a disk that is mounted nowhere we see has no other.
        entry = found.setdefault(disk.device, _shown(None, disk))
        if engine not in entry.setdefault("models_of", []):
            entry["models_of"].append(engine)
    return list(found.values())


def _shown(mount: str | None, disk: Disk) -> dict[str, Any]:
    sizes = {"total_gb": round(disk.total_bytes / GB, 2), "free_gb": round(disk.free_bytes / GB, 2)}
    return {"mount": mount, **sizes}


def models_disk(folders: Iterable[tuple[str, str]], find: Look) -> Disk | None:
    """The disk that the first engine with a folder keeps its models on."""
    return next((disk for _, folder in folders if (disk := find(folder)) is not None), None)


def detect_disks() -> dict[str, Any]:
    """`{disk_gb, disks, models_disk_gb}`: the system's disk, all disks, the models' own. Sizes in GB (2^30 bytes)."""
    folders = _folders()
    mounts = ["/", *(part.mountpoint for part in psutil.disk_partitions(all=False))]
    root, models = look("/"), models_disk(folders, look)
    return {
        "disk_gb": round(root.total_bytes / GB, 2) if root else None,
        "disks": disks(mounts, folders, look),
        "models_disk_gb": round(models.total_bytes / GB, 2) if models else None,
        "reason": None if models else "models_disk_gb: no engine keeps models in a folder that this user can see",
    }


def measure_models_disk() -> float | None:
    """GB free on the models' disk."""
    models = models_disk(_folders(), look)
    return round(models.free_bytes / GB, 2) if models else None


def _folders() -> list[tuple[str, str]]:
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without a home
        home = "/nonexistent"
    return model_folders(os.environ, home)
