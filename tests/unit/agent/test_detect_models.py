"""The one shape of all engines' models, and how many of them a report carries."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detect.models import (
    MAX_DETAILED,
    MAX_REPORT_BYTES,
    base_name,
    entry,
    fitted,
    model_set,
    parameters,
    states,
)
from registry.http.wire import MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("qwen3:8b", "qwen3:8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"),
        ("/home/someone/models/a.gguf", "a.gguf"),
        ("/models/Llama-3/", "Llama-3"),
        ("C:\\Users\\someone\\a.gguf", "a.gguf"),
        ("./a.gguf", "a.gguf"),
        ("../models/a", "a"),
        ("~/models/a", "a"),
        ("models/a.gguf", "a.gguf"),
        ("flux/flux1-dev.safetensors", "flux1-dev.safetensors"),
        ("a.gguf", "a.gguf"),
    ],
)
def test_of_a_path_the_file_alone_is_told(name: str, shown: str) -> None:
    assert base_name(name) == shown


@pytest.mark.parametrize("name", [None, "", 3, "x" * 256, "two\nlines", "/", "//", ["m"]])
def test_what_has_no_name_is_no_model(name: Any) -> None:
    assert entry(name, True) is None


def test_what_is_not_known_is_left_out_but_whether_it_is_loaded() -> None:
    assert entry("m", None, digest=None, size_gb=1.5) == {
        "name": "m",
        "installed": True,
        "loaded": None,
        "size_gb": 1.5,
    }


@pytest.mark.parametrize(
    ("number", "shown"),
    [(8190735360, "8.2B"), (270_000_000, "270M"), (0, None), (None, None), (True, None), ("8B", None), (10**13, None)],
)
def test_the_number_of_parameters(number: Any, shown: str | None) -> None:
    assert parameters(number) == shown


def many(number: int, name: str = "model-with-a-name:{}b") -> list[dict[str, Any]]:
    return [
        {"name": name.format(n), "installed": True, "loaded": n % 7 == 3, "digest": f"{n:064x}"} for n in range(number)
    ]


def test_a_usual_number_of_models_is_told_in_full_the_loaded_first() -> None:
    models = many(30)
    fit, left_out = fitted(models, MAX_REPORT_BYTES)
    assert left_out == 0
    assert [model["loaded"] for model in fit] == [True] * 4 + [False] * 26
    assert {model["name"] for model in fit} == {model["name"] for model in models}


def test_ten_thousand_models_fit_into_a_request_as_names() -> None:
    fit, left_out = fitted(many(10_000), MAX_REPORT_BYTES)
    assert len(json.dumps(fit)) <= MAX_REPORT_BYTES < MAX_BODY_BYTES
    assert sum(isinstance(model, dict) for model in fit) == MAX_DETAILED
    assert len(fit) + left_out == 10_000
    assert len(fit) > 4_000


@given(st.integers(0, 400), st.integers(0, 30_000), st.text(min_size=1, max_size=255))
def test_whatever_their_names_they_fit(number: int, most_bytes: int, name: str) -> None:
    models = many(number, name.replace("{", "").replace("}", "") + "{}")
    fit, left_out = fitted(models, most_bytes)
    assert len(fit) + left_out == number
    assert not fit or len(json.dumps(fit)) <= most_bytes


def test_a_set_of_models_is_the_same_whatever_is_loaded_and_another_when_one_is_pulled_anew() -> None:
    models = many(5)
    told = model_set(models)
    assert model_set([{**model, "loaded": True} for model in reversed(models)]) == told
    assert model_set(models[:4]) != told
    assert model_set([*models[:4], {**models[4], "digest": "new"}]) != told
    assert model_set([*models[:4], {**models[4], "max_context_length": 8192}]) != told


def test_a_heartbeat_tells_what_is_loaded_and_little_of_the_rest() -> None:
    models = many(500)
    models[3] |= {"vram_gb": 5.1, "context_length": 4096, "expires_at": "soon"}
    models[4] |= {"vram_gb": 5.1}
    told = states("ollama", models, 100)
    assert told[0] == {
        "name": models[3]["name"],
        "engine": "ollama",
        "loaded": True,
        "vram_gb": 5.1,
        "context_length": 4096,
        "expires_at": "soon",
    }
    assert len(told) == 100
    assert sum(state["loaded"] for state in told) == 71
    assert all(set(state) == {"name", "engine", "loaded"} for state in told if not state["loaded"])
