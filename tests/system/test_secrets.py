"""Secrets that are given to a registry come out nowhere: not in answers, logs, metrics, files, or process lists."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from registry.logs import scrubbed
from registry.settings import ConfigurationError, load
from tests.support.live import Process, clean_environment, running, session
from tests.support.valkey import valkey

MARK = "PLANTEDxSECRET"
ADMIN = f"sk-admin-{MARK}-admin-{'a' * 30}"
FEDERATION = f"{MARK}-federation-{'f' * 30}"
STORE = f"{MARK}-store"
NODE, JOIN = f"sk-node-{MARK}-node", f"sk-join-{MARK}-join"


def printed(data_dir: Path) -> str:
    """Everything that lies in the folder in plain: what the store keeps is looked through by its own rows."""
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    return "".join(f"{path.name}\n{path.read_text(errors='replace')}" for path in files)


def process_list(process: Process) -> str:
    """Command lines of the registry and of all that it started."""
    root = psutil.Process(process.popen.pid)
    return "\n".join(" ".join(each.cmdline()) for each in [root, *root.children(recursive=True)])


async def ask(client: aiohttp.ClientSession, method: str, path: str, key: str | None, **options: Any) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with client.request(method, path, headers={**headers, **options.pop("headers", {})}, **options) as answer:
        return f"{answer.status} {dict(answer.headers)} {await answer.text()}"


async def everything(client: aiohttp.ClientSession) -> AsyncIterator[str]:
    """Answers to all that one can do wrong with a key in hand, and to what tells of the registry."""
    nodes = "/api/v1/nodes"
    for key in (ADMIN, NODE, JOIN, f"{ADMIN}x", FEDERATION):
        yield await ask(client, "POST", f"{nodes}/register", key, json={"node_id": "n1", "labels": ["x"]})
        yield await ask(client, "POST", f"{nodes}/register", key, json={"node_id": 7, "ram_gb": "much"})
        yield await ask(client, "POST", f"{nodes}/register", key, data="{")
        yield await ask(client, "POST", f"{nodes}/heartbeat", key, json={"node_id": "n1", "token": NODE})
        yield await ask(client, "GET", f"{nodes}/nobody?min_version=x", key)
        yield await ask(client, "PATCH", f"{nodes}/n1", key, json={"status": "elsewhere"})
        yield await ask(client, "GET", f"{nodes}/discover?limit=-1", key)
        yield await ask(client, "DELETE", "/api/v1/federation/members/x", key)
        yield await ask(client, "GET", "/federation/v1/link", key)
        yield await ask(client, "GET", "/", None, headers={"X-Api-Key": key, "Cookie": f"key={key}"})
    for path in ("/", "/health", "/readyz", "/api/v1/federation", "/api/v1/audit", "/openapi.json", "/api/v1/keys"):
        yield await ask(client, "GET", path, ADMIN)
    yield await ask(client, "GET", "/metrics", ADMIN, headers={"Accept": "text/plain"})


async def test_nothing_that_is_given_in_confidence_comes_out_again(tmp_path: Path) -> None:
    env = {"REGISTRY_ADMIN_KEY": ADMIN, "REGISTRY_FEDERATION_SECRET": FEDERATION}
    with valkey(tmp_path / "store", f"requirepass {STORE}") as store:
        env["REGISTRY_REDIS_URL"] = store.url.replace("unix://", f"unix://:{STORE}@")
        with running(tmp_path / "data", "--log-level", "debug", env=env) as process:
            async with aiohttp.ClientSession(process.url) as client:
                answers = [text async for text in everything(client)]
            shown = process_list(process)
            store.kill()  # what is said of a store that is away
            async with session(process.url, ADMIN) as client:
                answers.append(await ask(client, "POST", "/api/v1/nodes/register", ADMIN, json={"node_id": "n2"}))
    answered = "\n".join(answers)
    assert "200 " in answered
    assert " 401 " not in answers[0]
    assert "registry" in shown
    for where, text in (
        ("answers", answered), ("log", process.output()), ("process list", shown),
        ("files", printed(tmp_path / "data")),
    ):  # fmt: skip
        assert MARK not in text, (where, re.findall(f".{{60}}{MARK}.{{20}}", text)[:3])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_REDIS_URL", f"redis://:{MARK}@/nowhere:x"),
        ("REGISTRY_REDIS_URL", f"http://u:{MARK}@host"),
        ("REGISTRY_REDIS_URL", f"redis://:{MARK}/with/slashes@host:6379"),
        ("REGISTRY_ADMIN_KEY", MARK),
        ("REGISTRY_ADMIN_KEY", f"sk-admin-{MARK} with spaces and long enough all the same"),
        ("REGISTRY_FEDERATION_SECRET", MARK),
        ("REGISTRY_PEERS", f"htp://u:{MARK}@host"),
        ("REGISTRY_ADVERTISE_URL", f"u:{MARK}@host"),
        ("REGISTRY_ADVERTISE_URL", f"htp://u:{MARK}@host"),
    ],
)
def test_a_wrong_setting_is_told_without_its_secret(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load({}, None)
    assert MARK not in str(refused.value)


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("REGISTRY_ADMIN_KEY", ADMIN), ("REGISTRY_FEDERATION_SECRET", FEDERATION),
        ("REGISTRY_REDIS_URL", f"redis://:{STORE}@192.0.2.1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    settings = load({}, None)
    assert MARK not in repr(settings) + str(settings) + json.dumps(settings.audited)
    assert settings.secrets == [ADMIN, FEDERATION, STORE]


CRASHES = """
import asyncio
from registry import logs
from registry.settings import load

settings = load({}, None)
logs.configure("json", "info")
logs.conceal(*settings.secrets)
what = settings.redis_url.get_secret_value() + " Bearer " + settings.admin_key.get_secret_value()

async def task():
    raise ValueError(settings.federation_secret.get_secret_value())

async def leave_a_task():
    left = asyncio.create_task(task())
    await asyncio.sleep(0)

asyncio.run(leave_a_task())
try:
    raise KeyError(what)
except KeyError:
    logs.event("handler_failed", 40, exc_info=True, field=what)
raise RuntimeError(what)
"""


def test_a_crash_prints_its_trace_and_no_secrets() -> None:
    """In a task that nobody asked for, in what is logged, and at the end of the process."""
    env = {
        **clean_environment(), "REGISTRY_ADMIN_KEY": ADMIN, "REGISTRY_FEDERATION_SECRET": FEDERATION,
        "REGISTRY_REDIS_URL": f"redis://:{STORE}@192.0.2.1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CRASHES], env=env, cwd="/", capture_output=True, text=True, timeout=30)
    text = done.stdout + done.stderr
    assert text.count("Traceback") == 3, text
    assert MARK not in text
    assert "***" in text
    assert done.returncode == 1


def test_keys_and_passwords_of_anybody_are_taken_out_of_logs() -> None:
    for kind in ("node", "read", "join", "admin"):
        assert scrubbed(f"Bearer sk-{kind}-{MARK}.") == f"Bearer sk-{kind}-***."
    assert scrubbed(f"redis://u:{MARK}@192.0.2.1:6379/0") == "redis://***@192.0.2.1:6379/0"
    assert scrubbed("https://192.0.2.1/a node@home sk-node-") == "https://192.0.2.1/a node@home sk-node-"
