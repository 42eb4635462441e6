"""`scripts/join-network.sh` and what it stands on, on machines that lack this or that. Python is played, with the real
tools' answers: a real one would fetch packages for a minute."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TOOLS = ("sh", "dirname", "find", "cat", "touch", "uname", "readlink", "mkdir", "cp", "rm", "tail", "printf", "ls")

# Plays Python: which version it is, whether it can make environments, what pip says, and what an agent does.
PYTHON = """#!/bin/sh
case "$*" in
*version_info\\ *) exit "${FAKE_OLD:-0}" ;;
*platform*) echo 3.9.2 ;;
*"%d.%d"*) echo 3.12 ;;
*ensurepip*) exit "${FAKE_BARE:-0}" ;;
"-m venv"*)
    for last; do :; done
    case "$*" in *--clear*) rm -rf "$last" ;; esac
    mkdir -p "$last/bin"
    cp "$0" "$last/bin/python"
    printf '#!/bin/sh\\nls .env 2>/dev/null\\nfor word; do echo "[$word]"; done\\n' > "$last/bin/dagi-agent"
    chmod +x "$last/bin/dagi-agent"
    echo made >> "$FAKE_LOG" ;;
*"pip install"*)
    echo "$FAKE_PIP_SAYS" >&2
    echo pip >> "$FAKE_LOG"
    exit "${FAKE_PIP_FAILS:-0}" ;;
esac
"""


class Clone:
    """A fresh clone on a machine that has little."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my clone's folder"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.away = folder / "elsewhere"
        for each in (self.root / "scripts", self.bin, self.away):
            each.mkdir(parents=True)
        for name in ("environment.sh", "join-network.sh"):
            shutil.copy(SCRIPTS / name, self.root / "scripts" / name)
        for name in ("requirements.txt", "pyproject.toml"):
            (self.root / name).touch()
            os.utime(self.root / name, (1e9, 1e9))
        for tool in (*TOOLS, "chmod"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.has("python3")

    def has(self, name: str) -> None:
        """A Python of that name is on the PATH."""
        (self.bin / name).write_text(PYTHON)
        (self.bin / name).chmod(0o755)

    def join(self, *flags: str, script: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the script from another folder."""
        line = [str(script or self.root / "scripts" / "join-network.sh"), *flags]
        given = {"PATH": str(self.bin), "HOME": str(self.away), "FAKE_LOG": str(self.log), "FAKE_PIP_SAYS": "", **env}
        return subprocess.run(line, capture_output=True, text=True, timeout=30, cwd=self.away, env=given)

    def did(self) -> str:
        """What Python was asked to make, since last asked."""
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return " ".join(text.split())


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_first_run_installs_and_the_second_starts_at_once(clone: Clone) -> None:
    flags = ("--registry-url", "http://192.0.2.1:9205", "--node-name", "the box under my desk")
    for expected in ("made pip pip", ""):
        done = clone.join(*flags)
        assert (done.returncode, clone.did()) == (0, expected), done.stderr
        assert done.stdout.splitlines() == ["[bootstrap]", "[--auto]", *(f"[{flag}]" for flag in flags)]
    (clone.root / "requirements.txt").write_text("more")  # after a pull
    assert clone.join().returncode == 0
    assert clone.did() == "made pip pip"


def test_a_clone_that_was_moved_is_installed_anew(clone: Clone) -> None:
    clone.join()
    (clone.root / ".venv" / "stale").touch()
    clone.root = clone.root.rename(clone.root.with_name("moved"))
    clone.did()
    assert clone.join().returncode == 0
    assert clone.did() == "made pip pip"
    assert not (clone.root / ".venv" / "stale").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(clone: Clone) -> None:
    clone.join()
    (clone.root / ".venv" / "bin" / "python").unlink()
    clone.did()
    assert clone.join().returncode == 0
    assert clone.did() == "made pip pip"


def test_settings_are_those_beside_the_clone_unless_there_are_some_here(clone: Clone) -> None:
    named = f"[--env-file]\n[{clone.root}/.env]"
    assert named not in clone.join().stdout
    (clone.root / ".env").touch()
    assert named in clone.join("--once").stdout
    assert named not in clone.join("--env-file", "other").stdout
    assert named not in clone.join("--env-file=other").stdout
    (clone.away / ".env").touch()
    done = clone.join()
    assert named not in done.stdout
    assert done.stdout.startswith(".env\n")  # the agent runs where it was called


def test_it_may_be_called_by_a_link(clone: Clone) -> None:
    link = clone.away / "join"
    link.symlink_to(Path("..") / clone.root.name / "scripts" / "join-network.sh")
    done = clone.join(script=link)
    assert (done.returncode, done.stdout.splitlines()[:1]) == (0, ["[bootstrap]"]), done.stderr


NETWORK = """WARNING: Retrying: NewConnectionError: [Errno -3] Temporary failure in name resolution
ERROR: Could not find a version that satisfies the requirement aiohttp==3.14.3"""
FAILURES: dict[str, tuple[dict[str, str], str]] = {
    "too old": ({"FAKE_OLD": "1"}, "Python 3.11 or newer is needed, and none was found; "),
    "no venv": ({"FAKE_BARE": "1"}, "sudo apt install python3-venv (or python3.12-venv)"),
    "no network": ({"FAKE_PIP_FAILS": "1", "FAKE_PIP_SAYS": NETWORK}, "no way to pypi.org"),
    "a proxy's certificate": ({"FAKE_PIP_FAILS": "1", "FAKE_PIP_SAYS": "SSL: CERTIFICATE_VERIFY_FAILED"}, "PIP_CERT"),
    "disk full": (
        {"FAKE_PIP_FAILS": "1", "FAKE_PIP_SAYS": "ERROR: Could not install: [Errno 28] No space left on device"},
        "The disk is full",
    ),
    "not ours": ({"FAKE_PIP_FAILS": "1", "FAKE_PIP_SAYS": "[Errno 13] Permission denied: '/x'"}, "cannot be written"),
    "anything else": (
        {"FAKE_PIP_FAILS": "2", "FAKE_PIP_SAYS": "ERROR: hashes\nof some package differ"},
        "of some pack",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_is_a_sentence_and_works_when_it_has_been_mended(name: str, clone: Clone) -> None:
    env, words = FAILURES[name]
    done = clone.join(**env)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 4
    clone.did()
    assert clone.join().returncode == 0
    assert clone.did() == "made pip pip"


def test_another_python_on_the_path_is_found(clone: Clone) -> None:
    (clone.bin / "python3").write_text("#!/bin/sh\nexit 1\n")
    clone.has("python3.12")
    assert clone.join().returncode == 0
    shutil.rmtree(clone.root / ".venv")
    (clone.bin / "python3.12").rename(clone.away / "mine")
    clone.bin.joinpath("python3").unlink()
    assert clone.join(PYTHON=str(clone.away / "mine")).returncode == 0
    shutil.rmtree(clone.root / ".venv")
    assert "none was found." in clone.join().stderr
