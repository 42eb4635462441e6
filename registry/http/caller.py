"""Who is on the other end: the key it sends, and the address it comes from."""

import ipaddress
from collections.abc import Sequence

from aiohttp import web

from registry.auth import Authenticator
from registry.http.presented import from_worker, presented
from registry.keys import Principal


class Callers:
    """Identifies callers. Proxies' headers count only from the configured proxies."""

    def __init__(self, auth: Authenticator, trusted_proxies: Sequence[str]) -> None:
        self._auth = auth
        self._proxies = [ipaddress.ip_network(item, strict=False) for item in trusted_proxies]

    def identify(self, request: web.Request) -> Principal:
        """The caller by its key and its certificate. Raises 401 for a bad key, 403 where the two do not agree."""
        who = self._auth.identify(request.headers.get("Authorization"))
        certificate = presented(request)
        return who if certificate is None else self._auth.certified(who, certificate)

    def require_read(self, request: web.Request) -> Principal:
        """The caller, who may read."""
        who = self.identify(request)
        self._auth.require(who, "read")
        return who

    def require_operator(self, request: web.Request) -> Principal:
        """The caller, who may operate the registry."""
        who = self.identify(request)
        self._auth.require(who, "operate")
        return who

    def address(self, request: web.Request) -> str:
        """The address the caller came from: the nearest one that is not a trusted proxy's."""
        seen = request.remote or ""
        if from_worker(request) or (self._proxies and self._trusted(seen)):
            for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
                candidate = hop.strip()
                if not _is_address(candidate):
                    break
                seen = candidate
                if not self._trusted(candidate):
                    break
        return seen

    def _trusted(self, address: str) -> bool:
        return _is_address(address) and any(ipaddress.ip_address(address) in network for network in self._proxies)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
