"""Every engine by its recorded answers, at a port that tells nothing; and engines that misbehave."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detect import asking, engines
from agent.detect.asking import gauges
from agent.detect.engines import GONE_S, MOST_REST_S, REST_S, Engine, Engines, Place, due, merged, state
from agent.detect.inventory import detect_capabilities, engine_blocks, live_models, measure, models_changed
from agent.detect.models import Found
from agent.detect.openai_engines import parse_llamacpp, parse_lmstudio, parse_lmstudio_v0, parse_localai, vllm_load
from agent.detect.other_engines import parse_comfyui, parse_exo
from registry.capabilities import normalise
from registry.model import Capabilities, parse
from tests.support.engines import answers, engine
from tests.support.ollama import PULLED, RUNNING, SHOWN, TAGS, VERSION

NOWHERE = "http://127.0.0.1:1"
OLLAMA: dict[str, Any] = {"/api/version": VERSION, "/api/tags": TAGS, "/api/ps": RUNNING, "/api/show": SHOWN}


def look(*ports: int, ollama: str = NOWHERE, clock: Callable[[], float] = lambda: 0.0) -> Engines:
    """Looks at those ports; the usual engine there is one that none of the tests plays."""
    return Engines(ollama, ports=dict.fromkeys(ports, "none"), clock=clock)


async def found(name: str) -> Found | None:
    """What is found of an engine with these recorded answers."""
    async with engine(answers(name)) as played:
        known = {each.name: each.found for each in await look(played.port).survey() if each.found}
    assert len(known) <= 1
    return next(iter(known.values()), None)


KNOWN: list[tuple[str, str, str | None, list[dict[str, Any]], dict[str, Any]]] = [
    (
        "vllm", "vllm", "0.11.0",
        [{"name": "Qwen/Qwen2.5-7B-Instruct", "loaded": True, "context_length": 32768},
         {"name": "sql-lora", "loaded": True}],
        {"requests_running": 3, "requests_waiting": 1, "kv_cache_percent": 12.3},
    ),
    (
        "sglang", "sglang", None,
        [{"name": "meta-llama/Llama-3.1-8B-Instruct", "loaded": True, "context_length": 131072}],
        {"requests_running": 2, "requests_waiting": 0, "kv_cache_percent": 28},
    ),
    (
        "sglang_old", "sglang", None, [{"name": "meta-llama/Meta-Llama-3-8B-Instruct", "loaded": True}], {},
    ),
    (
        "llamacpp", "llamacpp", "b6692-ca71fb9b",
        [{"name": "Qwen3-8B-Q4_K_M.gguf", "loaded": True, "size_gb": 4.68, "parameter_size": "8.2B",
          "context_length": 8192, "max_context_length": 40960}],
        {"requests_running": 1, "slots": 4},
    ),
    (
        "llamacpp_router", "llamacpp", "b9992-1a2b3c4d",
        [{"name": "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "loaded": True, "size_gb": 2.32, "parameter_size": "3.9B",
          "quantization": "Q4_K - Medium", "context_length": 4096, "max_context_length": 131072},
         {"name": "Qwen3-0.6B-Q4_K_M", "loaded": False},
         {"name": "Qwen3-32B-Q4_K_M", "loaded": False}],
        {},
    ),
    (
        "llamacpp_asleep", "llamacpp", "b9992-1a2b3c4d",
        [{"name": "qwen3-8b", "loaded": False, "size_gb": 4.68, "parameter_size": "8.2B",
          "quantization": "Q4_K - Medium", "max_context_length": 40960}],
        {"slots": 1},
    ),
    (
        "lmstudio", "lmstudio", None,
        [{"name": "google/gemma-3-12b", "loaded": True, "size_gb": 7.52, "family": "gemma3", "parameter_size": "12B",
          "quantization": "Q4_K_M", "context_length": 16384, "max_context_length": 131072,
          "capabilities": ["completion", "vision", "tools"]},
         {"name": "text-embedding-nomic-embed-text-v1.5", "loaded": False, "size_gb": 0.26, "quantization": "F16",
          "max_context_length": 2048, "capabilities": ["embedding"]}],
        {},
    ),
    (
        "lmstudio_v0", "lmstudio", None,
        [{"name": "qwen2-vl-7b-instruct", "loaded": False, "family": "qwen2_vl", "quantization": "4bit",
          "max_context_length": 32768, "capabilities": ["completion", "vision"]},
         {"name": "meta-llama-3.1-8b-instruct", "loaded": True, "family": "llama", "quantization": "Q4_K_M",
          "context_length": 8192, "max_context_length": 131072, "capabilities": ["completion"]},
         {"name": "text-embedding-nomic-embed-text-v1.5", "loaded": False, "family": "nomic-bert",
          "quantization": "Q4_0", "max_context_length": 2048, "capabilities": ["embedding"]}],
        {},
    ),
    (
        "tgi", "tgi", "3.3.4",
        [{"name": "meta-llama/Llama-3.1-8B-Instruct", "loaded": True, "context_length": 4096,
          "digest": "0e9e39f249a16976918f6564b8830bc894c89659"}],
        {"requests_running": 16, "requests_waiting": 5},
    ),
    (
        "localai", "localai", "v3.5.0 (a1b2c3d4)",
        [{"name": "llama-3.2-3b-instruct:q4_k_m", "loaded": False},
         {"name": "whisper-1", "loaded": True, "vram_gb": 1.0}],
        {},
    ),
    ("exo", "exo", None, [{"name": "mlx-community/Llama-3.2-1B-Instruct-4bit", "loaded": True}], {}),
    ("mlx", "mlx", None, [{"name": "mlx-community/Llama-3.2-3B-Instruct-4bit", "loaded": None}], {}),
    (
        "comfyui", "comfyui", "0.3.62",
        [{"name": "sd_xl_base_1.0.safetensors", "loaded": None},
         {"name": "flux1-dev-fp8.safetensors", "loaded": None},
         {"name": "wan2.2_ti2v_5B_fp16.safetensors", "loaded": None}],
        {"requests_waiting": 2, "vram_free_gb": 20.0},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "version", "models", "load"), KNOWN, ids=[known[0] for known in KNOWN])
async def test_each_engine_is_known_by_what_it_answers(
    name: str, kind: str, version: str | None, models: list[dict[str, Any]], load: dict[str, Any]
) -> None:
    told = await found(name)
    assert told is not None
    assert (told.engine, told.version) == (kind, version)
    assert told.models == [{**model, "installed": True} for model in models]
    assert {key: value for key, value in told.load.items() if value is not None} == load
    blocks = engine_blocks([Engine(kind, told, "up", None)])
    parse(Capabilities, blocks)
    assert sorted(normalise(blocks)["models"]) == sorted(model["name"] for model in models)
    assert "someone" not in json.dumps(blocks)  # whose folders these are is nobody's business


@pytest.mark.parametrize("name", ["not_embeddings_server", "not_another_openai_server", "not_a_web_application"])
async def test_what_is_no_engine_is_not_called_one(name: str) -> None:
    assert await found(name) is None


async def test_a_server_that_sleeps_is_not_woken() -> None:
    async with engine(answers("llamacpp_asleep")) as played:
        await look(played.port).survey()
    assert not [path for _, path in played.asked if path.startswith("/slots")]


async def test_only_what_reads_is_asked_of_anything() -> None:
    asked: set[tuple[str, str]] = set()
    for name in [known[0] for known in KNOWN]:
        async with engine(answers(name)) as played:
            engines_there = look(played.port)
            await engines_there.survey()
            await engines_there.survey()
        asked |= set(played.asked)
    assert {method for method, _ in asked} == {"GET"}
    assert not [path for _, path in asked if any(word in path for word in ("load?", "generate", "chat", "completion"))]


async def test_several_engines_are_registered_side_by_side_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(OLLAMA) as ollama, engine(answers("vllm")) as vllm:
        monkeypatch.setattr(engines, "PORTS", {vllm.port: "vllm"})
        capabilities = await detect_capabilities(ollama.url)
        metrics = await measure(ollama.url, None)
        assert capabilities["services"] == metrics["services"] == ["ollama", "vllm"]
        flat = normalise(parse(Capabilities, capabilities).model_dump(exclude_unset=True))
        names = ["qwen3:8b", "nomic-embed-text:latest", "Qwen/Qwen2.5-7B-Instruct", "sql-lora"]
        assert flat["models"] == names
        assert {model["name"]: (model["engine"], model["loaded"]) for model in metrics["models"]} == {
            names[0]: ("ollama", True),
            names[1]: ("ollama", False),
            names[2]: ("vllm", True),
            names[3]: ("vllm", True),
        }
        assert metrics["engines"]["vllm"]["requests_running"] == 3
        assert metrics["engines"]["ollama"]["state"] == "up"
        assert not models_changed(capabilities, metrics)
        ollama.answers["/api/tags"] = PULLED
        assert models_changed(capabilities, await measure(ollama.url, None))
        assert not models_changed(await detect_capabilities(ollama.url), await measure(ollama.url, None))


async def test_two_of_one_kind_are_told_as_one() -> None:
    other = answers("vllm")
    other["/v1/models"]["data"] = [{"id": "another", "object": "model", "owned_by": "vllm"}]
    async with engine(answers("vllm")) as first, engine(other) as second:
        told = [each for each in await look(first.port, second.port).survey() if each.found]
    assert [each.name for each in told] == ["vllm"]
    assert told[0].found is not None
    assert [model["name"] for model in told[0].found.models] == ["Qwen/Qwen2.5-7B-Instruct", "sql-lora", "another"]
    assert told[0].found.load == {"requests_running": 6, "requests_waiting": 2, "kv_cache_percent": 12.3}


def test_a_model_that_is_loaded_at_one_of_two_places_is_loaded() -> None:
    on, off = ({"name": "m", "loaded": loaded} for loaded in (True, False))
    for founds in ([on, off], [off, on]):
        assert merged([Found("x", None, [model]) for model in founds]).models == [on]


async def test_an_engine_at_ollamas_address_is_known_as_what_it_is() -> None:
    async with engine(answers("localai")) as played:
        told = {each.name: each for each in await look(ollama=played.url).survey()}
    assert (told["ollama"].found, told["localai"].state) == (None, "up")
    assert "not Ollama" in str(told["ollama"].reason)


async def test_an_engine_that_a_setting_names_is_found_wherever_it_is() -> None:
    async with engine(answers("tgi")) as played:
        there = Engines(NOWHERE, (played.url,), ports={}, clock=lambda: 0.0)
        assert [each.name for each in await there.survey() if each.found] == ["tgi"]


# --- engines that misbehave ---

TEN_THOUSAND = json.dumps({"models": [{"name": f"model-{n}:8b", "digest": f"{n:064x}"} for n in range(10_000)]})
HUGE = json.dumps({"models": [{"name": "x" * 100_000, "digest": "d"}, {"name": "m", "digest": "y" * 2**20}]})


@contextlib.asynccontextmanager
async def odd_ollama(**told: Any) -> AsyncIterator[tuple[Engines, Any]]:
    async with engine({**OLLAMA, **{f"/api/{name}": answer for name, answer in told.items()}}) as played:
        yield look(ollama=played.url), played


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"tags": "<html>Sign in</html>"}, "is not Ollama"),
        ({"tags": TAGS[:200]}, "is not Ollama"),
        ({"tags": 302}, "is not Ollama"),
        ({"tags": 500}, "is not Ollama"),
        ({"tags": b"[" * 50_000}, "is not Ollama"),
        ({"tags": '{"models":{"a":1}}'}, "is not Ollama"),
        ({"tags": b'{"models":[' + b" " * (9 * 2**20) + b"]}"}, "is not Ollama"),
        ({"version": None}, "no answer within"),
        ({"tags": None}, "no answer within"),
    ],
    ids=["html", "half", "redirect", "500", "deep", "wrong kind", "endless", "hangs", "hangs later"],
)
async def test_an_ollama_that_answers_nonsense_costs_its_own_block(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], words: str
) -> None:
    if None in told.values():
        monkeypatch.setattr(asking, "TIMEOUT_S", 0.5)
    async with odd_ollama(**told) as (there, played), engine(answers("vllm")) as vllm:
        there._places += [Place(vllm.url, "vllm")]
        found = {each.name: each for each in await there.survey()}
        assert ("GET", "/elsewhere") not in played.asked
    assert found["ollama"].found is None
    assert words in str(found["ollama"].reason)
    assert found["vllm"].state == "up"


@pytest.mark.parametrize("told", [TEN_THOUSAND, HUGE], ids=["ten thousand", "huge strings"])
async def test_an_ollama_with_too_much_is_told_as_far_as_a_registry_takes_it(told: str) -> None:
    async with odd_ollama(tags=told, show=404) as (there, _):
        found = await there.survey()
    blocks = engine_blocks(found)
    assert len(json.dumps(blocks)) < 200_000
    assert len(json.dumps(live_models(found))) < 20_000
    parse(Capabilities, blocks)
    names = normalise(blocks)["models"]
    total = len(names) + blocks["ollama"].get("models_left_out", 0)
    assert (total, names[0]) == ((10_000, "model-0:8b") if told is TEN_THOUSAND else (1, "m"))


async def test_show_that_hangs_costs_what_it_would_have_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.detect.ollama.SHOW_S", 0.1)
    async with odd_ollama(show=None) as (there, played):
        (told,) = await there.survey()
        assert told.found is not None
        assert [model.get("max_context_length") for model in told.found.models] == [None, None]
        played.answers["/api/show"] = SHOWN
        played.let_go()
        (told,) = await there.survey()  # and is asked again
    assert told.found is not None
    assert [model.get("max_context_length") for model in told.found.models] == [40960, 40960]


async def test_an_engine_that_is_silent_for_a_moment_stays_as_it_was_and_one_that_is_gone_does_not() -> None:
    now = [0.0]
    async with engine(answers("vllm")) as played:
        there = look(played.port, clock=lambda: now[0])
        registered = engine_blocks(await there.survey())
        port = played.port
    for age, wanted in ((1.0, "silent"), (GONE_S - 1, "silent"), (GONE_S, "gone")):
        now[0] = age
        told = {each.name: each for each in await there.survey()}["vllm"]
        assert told.state == wanted
        assert told.reason == f"nothing answers at 127.0.0.1:{port}"
        changed = models_changed(registered, {"engines": {"vllm": {"state": wanted, "model_set": "?"}}})
        assert changed == (wanted == "gone")
        assert engine_blocks([told])["vllm"]["available"] == (wanted == "silent")
    async with engine(answers("vllm"), port):
        assert {each.name: each.state for each in await there.survey()}["vllm"] == "up"


async def test_what_is_no_engine_is_left_alone_longer_and_longer() -> None:
    now = [0.0]
    async with engine(answers("not_a_web_application")) as played:
        there = look(played.port, clock=lambda: now[0])
        await there.survey()
        asked = len(played.asked)
        assert 5 < asked < 30
        for now[0] in (1.0, REST_S - 1):
            await there.survey()
        assert len(played.asked) == asked
        played.answers |= answers("vllm")  # it has loaded its model by now
        now[0] = REST_S
        assert {each.name for each in await there.survey() if each.found} == {"vllm"}


def test_the_rest_doubles_up_to_a_limit() -> None:
    rests = []
    for times in range(1, 30):
        place = Place("http://127.0.0.1:9", "none", foreign_at=0.0, foreign_times=times)
        rests.append(next(s for s in (30, 60, 120, 240, 480, 600) if due(place, s)))
        assert not due(place, rests[-1] - 1)
    assert rests[:6] == [30, 60, 120, 240, 480, 600]
    assert set(rests[6:]) == {MOST_REST_S}


@pytest.mark.parametrize(
    ("reason", "age_s", "wanted"),
    [(None, 0, "up"), (None, 1e9, "up"), ("refused", 1, "silent"), ("refused", GONE_S, "gone")],
)
def test_the_state_of_a_place(reason: str | None, age_s: float, wanted: str) -> None:
    assert state(Place("", "", reason=reason, heard_at=0.0), age_s) == wanted


ENGINE_UP = {"state": "up", "model_set": "a"}


@pytest.mark.parametrize(
    ("registered", "live", "changed"),
    [
        ({"available": True, "model_set": "a"}, ENGINE_UP, False),
        ({"available": True, "model_set": "b"}, ENGINE_UP, True),
        ({"available": False}, ENGINE_UP, True),
        (None, ENGINE_UP, True),
        ({"available": True, "model_set": "b"}, {"state": "silent", "model_set": "a"}, False),
        ({"available": True, "model_set": "a"}, {"state": "gone", "model_set": "a"}, True),
        ({"available": False}, {"state": "gone", "model_set": "a"}, False),
        (None, {"state": "silent", "model_set": "a"}, False),
    ],
)
def test_when_what_was_registered_is_no_longer_so(
    registered: dict[str, Any] | None, live: dict[str, Any], changed: bool
) -> None:
    capabilities = {"system": {}} if registered is None else {"x": registered}
    assert models_changed(capabilities, {"engines": {"x": live}}) is changed


def test_nothing_measured_yet_changes_nothing() -> None:
    assert not models_changed({}, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('vllm:num_requests_running{model_name="a}b"} 2', 2),
        ('vllm:num_requests_running{model_name="a"} 2\nvllm:num_requests_running{model_name="b"} 3', 5),
        ("vllm:num_requests_running 4.0", 4),
        ("vllm:num_requests_running", None),
        ("vllm:num_requests_running NaN", None),
        ("vllm:num_requests_running{", None),
        ("vllm:num_requests_running_total 4", None),
        ("<html>", None),
    ],
)
def test_gauges(text: str, value: float | None) -> None:
    assert gauges(text, ["vllm:num_requests_running"]).get("vllm:num_requests_running") == value
    assert vllm_load(text)["requests_running"] == value


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "id", "key", "meta", "status", "quantization", "size_bytes", "capabilities", "type", "arch", "max_context_length",
    "architecture", "params_string", "state", "loaded_context_length", "max_model_len", "size_vram",
]  # fmt: skip
model = st.fixed_dictionaries(
    {"loaded_instances": st.lists(odd, max_size=2)}, optional=dict.fromkeys(NAMES, st.just("m") | odd)
)
listed = st.lists(model, max_size=3)


@given(listed, odd)
def test_nothing_that_an_engine_answers_can_make_a_registry_refuse_the_node(told: Any, other: Any) -> None:
    parsed = [
        parse_llamacpp(told, other),
        parse_lmstudio(told),
        parse_lmstudio_v0(told),
        parse_localai({"data": told}, {"loaded_models": told}),
        parse_exo({"instances": {"a": other, "b": {"c": other}}}),
        parse_comfyui([other, told]),
    ]
    for models in parsed:
        assert parse(Capabilities, engine_blocks([Engine("x", Found("x", None, models), "up", None)]))
