"""The engine's numbers, each with its reason. Tests and simulations state only their differences."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """Times in seconds unless the name says otherwise."""

    registry_id: str
    advert: bytes = b""  # what the roster says of this registry: opaque here (its URL, region, identity)
    digest_key: bytes = b""

    watermark_interval_s: float = 1.0  # also how often positions are announced when they changed
    reach_s: float = 10.0  # an owner not heard of for so long is unreachable: ten lost watermarks
    direct_silence_s: float = 4.0  # a link that is silent so long no longer counts: others relay instead
    sync_interval_s: float = 10.0  # positions are announced whole: single announcements may be lost
    push_when_asked: bool = False  # by `Engine.push`; else at once
    pull_grace_s: float = 1.5  # what a peer has and we lack is usually on its way
    pull_timeout_s: float = 6.0  # without a chunk; an answer takes one round trip
    digest_interval_s: float = 45.0
    walk_timeout_s: float = 6.0
    walk_buckets: int = 256  # of 4096: a repair walk is bounded, the next one goes on
    beat_interval_s: float = 1.0

    clock_tolerance_ms: int = 10_000  # who is further ahead is told of; NTP keeps clocks within milliseconds
    clock_horizon_ms: int = 86_400_000  # and beyond this it is nobody's clock: refused
    clock_suspect_ms: int = 5_000  # our own clock this far from its peers' median is not minted from
    hold_retry_s: float = 30.0  # what exceeds an origin's share is asked for again

    tombstone_min_age_s: float = 3_600.0  # longer than any message lives
    succession_s: float = 120.0  # a registry that was taken out and is alive is back by then
    eviction_s: float = 7 * 86_400.0  # collection waits no longer for a registry that is away

    frame_bytes: int = 256 * 1024
    frame_items: int = 2_000
    window_frames: int = 32  # unacknowledged data frames a link: 8 MB at most
    ack_every_frames: int = 8
    frame_lost_s: float = 5.0

    deletion_share: float = 0.05  # of all records a minute that one origin may delete
    deletion_burst: int = 100  # small networks: a person removing nodes is no attack
    takeover_share: float = 0.25  # that it may take from owners that are there: a region moves within four minutes
    takeover_burst: int = 1_000
