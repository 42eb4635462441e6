"""What the registry is measured against: aiohttp with one handler that parses the body and answers."""

import argparse
import asyncio
import signal
import socket
from pathlib import Path

import orjson
import uvloop
from aiohttp import web

_JSON = {"Content-Type": "application/json"}


def make_app(path: str, answer: bytes) -> web.Application:
    """Any request on `path` is answered with `answer`, after its body, if any, was parsed."""

    async def handler(request: web.Request) -> web.Response:
        if request.body_exists:
            orjson.loads(await request.read())
        return web.Response(body=answer, headers=_JSON)

    app = web.Application()
    app.router.add_route("*", path, handler)
    return app


async def _serve(path: str, answer: bytes) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    listener = socket.create_server(("127.0.0.1", 0))
    app = make_app(path, answer)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=75.0, handle_signals=False)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=1024).start()
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="the path to answer on")
    parser.add_argument("answer", type=Path, help="file with the bytes to answer")
    given = parser.parse_args()
    uvloop.run(_serve(given.path, given.answer.read_bytes()))
