"""Engines that speak OpenAI's dialect: vLLM, SGLang, llama.cpp, LM Studio, LocalAI, mlx-lm.

Each is known by what it answers, never by its port; nothing is asked that loads a model or wakes one.
"""

import asyncio

from agent.detect.asking import Asker, Json, OtherAnswer, gauges, items, part
from agent.detect.models import Found, count, entry, found, gb, parameters, text

_VLLM = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
_VLLM_OLD = "vllm:gpu_cache_usage_perc"  # before 0.10
_SGLANG = ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage")


async def _owned_by(ask: Asker, maker: str) -> list[dict[str, Json]]:
    """The models of /v1/models when this maker's name stands at the first; none otherwise."""
    listed = items(await ask.get_or_none("/v1/models"), "data")
    return listed if listed and listed[0].get("owned_by") == maker else []


async def look_vllm(ask: Asker) -> Found | None:
    """vLLM: what it serves is loaded. Raises Silent."""
    listed = await _owned_by(ask, "vllm")
    if not listed:
        return None
    version, metrics = await asyncio.gather(ask.get_or_none("/version"), ask.text("/metrics"))
    return Found("vllm", text(part(version, "version")), served(listed), vllm_load(metrics))


def served(listed: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Models of an engine that serves what it has loaded, and nothing else."""
    return found(entry(model.get("id"), True, context_length=count(model.get("max_model_len"))) for model in listed)


def vllm_load(metrics: str) -> dict[str, float | None]:
    """Requests running and waiting, percent of the KV cache in use."""
    told = gauges(metrics, (*_VLLM, _VLLM_OLD))
    return _load(told.get(_VLLM[0]), told.get(_VLLM[1]), told.get(_VLLM[2], told.get(_VLLM_OLD)))


async def look_sglang(ask: Asker) -> Found | None:
    """SGLang; its older releases do not sign their list of models. Raises Silent."""
    listed = await _owned_by(ask, "sglang")
    if not listed:
        info = await ask.get_or_none("/get_model_info")
        if not isinstance(part(info, "model_path"), str) or not isinstance(part(info, "is_generation"), bool):
            return None
        # Its path stands in for a name that it does not list.
        listed = items(await ask.get_or_none("/v1/models"), "data") or [{"id": part(info, "model_path")}]
    told = gauges(await ask.text("/metrics"), _SGLANG)
    return Found("sglang", None, served(listed), _load(*(told.get(name) for name in _SGLANG)))


def _load(running: float | None, waiting: float | None, cache_share: float | None) -> dict[str, float | None]:
    percent = None if cache_share is None else round(100 * min(max(cache_share, 0.0), 1.0), 1)
    return {"requests_running": running, "requests_waiting": waiting, "kv_cache_percent": percent}


async def look_llamacpp(ask: Asker) -> Found | None:
    """llama.cpp's server, alone or as a router of several models. Raises Silent."""
    listed = await _owned_by(ask, "llamacpp")
    if not listed:
        return None
    # Without autoload=false a router would start a model only to answer this.
    props = await ask.get_or_none("/props?autoload=false")
    slots = await _slots(ask, props)
    build = text(part(props, "build_info"))
    return Found("llamacpp", build, parse_llamacpp(listed, props), slots_load(slots, part(props, "total_slots")))


async def _slots(ask: Asker, props: Json) -> Json:
    """The slots of a server that cannot sleep: of one that can, asking would wake it, and load the model again."""
    if not isinstance(props, dict) or "is_sleeping" in props or props.get("role") == "router":
        return None
    return await ask.get_or_none("/slots")


def parse_llamacpp(listed: list[dict[str, Json]], props: Json) -> list[dict[str, Json]]:
    """Its /v1/models and /props. A router tells for each model whether it is loaded; a lone server's is."""
    context = count(part(props, "default_generation_settings", "n_ctx"))
    asleep = part(props, "is_sleeping") is True
    models = []
    for model in listed:
        state = part(model, "status", "value")
        loaded = not asleep if state is None else state == "loaded"
        own = count(part(model, "meta", "n_ctx")) or (context if state is None else None)
        models.append(
            entry(
                model.get("id"),
                loaded,
                size_gb=gb(part(model, "meta", "size")),
                parameter_size=parameters(part(model, "meta", "n_params")),
                quantization=text(part(model, "meta", "ftype")),
                context_length=own if loaded else None,
                max_context_length=count(part(model, "meta", "n_ctx_train")),
            )
        )
    return found(models)


def slots_load(slots: Json, total: Json) -> dict[str, float | None]:
    """How many requests it can work on at once, and on how many it does."""
    busy = [slot for slot in slots if isinstance(slot, dict)] if isinstance(slots, list) else None
    running = None if busy is None else sum(slot.get("is_processing") is True for slot in busy)
    return {"requests_running": running, "slots": count(total)}


async def look_lmstudio(ask: Asker) -> Found | None:
    """LM Studio, by its own API: version 1, else 0. Raises Silent."""
    listed = items(await ask.get_or_none("/api/v1/models"), "models")
    if listed and all(isinstance(model.get("loaded_instances"), list) for model in listed):
        return Found("lmstudio", None, parse_lmstudio(listed))
    older = items(await ask.get_or_none("/api/v0/models"), "data")
    if older and all(isinstance(model.get("compatibility_type"), str) for model in older):
        return Found("lmstudio", None, parse_lmstudio_v0(older))
    return None


def parse_lmstudio(listed: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """GET /api/v1/models. Of several loaded instances the one with most room tells the context."""
    models = []
    for model in listed:
        instances = [each for each in model["loaded_instances"] if isinstance(each, dict)]
        contexts = [count(part(each, "config", "context_length")) for each in instances]
        can = part(model, "capabilities")
        models.append(
            entry(
                model.get("key"),
                bool(instances),
                size_gb=gb(model.get("size_bytes")),
                family=text(model.get("architecture")),
                parameter_size=text(model.get("params_string")),
                quantization=text(part(model, "quantization", "name")),
                context_length=max((known for known in contexts if known), default=None),
                max_context_length=count(model.get("max_context_length")),
                capabilities=_capabilities(model.get("type"), can),
            )
        )
    return found(models)


def _capabilities(kind: Json, can: Json) -> list[str] | None:
    """In Ollama's words, so that one question finds the models of both."""
    told = ["embedding"] if kind == "embedding" else ["completion"] if kind in ("llm", "vlm") else []
    told += ["vision"] if part(can, "vision") is True or kind == "vlm" else []
    told += ["tools"] if part(can, "trained_for_tool_use") is True else []
    return told or None


def parse_lmstudio_v0(listed: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """GET /api/v0/models, of LM Studio before 0.4."""
    return found(
        entry(
            model.get("id"),
            model.get("state") == "loaded",
            family=text(model.get("arch")),
            quantization=text(model.get("quantization")),
            context_length=count(model.get("loaded_context_length")),
            max_context_length=count(model.get("max_context_length")),
            capabilities=_capabilities(
                {"embeddings": "embedding"}.get(str(model.get("type")), model.get("type")), None
            ),
        )
        for model in listed
    )


async def look_localai(ask: Asker) -> Found | None:
    """LocalAI: /v1/models is what is set up, /system what is loaded. Raises Silent."""
    system = await ask.get_or_none("/system")
    if not isinstance(part(system, "backends"), list) or not isinstance(part(system, "loaded_models"), list):
        return None
    version, listed = await asyncio.gather(ask.get_or_none("/version"), ask.get_or_none("/v1/models"))
    return Found("localai", text(part(version, "version")), parse_localai(listed, system))


def parse_localai(listed: Json, system: Json) -> list[dict[str, Json]]:
    """Its /v1/models and /system."""
    loaded = {text(model.get("id")): model for model in items(system, "loaded_models")}
    return found(
        entry(
            model.get("id"),
            text(model.get("id")) in loaded,
            vram_gb=gb(part(loaded.get(text(model.get("id"))), "size_vram")),
        )
        for model in items(listed, "data")
    )


async def look_mlx(ask: Asker) -> Found | None:
    """mlx-lm's server, which signs nothing: known by a list with these fields alone, and a health of this text.

    It lists what lies in Hugging Face's cache; whether one is loaded it does not tell. Raises Silent.
    """
    listed = items(await ask.get_or_none("/v1/models"), "data")
    if not listed or any(set(model) != {"id", "object", "created"} for model in listed):
        return None
    try:
        health = await ask.get("/health")
    except OtherAnswer:
        return None
    return Found("mlx", None, found(entry(m["id"], None) for m in listed)) if health == {"status": "ok"} else None
