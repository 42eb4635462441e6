"""A registry whose wall clock is wrong: started as `python -m registry` is, with CHAOS_SKEW_MS in its environment."""

import os
import runpy
import time

SKEW_MS = "CHAOS_SKEW_MS"


def _main() -> None:
    true_ns, skew_ns = time.time_ns, int(os.environ[SKEW_MS]) * 1_000_000
    time.time_ns = lambda: true_ns() + skew_ns
    time.time = lambda: (true_ns() + skew_ns) / 1e9
    runpy.run_module("registry", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
