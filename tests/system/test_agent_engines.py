"""Models of engines other than Ollama, from a real agent to whoever asks a real registry for them."""

import contextlib
from pathlib import Path
from typing import Any

from tests.support.agents import NO_OLLAMA, AgentProcess, agent
from tests.support.engines import Engine, answers, engine
from tests.support.live import Process, running, session, until

FAST = ("--auth", "open", "--heartbeat-interval-s", "0.2", "--degraded-after-s", "20", "--offline-after-s", "60")


async def holders(url: str, model: str) -> list[dict[str, Any]]:
    async with session(url) as caller, caller.get("/api/v1/nodes/discover", params={"model": model}) as answer:
        assert answer.status == 200
        found: list[dict[str, Any]] = (await answer.json())["nodes"]
        return found


def agent_of(registry: Process, vllm: Engine, folder: Path) -> contextlib.AbstractAsyncContextManager[AgentProcess]:
    env = {"OLLAMA_BASE_URL": NO_OLLAMA, "NODE_ENGINE_URLS": vllm.url}
    return agent(folder / "node", "-m", "agent", "bootstrap", "--registry-url", registry.url, env=env)


def running_there(node: dict[str, Any]) -> int | None:
    """How many requests vLLM runs there, once that is known."""
    engines = node["metrics"].get("engines", {})
    return engines["vllm"]["requests_running"] if "vllm" in node["metrics"].get("services", ()) else None


async def test_what_vllm_serves_is_found_also_while_it_is_silent_and_what_it_serves_afterwards(tmp_path: Path) -> None:
    with running(tmp_path / "data", *FAST) as registry:
        async with engine(answers("vllm")) as vllm, agent_of(registry, vllm, tmp_path) as node:
            await node.says("registered as")

            async def measured() -> bool:
                found = await holders(registry.url, "Qwen/Qwen2.5-7B-Instruct")
                return [each["node_id"] for each in found] == [node.node_id] and running_there(found[0]) == 3

            await until(measured)
            vllm.answers = {}

            async def silent() -> bool:
                (shown,) = await holders(registry.url, "Qwen/Qwen2.5-7B-Instruct")
                return shown["metrics"]["engines"]["vllm"]["state"] == "silent"

            await until(silent)
            assert node.output.count("registered as") == 1
            vllm.answers = answers("vllm")
            vllm.answers["/v1/models"]["data"][0]["id"] = "Qwen/Qwen3-8B"

            async def restarted_with_another() -> bool:
                return bool(await holders(registry.url, "Qwen/Qwen3-8B"))

            await until(restarted_with_another)
            assert await holders(registry.url, "Qwen/Qwen2.5-7B-Instruct") == []
