"""The building blocks of the wire format: numbers, names, vectors and columns, bounded both ways.

What a peer sent is checked against a named limit before anything is allocated by it, and what is
wrong with it is a `WireError`. What we are asked to write beyond a limit is a ValueError: the fault is
ours, and no peer would have taken it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate, pairwise
from operator import lt, sub
from struct import pack, unpack
from sys import intern
from typing import Any

from federation.clock import MAX_CHAINS, Chain, Vector

NUMBER_MAX = 2**63 - 1  # a signed 64-bit integer's: what stores and other languages hold
FINGERPRINT_MAX = 2**64 - 1  # see digest.py
ORIGIN_MAX_LENGTH = 63  # a DNS label's; origins are registry ids
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PACKED = {1: "B", 2: "H", 4: "I", 8: "Q"}  # bytes a number -> struct's letter


class Fault(StrEnum):
    """What can be wrong with a frame: a closed set, for counting."""

    SIZE = "size"
    PROTOCOL = "protocol"
    VERSION = "version"
    TYPE = "type"
    COMPRESSION = "compression"
    TRUNCATED = "truncated"
    TRAILING = "trailing"
    COUNT = "count"
    NUMBER = "number"
    TEXT = "text"
    ORIGIN = "origin"
    ORDER = "order"
    SHAPE = "shape"


class WireError(Exception):
    """The peer sent what is not a frame of this protocol. Drop it, and count it under `fault`."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(f"the peer's frame is refused: {detail}")
        self.fault = fault


def is_ascending(values: Sequence[Any]) -> bool:
    """Whether each is greater than the one before."""
    return all(map(lt, values, values[1:]))


class Writer:
    """Appends to `out`."""

    def __init__(self) -> None:
        self.out = bytearray()

    def number(self, value: int, most: int = NUMBER_MAX) -> None:
        """An unsigned number, as LEB128: seven bits a byte, the least first."""
        if not 0 <= value <= most:
            raise ValueError(f"{value} is not within 0..{most}")
        while value > 0x7F:
            self.out.append(value & 0x7F | 0x80)
            value >>= 7
        self.out.append(value)

    def signed(self, value: int, most: int = NUMBER_MAX) -> None:
        """A number that may be negative, zigzag: 0, -1, 1, -2, ..."""
        self.number(value * 2 if value >= 0 else -value * 2 - 1, 2 * most)

    def flag(self, value: bool) -> None:
        """One byte, 0 or 1."""
        self.out.append(value)

    def origin(self, name: str) -> None:
        """A registry's id."""
        if not _ORIGIN.fullmatch(name):
            raise ValueError(f"{name!r} is not a registry id")
        self.number(len(name))
        self.out += name.encode()

    def chain(self, chain: Chain) -> None:
        """One log's name."""
        self.origin(chain[0])
        self.number(chain[1])

    def vector(self, vector: Vector) -> None:
        """Positions by origin, whose many generations share its name."""
        if len(vector) > MAX_CHAINS:
            raise ValueError(f"{len(vector)} chains are over {MAX_CHAINS}")
        chains = sorted(vector)
        origins = Counter(origin for origin, _ in chains)
        self.number(len(origins))
        for origin, count in origins.items():
            self.origin(origin)
            self.number(count)
        self.deltas([generation for _, generation in chains])
        self.deltas([vector[chain] for chain in chains])

    def column(self, values: Sequence[int], most: int = NUMBER_MAX) -> None:
        """Numbers of one meaning, in as many bytes as their range needs. How many is not written."""
        if values:
            least, greatest = min(values), max(values)
            if greatest > most:
                raise ValueError(f"{greatest} is over {most}")
            self.number(least, most)
            self._offsets(values, least, greatest)

    def deltas(self, values: Sequence[int], most: int = NUMBER_MAX) -> None:
        """A column of numbers that lie near their neighbours."""
        if values:
            if min(values) < 0 or max(values) > most:
                raise ValueError(f"numbers from {min(values)} to {max(values)} are not within 0..{most}")
            self.number(values[0])
            steps = list(map(sub, values[1:], values))
            if steps:
                least = min(steps)
                self.signed(least)
                self._offsets(steps, least, max(steps))

    def texts(self, values: Sequence[str], most_size: int) -> None:
        """A column of texts, as UTF-8; their sizes are in bytes."""
        self.blobs([value.encode() for value in values], most_size)

    def blobs(self, values: Sequence[bytes], most_size: int) -> None:
        """A column of byte strings, one after another."""
        self.column(list(map(len, values)), most_size)
        self.out += b"".join(values)

    def rows(self, values: Sequence[bytes], most_size: int) -> None:
        """A column of byte strings that are alike: if all have one length, every first byte goes
        first, then every second one, which compresses better."""
        self.column(list(map(len, values)), most_size)
        widths = set(map(len, values))
        raw = b"".join(values)
        self.out += _transposed(raw, widths.pop()) if len(widths) == 1 else raw

    def _offsets(self, values: Sequence[int], base: int, greatest: int) -> None:
        span = greatest - base
        width = next(w for w in (0, 1, 2, 4, 8) if not span >> 8 * w)
        self.out.append(width)
        if width:
            offsets = [value - base for value in values] if base else values
            self.out += _transposed(pack(f"<{len(offsets)}{_PACKED[width]}", *offsets), width)


class Reader:
    """Takes from the front of `data`. Every method raises WireError, and nothing else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes were not taken yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """So many bytes."""
        if size > self.left:
            raise WireError(Fault.TRUNCATED, f"it ends {size - self.left} bytes early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, most: int = NUMBER_MAX) -> int:
        """See Writer.number; only the shortest form is taken."""
        data, at = self._data, self._at
        if at < len(data) and (value := data[at]) < 0x80 and value <= most:  # most of them
            self._at = at + 1
            return value
        value = shift = 0
        byte = 0x80
        while byte & 0x80:
            if at == len(data):
                raise WireError(Fault.TRUNCATED, "it ends within a number")
            byte = data[at]
            value |= (byte & 0x7F) << shift
            at += 1
            shift += 7
            if value > most or shift > most.bit_length() + 7 or (not byte and shift > 7):
                raise WireError(Fault.NUMBER, f"a number is over {most}, or not in its shortest form")
        self._at = at
        return value

    def signed(self, most: int = NUMBER_MAX) -> int:
        """See Writer.signed."""
        value = self.number(2 * most)
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def flag(self) -> bool:
        """One byte, 0 or 1."""
        return bool(self.number(1))

    def count(self, most: int, least_size: int = 0) -> int:
        """How many things follow, each of `least_size` bytes at least."""
        value = self.number()
        if value > most or value * least_size > self.left:
            raise WireError(Fault.COUNT, f"it claims {value} things, over {most} or over what it holds")
        return value

    def origin(self) -> str:
        """A registry's id. Interned: it will stand in a great many records."""
        name = self.take(self.number(ORIGIN_MAX_LENGTH)).decode("latin-1")
        if not _ORIGIN.fullmatch(name):
            raise WireError(Fault.ORIGIN, f"{name!r} is not a registry id")
        return intern(name)

    def chain(self) -> Chain:
        """One log's name."""
        return self.origin(), self.number()

    def vector(self) -> Vector:
        """See Writer.vector."""
        origins: list[str] = []
        for _ in range(self.count(MAX_CHAINS, least_size=3)):
            origin = self.origin()
            origins += [origin] * self.count(MAX_CHAINS - len(origins))
        chains = list(zip(origins, self.deltas(len(origins)), strict=True))
        if not is_ascending(chains):
            raise WireError(Fault.ORDER, "a vector's chains repeat, or are out of order")
        return dict(zip(chains, self.deltas(len(origins)), strict=True))

    def column(self, count: int, most: int = NUMBER_MAX) -> Sequence[int]:
        """So many numbers; see Writer.column."""
        if not count:
            return ()
        values = self._offsets(count, self.number(most))
        if max(values) > most:
            raise WireError(Fault.NUMBER, f"a number of a column is over {most}")
        return values

    def deltas(self, count: int, most: int = NUMBER_MAX) -> Sequence[int]:
        """So many numbers; see Writer.deltas."""
        if not count:
            return ()
        first = self.number(most)
        if count == 1:
            return (first,)
        values = list(accumulate(self._offsets(count - 1, self.signed()), initial=first))
        if min(values) < 0 or max(values) > most:
            raise WireError(Fault.NUMBER, f"a number of a column is not within 0..{most}")
        return values

    def texts(self, count: int, most_size: int) -> list[str]:
        """So many texts."""
        try:
            return [raw.decode() for raw in self.blobs(count, most_size)]
        except UnicodeDecodeError as error:
            raise WireError(Fault.TEXT, "a text is not UTF-8") from error

    def blobs(self, count: int, most_size: int) -> list[bytes]:
        """So many byte strings; see Writer.blobs."""
        lengths = self.column(count, most_size)
        return _split(self.take(sum(lengths)), lengths)

    def rows(self, count: int, most_size: int) -> list[bytes]:
        """So many byte strings; see Writer.rows."""
        lengths = self.column(count, most_size)
        raw = self.take(sum(lengths))
        if raw and len(set(lengths)) == 1:
            raw = _interleaved(raw, lengths[0])
        return _split(raw, lengths)

    def _offsets(self, count: int, base: int) -> Sequence[int]:
        width = self.take(1)[0]
        if not width:
            return [base] * count
        if width not in _PACKED:
            raise WireError(Fault.NUMBER, f"a column of {width} bytes a number")
        offsets = unpack(f"<{count}{_PACKED[width]}", _interleaved(self.take(count * width), width))
        return [base + offset for offset in offsets] if base else offsets


def _transposed(rows: bytes, width: int) -> bytes:
    """Rows of so many bytes, column by column."""
    return b"".join([rows[column::width] for column in range(width)]) if width > 1 else rows


def _interleaved(columns: bytes, width: int) -> bytes:
    """The inverse of _transposed."""
    if width == 1:
        return columns
    rows, height = bytearray(len(columns)), len(columns) // width
    for column in range(width):
        rows[column::width] = columns[column * height : (column + 1) * height]
    return bytes(rows)


def _split(raw: bytes, lengths: Sequence[int]) -> list[bytes]:
    return [raw[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
