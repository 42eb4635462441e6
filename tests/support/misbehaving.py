"""A server that answers each request with the bytes it is told to: what stands between an agent and its registry."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

Answer = bytes | None  # None: never
HANG: Answer = None


def http(status: str, body: bytes, *headers: str) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def json_answer(body: bytes) -> bytes:
    """A 200 with JSON."""
    return http("200 OK", body, "Content-Type: application/json")


@contextlib.asynccontextmanager
async def answering(answer: Callable[[bytes], Answer]) -> AsyncIterator[str]:
    """The URL of a server; `answer` gets the request's first line."""
    waiting = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [
                line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            ]
            await reader.readexactly(int(lengths[0]) if lengths else 0)
            raw = answer(head.split(b"\r\n")[0])
            if raw is None:
                await waiting.wait()
            else:
                writer.write(raw)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        waiting.set()
        server.close()
        await server.wait_closed()
