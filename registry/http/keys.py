"""Handlers of API keys. Every one but a node's own is an operator's."""

from aiohttp import web

from registry.api_keys import ApiKeys
from registry.errors import invalid
from registry.http.caller import Callers
from registry.http.paths import KEYS, NODE
from registry.http.wire import answer_json, no_query, query_of, read_json
from registry.key_model import KeyRequest, KeysQuery, RotateRequest
from registry.keys import is_key_id
from registry.model import parse


class KeyHandlers:
    """One method a route."""

    def __init__(self, keys: ApiKeys, callers: Callers) -> None:
        self._keys = keys
        self._callers = callers

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.post(f"{NODE}/key", self.rotate_node),
            web.post(KEYS, self.create),
            web.get(KEYS, self.list),
            web.get(f"{KEYS}/{{key_id}}", self.get),
            web.delete(f"{KEYS}/{{key_id}}", self.revoke),
            web.post(f"{KEYS}/{{key_id}}/rotate", self.rotate),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """POST /keys."""
        who = self._callers.require_operator(request)
        no_query(request)
        return answer_json(await self._keys.create(who, parse(KeyRequest, await read_json(request))))

    async def list(self, request: web.Request) -> web.Response:
        """GET /keys."""
        self._callers.require_operator(request)
        return answer_json(self._keys.listed(query_of(request, KeysQuery)))

    async def get(self, request: web.Request) -> web.Response:
        """GET /keys/{key_id}."""
        self._callers.require_operator(request)
        no_query(request)
        return answer_json(self._keys.shown(_key_id(request)))

    async def revoke(self, request: web.Request) -> web.Response:
        """DELETE /keys/{key_id}."""
        who = self._callers.require_operator(request)
        no_query(request)
        return answer_json(await self._keys.revoke(who, _key_id(request)))

    async def rotate(self, request: web.Request) -> web.Response:
        """POST /keys/{key_id}/rotate."""
        who = self._callers.require_operator(request)
        no_query(request)
        return answer_json(await self._keys.rotate(who, _key_id(request), await _overlap_s(request)))

    async def rotate_node(self, request: web.Request) -> web.Response:
        """POST /nodes/{node_id}/key."""
        who = self._callers.identify(request)
        no_query(request)
        node_id = request.match_info["node_id"]
        self._callers.require_rekey(who, node_id)  # before a word is said of the body
        return answer_json(await self._keys.rotate_node(who, node_id, await _overlap_s(request)))


async def _overlap_s(request: web.Request) -> int:
    """From a body, which may be left out."""
    asked = parse(RotateRequest, await read_json(request)) if request.can_read_body else RotateRequest()
    return asked.overlap_s


def _key_id(request: web.Request) -> str:
    key_id = request.match_info["key_id"]
    if not is_key_id(key_id):
        raise invalid("key_id", "is no key's id: 24 hexadecimal digits; a key itself does not belong in a URL")
    return key_id
