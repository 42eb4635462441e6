"""A fleet that looks like real ones: 1 KB registrations, 300-byte heartbeats, each node its own key."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from benchmarks.load import Exchange, exchange

_GPUS = (("NVIDIA GeForce RTX 4090", 24), ("NVIDIA L4", 24), ("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA RTX A6000", 48))
_MODELS = (
    ("qwen3:8b", "Q4_K_M", 40_960), ("llama3.1:70b", "Q4_0", 131_072), ("gemma3:27b", "Q4_K_M", 131_072),
    ("mistral-small:24b", "Q4_K_M", 32_768), ("deepseek-r1:32b", "Q4_K_M", 131_072), ("nomic-embed-text", "F16", 2_048),
)  # fmt: skip
_REGISTER, _HEARTBEAT = "/api/v1/nodes/register", "/api/v1/nodes/heartbeat"
_FILLERS = 64


def registration(index: int) -> dict[str, Any]:
    """What node `index` registers with: about 1 KB of JSON, and no two alike."""
    rng = random.Random(index)
    gpu, vram_gb = rng.choice(_GPUS)
    details = [
        {"name": name, "loaded": rng.random() < 0.5, "digest": f"{rng.getrandbits(48):012x}",
         "context_length": context, "quantization": quantization}
        for name, quantization, context in rng.sample(_MODELS, 3)
    ]  # fmt: skip
    return {
        "node_id": f"node-gpu{index:06d}-{rng.getrandbits(32):08x}",
        "node_name": f"gpu{index:06d}.example.org",
        "role": rng.choice(("inference", "worker", "router")),
        "node_type": "gpu",
        "labels": rng.sample(("gpu", "inference", "prod", "spot", "home"), 2),
        "hostname": f"gpu{index:06d}",
        "local_ip": f"192.0.2.{index % 254 + 1}",
        "machine_id": f"{rng.getrandbits(128):032x}",
        "instance_id": f"{rng.getrandbits(64):016x}",
        "endpoints": {"ollama": f"http://gpu{index:06d}.example.org:11434"},
        "capabilities": {
            "os": "Linux 6.8.0",
            "cpu_model": "AMD EPYC 7543 32-Core Processor",
            "cpu_cores": rng.choice((16, 32, 64)),
            "ram_gb": rng.choice((62.7, 125.6, 251.5)),
            "disk_gb": round(rng.uniform(400, 4_000), 1),
            "gpus": [{
                "name": gpu, "vendor": "NVIDIA", "uuid": f"GPU-{rng.getrandbits(128):032x}",
                "vram_gb": vram_gb, "vram_free_gb": round(rng.uniform(0, vram_gb), 1),
            }],
            "models": details,
            "services": ["ollama"],
            "features": ["inference", "chat"] if index % 2 else ["inference"],
        },
    }  # fmt: skip


def heartbeat(node_id: str, seed: int) -> dict[str, Any]:
    """What the node sends every 30 s: about 300 bytes."""
    rng = random.Random(seed)
    return {
        "node_id": node_id,
        "status": "online",
        "metrics": {
            "cpu_percent": round(rng.uniform(0, 100), 1),
            "memory_percent": round(rng.uniform(0, 100), 1),
            "disk_percent": round(rng.uniform(0, 100), 1),
            "gpu_percent": round(rng.uniform(0, 100), 1),
            "ram_used_gb": round(rng.uniform(0, 250), 1),
            "load_1m": round(rng.uniform(0, 64), 2),
            "gpus": [
                {"utilization_percent": round(rng.uniform(0, 100), 1), "vram_free_gb": round(rng.random() * 80, 1)}
            ],
            "services": ["ollama"],
            "agent_count": rng.randrange(8),
        },
    }


def request_bytes(method: str, path: str, key: str, body: object = None) -> bytes:
    """One HTTP request with the headers that aiohttp's client sends; with an empty key, without one."""
    payload = b"" if body is None else orjson.dumps(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:9205\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    head += "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nUser-Agent: Python/3.11 aiohttp/3.14.3\r\n"
    if body is not None:
        head += f"Content-Length: {len(payload)}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"\r\n" + payload


def heartbeats(keys: Sequence[tuple[str, str]]) -> list[bytes]:
    """A heartbeat of each (node_id, key), in an order that is not the registrations'."""
    order = random.Random(1).sample(range(len(keys)), len(keys))
    return [request_bytes("POST", _HEARTBEAT, keys[i][1], heartbeat(keys[i][0], i)) for i in order]


async def register(host: str, port: int, admin_key: str, count: int) -> list[tuple[str, str]]:
    """Register `count` nodes over HTTP; each one's (node_id, key)."""
    todo = iter(range(count))
    found: list[tuple[str, str]] = []

    async def one_by_one(connection: Exchange) -> None:
        for index in _taken(todo):
            status, body = await connection.ask(request_bytes("POST", _REGISTER, admin_key, registration(index)))
            if status != 200:
                raise SystemExit(f"registering node {index} was answered with {status}: {body[:200]!r}")
            node = orjson.loads(body)
            found.append((node["node_id"], node["api_key"]))

    connections = [await exchange(host, port) for _ in range(min(_FILLERS, count))]
    try:
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(one_by_one(connection))
    finally:
        for connection in connections:
            connection.close()
    return found


async def ask(host: str, port: int, request: bytes) -> bytes:
    """The body of the answer to one request."""
    connection = await exchange(host, port)
    try:
        status, body = await connection.ask(request)
    finally:
        connection.close()
    if status != 200:
        raise SystemExit(f"answered with {status}: {body[:200]!r}")
    return body


def _taken(todo: Iterator[int]) -> Iterator[int]:
    yield from todo
