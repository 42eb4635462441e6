#!/usr/bin/env python3
"""Joins this machine to the network with the standard library alone.

    curl -s http://REGISTRY:9205/bootstrap/node_bootstrap.py | NODE_REGISTRY_URL=http://REGISTRY:9205 python3 -

Settings: NODE_REGISTRY_URL, NODE_ROLE, NODE_LABELS (with commas), NODE_NAME, NODE_API_KEY, NODE_JOIN_TOKEN,
OLLAMA_BASE_URL. The node's id and key are kept in ~/.dagi.
"""

import contextlib
import http.client
import json
import os
import platform
import random
import re
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
MAX_ANSWER_BYTES = 16 * 2**20
MAX_WAIT_S = 60.0


def call(method, path, body=None, key=None, base=URL, limit=5):
    """(status, answer); status None when there was no answer, or none that a registry gives."""
    try:
        request = urllib.request.Request(base + path, method=method, data=json.dumps(body).encode() if body else None)
        request.add_header("Content-Type", "application/json")
        if key:
            request.add_header("Authorization", "Bearer " + key)
        with urllib.request.urlopen(request, timeout=limit) as answer:
            status, found = answer.status, json.loads(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {"detail": told(error)}
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        if isinstance(error, json.JSONDecodeError):
            reason = "no JSON in the answer"
        return None, {"detail": "no registry answers at %s: %s" % (base, reason)}
    if not isinstance(found, dict):
        return None, {"detail": "what answers at %s is not a registry" % base}
    return status, found


def told(error):
    """What an error's answer says, short and printable."""
    try:
        raw = error.read(4096)
        found = json.loads(raw)
        text = found.get("detail") if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        text = None
    return "".join(c if c.isprintable() else " " for c in str(text or error)[:300])


def keep(name, text):
    """Write a private file, all or nothing; where it cannot be kept, say so."""
    temporary = os.path.join(HOME, "%s.%d" % (name, os.getpid()))
    try:
        os.makedirs(HOME, mode=0o700, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        os.replace(temporary, os.path.join(HOME, name))
    except OSError as error:
        tell("the identity cannot be kept in %s: %s" % (HOME, error.strerror))


def tell(line, to=sys.stderr):
    """One line for whoever watches; nobody has to."""
    with contextlib.suppress(OSError):
        print(line, file=to, flush=True)


def kept(name):
    """What an earlier run kept, or an empty string."""
    try:
        with open(os.path.join(HOME, name)) as file:
            return file.read(65536).strip()
    except (OSError, ValueError):
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
    listed = [m for m in answer["models"] if isinstance(m, dict) and not m.get("remote_host")]
    names = [m["name"] for m in listed if isinstance(m.get("name"), str) and m["name"]]
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


def new_id():
    """An id that no other node has."""
    host = re.sub("[^a-z0-9._-]", "-", socket.gethostname().split(".")[0].lower())[:200] or "unnamed"
    return "node-%s-%s" % (host, uuid.uuid4().hex[:8])


class Node:
    """This machine's node: registered or not, with the key and the interval that the registry gave."""

    def __init__(self):
        identity = kept("node_id")
        self.id = identity if re.match("[A-Za-z0-9._:-]{1,255}$", identity) else new_id()
        keep("node_id", self.id + "\n")
        try:
            found = json.loads(kept("credentials.json") or "{}")
            self.key = found["api_key"] if found.get("node_id") == self.id else None
        except (ValueError, KeyError, AttributeError, RecursionError):
            self.key = None
        self.token = None
        self.interval_s = 30.0
        self.registered = False

    def register(self):
        """Register; keep what the registry gives. (status, answer)."""
        key = os.environ.get("NODE_API_KEY") or self.key
        sent = key or os.environ.get("NODE_JOIN_TOKEN")
        status, answer = call("POST", "/api/v1/nodes/register", report(self.id), sent)
        if status == 409 and not key:  # another node's id, and nothing here proves otherwise
            self.id = new_id()
            keep("node_id", self.id + "\n")
        if status != 200:
            return status, answer
        config = answer.get("config")
        interval_s = config.get("heartbeat_interval_s") if isinstance(config, dict) else None
        fine = isinstance(interval_s, (int, float)) and 0 < interval_s < 1e9
        if answer.get("node_id") != self.id or not fine:
            return None, {"detail": "what answers at %s is not a registry" % URL}
        self.registered, self.token = True, answer.get("token")
        self.key = answer.get("api_key") or self.key
        self.interval_s = min(max(float(interval_s), 0.1), 3600.0)
        keep("credentials.json", json.dumps({"node_id": self.id, "api_key": self.key, "token": self.token}))
        tell("registered as %s with %s" % (self.id, URL), sys.stdout)
        return status, answer

    def beat(self, state):
        """Heartbeat. (status, answer)."""
        body = {"node_id": self.id, "status": state, "metrics": metrics()}
        if self.token:
            body["token"] = self.token
        key = os.environ.get("NODE_API_KEY") or self.key
        status, answer = call("POST", "/api/v1/nodes/heartbeat", body, key, limit=3)
        self.registered = self.registered and status != 404
        self.token = answer.get("token") or self.token
        return status, answer


def main():
    """Register, then heartbeat until SIGTERM."""
    if len(sys.argv) > 1:  # flags belong to `dagi-agent`: passing over them would register something else
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node, failures = Node(), 0
    try:
        while True:
            status, answer = node.beat("online") if node.registered else node.register()
            failures = 0 if status == 200 else failures + 1
            if status == 200:
                wait_s = node.interval_s * random.uniform(0.9, 1.1)
            else:
                wait_s = random.uniform(0.5, min(2.0 ** min(failures, 10), MAX_WAIT_S))
                tell("failed (%s): %s; next try in %.0f s" % (status or "no answer", answer.get("detail", ""), wait_s))
            time.sleep(wait_s)
    except (KeyboardInterrupt, SystemExit):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        left = node.registered and node.beat("leaving")[0] == 200
        tell("stopped; shown as draining until it comes back" if left else "stopped", sys.stdout)


if __name__ == "__main__":
    main()
