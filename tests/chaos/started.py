"""A registry as chaos starts it: `python -m registry`, but its wall clock is wrong by CHAOS_SKEW_MS, and on SIGUSR1
it prints where each of its tasks stands."""

import asyncio
import os
import runpy
import signal
import sys
import time

SKEW_MS = "CHAOS_SKEW_MS"


def _print_tasks(_number: int, _frame: object) -> None:
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no loop runs
        tasks = set()
    for task in tasks:
        task.print_stack(limit=4, file=sys.stderr)
    sys.stderr.flush()


def _main() -> None:
    signal.signal(signal.SIGUSR1, _print_tasks)
    true_ns, skew_ns = time.time_ns, int(os.environ[SKEW_MS]) * 1_000_000
    time.time_ns = lambda: true_ns() + skew_ns
    time.time = lambda: (true_ns() + skew_ns) / 1e9
    runpy.run_module("registry", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
