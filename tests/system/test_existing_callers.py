"""Callers that were there before this registry, byte for byte as they speak, in mode `open`."""

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.live import ADMIN_KEY, Process, running

NODES = "/api/v1/nodes"
QUICK = ("--heartbeat-interval-s", "0.1", "--degraded-after-s", "0.5", "--offline-after-s", "2.5")

AGENT: dict[str, Any] = {
    "node_name": "node-2-macbook",
    "node_role": "development",
    "node_type": "agent-host",
    "hostname": "MacBook-Pro.local",
    "ip_address": "192.0.2.33",
    "local_ip": "192.0.2.34",
    "capabilities": {
        "system": {"hostname": "MacBook-Pro.local", "platform": "Darwin", "cpu_count": 16, "memory_total_gb": 64.0},
        "gpu": {"available": True, "gpus": [{"name": "Apple M4 Max", "vram_gb": 48.0}], "count": 1},
        "ollama": {"available": True, "models": ["qwen3:8b", "deepseek-r1:70b"]},
        "services": ["router", "swapper"],
        "features": ["inference"],
    },
}
METRICS = {"cpu_percent": 12.5, "memory_percent": 50.0, "disk_percent": 25.0, "timestamp": "2025-11-23T10:00:00"}


class Caller:
    """HTTP with nothing added: the headers that the old programs sent, and the bytes that came back."""

    def __init__(self, process: Process) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", int(process.url.rpartition(":")[2]), timeout=10)

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, bytes]:
        sent = {"Accept": "*/*", "User-Agent": "python-requests/2.31.0"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = "application/json"
        self._connection.request(method, path, json.dumps(body) if body is not None else None, sent)
        answer = self._connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        status, kind, content = self.raw(method, path, body, **headers)
        assert status == 200, content
        assert kind == "application/json"
        return json.loads(content)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("existing") / "data", "--auth", "open") as process:
        yield process


@pytest.fixture
def caller(registry: Process) -> Iterator[Caller]:
    made = Caller(registry)
    yield made
    made.close()


@pytest.fixture
def node(caller: Caller) -> dict[str, Any]:
    registered: dict[str, Any] = caller.ask("POST", f"{NODES}/register", AGENT)
    return registered


def test_the_agent_registers_again_without_an_id_and_keeps_its_id(caller: Caller, node: dict[str, Any]) -> None:
    again = caller.ask("POST", f"{NODES}/register", AGENT)
    other = caller.ask("POST", f"{NODES}/register", {**AGENT, "local_ip": "192.0.2.35"})
    assert again["node_id"] == node["node_id"] != other["node_id"]
    assert node["node_id"].startswith("node-macbook-pro")
    assert again["metadata"]["first_registration"] == node["metadata"]["first_registration"]
    caller.ask("DELETE", f"{NODES}/{other['node_id']}")


def test_the_agent_heartbeats_and_registers_after_a_failure(caller: Caller, node: dict[str, Any]) -> None:
    node_id = node["node_id"]
    beat = {"node_id": node_id, "status": "online", "metrics": METRICS}
    assert caller.raw("POST", f"{NODES}/heartbeat", beat)[0] == 200
    assert caller.ask("GET", f"{NODES}/{node_id}")["metrics"] == METRICS
    caller.ask("DELETE", f"{NODES}/{node_id}")
    assert caller.raw("POST", f"{NODES}/heartbeat", beat)[0] == 404
    assert caller.ask("POST", f"{NODES}/register", AGENT)["node_id"] == node_id
    assert caller.raw("POST", f"{NODES}/heartbeat", beat)[0] == 200


def test_both_shapes_of_capabilities_can_be_read_back(caller: Caller, node: dict[str, Any]) -> None:
    seen = caller.ask("GET", f"{NODES}/{node['node_id']}")
    assert seen["role"] == seen["node_role"] == "development"
    assert seen["id"] == seen["node_id"]
    assert seen["capabilities"]["models"] == ["qwen3:8b", "deepseek-r1:70b"]
    assert seen["capabilities"]["gpu"] == "Apple M4 Max"
    nested = seen["metadata"]["capabilities"]
    assert nested["gpu"]["available"] is True
    assert nested["gpu"]["count"] == 1
    assert (nested["system"]["os"], nested["system"]["cpu_cores"], nested["system"]["ram_gb"]) == ("Darwin", 16, 64.0)
    assert "qwen3:8b" in [m if isinstance(m, str) else m["name"] for m in nested["ollama"]["models"]]


def test_the_page_lists_and_gets(caller: Caller, node: dict[str, Any]) -> None:
    listing = caller.ask("GET", NODES)
    assert listing["total"] == len(listing["nodes"]) == 1
    assert listing["nodes"][0] == caller.ask("GET", f"{NODES}/{node['node_id']}")


FOUND: list[dict[str, Any]] = [
    {},
    {"role": "development"},
    {"type": "agent-host", "status": "online"},
    {"capability": "gpu", "labels": []},
    {"role": "development", "type": None, "status": "", "capability": None, "labels": None},
    {"capability": "ollama", "page": 1},
]
NOT_FOUND: list[dict[str, Any]] = [
    {"role": "gateway"},
    {"type": "router"},
    {"status": "offline"},
    {"capability": "camera"},
    {"labels": ["gpu"]},
]


@pytest.mark.parametrize(("question", "count"), [*((q, 1) for q in FOUND), *((q, 0) for q in NOT_FOUND)], ids=repr)
def test_the_page_posts_discover(caller: Caller, node: dict[str, Any], question: dict[str, Any], count: int) -> None:
    answer = caller.ask("POST", f"{NODES}/discover", question)
    assert [n["node_id"] for n in answer["nodes"]] == [node["node_id"]] * count
    assert answer["total"] == count


def test_health_is_compact_json(caller: Caller) -> None:
    for path in ("/health", "/healthz"):
        status, kind, content = caller.raw("GET", path)
        assert (status, kind) == (200, "application/json")
        assert b'"status":"healthy"' in content
        assert b'": ' not in content


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;"
    "q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
JSON_METRICS = [
    "*/*",
    "application/json",
    "application/json, text/plain, */*",  # axios, whatever it is asked for
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",  # a browser's address line
]


@pytest.mark.parametrize("accept", JSON_METRICS)
def test_pages_read_metrics_as_json(caller: Caller, node: dict[str, Any], accept: str) -> None:
    metrics = caller.ask("GET", "/metrics", Accept=accept)
    assert list(metrics) == [
        "service", "uptime_seconds", "total_nodes", "online_nodes", "degraded_nodes", "offline_nodes",
        "uptime_percentage", "timestamp",
    ]  # fmt: skip
    counts = ("total_nodes", "online_nodes", "degraded_nodes", "offline_nodes", "uptime_percentage")
    assert [metrics[name] for name in counts] == [1, 1, 0, 0, 100.0]


@pytest.mark.parametrize("accept", [PROMETHEUS, "text/plain", "text/plain;version=0.0.4"])
def test_prometheus_reads_the_exposition(caller: Caller, node: dict[str, Any], accept: str) -> None:
    status, kind, content = caller.raw("GET", "/metrics", Accept=accept)
    assert status == 200
    assert kind.startswith("text/plain; version=0.0.4")
    assert b'\ndagi_registry_nodes{status="online"} 1.0\n' in content


def test_the_dashboard_shows_what_the_node_reported(caller: Caller, node: dict[str, Any]) -> None:
    beat = {"node_id": node["node_id"], "metrics": {**METRICS, "agent_count": 50}}
    caller.ask("POST", f"{NODES}/heartbeat", beat)
    page = caller.ask("GET", f"{NODES}/{node['node_id']}/dashboard")
    assert list(page) == ["node", "infra", "ai", "agents", "matrix", "monitoring"]
    assert page["node"]["roles"] == ["development"]
    assert page["node"]["modules"] == ["router", "swapper"]
    infra = page["infra"]
    assert infra["cpu_usage_pct"] == 12.5
    assert infra["gpus"] == [{"name": "Apple M4 Max", "vram_gb": 48.0, "used_gb": None, "sm_util_pct": None}]
    assert page["agents"] == {"total": 50}


def test_nothing_is_invented_for_a_node_that_tells_nothing(caller: Caller) -> None:
    bare = caller.ask("POST", f"{NODES}/register", {})
    node_id = bare["node_id"]
    try:
        assert bare["node_name"] == node_id
        assert bare["metrics"] == {}
        for name in ("hostname", "local_ip", "node_type", "status_reason"):
            assert bare[name] is None, name
        known = {name: value for name, value in bare["capabilities"].items() if value not in (None, [], {})}
        assert known == {}
        page = caller.ask("GET", f"{NODES}/{node_id}/dashboard")
        unknown = {"total_gb": None, "used_gb": None}
        assert page["infra"] == {"cpu_usage_pct": None, "ram": unknown, "disk": unknown, "gpus": []}
        assert [page[name] for name in ("agents", "matrix", "monitoring")] == [None, None, None]
        assert {page["ai"][name] for name in ("swapper", "router", "ollama")} == {None}
        assert page["node"]["gpu"] is None
        found = caller.ask("GET", f"{NODES}/discover")["nodes"]
        assert {(n["latency_ms"], n["latency_source"]) for n in found} == {(None, None)}
    finally:
        caller.ask("DELETE", f"{NODES}/{node_id}")


def test_the_profile_is_the_node_without_how_it_fares(caller: Caller, node: dict[str, Any]) -> None:
    profile = caller.ask("GET", f"{NODES}/{node['node_id']}/profile")
    assert profile["node_id"] == node["node_id"]
    assert profile["capabilities"] == node["capabilities"]
    assert not {"metrics", "last_heartbeat"} & set(profile)


def test_clean_up_removes_what_has_long_been_offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("cleanup") / "data", "--auth", "open", *QUICK) as process:
        caller = Caller(process)
        empty = caller.ask("GET", "/metrics")
        assert empty["total_nodes"] == 0
        assert empty["uptime_percentage"] is None
        caller.ask("POST", f"{NODES}/register", {"node_id": "silent"})
        while caller.ask("GET", f"{NODES}/silent")["status"] != "offline":
            time.sleep(0.02)  # ends by the test's own time limit
        key = {"Authorization": f"Bearer {ADMIN_KEY}"}
        clean_up = "/api/v1/maintenance/cleanup"
        assert caller.raw("POST", clean_up)[0] == 401
        assert caller.ask("POST", clean_up, **key)["removed"] == 0  # not for an hour yet
        caller.ask("POST", f"{NODES}/register", {"node_id": "alive"})
        answer = caller.ask("POST", f"{clean_up}?older_than_s=0", **key)
        assert (answer["removed"], answer["node_ids"]) == (1, ["silent"])
        assert [n["node_id"] for n in caller.ask("GET", NODES)["nodes"]] == ["alive"]
        caller.close()
