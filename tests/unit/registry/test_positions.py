"""What callers carry as a version, read and written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.positions import Position

ORIGINS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)


@given(ORIGINS, st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_a_version_is_read_back_as_it_was_written(origin: str, generation: int, seq: int) -> None:
    position = Position((origin, generation), seq)
    assert Position.parse(str(position)) == position
    assert str(position).isascii()


@pytest.mark.parametrize(
    "text",
    ["", "x", "eu:1", "eu:1:", "eu::1", ":1:1", "eu:0:1", "eu:-1:1", "eu:1:-1", f"eu:{2**63}:1", f"eu:1:{2**63}",
     "eu:1:1.0", "eu:1:1e3", "eu:x:1", "eu:1:None", "\x00:1:x"],
)  # fmt: skip
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int's own words differ from ours
        Position.parse(text)


@given(st.text(max_size=40))
def test_whatever_a_caller_brings_is_a_version_or_refused(text: str) -> None:
    try:
        position = Position.parse(text)
    except ValueError:
        return
    assert position.seq >= 0
    assert position.chain[0]
