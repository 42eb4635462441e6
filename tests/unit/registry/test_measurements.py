"""What a node measures, as few bytes: there and back within the steps, and whatever a peer sends."""

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.directory import Directory
from registry.lifecycle import Windows
from registry.measurements import MAX_GPUS, pack, unpack
from tests.support.records import HOME, NOW_MS, record

MAX_SIZE = 64  # what the federation takes
PERCENTS = ("cpu_percent", "memory_percent", "disk_percent", "gpu_percent")
PERCENT = st.none() | st.integers(0, 100) | st.floats(0, 100)
GPU = st.fixed_dictionaries(
    {}, optional={"utilization_percent": PERCENT, "vram_free_gb": st.none() | st.floats(0, 16_000)}
)
METRICS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(PERCENTS, PERCENT),
        "agent_count": st.none() | st.integers(0, 65_000),
        "gpus": st.lists(GPU, max_size=MAX_GPUS),
        "load_1m": st.floats(0, 9),
    },
)
ANYTHING = st.dictionaries(
    st.sampled_from([*PERCENTS, "agent_count", "gpus", "x"]),
    st.none() | st.booleans() | st.text(max_size=3) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.none() | st.integers() | st.dictionaries(
        st.sampled_from(["utilization_percent", "vram_free_gb"]), st.none() | st.integers() | st.text(max_size=2)
    ), max_size=30),
)  # fmt: skip


def near(got: float | None, sent: float | None, step: float) -> bool:
    return got is None if sent is None else got is not None and abs(got - sent) <= step / 2


@given(METRICS)
def test_what_arrives_is_what_was_sent_within_a_step(metrics: dict[str, Any]) -> None:
    packed = pack(metrics)
    assert len(packed) <= MAX_SIZE
    found = unpack(packed)
    for name in PERCENTS:
        assert near(found.get(name), metrics.get(name), 2)
    assert found.get("agent_count") == metrics.get("agent_count")
    gpus = found.get("gpus", [])
    assert len(gpus) == len(metrics.get("gpus", []))
    for got, sent in zip(gpus, metrics.get("gpus", []), strict=True):
        assert near(got["utilization_percent"], sent.get("utilization_percent"), 2)
        assert near(got["vram_free_gb"], sent.get("vram_free_gb"), 0.25)


@given(METRICS)
def test_what_arrived_would_be_sent_on_unchanged(metrics: dict[str, Any]) -> None:
    packed = pack(metrics)
    assert pack(unpack(packed)) == packed


@given(ANYTHING)
def test_whatever_a_node_sends_is_few_bytes(metrics: dict[str, Any]) -> None:
    packed = pack(metrics)
    assert len(packed) <= MAX_SIZE
    assert pack(unpack(packed)) == packed


@pytest.mark.parametrize(
    "metrics", [{}, {"load_1m": 3}, {"cpu_percent": "9", "gpus": "L4"}, {"cpu_percent": True}, {"gpus": [1, None]}]
)
def test_where_nothing_of_it_travels_there_are_no_bytes(metrics: dict[str, Any]) -> None:
    assert pack(metrics) == b""
    assert unpack(b"") == {}


def test_numbers_that_only_tremble_are_the_same_bytes() -> None:
    assert pack({"cpu_percent": 50.1}) == pack({"cpu_percent": 49.6})
    assert pack({"cpu_percent": 50.1}) != pack({"cpu_percent": 53})


def test_values_out_of_range_are_as_near_as_can_be() -> None:
    sent = {"cpu_percent": 250, "gpu_percent": -3, "agent_count": 10**9, "gpus": [{"vram_free_gb": 1e12}]}
    found = unpack(pack(sent))
    assert (found["cpu_percent"], found["gpu_percent"], found["agent_count"]) == (100, 0, 65_534)
    assert found["gpus"][0]["vram_free_gb"] == 65_534 / 4


def test_a_machine_with_more_gpus_than_travel_tells_of_the_first() -> None:
    gpus = [{"vram_free_gb": float(number)} for number in range(40)]
    assert [gpu["vram_free_gb"] for gpu in unpack(pack({"gpus": gpus}))["gpus"]] == list(range(MAX_GPUS))


@given(st.binary(max_size=MAX_SIZE) | st.binary(min_size=6, max_size=6) | st.binary(min_size=9, max_size=9))
def test_whatever_a_peer_sends_can_be_shown_and_ranked_by(packed: bytes) -> None:
    found = unpack(packed)
    assert all(0 <= found[name] <= 100 for name in PERCENTS if name in found)
    directory = Directory(Windows(30, 90, 300), 0.0, HOME)
    entry = directory.put(record("a"), 1, 0.0)
    directory.beat("a", orjson.dumps(found), NOW_MS, 0.0, found)
    assert entry is not None
    assert orjson.loads(entry.fragment() + b"}")["metrics"] == found
    load = float(directory.columns.numbers["load"][entry.row])
    assert math.isnan(load) or 0 <= load <= 1
