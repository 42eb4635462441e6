"""Engines with a dialect of their own: TGI, exo, ComfyUI. Known by what they answer; nothing asked loads a model."""

import asyncio
from collections.abc import Iterator

from agent.detect.asking import Asker, Json, gauges, items, part
from agent.detect.models import Found, count, entry, found, gb, text

_TGI = ("tgi_batch_current_size", "tgi_queue_size")
_COMFYUI_FOLDERS = ("checkpoints", "diffusion_models")


async def look_tgi(ask: Asker) -> Found | None:
    """Hugging Face's text-generation-inference. Raises Silent."""
    info = await ask.get_or_none("/info")
    # Embeddings servers have /info and model_id too; waiting_served_ratio and validation_workers are TGI's.
    if not isinstance(part(info, "model_id"), str) or count(part(info, "validation_workers")) is None:
        return None
    told = gauges(await ask.text("/metrics"), _TGI)
    load = {"requests_running": told.get(_TGI[0]), "requests_waiting": told.get(_TGI[1])}
    return Found("tgi", text(part(info, "version")), parse_tgi(info), load)


def parse_tgi(info: Json) -> list[dict[str, Json]]:
    """Its /info: one model, loaded."""
    context = count(part(info, "max_total_tokens"))
    return found([entry(info.get("model_id"), True, digest=text(info.get("model_sha")), context_length=context)])


async def look_exo(ask: Asker) -> Found | None:
    """exo. Its /v1/models is a catalogue of what it could fetch: /state tells what is here. Raises Silent."""
    state = await ask.get_or_none("/state")
    if not isinstance(part(state, "instances"), dict) or not isinstance(part(state, "runners"), dict):
        return None
    return Found("exo", None, parse_exo(state))


def parse_exo(state: Json) -> list[dict[str, Json]]:
    """Models with an instance: loaded, on the machines of its cluster together, and asked for through this one."""
    return found(entry(name, True) for name in dict.fromkeys(_exo_instances(state)))


def _exo_instances(state: Json) -> Iterator[str]:
    for tagged in state["instances"].values():  # {"MlxRingInstance": {...}}: the tag is the way machines are joined
        for instance in tagged.values() if isinstance(tagged, dict) else ():
            name = part(instance, "shardAssignments", "modelId")
            if isinstance(name, str):
                yield name


async def look_comfyui(ask: Asker) -> Found | None:
    """ComfyUI. Of /system_stats its command line (argv) is not kept: it holds paths, and what is nobody's business.
    Raises Silent."""
    stats = await ask.get_or_none("/system_stats")
    if not isinstance(part(stats, "devices"), list) or not isinstance(part(stats, "system", "python_version"), str):
        return None
    folders = (ask.get_or_none(f"/models/{folder}") for folder in _COMFYUI_FOLDERS)
    queue, *listed = await asyncio.gather(ask.get_or_none("/prompt"), *folders)
    waiting = count(part(queue, "exec_info", "queue_remaining"))
    version = text(part(stats, "system", "comfyui_version"))
    load = {"requests_waiting": waiting, "vram_free_gb": _free_gb(stats)}
    return Found("comfyui", version, parse_comfyui(listed), load)


def parse_comfyui(listed: list[Json]) -> list[dict[str, Json]]:
    """The names of files in its folders of models; which of them is in memory it does not tell."""
    names = [name for names in listed if isinstance(names, list) for name in names if isinstance(name, str)]
    return found(entry(name, None) for name in dict.fromkeys(names))


def _free_gb(stats: Json) -> float | None:
    sizes = [gb(device.get("vram_free")) for device in items(stats, "devices")]
    known = [size for size in sizes if size is not None]
    return round(sum(known), 2) if known else None
