"""The demo does what it prints, and leaves nothing behind."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.support.live import clean_environment
from tests.support.valkey import free_port

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


def start(tmp_path: Path, port: int | None = None, **env: str) -> "subprocess.Popen[str]":
    given = {"TMPDIR": str(tmp_path), "DEMO_PORT": str(port or free_port())}
    return subprocess.Popen(
        [sys.executable, str(DEMO)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**clean_environment(), "HOME": str(tmp_path), **given, **env},
    )


def lines_until(process: "subprocess.Popen[str]", words: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or words not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], "the demo ended early:\n" + "".join(lines)
    return lines


def interrupted_it_leaves_nothing(process: "subprocess.Popen[str]", tmp_path: Path) -> None:
    family = _processes_in(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stdout is not None
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(child.is_running() for child in family) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [child for child in family if child.is_running()] == []
    assert list(tmp_path.iterdir()) == []


def _processes_in(folder: Path) -> list[psutil.Process]:
    """Also a store whose registry was killed: it is nobody's child any more."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_it_checks_itself_and_ends_with_zero_also_where_a_port_is_taken(tmp_path: Path) -> None:
    taken = free_port()
    with socket.create_server(("127.0.0.1", taken)):
        process = start(tmp_path, taken - 1, DEMO_SECONDS="1")
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"# Port {taken} is taken; us uses " in output
    for words in ("Now eu is killed", "online at us", "eu is started again", "both members are up", "Checked"):
        assert words in output
    assert list(tmp_path.iterdir()) == []


def test_the_printed_lines_work_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path)
    lines = lines_until(process, "Ctrl-C")
    assert len(_processes_in(tmp_path)) == 5  # two registries with a Valkey each, and the agent
    commands = [line for line in lines if line.strip() and not line.startswith("#")]
    curls, others = [c for c in commands if c.startswith("curl")], [c for c in commands if not c.startswith("curl")]
    assert (len(curls), len(others)) == (6, 2)
    for line in curls:
        answer = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=10, check=True)
        assert '"status":"online"' in answer.stdout
        assert '"home_registry":"us"' in answer.stdout
    for line in others:
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=20, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    interrupted_it_leaves_nothing(process, tmp_path)


def test_ctrl_c_while_a_region_is_dead_leaves_nothing_either(tmp_path: Path) -> None:
    process = start(tmp_path)
    lines_until(process, "Now eu is killed")
    deadline = time.monotonic() + 10
    while len(_processes_in(tmp_path)) == 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(_processes_in(tmp_path)) == 4
    interrupted_it_leaves_nothing(process, tmp_path)
