"""What the store keeps: every record and meta there and back, and bytes of somebody else's."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.clock import HLC_MAX
from federation.record import MAX_INCARNATION, MAX_LIFE, Record, Section, section_of
from federation.replica import MAX_SEQ, Meta, Replica
from registry.stored import pack_meta, pack_record, unpack_meta, unpack_record

NAMES = st.sampled_from(["eu", "us-1", "A" * 63])
DOTS = st.tuples(NAMES, st.integers(0, HLC_MAX), st.integers(1, MAX_SEQ - 1))
SECTIONS = st.builds(
    Section, st.integers(0, HLC_MAX), NAMES, st.integers(0, HLC_MAX), st.binary(max_size=30), st.integers(0, HLC_MAX),
    st.integers(1, MAX_SEQ - 1), st.just(()) | DOTS,
)  # fmt: skip
VECTORS = st.dictionaries(st.tuples(NAMES, st.integers(0, HLC_MAX)), st.integers(0, MAX_SEQ - 1), max_size=5)
METAS = st.builds(Meta, st.integers(0, HLC_MAX), VECTORS, VECTORS, st.integers(0, MAX_LIFE))


@st.composite
def records(draw: st.DrawFn) -> Record:
    record = Record(draw(st.sampled_from(["n:a", "r:eu", "k:x"])))
    record.life, record.incarnation = draw(st.integers(0, MAX_LIFE)), draw(st.integers(0, MAX_INCARNATION))
    record.spec, record.intent, record.judgement, record.end = (
        draw(st.none() | SECTIONS) for _ in section_of
    )  # fmt: skip
    return record


@given(records())
def test_a_record_is_read_back_as_it_was(record: Record) -> None:
    """Whatever its payloads hold: line feeds, no UTF-8, nothing."""
    again = unpack_record(record.key, pack_record(record))
    assert again.state() == record.state()
    assert pack_record(again) == pack_record(record)


@given(records())
def test_a_replica_takes_what_was_read_back(record: Record) -> None:
    held = Replica.restore("eu", [unpack_record(record.key, pack_record(record))], None).get(record.key)
    assert held is not None
    assert held.state() == record.state()
    assert held.exists == record.exists


@given(METAS)
def test_a_meta_is_read_back_as_it_was(meta: Meta) -> None:
    assert unpack_meta(pack_meta(meta)) == meta


FOREIGN = [
    b"", b"\n", b"{}", b"null", b"[]\n", b"[1]", b"x\ny", b"[1,0,0,0,0,7]", b"[1,0,[],0,0,0]", b"\xff\xfe",
    b'[1,0,[1,"a",0,1,1],0,0,0]', b'[1,0,[1,"a",0,1,1,[],-1],0,0,0]\nx', b'[1,0,[1,"a",0,1,1,[],9],0,0,0]\nshort',
    b"[1,0,0,0,0]", b"[1,0,0,0,0,0,0]", b'["1",0,0,0,0,0]', b"[1,null,0,0,0,0]", b'[1,0,[1,"a",0,1,1,[],0],0,0,0]\nx',
    b'{"version":1,"node_id":"a"}', b'{"a":1,"b":1,"c":0,"d":0,"e":0,"f":0}',
]  # fmt: skip


@pytest.mark.parametrize("data", FOREIGN)
def test_foreign_bytes_are_refused_and_named(data: bytes) -> None:
    with pytest.raises(ValueError, match="what the store holds under n:a is no record"):
        unpack_record("n:a", data)


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers(-9, 9) | st.just("a"), st.lists).map(orjson.dumps))
def test_whatever_lies_in_the_store_is_a_record_or_refused(data: bytes) -> None:
    try:
        record = unpack_record("n:a", data)
    except ValueError:
        return
    assert unpack_record("n:a", pack_record(record)).state() == record.state()


@pytest.mark.parametrize("data", [b"", b"7", b"[]", b"[1,[],[]]", b"[1,[[1]],[],0]", b"[1,7,[],0]", b"null", b"\xff"])
def test_a_meta_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack_meta(data)
