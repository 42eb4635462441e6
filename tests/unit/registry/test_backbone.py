"""Round trips between registries: who is believed, and what follows for nodes and callers that measured little."""

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.record import Record, Section
from registry.backbone import Backbone, Told, news, packed, read
from registry.directory import Directory
from registry.discovery import Finder
from registry.lifecycle import Windows
from registry.model import DiscoverQuestion, parse
from tests.support.records import ALIASES, HOME, NOW_MS, at_home, record

RTTS = {"here": {"us": 90.0, "ap": 200.0}, "us": {"here": 92.0, "ap": 110.0}}
REGIONS = {"here": "eu", "us": "us", "ap": "ap"}


def stored(name: str, payload: bytes, origin: str | None = None) -> Record:
    made = Record(f"d:{name}")
    made.life, made.spec = 1, Section(1, origin or name, 0, payload, 1, 1)
    return made


def filled(backbone: Backbone) -> Backbone:
    for name, region in REGIONS.items():
        backbone.hear(name, Told(region, RTTS.get(name, {})))
    return backbone


def test_what_a_registry_tells_is_read_again_and_nobody_tells_for_another() -> None:
    told = Told("eu", {"us": 90.5})
    assert read(stored("here", packed(told))) == told
    assert read(stored("here", packed(told), origin="us")) is None
    lying = orjson.dumps(["eu", {"us": -1, "ap": 1e9, "x": "near", "y": 5}])
    assert read(stored("here", lying)) == Told("eu", {"y": 5.0})


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b"7", b"[1,2,3]", b'[7,{"a":1}]', b'["' + b"x" * 256 + b'",{}]']
)
def test_what_is_nothing_tells_nothing(payload: bytes) -> None:
    assert read(stored("here", payload)) is None


@pytest.mark.parametrize(
    ("told", "measured", "now"),
    [
        (None, {}, {}),
        (None, {"us": 90.123, "ap": None}, {"us": 90.12}),
        ({"us": 90.0}, {"us": 90.0}, None),
        ({"us": 90.0}, {"us": 112.0}, None),  # it trembles
        ({"us": 90.0}, {"us": 125.0}, {"us": 125.0}),
        ({"us": 1.0}, {"us": 2.9}, None),  # threefold, and nothing
        ({"us": 90.0}, {"us": None}, None),  # there is no link now
        ({"us": 90.0}, {"us": None, "ap": 7.0}, {"us": 90.0, "ap": 7.0}),
        ({"us": 90.0, "ap": 7.0}, {"us": 90.0}, {"us": 90.0}),  # no such registry any more
    ],
)
def test_only_what_changed_enough_is_told(
    told: dict[str, float] | None, measured: dict[str, float | None], now: dict[str, float] | None
) -> None:
    found = news(None if told is None else Told("eu", told), "eu", measured)
    assert (found.rtts_ms if found is not None else None) == now
    if told is not None:
        assert news(Told("eu", told), "us", dict(told)) == Told("us", told), "it has moved"


def test_two_registries_are_as_far_as_the_one_says_that_says_more() -> None:
    backbone = filled(Backbone())
    assert (backbone.between("here", "us"), backbone.between("us", "here")) == (92.0, 92.0)
    assert (backbone.between("ap", "us"), backbone.between("us", "us")) == (110.0, 0.0)
    assert math.isnan(backbone.between("here", "nobody"))
    backbone.hear("us", Told("us", {"here": 0.0, "ap": 0.0}))
    assert backbone.between("here", "us") == 90.0, "who lies that it is near moves no other"
    backbone.hear("us", None)
    assert backbone.of_region("us") == {}


def test_ways_go_by_what_was_measured() -> None:
    backbone = filled(Backbone())
    assert backbone.beyond({"here": 10.0}) == {"us": 102.0, "ap": 210.0}
    assert backbone.beyond({"here": 10.0, "us": 30.0}) == {"ap": 140.0}
    assert backbone.beyond({"nobody": 1.0}) == {}
    assert backbone.of_region("eu") == {"here": 0.0, "us": 92.0, "ap": 200.0}


@given(st.dictionaries(st.sampled_from(["here", "us", "ap", "x"]), st.floats(0, 1_000), max_size=4))
def test_a_way_is_never_shorter_than_what_it_goes_by(measured: dict[str, float]) -> None:
    found = filled(Backbone()).beyond(measured)
    assert not found.keys() & measured.keys()
    assert all(ms >= min(measured.values()) for ms in found.values())


def world() -> Directory:
    """Nodes at three registries; `told` has measured its home alone, the others nothing."""
    directory = Directory(Windows(30, 90, 300), 0.0, HOME)
    filled(directory.backbone)
    for name in ("us", "ap"):
        directory.hear(name, reachable=True, age_s=0.0, now_ms=NOW_MS, generation=1, known=((1, 1),))
    places = {"near": "here", "told": "us", "abroad": "us", "afar": "ap"}
    for version, (node_id, home) in enumerate(places.items(), 1):
        directory.put(at_home(record(node_id, region=REGIONS[home]), home), version, 0.0)
    rtts = {"registry_rtt_ms": {"us": 5.0}}
    directory.beat("told", orjson.dumps(rtts), NOW_MS, 0.0, rtts)
    return directory


def answer(
    caller: str | None = None, directory: Directory | None = None, beside: str | None = None, **asked: Any
) -> Any:
    directory = directory or world()
    query = parse(DiscoverQuestion, asked)
    found = Finder(directory, ALIASES).discover(query, repr(query), "eu", 0.0, 3, caller, beside)
    return {e.node_id: tuple(latency) for e, latency in zip(found.entries, found.latencies, strict=True)}


def test_of_whom_only_the_region_is_known_is_as_far_as_that() -> None:
    """A caller of the registry's region that says nothing; what is in its own region nobody can tell."""
    far = {"near": (None, None), "told": (102.0, "region"), "abroad": (102.0, "region"), "afar": (210.0, "region")}
    assert answer() == far
    assert next(iter(answer())) == "near"
    assert list(answer())[-1] == "afar", "farther than what is taken where nothing is known"
    assert answer(latency="min") == {**far, "told": (97.0, "region")}, (
        "where it is asked for, what nodes measured counts"
    )
    assert set(answer(max_latency_ms=150)) == {"near", "told", "abroad"}


def test_near_to_a_region_is_near_to_its_registries() -> None:
    assert answer(nearest="america") == {
        "told": (5.0, "region"), "abroad": (None, None), "near": (102.0, "region"), "afar": (120.0, "region"),
    }  # fmt: skip
    assert list(answer(nearest="ap", limit=1)) == ["afar"]
    assert answer(nearest="nowhere") == dict.fromkeys(answer(), (None, None))
    assert next(iter(answer(nearest="us", prefer_region="eu"))) == "near"


def test_near_to_a_node_that_has_measured_little_is_near_to_its_region() -> None:
    assert answer(nearest="abroad", limit=2) == {"abroad": (0.0, "measured"), "told": (5.0, "region")}
    found = answer(nearest="told")
    assert found["told"] == (0.0, "measured")
    assert found["near"] == (107.0, "region"), "by the way from its home to ours"


def test_what_a_caller_has_not_measured_is_filled_in() -> None:
    asked = {"latency": "min", "registry_rtt_ms": {"here": 20.0}}
    assert answer(**asked) == {
        "near": (30.0, "region"), "told": (117.0, "estimated"), "abroad": (122.0, "region"), "afar": (230.0, "region"),
    }  # fmt: skip
    assert answer(latency="min", registry_rtt_ms={"here": 20.0, "us": 30.0})["told"] == (35.0, "estimated")


def test_a_caller_without_a_key_of_a_node_is_where_a_node_of_its_address_is() -> None:
    directory = world()
    assert directory.at_address("192.0.2.7") == "told", "of several the one that has measured something"
    assert directory.at_address("192.0.2.8") is None
    assert directory.at_address("127.0.0.1") is directory.at_address("") is None
    asked = answer(directory=directory, beside="told", nearest="auto")
    assert asked["told"] == (10.0, "estimated"), "at its address, and not itself"
    assert asked["near"] == (107.0, "region")
    directory.delete("told", 99)
    assert directory.at_address("192.0.2.7") in ("near", "abroad", "afar")


def test_where_nothing_is_known_of_registries_regions_decide() -> None:
    directory = world()
    for name in REGIONS:
        directory.backbone.hear(name, None)
    assert answer(directory=directory) == dict.fromkeys(answer(), (None, None))
    assert next(iter(answer(directory=directory))) == "near"
