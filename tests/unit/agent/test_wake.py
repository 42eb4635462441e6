"""Waits that were not as planned: from recorded clocks, every machine's on any."""

import pytest

from agent.wake import Reading, Watch, duration, read

HERE, THERE = "192.0.2.10", "198.51.100.7"
START = Reading(1_000.0, 1_700_000_000.0, 5_000.0, HERE)


def after(monotonic_s: float, *, asleep_s: float = 0, set_by_s: float = 0, address: str | None = HERE) -> Reading:
    """The clocks of START so much later."""
    boot_s = START.boot_s
    assert boot_s is not None
    gone_s = monotonic_s + asleep_s
    return Reading(START.monotonic_s + monotonic_s, START.wall_s + gone_s + set_by_s, boot_s + gone_s, address)


# a reading 5 s later as planned -> (kind, words), or None
LOOKS: dict[str, tuple[Reading, tuple[str, str] | None]] = {
    "as planned": (after(5.0), None),
    "a little late": (after(9.0), None),
    "early": (after(0.2), None),
    "kept right by NTP": (after(5.0, set_by_s=-0.4), None),
    "slept through a night": (after(5.0, asleep_s=8 * 3600), ("woke", "8 h")),
    "slept, and its clock was wrong afterwards": (after(5.0, asleep_s=90, set_by_s=7_200), ("woke", "1 min 30 s")),
    "slept, and came back elsewhere": (after(5.0, asleep_s=90, address=THERE), ("woke", "1 min 30 s")),
    "dozed": (after(5.0, asleep_s=8), None),
    "stopped and continued": (after(65.0), ("woke", "1 min")),
    "set forward": (after(5.0, set_by_s=3_600), ("clock", "forward by 1 h")),
    "set back": (after(5.0, set_by_s=-90_000), ("clock", "back by 1 d 1 h")),
    "another network": (after(5.0, address=THERE), ("network", THERE)),
    "another network, and its time": (after(5.0, address=THERE, set_by_s=60), ("network", THERE)),
    "no network": (after(5.0, address=None), None),  # nothing to be done, as long as there is none
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_tells_what_happened(name: str) -> None:
    reading, expected = LOOKS[name]
    found = Watch(START).look(reading, 5.0)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.kind, expected[1] in found.said) == (expected[0], True), found.said


def test_each_thing_is_told_once() -> None:
    watch = Watch(START)
    assert watch.look(after(5.0, asleep_s=60), 5.0) is not None
    assert watch.look(after(10.0, asleep_s=60), 5.0) is None
    assert watch.look(after(15.0, asleep_s=60, address=THERE), 5.0) is not None
    assert watch.look(after(20.0, asleep_s=60, address=THERE), 5.0) is None


def test_a_network_that_comes_back_is_told_and_so_is_a_new_one_after_none() -> None:
    for address, words in ((HERE, "back"), (THERE, THERE)):
        watch = Watch(START)
        assert watch.look(after(5.0, address=None), 5.0) is None
        assert watch.look(after(10.0, address=None), 5.0) is None
        found = watch.look(after(15.0, address=address), 5.0)
        assert found is not None
        assert words in found.said


def test_a_long_step_between_two_looks_is_no_sleep() -> None:
    watch = Watch(START)
    assert watch.look(after(60.0), 60.0) is None


def test_without_a_clock_of_sleep_the_wall_clock_tells_that_something_was() -> None:
    watch = Watch(Reading(10.0, 1_000.0))
    found = watch.look(Reading(15.0, 4_605.0), 5.0)
    assert found is not None
    assert found.said == "the clock was set forward by 1 h"


def test_this_machine_can_be_read_and_does_not_surprise() -> None:
    first = read()
    assert Watch(first).look(read(), 0.0) is None
    assert first.boot_s is None or first.boot_s >= first.monotonic_s - 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3_661, "1 h 1 min"), (86_400, "1 d"), (100_000, "1 d 3 h")],
)
def test_spans_of_time_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
