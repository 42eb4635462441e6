"""The table of `dagi-agent detect`."""

from typing import Any

import pytest

from agent.detect_cli import summary, table

FOUND: dict[str, Any] = {
    "system": {
        "hostname": "box", "os": "Linux", "os_version": "6.8.0", "cpu_model": "AMD EPYC 9354", "cpu_cores": 1.5,
        "ram_gb": 8.0, "container": {"limited_by": "cgroup v2", "host": {"cpu_cores": 64, "ram_gb": 256.0}},
        "disks": [
            {"mount": "/", "total_gb": 100.0, "free_gb": 40.0, "models_of": ["ollama", "huggingface"]},
            {"mount": None, "total_gb": 10.0, "free_gb": 1.0},
        ],
    },
    "gpu": {"available": True, "gpus": [
        {"name": "NVIDIA L4", "vram_gb": 24.0, "vram_free_gb": 20.0, "utilization_percent": 7, "unified": False},
        {"name": None, "vram_gb": None, "vram_free_gb": None, "utilization_percent": None, "unified": True},
    ]},
    "ollama": {"available": True, "version": "0.12.6", "models_left_out": 5, "models": [
        {"name": "qwen3:8b", "loaded": True, "vram_gb": 4.97, "context_length": 4096, "max_context_length": 40960,
         "quantization": "Q4_K_M", "parameter_size": "8.2B", "size_gb": 4.87},
        {"name": "m", "loaded": False}, "named:1b",
    ]},
    "vllm": {"available": False, "models": [], "reason": "nothing answers at 127.0.0.1:8000"},
}  # fmt: skip
TABLE = """\
Host       box (Linux 6.8.0)
CPU        AMD EPYC 9354, 1.5 cores
RAM        8 GB
Container  limited by cgroup v2; the machine has 64 cores, 256 GB
Disk       /: 40 GB free of 100 GB, models of ollama, huggingface
           (mounted elsewhere): 1 GB free of 10 GB
GPU        NVIDIA L4: 24 GB, 20 GB free, 7 % busy
           unnamed: unknown, shared with the system
Ollama     version 0.12.6, 8 models
             qwen3:8b (loaded, 4.97 GB VRAM, context 4096 of 40960, Q4_K_M,
             8.2B, 4.87 GB on disk)
             m
             named:1b
             and 5 more
vLLM       none: nothing answers at 127.0.0.1:8000"""


def test_everything_that_was_found_as_a_table() -> None:
    assert table(FOUND, 80) == TABLE


@pytest.mark.parametrize("columns", [0, 40, 80, 200])
def test_it_keeps_to_the_width_of_the_terminal(columns: int) -> None:
    assert max(len(line) for line in table(FOUND, columns).splitlines()) <= max(columns, 40)


def test_where_detectors_failed_it_says_why() -> None:
    found = {
        "system": {"reason": "detection took over 3 s", "disk_gb": None},
        "gpu": {"available": False, "gpus": [], "reason": "no NVIDIA driver is installed"},
        "ollama": {"available": False, "models": [], "reason": "nothing answers at 127.0.0.1:11434"},
    }
    told = dict(summary(found))
    assert told["CPU"] == "unknown, unknown cores"
    assert told["Disk"] == "unknown"
    assert told["GPU"] == "none: no NVIDIA driver is installed"
    assert told["Unknown"] == "detection took over 3 s"
