"""Where the API's resources are."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NODES: Final = "/api/v1/nodes"
NODE: Final = "/api/v1/nodes/{node_id}"
KEYS: Final = "/api/v1/keys"
ALLOWLIST: Final = "/api/v1/allowlist"
AUDIT: Final = "/api/v1/audit"
FEDERATION: Final = "/api/v1/federation"
MEMBER: Final = "/api/v1/federation/members/{registry_id}"


def only(*methods: str) -> Handler:
    """For what stands under the name of something else: these methods alone."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, methods)

    return refuse
