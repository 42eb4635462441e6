"""The demo does what it prints, and leaves nothing behind."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.support.live import clean_environment

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


def start(tmp_path: Path, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(DEMO)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**clean_environment(), "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "DEMO_PORT": "19205", **env},
    )


def test_it_checks_itself_and_ends_with_zero(tmp_path: Path) -> None:
    process = start(tmp_path, DEMO_SECONDS="1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Checked" in output
    assert list(tmp_path.iterdir()) == []


def test_the_printed_lines_work_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    lines = []
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line, "the demo ended early"
        lines.append(line)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # registry, its Valkey, agent
    curls = [line for line in lines if line.startswith("curl")]
    assert len(curls) == 3
    for line in curls:
        answer = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=10, check=True)
        assert '"status":"online"' in answer.stdout
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()
    deadline = time.monotonic() + 5
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [child for child in children if child.is_running()] == []
    assert list(tmp_path.iterdir()) == []
