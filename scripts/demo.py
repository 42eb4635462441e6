"""`make demo`: two regions and an agent on this machine, in a temporary folder; one region dies and comes back.

Stays until Ctrl-C. DEMO_SECONDS=15 runs the same story, checks every step, stays so long and exits 0.
DEMO_PORT chooses eu's port; us has the next.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORY_S = 43.0  # all of it, from the first start; with DEMO_SECONDS=15 it ends within a minute
STOP_S = 8.0
STARTED = "listening on"  # what a registry says when it serves
PACE = ["--heartbeat-interval-s", "2", "--degraded-after-s", "10", "--offline-after-s", "30"]
Json = Any


class Failed(Exception):
    """The demo did not do what it says."""


class Child:
    """A process of the demo, in a session of its own so that Ctrl-C reaches it through us."""

    def __init__(self, name: str, folder: Path, arguments: list[str], env: dict[str, str]) -> None:
        self.name = name
        self._folder, self._arguments, self._env = folder, arguments, env
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def start(self) -> None:
        command = [sys.executable, "-m", *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, env=self._env, start_new_session=True
            )
        self._killed = False

    def check(self) -> None:
        if self._process is not None and self._process.poll() is not None and not self._killed:
            raise Failed(f"{self.name} ended by itself:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self._text().splitlines()[-15:])

    def kill(self) -> None:
        """SIGKILL: nothing of it is flushed or told."""
        assert self._process is not None
        self._killed = True
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._killed:
            self._end_its_store()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _end_its_store(self) -> None:
        """A registry that was killed leaves its store running; its next start takes care of that."""
        starts, deadline = self._text().count(STARTED), time.monotonic() + STOP_S
        self.start()
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            if self._text().count(STARTED) > starts:
                return
            time.sleep(0.05)

    def _text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


@dataclass(frozen=True)
class Registry:
    """One region."""

    region: str
    url: str
    child: Child


class Demo:
    """The story, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.children: list[Child] = []
        self._folder = folder
        self._key = "sk-admin-" + secrets.token_urlsafe(30)
        self._secret = secrets.token_hex(32)
        self._deadline = time.monotonic() + STORY_S
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "NODE_"))}
        self._env = {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "DAGI_HOME": str(folder / "agent")}
        for name in ("REDIS_URL", "ALLOWED_NODES", "HEARTBEAT_INTERVAL"):
            self._env.pop(name, None)

    def run(self, seconds: float | None) -> None:
        eu = self._registry("eu", int(os.environ.get("DEMO_PORT") or 9205))
        us = self._registry("us", int(eu.url.rpartition(":")[2]) + 1, "--peer", eu.url)
        self._wait(lambda: self._ready(eu), "eu did not become ready")
        self._wait(lambda: self._ready(us), "us did not become ready")
        urls = f"{eu.url},{us.url}"
        self._child("agent", ["agent", "bootstrap", "--labels", "demo"], {"NODE_REGISTRY_URL": urls})
        node = self._wait(lambda: self._first_node(eu), "the agent did not register with eu")
        node_id = node["node_id"]
        self._wait(lambda: self._lives(us, node_id, "eu"), "the node did not arrive at us")
        self._introduce(eu, us, node)
        self._kill(eu, us, node_id)
        self._revive(eu, us, node_id)
        lines = [*_lines(eu, node), *_lines(us, node)]
        self._check(lines, node_id)
        if seconds is None:
            _say("All the lines above work now. Ctrl-C stops everything.")
        self._stay(seconds)
        self._check(lines, node_id)
        self._deadline = time.monotonic() + 5.0
        self._wait(lambda: self._all_up(eu, us), "not all members are up")
        _say("Checked: the node is listed, online and found at both registries, and both members are up.")

    # the story

    def _introduce(self, eu: Registry, us: Registry, node: Json) -> None:
        print()
        _say(f"Two registries of one federation: eu at {eu.url}, us at {us.url}")
        _say(f"Their API: {eu.url}/docs")
        _say("The agent found out what this machine has and registered it with eu:")
        for line in _facts(node):
            _say(f"  {line}")
        _say("eu told us. Both show the node, and find it by what it can do; in another terminal:")
        print()
        for line in (*_lines(eu, node), *_lines(us, node)):
            print(f"curl -s -H 'Authorization: Bearer {self._key}' {shlex.quote(line)}")
        print()
        _say("Who is in the federation, and how it fares:")
        print()
        for command in ("members", "status"):
            print(self._command(us, command))
        print(flush=True)

    def _kill(self, eu: Registry, us: Registry, node_id: str) -> None:
        _say("Now eu is killed (SIGKILL) ...")
        began = time.monotonic()
        eu.child.kill()
        self._wait(lambda: self._lives(us, node_id, "us"), "the node did not go over to us")
        took_s = time.monotonic() - began
        _say(f"{took_s:.1f} s later the node is online at us: its agent went on to the next URL it has.")
        self._wait(lambda: self._state(us, "eu") == "down", "us did not notice that eu is gone")
        if self._ready(eu):
            raise Failed("eu was killed and still answers")

    def _revive(self, eu: Registry, us: Registry, node_id: str) -> None:
        _say("eu is started again ...")
        began = time.monotonic()
        eu.child.start()
        self._wait(lambda: self._ready(eu), "eu did not become ready again")
        self._wait(lambda: self._lives(eu, node_id, "us"), "eu does not show the node again")
        self._wait(lambda: self._all_up(eu, us), "eu and us did not find each other again")
        _say(f"{time.monotonic() - began:.1f} s later eu shows the node too, online at us, and both members are up:")
        print()
        self._show_members(us)

    def _show_members(self, at: Registry) -> None:
        env = {**self._env, "REGISTRY_ADMIN_KEY": self._key}
        command = [sys.executable, "-m", "registry", "members", "--url", at.url]
        done = subprocess.run(command, cwd=self._folder, env=env, capture_output=True, text=True, timeout=20)
        if done.returncode != 0:
            raise Failed(f"`members` says: {done.stdout}{done.stderr}")
        for line in done.stdout.splitlines():
            _say(f"  {line}".rstrip())
        print(flush=True)

    def _stay(self, seconds: float | None) -> None:
        until = time.monotonic() + seconds if seconds is not None else float("inf")
        while time.monotonic() < until:
            time.sleep(0.2)
            for child in self.children:
                child.check()

    # what is so

    def _check(self, lines: list[str], node_id: str) -> None:
        """Ask what the printed lines ask: of each registry the list, the node, a search."""
        for line in lines:
            answer = self._ask(line)
            nodes = answer.get("nodes", [answer]) if isinstance(answer, dict) else []
            if not [node for node in nodes if node.get("node_id") == node_id and node.get("status") == "online"]:
                raise Failed(f"{line} does not show the node online: {answer}")

    def _ready(self, registry: Registry) -> bool:
        return self._ask(f"{registry.url}/readyz") is not None

    def _first_node(self, registry: Registry) -> Json:
        return next(iter((self._ask(f"{registry.url}/api/v1/nodes") or {}).get("nodes", [])), None)

    def _lives(self, registry: Registry, node_id: str, home: str) -> bool:
        """Whether that registry shows the node online, and heard by `home`."""
        node = self._ask(f"{registry.url}/api/v1/nodes/{node_id}") or {}
        return (node.get("status"), node.get("home_registry")) == ("online", home)

    def _peers(self, registry: Registry) -> list[Json]:
        peers: list[Json] = (self._ask(f"{registry.url}/api/v1/federation") or {}).get("peers", [])
        return peers

    def _state(self, registry: Registry, peer: str) -> str | None:
        return next((each["state"] for each in self._peers(registry) if each["registry_id"] == peer), None)

    def _all_up(self, *registries: Registry) -> bool:
        found = [self._peers(registry) for registry in registries]
        return all(
            len(peers) == len(registries) - 1
            and all(peer["state"] == "up" and peer["reachable"] and peer["lag_s"] < 3 for peer in peers)
            for peers in found
        )

    # means

    def _registry(self, region: str, wanted: int, *flags: str) -> Registry:
        port = _port(region, wanted)
        data = ["--data-dir", str(self._folder / region)]
        arguments = ["registry", "serve", "--region", region, "--port", str(port), *data, *PACE, *flags]
        own = {"REGISTRY_ADMIN_KEY": self._key, "REGISTRY_FEDERATION_SECRET": self._secret}
        return Registry(region, f"http://127.0.0.1:{port}", self._child(region, arguments, own))

    def _child(self, name: str, arguments: list[str], env: dict[str, str]) -> Child:
        child = Child(name, self._folder, arguments, {**self._env, **env})
        self.children.append(child)  # first: Ctrl-C may come at any time
        child.start()
        return child

    def _command(self, at: Registry, command: str) -> str:
        program = Path(sys.executable).with_name("dagi-registry")
        return f"REGISTRY_ADMIN_KEY={self._key} {shlex.quote(str(program))} {command} --url {at.url}"

    def _wait(self, done: Callable[[], Json], complaint: str) -> Json:
        while not (found := done()):
            for child in self.children:
                child.check()
            if time.monotonic() > self._deadline:
                logs = "\n".join(f"{child.name}:\n{child.tail()}" for child in self.children)
                raise Failed(f"{complaint} in time\n{logs}")
            time.sleep(0.05)
        return found

    def _ask(self, url: str) -> Json:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._key}"})
        try:
            with _opener.open(request, timeout=3) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError, ValueError):
            return None


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # all of it is on this machine


def main() -> int:
    seconds = os.environ.get("DEMO_SECONDS", "").strip()
    if seconds and not seconds.replace(".", "", 1).isdigit():
        print(f"DEMO_SECONDS={seconds} is not a number of seconds", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="dagi-demo-"))
    demo = Demo(folder)
    try:
        demo.run(float(seconds) if seconds else None)
    except KeyboardInterrupt:
        print()
        _say("Stopping.")
    except Failed as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave anything
        for child in reversed(demo.children):
            child.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _say(line: str) -> None:
    """Words, as a comment: whatever is printed can be pasted."""
    print(f"# {line}" if line else "#", flush=True)


def _lines(at: Registry, node: Json) -> list[str]:
    """The URLs that the demo shows: all nodes, this one, and a search that it must be found by."""
    found = node["capabilities"]
    able = next((name for name in ("gpu", "ollama") if _available(found.get(name))), "cpu_cores")
    wanted = {"capability": able, "min_cpu_cores": found["cpu_cores"]}
    if found.get("models"):
        wanted["model"] = found["models"][0]
    base = f"{at.url}/api/v1/nodes"
    return [base, f"{base}/{node['node_id']}", f"{base}/discover?{urllib.parse.urlencode(wanted, safe=':/')}"]


def _available(value: object) -> bool:
    return value.get("available") is True if isinstance(value, dict) else bool(value)


def _facts(node: Json) -> list[str]:
    found = node["capabilities"]
    gpu = ", ".join(str(g.get("name")) for g in found["gpus"]) or "none found"
    ollama = found.get("ollama") or {}
    models = ", ".join(found["models"]) or "no models"
    return [
        f"Node    {node['node_id']}, {node['status']}",
        f"CPU     {found.get('cpu_model') or 'unknown'}, {found['cpu_cores']} cores",
        f"RAM     {found['ram_gb']} GB",
        f"Disk    {found['disk_gb']} GB",
        f"GPU     {gpu}",
        f"Ollama  {models if ollama.get('available') else 'not found: ' + str(ollama.get('reason'))}",
    ]


def _port(region: str, wanted: int) -> int:
    """The usual port, or a free one, and say so."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError):
            probe.bind(("127.0.0.1", 0))
            _say(f"Port {wanted} is taken; {region} uses {probe.getsockname()[1]}.")
        port: int = probe.getsockname()[1]
    return port


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
