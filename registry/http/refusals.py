"""Who was turned away, for the audit log: where every answer passes, so that no route forgets it."""

from aiohttp import web

from registry.audit import Audit
from registry.errors import ApiError
from registry.http.caller import Callers
from registry.keys import ANYONE

_CODES = frozenset({"node_id_taken", "too_many_bad_keys"})  # beside every 401 and 403


class Refusals:
    """Notes requests that were refused for who sent them."""

    def __init__(self, audit: Audit, callers: Callers) -> None:
        self._audit = audit
        self._callers = callers

    def note(self, request: web.Request, route: str, error: ApiError) -> None:
        """Count one refusal; what is wrong with a request otherwise is nobody's business. `route`: with its method."""
        if error.status not in (401, 403) and error.code not in _CODES:
            return
        address = self._callers.address(request)
        if error.status == 401 or error.code == "too_many_bad_keys":
            outcome = error.code if "Authorization" in request.headers else "no_key"
            self._audit.note("authentication", ANYONE, "", address, outcome, route=route)
            return
        info = getattr(request, "_match_info", None)
        target = next(iter(info.values()), "") if info is not None else ""
        self._audit.note(route, self._callers.known(request), target, address, error.code)
