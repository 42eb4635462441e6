"""Capabilities in both shapes: the table of what holds, and the laws between the shapes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.capabilities import (
    capability_names,
    free_vram_gb,
    nested,
    normalise,
    number,
    total_vram_gb,
)
from registry.model import Capabilities, parse
from registry.names import folded

HOLDS: list[tuple[str, dict[str, Any], str, bool]] = [
    ("a name", {"gpu": "NVIDIA L4"}, "gpu", True),
    ("an empty name", {"gpu": ""}, "gpu", False),
    ("null", {"gpu": None}, "gpu", False),
    ("true", {"gpu": True}, "gpu", True),
    ("false", {"gpu": False}, "gpu", False),
    ("a list of GPUs", {"gpu": [{"name": "L4"}]}, "gpu", True),
    ("a GPU without a name", {"gpus": [{"vram_gb": 24}]}, "gpu", True),
    ("an empty list", {"gpu": []}, "gpu", False),
    ("a block of GPUs", {"gpu": {"available": True, "gpus": [{"name": "L4"}]}}, "gpu", True),
    ("a block that only says so", {"gpu": {"available": True, "count": 1}}, "gpu", True),
    ("a block that is not available", {"gpu": {"available": False, "gpus": [{"name": "L4"}]}}, "gpu", False),
    ("an engine", {"ollama": {"available": True, "models": []}}, "ollama", True),
    ("an engine that is down", {"ollama": {"available": False, "models": ["m"]}}, "ollama", False),
    ("an engine as a switch", {"ollama": True}, "ollama", True),
    ("an empty object", {"vllm": {}}, "vllm", False),
    ("zero is there", {"npu_tops": 0}, "npu_tops", True),
    ("not said", {}, "ollama", False),
    ("a feature", {"features": ["inference"]}, "inference", True),
    ("a feature in capitals", {"features": ["Inference"]}, "inference", True),
    ("a service", {"services": ["router"]}, "router", True),
    ("a service switched on", {"services": {"router": True, "swapper": False}}, "router", True),
    ("a service switched off", {"services": {"router": True, "swapper": False}}, "swapper", False),
    ("a service that is down", {"services": {"router": {"available": False}}}, "router", False),
    ("models", {"models": ["qwen3:8b"]}, "models", True),
    ("a fact of the system block", {"system": {"ram_gb": 64}}, "ram_gb", True),
]


@pytest.mark.parametrize(("raw", "name", "holds"), [row[1:] for row in HOLDS], ids=[row[0] for row in HOLDS])
def test_whether_a_capability_holds(raw: dict[str, Any], name: str, holds: bool) -> None:
    parse(Capabilities, raw)
    assert (name in folded(capability_names(normalise(raw)))) is holds
    assert (name in folded(capability_names(normalise(nested(normalise(raw)))))) is holds


def test_the_documented_flat_shape_stays_as_it_is() -> None:
    raw = {"cpu_cores": 8, "ram_gb": 64.0, "disk_gb": 512, "os": "Linux", "gpu": "NVIDIA RTX 4000", "models": ["a:b"]}
    flat = normalise(raw)
    assert {key: flat[key] for key in raw} == raw
    assert flat["gpus"] == [{"name": "NVIDIA RTX 4000"}]
    assert flat["model_details"] == [{"name": "a:b"}]


def test_the_nested_shape_becomes_flat() -> None:
    flat = normalise(
        {
            "system": {
                "cpu_count": 8,
                "memory_total_gb": 64,
                "disk_total_gb": 500,
                "platform": "Linux",
                "hostname": "h",
            },
            "gpu": {"available": True, "count": 1, "gpus": [{"name": "L4", "vram_gb": 24}]},
            "ollama": {"available": True, "models": ["qwen3:8b", {"name": "mistral:7b", "digest": "d"}]},
            "services": {"router": True, "swapper": False},
        }
    )
    assert (flat["cpu_cores"], flat["ram_gb"], flat["disk_gb"], flat["os"], flat["hostname"]) == (
        8,
        64,
        500,
        "Linux",
        "h",
    )
    assert (flat["gpu"], flat["gpus"]) == ("L4", [{"name": "L4", "vram_gb": 24}])
    assert flat["models"] == ["qwen3:8b", "mistral:7b"]
    assert flat["model_details"] == [{"name": "qwen3:8b"}, {"name": "mistral:7b", "digest": "d"}]
    assert flat["services"] == ["router"]


def test_nothing_is_invented() -> None:
    flat = normalise({})
    assert {key: value for key, value in flat.items() if value is None} == dict.fromkeys(
        ("cpu_cores", "ram_gb", "disk_gb", "os", "gpu")
    )
    assert all(flat[key] == [] for key in ("gpus", "models", "model_details", "services", "features"))
    assert nested(flat)["gpu"] == {"available": False, "gpus": [], "count": 0}


def test_what_null_says_is_nothing() -> None:
    assert normalise({"cpu_cores": None, "system": {"cpu_cores": 8}})["cpu_cores"] == 8
    assert normalise({"cpu_cores": 4, "system": {"cpu_cores": 8}})["cpu_cores"] == 4


@pytest.mark.parametrize("gpu", ["L4", {"available": True}, [], None])
def test_the_list_of_gpus_counts_whatever_stands_beside_it(gpu: Any) -> None:
    assert normalise({"gpu": gpu, "gpus": [{"name": "L4", "vram_gb": 24}]})["gpus"] == [{"name": "L4", "vram_gb": 24}]


def test_a_model_is_listed_once_with_all_that_is_known_of_it() -> None:
    flat = normalise(
        {
            "models": ["Qwen3:8b"],
            "model_details": [{"name": "qwen3:8b", "vram_gb": 6, "digest": None}],
            "ollama": {"models": [{"name": "qwen3:8b", "loaded": True}]},
            "vllm": {"models": [{"model": "other"}, {"name": 7}, 7]},
        }
    )
    assert flat["model_details"] == [
        {"name": "Qwen3:8b", "vram_gb": 6, "loaded": True},
        {"name": "other", "model": "other"},
    ]


@pytest.mark.parametrize("first", [True, False])
def test_a_model_that_is_loaded_in_one_of_two_engines_is_loaded(first: bool) -> None:
    flat = normalise(
        {name: {"models": [{"name": "m", "loaded": name == "a"}]} for name in sorted("ab", reverse=not first)}
    )
    assert flat["model_details"] == [{"name": "m", "loaded": True}]


def test_vram_is_summed_over_what_is_known() -> None:
    gpus = [{"vram_gb": 24, "vram_free_gb": 20.5}, {"vram_gb": 8}, {"name": "x", "vram_gb": None}]
    assert (total_vram_gb({"gpus": gpus}), free_vram_gb(gpus)) == (32, 20.5)
    assert (total_vram_gb({"gpus": [{}]}), free_vram_gb([{}]), free_vram_gb(["odd"])) == (None, None, None)
    assert [number(x) for x in (True, "3", None, 3, 3.5)] == [None, None, None, 3, 3.5]


NAME = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), min_size=1, max_size=8)
AMOUNT = st.none() | st.integers(0, 10**6) | st.floats(0, 1e6)
SCALAR = st.none() | st.booleans() | AMOUNT | NAME
GPU = st.fixed_dictionaries({}, optional={"name": NAME | st.none(), "vram_gb": AMOUNT, "vram_free_gb": AMOUNT})
MODELS = st.lists(NAME | st.fixed_dictionaries({}, optional={"name": NAME, "loaded": st.booleans()}), max_size=3)
ENGINE = st.fixed_dictionaries({}, optional={"available": st.booleans(), "models": MODELS})
SWITCHES = st.lists(NAME, max_size=3) | st.dictionaries(NAME, SCALAR, max_size=3)
BLOCK = st.fixed_dictionaries(
    {}, optional={"available": st.booleans(), "gpus": st.lists(GPU, max_size=2), "name": NAME}
)
SYSTEM = st.fixed_dictionaries(
    {}, optional={"cpu_count": AMOUNT, "ram_gb": AMOUNT, "hostname": NAME, "system": SCALAR, "board": SCALAR}
)
RAW = st.fixed_dictionaries(
    {},
    optional={
        "cpu_cores": AMOUNT,
        "os": NAME,
        "gpu": NAME | st.booleans() | st.lists(GPU | NAME, max_size=2) | BLOCK,
        "gpus": st.lists(GPU | NAME, max_size=2),
        "models": MODELS,
        "ollama": ENGINE,
        "system": SYSTEM,
        "services": SWITCHES,
        "features": SWITCHES,
        "npu": SCALAR,
    },
)


@given(RAW)
def test_the_shapes_say_the_same(raw: dict[str, Any]) -> None:
    parse(Capabilities, raw)
    flat = normalise(raw)
    again = normalise(nested(flat))
    details = "model_details"  # the nested shape gives names; the details stand in the flat one
    assert {k: v for k, v in again.items() if k != details} == {k: v for k, v in flat.items() if k != details}
    assert folded(capability_names(again)) == folded(capability_names(flat))
    assert nested(again) == nested(flat)


@given(RAW)
def test_normalising_twice_changes_nothing(raw: dict[str, Any]) -> None:
    flat = normalise(raw)
    assert normalise(flat) == flat
    flat.pop("system", None)  # a fact of that name inside the system block has no place to be sent to
    parse(Capabilities, flat)  # what we show can be sent back
