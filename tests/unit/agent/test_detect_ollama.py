"""Ollama: where to dial, what its documented answers mean, and what is not Ollama."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detect.asking import dialable
from agent.detect.engines import Engine, Engines
from agent.detect.inventory import engine_blocks
from agent.detect.models import Found
from agent.detect.ollama import MAX_SHOWN, Shown, parse_ollama, parse_show, to_show
from registry.model import Capabilities, parse
from tests.support.ollama import RUNNING, SHOWN, TAGS, serving

QWEN = "500a1f067a9f782620b40bee6f7b0c89e17ae61f686b92c24933e4ca4b2b8b41"
NOMIC = "0a109f422b47e3a30ba2b10eca18548e944e8a23073ee3f3e947efcf3c45e59f"


async def detect(url: str) -> dict[str, Any]:
    """Ollama's block as it is registered."""
    return dict(engine_blocks(await Engines(url, ports={}).survey())["ollama"])


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
    models = parse_ollama(json.loads(TAGS), json.loads(RUNNING), {QWEN: parse_show(json.loads(SHOWN))})
    assert models[0] == {
        "name": "qwen3:8b",
        "installed": True,
        "loaded": True,
        "digest": QWEN,
        "size_gb": 4.87,
        "family": "qwen3",
        "parameter_size": "8.2B",
        "quantization": "Q4_K_M",
        "context_length": 4096,
        "max_context_length": 40960,
        "vram_gb": 4.97,
        "expires_at": "2025-10-04T00:33:52.83753-07:00",
        "capabilities": ["completion", "tools", "thinking"],
    }
    assert (models[1]["name"], models[1]["loaded"], models[1].get("vram_gb")) == (
        "nomic-embed-text:latest",
        False,
        None,
    )
    assert len(models) == 2  # the cloud's is not this machine's


def test_an_ollama_that_does_not_tell_what_is_loaded_leaves_it_unknown() -> None:
    assert [model["loaded"] for model in parse_ollama(json.loads(TAGS), None, {})] == [None, None]


def test_each_model_is_asked_about_once_the_loaded_first_and_not_the_clouds() -> None:
    tags, running = json.loads(TAGS), json.loads(RUNNING.replace(b"qwen3:8b", b"nomic-embed-text:latest"))
    assert list(to_show(tags, running, ()).items()) == [(NOMIC, "nomic-embed-text:latest"), (QWEN, "qwen3:8b")]
    assert list(to_show(tags, running, {NOMIC})) == [QWEN]
    assert to_show(tags, running, {NOMIC, QWEN}) == {}
    tags["models"] += [{"name": f"copy:{n}", "digest": QWEN} for n in range(3)]
    assert to_show(tags, running, ()) == {NOMIC: "nomic-embed-text:latest", QWEN: "qwen3:8b"}


def test_of_very_many_models_some_are_asked_about() -> None:
    tags = {"models": [{"name": f"m:{n}", "digest": f"{n:064x}"} for n in range(10_000)]}
    first = to_show(tags, None, ())
    assert len(first) == MAX_SHOWN
    assert to_show(tags, None, first) == {}


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (None, Shown()),
        ([], Shown()),
        ({"model_info": {"general.architecture": "x", "x.context_length": "8"}, "capabilities": "all"}, Shown()),
        ({"model_info": {"x.context_length": 8}, "capabilities": [1, "tools"]}, Shown(None, ("tools",))),
        ({"model_info": {"general.architecture": "x", "x.context_length": 8}}, Shown(8)),
    ],
)
def test_what_show_may_answer(answer: Any, shown: Shown) -> None:
    assert parse_show(answer) == shown


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("digest", "size", "size_vram", "context_length", "details", "remote_host")
model = st.fixed_dictionaries({"name": st.just("m") | odd}, optional=dict.fromkeys(FIELDS, odd))
models = st.lists(model | odd, max_size=4)


@given(models | odd, models | odd, odd)
def test_nothing_that_ollama_answers_can_make_a_registry_refuse_the_node(tags: Any, running: Any, shown: Any) -> None:
    found = parse_ollama({"models": tags}, {"models": running}, {"d": parse_show(shown)})
    block = engine_blocks([Engine("ollama", Found("ollama", "1", found), "up", None)])
    assert parse(Capabilities, block)


async def test_it_is_asked_what_loads_no_model() -> None:
    async with serving() as ollama:
        found = await detect(ollama.url)
    assert found["available"]
    assert found["version"] == "0.12.6"
    asked = [("GET", "/api/ps"), ("GET", "/api/tags"), ("GET", "/api/version"), *[("POST", "/api/show")] * 2]
    assert sorted(ollama.asked) == asked


async def test_what_was_told_of_a_model_is_remembered_by_its_digest() -> None:
    async with serving() as ollama:
        engines = Engines(ollama.url, ports={})
        for _ in range(3):
            (found,) = await engines.survey()
        assert found.found is not None
        assert [model["max_context_length"] for model in found.found.models] == [40960, 40960]
        assert ollama.asked.count(("POST", "/api/show")) == 2
        ollama.answers["/api/tags"] = TAGS.replace(b'"digest":"500a', b'"digest":"500b')  # pulled anew
        await engines.survey()
        assert ollama.asked.count(("POST", "/api/show")) == 3


async def test_an_old_ollama_without_ps_and_show_is_still_one() -> None:
    async with serving() as ollama:
        del ollama.answers["/api/ps"], ollama.answers["/api/show"]
        found = await detect(ollama.url)
    assert found["available"]
    assert [model["loaded"] for model in found["models"]] == [None, None]


@pytest.mark.parametrize(
    "answers",
    [
        {"/api/version": b"<html>"},
        {"/api/version": b"[]"},
        {"/api/version": b"\xff\xfe"},
        {"/api/version": b"[" * 100_000},
        {"/api/version": 302},
        {"/api/version": b'{"version":"1"}', "/api/tags": TAGS[:100]},
        {},
    ],
)
async def test_what_is_not_ollama_is_not_called_one(answers: dict[str, Any]) -> None:
    async with serving() as ollama:
        ollama.answers = {"/api/tags": TAGS, "/api/ps": RUNNING, **answers}
        found = await detect(ollama.url)
    assert (found["available"], found["models"]) == (False, [])
    assert "is not Ollama" in found["reason"]


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:1", "nothing answers at 127.0.0.1:1"), ("http://127.0.0.1:x", "mend"), ("http://[", "mend")],
)
async def test_where_nothing_is_the_reason_says_so(url: str, words: str) -> None:
    found = await detect(url)
    assert found["available"] is False
    assert words in str(found["reason"]).casefold()
