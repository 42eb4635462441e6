"""Real registries over real stores, broken on purpose from a seeded schedule: the simulation's idea, with processes.

`python -m tests.chaos` runs it; tests/system/test_chaos.py runs a short fixed schedule.
"""
