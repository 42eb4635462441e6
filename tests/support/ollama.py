"""An Ollama for tests: its documented answers, field for field, served as bytes on a real port."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

VERSION = b'{"version":"0.12.6"}'

# GET /api/tags: two local models and one that runs in the cloud (`remote_host`).
TAGS = (
    b'{"models":['
    b'{"name":"qwen3:8b","model":"qwen3:8b","modified_at":"2025-10-03T23:34:03.409490317-07:00","size":5225388164,'
    b'"digest":"500a1f067a9f782620b40bee6f7b0c89e17ae61f686b92c24933e4ca4b2b8b41","details":{"parent_model":"",'
    b'"format":"gguf","family":"qwen3","families":["qwen3"],"parameter_size":"8.2B","quantization_level":"Q4_K_M"}},'
    b'{"name":"nomic-embed-text:latest","model":"nomic-embed-text:latest",'
    b'"modified_at":"2025-09-01T08:00:00.000000001Z","size":274302450,'
    b'"digest":"0a109f422b47e3a30ba2b10eca18548e944e8a23073ee3f3e947efcf3c45e59f","details":{"parent_model":"",'
    b'"format":"gguf","family":"nomic-bert","families":null,"parameter_size":"137M","quantization_level":"F16"}},'
    b'{"name":"big:480b-cloud","model":"big:480b-cloud","remote_model":"big:480b","remote_host":"https://example.org",'
    b'"modified_at":"2025-10-03T23:34:03Z","size":382,'
    b'"digest":"e30e45586389e2a1dbdbf5d4e8ed1a2a7d9f5b9b4d8f5ef1d3f4f2e8d1c0b9a8","details":{"parent_model":"",'
    b'"format":"","family":"big","families":["big"],"parameter_size":"480000000000","quantization_level":"BF16"}}'
    b"]}"
)

# GET /api/ps: one of them is loaded.
RUNNING = (
    b'{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size":6591830464,'
    b'"digest":"500a1f067a9f782620b40bee6f7b0c89e17ae61f686b92c24933e4ca4b2b8b41","details":{"parent_model":"",'
    b'"format":"gguf","family":"qwen3","families":["qwen3"],"parameter_size":"8.2B","quantization_level":"Q4_K_M"},'
    b'"expires_at":"2025-10-04T00:33:52.83753-07:00","size_vram":5333539264,"context_length":4096}]}'
)

PULLED = TAGS.replace(b'{"models":[', b'{"models":[{"name":"mistral:7b","size":4113301824},')


class Ollama:
    """What it answers; a test may change it while it runs."""

    def __init__(self) -> None:
        self.answers = {"/api/version": VERSION, "/api/tags": TAGS, "/api/ps": RUNNING}
        self.url = ""
        self.asked: list[tuple[str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        """Answer, and remember what was asked."""
        self.asked.append((request.method, request.path))
        body = self.answers.get(request.path)
        if body is None:
            return web.Response(status=404, text="404 page not found")
        return web.Response(body=body, content_type="application/json")


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Ollama]:
    """An Ollama on a free port of loopback."""
    ollama = Ollama()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", ollama.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ollama.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield ollama
    finally:
        await runner.cleanup()
