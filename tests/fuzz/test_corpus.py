"""Every target takes what is kept for it, and what comes of that by small damage. `make fuzz` looks further."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
DAMAGED = 150


def kept(name: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_kept_is_taken(name: str) -> None:
    examples = kept(name)
    assert examples, "every target has something to begin with"
    for example in examples:
        TARGETS[name](example)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_damaged_is_taken_or_refused(name: str) -> None:
    pieces = sorted({piece for example in kept(name) for piece in (example[:8], example[-8:], b"\xff\x00", b"null")})

    @given(st.sampled_from(kept(name)), st.data())
    @settings(max_examples=DAMAGED)
    def law(example: bytes, data: st.DataObject) -> None:
        damaged = bytearray(example)
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(damaged)))
            end = data.draw(st.integers(start, min(len(damaged), start + 8)))
            damaged[start:end] = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from(pieces)))
        TARGETS[name](bytes(damaged))

    law()
