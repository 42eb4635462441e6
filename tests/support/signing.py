"""Nodes that sign, for tests: keys that are the same every time, and what is sent with them."""

from typing import Any

from federation.ed25519 import PrivateKey
from federation.signed import Proof, sign

REPORT: dict[str, Any] = {
    "node_name": "gpu box",
    "role": "worker",
    "node_type": "server",
    "region": "eu",
    "hostname": "gpu-box",
    "ip_address": "198.51.100.7",
    "local_ip": "192.0.2.7",
    "instance_id": "run-1",
    "labels": ["gpu", "fast"],
    "endpoints": {"ollama": "http://198.51.100.7:11434"},
    "capabilities": {
        "system": {"cpu_cores": 8, "ram_gb": 31.5, "os": "Linux"},
        "gpu": {"available": True, "gpus": [{"name": "RTX 4090", "vram_gb": 24}], "count": 1},
        "ollama": {"available": True, "models": [{"name": "qwen3:8b", "loaded": True}]},
        "services": ["ollama"],
        "features": ["cuda"],
    },
}


def signing_key(number: int = 1) -> PrivateKey:
    """The key of that number."""
    return PrivateKey(number.to_bytes(32, "big"))


def proof(node_id: str = "n", *, key: int = 1, counter: int = 1, **fields: Any) -> Proof:
    """What a node signed; None leaves a field of the report out."""
    told = {name: value for name, value in {**REPORT, **fields}.items() if value is not None}
    return sign(signing_key(key), node_id, told, counter, 1_700_000_000_000)


def body(node_id: str = "n", *, key: int = 1, counter: int = 1, **fields: Any) -> dict[str, Any]:
    """A signed registration."""
    return {"node_id": node_id, "signed": proof(node_id, key=key, counter=counter, **fields).to_json()}
