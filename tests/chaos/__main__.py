"""Break real registries for some minutes.

python -m tests.chaos --seconds 600
python -m tests.chaos --seed 17 --registries 5
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.faults import SHORT, schedule
from tests.chaos.federation import Federation, Outcome


async def run(folder: Path, arguments: argparse.Namespace) -> Outcome:
    """One run."""
    names = [f"r{index}" for index in range(arguments.registries)]
    faults = SHORT if arguments.short else schedule(arguments.seed, names, arguments.seconds)
    federation = Federation(
        folder,
        arguments.seed,
        faults,
        registries=arguments.registries,
        agents=arguments.agents,
        tell=None if arguments.quiet else lambda line: print(line, flush=True),
    )
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # what it started is ended then, too
    return await federation.run()


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)), help="of the schedule")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long faults begin")
    parser.add_argument("--registries", type=int, default=3)
    parser.add_argument("--agents", type=int, default=30)
    parser.add_argument("--short", action="store_true", help="the fixed schedule of the tests")
    parser.add_argument("--quiet", action="store_true", help="tell events only of a run that failed")
    arguments = parser.parse_args()
    again = f"python -m tests.chaos --seed {arguments.seed} --seconds {arguments.seconds:g}"
    again += f" --registries {arguments.registries} --agents {arguments.agents}" + " --short" * arguments.short
    print(f"seed {arguments.seed}; to replay its schedule: {again}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            outcome = asyncio.run(run(Path(folder), arguments))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return 130
    print(f"{outcome}\n{again}")
    return 1 if outcome.violation else 0


if __name__ == "__main__":
    sys.exit(main())
