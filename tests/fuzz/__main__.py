"""Look for bytes that a target does not take as it should, guided by what they reach (`make fuzz`).

A finding's bytes are printed and kept under tests/fuzz/corpus, where tests/fuzz/test_corpus.py takes them from then on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
NAMES = sorted(folder.name for folder in CORPUS.iterdir())  # what is imported here cannot be instrumented any more


def main() -> int:
    """Each target in a process of its own: the exit status is 1 when one has found something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each; 60")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = sorted(set(given.targets) - set(NAMES))
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}")
    if given.inside:
        _fuzz(given.targets[0], given.seconds)
    failed = [name for name in given.targets if _run(name, given.seconds)]
    print(f"found something: {', '.join(failed)}" if failed else "found nothing")
    return bool(failed)


def _run(name: str, seconds: int) -> int:
    print(f"{name}: {seconds} s", flush=True)
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds), "--inside"]
    with tempfile.TemporaryDirectory() as scratch:
        ended = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, "TMPDIR": scratch}
        )
    if ended.returncode:
        print(ended.stderr[-4_000:])
    return ended.returncode


def _fuzz(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["registry", "federation", "agent"]):
        from tests.fuzz.targets import TARGETS
    folder = CORPUS / name
    tried = tempfile.mkdtemp()  # whoever started us removes it: this call does not come back
    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={folder}/found-", tried,
        str(folder),
    ]  # fmt: skip
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
