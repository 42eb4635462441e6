"""Who is on the other end: the key it sends, and the address it comes from."""

import ipaddress
from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from registry.auth import Authenticator
from registry.directory import Entry
from registry.errors import ApiError, no_such_node
from registry.http.limits import Limits
from registry.http.paths import Handler
from registry.http.presented import from_worker, presented
from registry.http.round_trip import kernel_rtt_ms
from registry.keys import ANYONE, Principal
from registry.scopes import Query, narrowed


class Callers:
    """Identifies callers. Proxies' headers count only from the configured proxies."""

    def __init__(self, auth: Authenticator, trusted_proxies: Sequence[str], limits: Limits) -> None:
        self._auth = auth
        self._limits = limits
        self._proxies = [ipaddress.ip_network(item, strict=False) for item in trusted_proxies]

    def identify(self, request: web.Request) -> Principal:
        """The caller by its key and its certificate. Raises 401 for a bad key, 403 where the two do not agree, 429 for
        who asks too often: whoever has a good key is counted by it, others by their address."""
        try:
            who = self._auth.identify(request.headers.get("Authorization"))
        except ApiError as error:
            if error.status == 401 and not from_worker(request):  # which has counted it
                self._limits.failed(self.address(request))
            raise
        certificate = presented(request)
        if certificate is not None:
            who = self._auth.certified(who, certificate)
        if who.kind == "none":
            self.admit(request)
        elif who.kind != "admin":  # operators' tools ask as they must
            self._limits.of_key(who.key_hash or who.node_id or "")
        return who

    def known(self, request: web.Request) -> Principal:
        """The caller as far as it can be told, for the record: nothing is counted, nothing refused."""
        try:
            who = self._auth.identify(request.headers.get("Authorization"))
            certificate = presented(request)
            return who if certificate is None else self._auth.certified(who, certificate)
        except ApiError:
            return ANYONE

    def admit(self, request: web.Request) -> None:
        """Somebody, whoever it is. Raises 429 for an address that asks too often."""
        if self._limits.by_address and not from_worker(request):
            self._limits.of_address(self.address(request))

    def public(self, handler: Handler) -> Handler:
        """A handler of what anybody may ask, but not any number of times."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self.admit(request)
            return await handler(request)

        return handle

    def require_read(self, request: web.Request) -> Principal:
        """The caller, who may read."""
        who = self.identify(request)
        self._auth.require(who, "read")
        return who

    def narrowed(self, who: Principal, query: Query, aliases: Mapping[str, str]) -> Query:
        """The question as far as the caller may ask it. Raises 403."""
        return query if self._auth.open or not who.scope.is_narrow else narrowed(query, who.scope, aliases)

    def require_sight(self, who: Principal, entry: Entry) -> None:
        """Raise 404 for a node that the caller may not see, as if there were none."""
        if who.scope.is_narrow and not self._auth.open and not who.scope.admits(entry.region, entry.role):
            raise no_such_node(entry.node_id)

    def is_good_still(self, who: Principal) -> bool:
        """Whether the caller's key has not been revoked meanwhile, and has not ended."""
        try:
            self._auth.check_still(who)
        except ApiError:
            return False
        return True

    def on_key_change(self, hear: Callable[[str], None]) -> None:
        """Call that with the id of each key of which something new is known: it may have been revoked."""
        self._auth.on_key_change = hear

    def require_observe(self, request: web.Request) -> Principal:
        """The caller, who may read what tells of the whole."""
        who = self.identify(request)
        self._auth.require(who, "observe")
        return who

    def require_rekey(self, who: Principal, node_id: str) -> None:
        """Raise 401 or 403 unless the caller may replace that node's key."""
        self._auth.require(who, "rekey", node_id)

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

    def round_trip_ms(self, request: web.Request) -> float | None:
        """The round trip to the caller as the kernel knows it, in milliseconds; None where somebody stands between
        us and it. A connection from this machine is mostly a proxy's or a tunnel's that nobody told us of."""
        seen = request.remote or ""
        if (
            from_worker(request)
            or self._trusted(seen)
            or not _is_address(seen)
            or ipaddress.ip_address(seen).is_loopback
        ):
            return None
        transport = request.transport
        return kernel_rtt_ms(transport.get_extra_info("socket")) if transport is not None else None

    def _trusted(self, address: str) -> bool:
        return _is_address(address) and any(ipaddress.ip_address(address) in network for network in self._proxies)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
