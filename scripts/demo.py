"""`make demo`: a registry and an agent on this machine, in a temporary folder, until Ctrl-C.

DEMO_SECONDS=15 checks that the node is really there, then stops and exits 0. DEMO_PORT chooses a port.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
STOP_S = 8.0


class Failed(Exception):
    """The demo did not do what it says."""


class Child:
    """A process of the demo, in a session of its own so that Ctrl-C reaches it through us."""

    def __init__(self, name: str, folder: Path, arguments: list[str], env: dict[str, str]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=folder, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def check(self) -> None:
        if self._process.poll() is not None:
            raise Failed(f"the {self.name} ended by itself:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def main() -> int:
    seconds = os.environ.get("DEMO_SECONDS", "").strip()
    if seconds and not seconds.replace(".", "", 1).isdigit():
        print(f"DEMO_SECONDS={seconds} is not a number of seconds", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="dagi-demo-"))
    children: list[Child] = []
    try:
        return run(folder, children, float(seconds) if seconds else None)
    except KeyboardInterrupt:
        print("\nStopping.")
        return 0
    except Failed as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave anything
        for child in reversed(children):
            child.stop()
        shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, children: list[Child], seconds: float | None) -> int:
    key = "sk-admin-" + secrets.token_urlsafe(30)
    port, url = _port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "NODE_"))}
    env.update(PYTHONPATH=str(ROOT), DAGI_HOME=str(folder / "agent"), PYTHONUNBUFFERED="1")
    env.pop("REDIS_URL", None)
    serve = ["registry", "serve", "--port", str(port), "--data-dir", str(folder / "registry")]
    children.append(Child("registry", folder, serve, {**env, "REGISTRY_ADMIN_KEY": key}))
    wait(children, lambda: ask(f"{url}/readyz", key) is not None, "the registry did not become ready")
    children.append(Child("agent", folder, ["agent", "bootstrap", "--registry-url", url, "--labels", "demo"], env))
    wait(children, lambda: _nodes(ask(f"{url}/api/v1/nodes", key)), "the agent did not register")
    node = _nodes(ask(f"{url}/api/v1/nodes", key))[0]
    lines = curl_lines(url, node)
    show(url, node, lines, key)
    if seconds is None:
        while True:
            time.sleep(0.5)
            for child in children:
                child.check()
    deadline = time.monotonic() + seconds
    verify(lines, node["node_id"], key)
    while time.monotonic() < deadline:
        time.sleep(0.2)
        for child in children:
            child.check()
    verify(lines, node["node_id"], key)
    print("Checked: the node is listed, online, and found by what it can do.")
    return 0


def curl_lines(url: str, node: dict) -> list[str]:
    """The URLs that the demo shows: all nodes, this one, and a search that it must be found by."""
    found = node["capabilities"]
    able = next((name for name in ("gpu", "ollama") if _available(found.get(name))), "cpu_cores")
    wanted = {"capability": able, "min_cpu_cores": found["cpu_cores"]}
    if found.get("models"):
        wanted["model"] = found["models"][0]
    search = urllib.parse.urlencode(wanted, safe=":/")
    return [
        f"{url}/api/v1/nodes",
        f"{url}/api/v1/nodes/{node['node_id']}",
        f"{url}/api/v1/nodes/discover?{search}",
    ]


def _available(value: object) -> bool:
    return value.get("available") is True if isinstance(value, dict) else bool(value)


def show(url: str, node: dict, lines: list[str], key: str) -> None:
    found = node["capabilities"]
    gpu = ", ".join(str(g.get("name")) for g in found["gpus"]) or "none found"
    ollama = found.get("ollama") or {}
    models = ", ".join(found["models"]) or "no models"
    print(f"\nRegistry   {url}   (API at {url}/docs)")
    print(f"Node       {node['node_id']}, {node['status']}")
    print(f"  CPU      {found.get('cpu_model') or 'unknown'}, {found['cpu_cores']} cores")
    print(f"  RAM      {found['ram_gb']} GB")
    print(f"  Disk     {found['disk_gb']} GB")
    print(f"  GPU      {gpu}")
    print(f"  Ollama   {models if ollama.get('available') else 'not found: ' + str(ollama.get('reason'))}")
    print("\nTry these in another terminal:\n")
    for line in lines:
        print(f"curl -s -H 'Authorization: Bearer {key}' {shlex.quote(line)}")
    print("\nCtrl-C stops everything.", flush=True)


def verify(lines: list[str], node_id: str, key: str) -> None:
    """Ask what the printed lines ask."""
    listed, one, found = (ask(line, key) for line in lines)
    if node_id not in [n["node_id"] for n in _nodes(listed)]:
        raise Failed("the node is not listed")
    if not one or one["status"] != "online":
        raise Failed(f"the node is not online: {one}")
    if node_id not in [n["node_id"] for n in _nodes(found)]:
        raise Failed(f"the node is not found by {lines[2]}")


def wait(children: list[Child], done, complaint: str) -> None:
    deadline = time.monotonic() + START_S
    while not done():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            raise Failed(complaint + "\n" + "\n".join(child.tail() for child in children))
        time.sleep(0.05)


def ask(url: str, key: str):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return None


def _nodes(answer) -> list[dict]:
    return answer["nodes"] if answer else []


def _port() -> tuple[int, str]:
    """The usual port, or a free one, and say so."""
    wanted = int(os.environ.get("DEMO_PORT") or 9205)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
            print(f"Port {wanted} is taken; using another.")
        port = probe.getsockname()[1]
    return port, f"http://127.0.0.1:{port}"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
