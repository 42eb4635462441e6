"""Ollama: where to dial, what its documented answers mean, and what is not Ollama."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detect.engines import detect_ollama, dialable, parse_ollama
from registry.model import Capabilities, parse
from tests.support.ollama import RUNNING, TAGS, serving


@pytest.mark.parametrize(
    ("given_url", "dialled"),
    [
        ("http://localhost:11434", "http://localhost:11434"),
        ("http://localhost:11434/", "http://localhost:11434"),
        ("localhost", "http://localhost:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":11500", "http://127.0.0.1:11500"),
        ("[::]:11434", "http://[::1]:11434"),
        ("http://[::1]:1", "http://[::1]:1"),
        ("https://ollama.example.org", "https://ollama.example.org:443"),
        ("http://ollama.example.org/behind/", "http://ollama.example.org:80/behind"),
    ],
)
def test_where_to_dial(given_url: str, dialled: str) -> None:
    assert dialable(given_url) == dialled


def test_the_documented_answers_give_local_models_and_what_is_loaded() -> None:
    models = parse_ollama(json.loads(TAGS), json.loads(RUNNING))
    assert models[0] == {
        "name": "qwen3:8b",
        "loaded": True,
        "digest": "500a1f067a9f782620b40bee6f7b0c89e17ae61f686b92c24933e4ca4b2b8b41",
        "size_gb": 4.87,
        "family": "qwen3",
        "parameter_size": "8.2B",
        "quantization": "Q4_K_M",
        "context_length": 4096,
        "vram_gb": 4.97,
    }
    assert (models[1]["name"], models[1]["loaded"], models[1]["vram_gb"]) == ("nomic-embed-text:latest", False, None)
    assert len(models) == 2  # the cloud's is not this machine's


def test_an_ollama_that_does_not_tell_what_is_loaded_leaves_it_unknown() -> None:
    assert [model["loaded"] for model in parse_ollama(json.loads(TAGS), None)] == [None, None]


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("digest", "size", "size_vram", "context_length", "details", "remote_host")
model = st.fixed_dictionaries({"name": st.just("m") | odd}, optional=dict.fromkeys(FIELDS, odd))
models = st.lists(model | odd, max_size=4)


@given(models | odd, models | odd)
def test_nothing_that_ollama_answers_can_make_a_registry_refuse_the_node(tags: Any, running: Any) -> None:
    found = parse_ollama({"models": tags}, {"models": running})
    assert parse(Capabilities, {"ollama": {"available": True, "models": found}})


async def test_it_is_asked_what_loads_no_model() -> None:
    async with serving() as ollama:
        found = await detect_ollama(ollama.url)
    assert found["available"]
    assert found["version"] == "0.12.6"
    assert sorted(ollama.asked) == [("GET", "/api/ps"), ("GET", "/api/tags"), ("GET", "/api/version")]


async def test_an_old_ollama_without_ps_is_still_one() -> None:
    async with serving() as ollama:
        del ollama.answers["/api/ps"]
        found = await detect_ollama(ollama.url)
    assert found["available"]
    assert [model["loaded"] for model in found["models"]] == [None, None]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"/api/version": b"<html>"}, "is not Ollama"),
        ({"/api/version": b"[]"}, "is not Ollama"),
        ({"/api/version": b"\xff\xfe"}, "is not Ollama"),
        ({"/api/version": b"[" * 100_000}, "is not Ollama"),
        ({}, "answered 404"),
    ],
)
async def test_what_is_not_ollama_is_not_called_one(answers: dict[str, bytes], words: str) -> None:
    async with serving() as ollama:
        ollama.answers = {"/api/tags": TAGS, "/api/ps": RUNNING, **answers}
        found = await detect_ollama(ollama.url)
    assert (found["available"], found["models"]) == (False, [])
    assert words in found["reason"]


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:1", "nothing answers at 127.0.0.1:1"), ("http://127.0.0.1:x", "port"), ("http://[", "")],
)
async def test_where_nothing_is_the_reason_says_so(url: str, words: str) -> None:
    found = await detect_ollama(url)
    assert found["available"] is False
    assert words in str(found["reason"]).casefold()
