"""What one worker takes: from one address, with one key, and in all. Each number stands here once, with its reason.

Honest use that none of them may touch: 1,000 nodes behind one address that start at once, each with a connection of
its own, and beat every 30 s; and a program that asks 1,000 times a second with one key.
"""

import ipaddress
import math
from collections.abc import Callable
from functools import lru_cache

from registry.buckets import Buckets
from registry.errors import ApiError

# Connections
MOST_CONNECTIONS = 10_000  # some 25 KB each: 250 MB; fewer where the system gives us fewer files
MOST_OF_ADDRESS = 4_000  # twice 1,000 nodes, while the old connections still stand, and as many watchers
SPARE_FILES = 256  # of the process: the store, links, other workers, logs
BACKLOG = 4_096  # that wait to be accepted: a restart's worth of nodes, and a flood's; the system may allow fewer
CONNECTS_PER_S, CONNECTS_BURST = 1_000.0, 10_000.0  # of an address; one costs us 0.3 ms, a third of the processor
HANDSHAKE_COST = 5.0  # a TLS handshake takes 1 ms of us: 200 a second, and 2,000 at once
SUSPECT_COST = 50.0  # for an address that is about to use up its other limits: 20 connections a second

# Patience. Counted in sweeps, so that a stall of our own counts as one.
SWEEP_S = 1.0
HANDSHAKE_S = 10.0  # three round trips, and a packet lost twice
HEAD_SWEEPS = 10  # from the connection, or the first byte, to the end of a request's head: it fits one packet
BODY_S = 20.0  # the longest body at 13 KB/s
ANSWER_SWEEPS = 30  # for an answer of which over 64 KB are not taken; the longest at 70 KB/s
KEEPALIVE_S = 75.0  # between requests: two heartbeats and a half
LINGER_S = 2.0  # what still comes of a refused body is read, so that its sender reads our answer
MOST_LINGER_BYTES = 4 * 2**20  # of it; who sends more does not listen

# Sizes
MOST_HEADERS = 100  # as Apache; browsers behind proxies send 40
MOST_LINE_BYTES = 8_190  # of the request's line; as Apache
MOST_FIELD_BYTES = 8_192  # of each header; as nginx, and another number than the line's, by which errors are told apart
MOST_HEAD_BYTES = 32_768  # of all headers that come piece by piece; as nginx

# Rates
KEY_BURST_S = 5.0  # a limit's worth of so many seconds may come at once
KEY_PER_S = 2_000.0  # of one key: a quarter of what a worker does
ADDRESS_BURST_S = 10.0
ADDRESS_PER_S = 500.0  # of one address, without a key: 1,000 nodes that look around, five at once each, and browsers
FAILURES_PER_S, FAILURES_BURST = 10.0, 500.0  # bad keys of an address: half of 1,000 nodes whose keys were revoked


class Limits:
    """The rates, and the count of everything that was refused, whatever the limit: `count` hears its name."""

    def __init__(
        self,
        clock: Callable[[], float],
        count: Callable[[str], None],
        key_per_s: float = KEY_PER_S,
        address_per_s: float = ADDRESS_PER_S,
    ) -> None:
        """`clock` gives monotonic seconds; a rate of 0 is no limit."""
        self.count = count
        self.by_address = address_per_s > 0  # whether it is worth finding out
        self._clock = clock
        self._keys = Buckets(key_per_s, key_per_s * KEY_BURST_S)
        self._addresses = Buckets(address_per_s, address_per_s * ADDRESS_BURST_S)
        self._failures = Buckets(FAILURES_PER_S, FAILURES_BURST)
        self._connects = Buckets(CONNECTS_PER_S, CONNECTS_BURST)

    def of_key(self, key: bytes | str) -> None:
        """One more request with this good key. Raises 429."""
        wait_s = self._keys.take(key, self._clock())
        if wait_s:
            raise self._refused("key_rate", "too_many_requests", "This key asks too often", wait_s)

    def of_address(self, address: str) -> None:
        """One more request without a key from this address. Raises 429."""
        wait_s = self._addresses.take(network_of(address), self._clock())
        if wait_s:
            raise self._refused("address_rate", "too_many_requests", "Your address asks too much without a key", wait_s)

    def failed(self, address: str) -> None:
        """One more bad key from this address. Raises 429 when there were too many."""
        wait_s = self._failures.take(network_of(address), self._clock())
        if wait_s:
            raise self._refused("bad_keys", "too_many_bad_keys", "Your address sends too many bad keys", wait_s)

    def may_connect(self, network: str, *, secured: bool) -> bool:
        """Whether one more connection from there may be let in; `secured`: with a TLS handshake."""
        now_s = self._clock()
        cost = HANDSHAKE_COST if secured else 1.0
        if self._failures.is_low(network, now_s) or self._addresses.is_low(network, now_s):
            cost = SUSPECT_COST
        return not self._connects.take(network, now_s, cost)

    def _refused(self, limit: str, code: str, what: str, wait_s: float) -> ApiError:
        self.count(limit)
        seconds = max(1, math.ceil(wait_s))
        return ApiError(code, f"{what}; try again after {seconds} s.", retry_after_s=seconds)


@lru_cache(maxsize=4_096)
def network_of(address: str) -> str:
    """What an address counts as: an IPv6 address as its /64, as whoever has one of these has all of them."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
