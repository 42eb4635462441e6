"""Summaries for anti-entropy: 64 groups of 64 buckets, each the sum of its records' fingerprints.

Sums change by difference, so one changed record costs one hash, and only when somebody asks. The
hash is keyed, so that nobody outside can craft two states with one sum.
"""

from collections.abc import Iterable
from hashlib import blake2b
from zlib import crc32

from federation.record import Record, section_of

GROUPS = 64
BUCKETS = 4096
PER_GROUP = BUCKETS // GROUPS
_MODULUS = 2**64


def bucket_of(key: str) -> int:
    """The bucket that a key belongs to."""
    return crc32(key.encode()) % BUCKETS


def group_of(bucket: int) -> int:
    """The group of a bucket."""
    return bucket // PER_GROUP


def fingerprint(record: Record, key: bytes) -> int:
    """64 bits of everything that replicas must agree on. A hash of content, so the same everywhere."""
    parts = [b"%b\0%d %d" % (record.key.encode(), record.life, record.incarnation)]
    for get in section_of:
        section = get(record)
        if section is None:
            parts.append(b"\0-")
        else:
            major, origin, minor, payload, generation, seq, birth, seal = section
            began = b"%b %d %d" % (birth[0].encode(), birth[1], birth[2]) if birth else b""
            head = b"\0%d %b %d %d %d %b %d " % (major, origin.encode(), minor, generation, seq, began, len(payload))
            parts += (head, payload, seal)
    return int.from_bytes(blake2b(b"".join(parts), digest_size=8, key=key, person=b"dagi-record").digest(), "big")


class DigestTree:
    """The sums, kept in step with the records lazily: changed records wait until `settle`."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key
        self._sums = [0] * BUCKETS
        self._changed: dict[str, Record] = {}

    def __len__(self) -> int:
        """How many changed records wait."""
        return len(self._changed)

    def touch(self, record: Record) -> None:
        """The record changed."""
        self._changed[record.key] = record

    def remove(self, record: Record) -> None:
        """The record is gone."""
        self._changed.pop(record.key, None)
        self._add(record, 0)

    def settle(self, most: int | None = None) -> None:
        """Take changed records into the sums: all of them, or at most so many."""
        changed = self._changed
        for _ in range(len(changed) if most is None else min(most, len(changed))):
            _, record = changed.popitem()
            self._add(record, fingerprint(record, self._key))

    def groups(self) -> dict[int, int]:
        """The sum of every group."""
        self.settle()
        sums = self._sums
        return {g: sum(sums[g * PER_GROUP : (g + 1) * PER_GROUP]) % _MODULUS for g in range(GROUPS)}

    def buckets(self, groups: Iterable[int]) -> dict[int, int]:
        """The sum of every bucket of these groups."""
        self.settle()
        return {b: self._sums[b] for g in groups for b in range(g * PER_GROUP, (g + 1) * PER_GROUP)}

    def _add(self, record: Record, new: int) -> None:
        bucket = bucket_of(record.key)
        self._sums[bucket] = (self._sums[bucket] + new - record.fingerprint) % _MODULUS
        record.fingerprint = new


def differing(ours: dict[int, int], theirs: dict[int, int]) -> list[int]:
    """The numbers whose sums differ, of those that the other told."""
    return sorted(number for number, value in theirs.items() if ours.get(number, value) != value)
