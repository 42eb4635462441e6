"""Mechanisms that the simulation does not miss when they are broken: here a test does."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from federation import guard
from federation.clock import HybridClock
from federation.core import Core
from federation.drains import Drains
from federation.record import Item, Record
from federation.replica import Replica
from federation.seals import Seal
from federation.streams import Streams
from tests.unit.federation import (
    test_drains,
    test_liveness,
    test_lost_store,
    test_streams,
    test_succession,
    test_wrong_clock,
)

Patch = pytest.MonkeyPatch


def _replacements_are_forgotten(patch: Patch) -> None:
    patch.setattr(Drains, "_replaced", lambda self, record: None)


def _broken_drains_are_believed(patch: Patch) -> None:
    def received(self: Drains, link: Any, drain: Any, now: Any) -> None:
        if self._incoming is not None:
            self._incoming.next_index = drain.index
        original(self, link, drain, now)

    original = Drains.received
    patch.setattr(Drains, "received", received)


def _a_wrong_clock_is_minted_from(patch: Patch) -> None:
    patch.setattr(Core, "wall_ms", lambda self, now: now.wall_ms)


def _a_jump_is_carried_on(patch: Patch) -> None:
    def init(self: HybridClock, tolerance_ms: int) -> None:
        original(self, 2**40)

    original = HybridClock.__init__
    patch.setattr(HybridClock, "__init__", init)


def _lost_words_are_not_said_again(patch: Patch) -> None:
    patch.setattr(Replica, "vouches_for", lambda self, section: True)


def _ages_stand_still(patch: Patch) -> None:
    patch.setattr("federation.liveness._late_s", lambda link, sent_s, now: 0.0)


def _the_last_feeder_is_asked_to_stop(patch: Patch) -> None:
    def shorter(self: Streams, link: Any, segment: Any) -> bool:
        feeder, hops = self._fed_by.get(segment.chain, ("", 0))
        return feeder != link.peer and segment.chain[0] != link.peer and hops <= segment.hops

    patch.setattr(Streams, "_comes_shorter", shorter)


def _who_is_in_no_roster_is_believed(patch: Patch) -> None:
    def seal_of(item: Item, roster: Mapping[str, Record]) -> Seal:
        seal = original(item, roster)
        return Seal.HOLDS if seal is Seal.UNKNOWN else seal

    original = guard.seal_of
    patch.setattr(guard, "seal_of", seal_of)


@pytest.mark.parametrize(
    ("mutate", "test"),
    [
        (_ages_stand_still, test_liveness.test_a_mark_that_waited_in_a_buffer_is_as_old_as_that),
        (_the_last_feeder_is_asked_to_stop, test_streams.test_nor_is_the_only_one_that_was_not_asked_yet),
        (_replacements_are_forgotten, test_drains.test_what_is_replaced_under_way_travels_as_its_replacement),
        (_broken_drains_are_believed, test_drains.test_a_missing_chunk_makes_the_claim_void_and_it_is_asked_for_again),
        (_a_wrong_clock_is_minted_from, test_wrong_clock.test_with_two_peers_it_mints_from_their_median),
        (
            _a_jump_is_carried_on,
            test_wrong_clock.test_among_two_nobody_can_tell_and_what_is_nobodys_clock_is_refused_and_told_of,
        ),
        (
            _lost_words_are_not_said_again,
            test_lost_store.test_it_says_again_what_only_the_lost_store_had_said_once_it_hears_the_node,
        ),
        (
            _who_is_in_no_roster_is_believed,
            test_succession.test_nothing_is_taken_in_the_name_of_one_whose_entry_a_member_took_out,
        ),
    ],
)
def test_what_is_broken_shows(mutate: Callable[[Patch], None], test: Callable[[], None], monkeypatch: Patch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        test()
