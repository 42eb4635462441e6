#!/usr/bin/env python3
"""Joins this machine to the network with the standard library alone.

    curl -s http://REGISTRY:9205/bootstrap/node_bootstrap.py | NODE_REGISTRY_URL=http://REGISTRY:9205 python3 -

Settings: NODE_REGISTRY_URL, NODE_ROLE, NODE_LABELS (with commas), NODE_NAME, NODE_JOIN_TOKEN,
OLLAMA_BASE_URL. The node's id and key are kept in ~/.dagi.
"""

import json
import os
import platform
import random
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid

HOME = os.environ.get("DAGI_HOME") or os.path.join(os.path.expanduser("~"), ".dagi")
URL = os.environ.get("NODE_REGISTRY_URL", "http://127.0.0.1:9205").split(",")[0].rstrip("/")
GB = 2**30


def call(method, path, body=None, key=None, base=URL, limit=5):
    """(status, answer); status None when there was no answer."""
    request = urllib.request.Request(base + path, method=method, data=json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", "Bearer " + key)
    try:
        with urllib.request.urlopen(request, timeout=limit) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {"detail": error.read(500).decode("utf-8", "replace")}
    except (OSError, ValueError) as error:
        return None, {"detail": str(error)}


def keep(name, text):
    """Write a private file, all or nothing."""
    os.makedirs(HOME, mode=0o700, exist_ok=True)
    temporary = os.path.join(HOME, "%s.%d" % (name, os.getpid()))
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, os.path.join(HOME, name))


def kept(name):
    """What an earlier run kept, or an empty string."""
    try:
        with open(os.path.join(HOME, name)) as file:
            return file.read().strip()
    except OSError:
        return ""


def ram_gb():
    """The machine's memory, or None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB, 2)
    except (ValueError, OSError, AttributeError):
        return None


def models():
    """Ollama and its models."""
    base = os.environ.get("OLLAMA_BASE_URL", "http://127.0.0.1:11434").rstrip("/")
    status, answer = call("GET", "/api/tags", base=base, limit=2)
    if status != 200 or not isinstance(answer.get("models"), list):
        return {"available": False, "models": []}
    names = [m.get("name") for m in answer["models"] if m.get("name") and not m.get("remote_host")]
    return {"available": True, "models": [{"name": name} for name in names]}


def report(node_id):
    """What this machine has; what is not known is null."""
    host = socket.gethostname()
    return {
        "node_id": node_id,
        "node_name": os.environ.get("NODE_NAME") or host,
        "role": os.environ.get("NODE_ROLE", "worker"),
        "labels": [label.strip() for label in os.environ.get("NODE_LABELS", "").split(",") if label.strip()],
        "hostname": host,
        "status": "online",
        "capabilities": {
            "system": {
                "hostname": host,
                "os": platform.system(),
                "os_version": platform.release(),
                "cpu_cores": os.cpu_count(),
                "ram_gb": ram_gb(),
                "disk_gb": round(shutil.disk_usage("/").total / GB, 2),
            },
            "ollama": models(),
        },
    }


def metrics():
    """What can be measured without installing anything."""
    disk = shutil.disk_usage("/")
    return {"cpu_percent": None, "memory_percent": None, "disk_percent": round(100 * disk.used / disk.total, 1)}


def main():
    """Register, then heartbeat until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node_id = kept("node_id") or "node-%s-%s" % (socket.gethostname().split(".")[0].lower(), uuid.uuid4().hex[:8])
    keep("node_id", node_id + "\n")
    try:
        key = json.loads(kept("credentials.json") or "{}").get("api_key")
    except ValueError:
        key = None
    interval, registered = 30.0, False
    try:
        while True:
            if registered:
                beat = {"node_id": node_id, "status": "online", "metrics": metrics()}
                status, answer = call("POST", "/api/v1/nodes/heartbeat", beat, key)
                registered = status != 404
            else:
                join = key or os.environ.get("NODE_API_KEY") or os.environ.get("NODE_JOIN_TOKEN")
                status, answer = call("POST", "/api/v1/nodes/register", report(node_id), join)
                if status == 200:
                    registered, key = True, answer.get("api_key") or join
                    interval = float(answer["config"]["heartbeat_interval_s"])
                    keep("credentials.json", json.dumps({"node_id": node_id, "api_key": key, "token": None}))
                    print("registered as %s with %s" % (node_id, URL), flush=True)
            if status != 200:
                print("failed (%s): %s" % (status, answer.get("detail", "")), file=sys.stderr, flush=True)
            time.sleep(interval * random.uniform(0.9, 1.1) if status == 200 else random.uniform(1, 10))
    except (KeyboardInterrupt, SystemExit):
        if registered:
            call("POST", "/api/v1/nodes/heartbeat", {"node_id": node_id, "status": "leaving"}, key, limit=3)
        print("stopped", flush=True)


if __name__ == "__main__":
    main()
