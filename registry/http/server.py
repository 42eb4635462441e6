"""The outermost layer: every answer passes here, also those that aiohttp makes by itself.

aiohttp answers some requests before or beside any middleware (its parser's 400, an unknown
Expect, a payload that will not decode). Here each of them becomes a problem document.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from federation.tls import abort
from registry.audit import caller_address
from registry.errors import ApiError
from registry.http.caller import Callers
from registry.http.forward import Interrupted
from registry.http.limits import (
    KEEPALIVE_S,
    LINGER_S,
    MOST_FIELD_BYTES,
    MOST_HEAD_BYTES,
    MOST_HEADERS,
    MOST_LINE_BYTES,
    MOST_LINGER_BYTES,
    Limits,
)
from registry.http.paths import Handler
from registry.http.patience import Patience
from registry.http.refusals import Refusals
from registry.http.wire import answer_problem, too_large
from registry.logs import event
from registry.metrics import Metrics
from registry.ports import StoreUnavailable
from registry.service import NotWriter

RETRY_AFTER_S = 2
_LIMITS = {"body_too_large": "body_size", "request_timeout": "body_time", "too_many_watchers": "watchers"}
# Whoever asks too much should not be able to ask again at once; and of a body that is refused the rest may never end.
_FINAL = frozenset({"request_timeout", "body_too_large", "too_many_requests", "too_many_bad_keys"})
CALLER_GONE = 499  # nobody reads it
DRAIN_POLL_S = 0.02
PASSED_ON_S = 0.3  # after a drain, for what other workers have passed on at its last moment
_CORS = {
    "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "600",
}


class Gate:
    """Times, counts and finishes every request; turns whatever went wrong into a problem.

    `hot` holds the handlers of most of the traffic by method and path: they are called without asking
    the router, which would find the same.
    """

    def __init__(
        self,
        app: web.Application,
        metrics: Metrics,
        cors_origins: Sequence[str],
        hot: Mapping[tuple[str, str], Handler],
        forward: Callable[[web.Request], Awaitable[web.StreamResponse | None]],
        callers: Callers,
        limits: Limits,
        refusals: Refusals,
    ) -> None:
        """`forward` asks the worker that writes; None: that is us now."""
        self.limits = limits
        self._callers = callers
        self._app = app
        self._forward = forward
        self._refusals = refusals
        self._hot = hot
        self._metrics = metrics
        self._origins = frozenset(cors_origins)
        if self._origins:
            app.on_response_prepare.append(self._on_prepare)  # streams send their head before they come back here

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        if request.transport is None or request.transport.is_closing():
            # It waited while we stood still, and its caller has gone: a node's heartbeat, perhaps, that is at
            # another registry since, and would be taken from there as if it had been sent now.
            return web.Response(status=CALLER_GONE)
        started = perf_counter()
        path, _, _ = request.raw_path.partition("?")
        hot = self._hot.get((request.method, path)) if "Expect" not in request.headers else None
        response = await self._answered(request, hot)
        seconds = perf_counter() - started
        headers = response.headers
        headers["Server-Timing"] = f"app;dur={seconds * 1000:.2f}"
        if self._origins:
            self._allow_origin(request, headers)
        if hot is not None:
            self._metrics.observe_request(path, request.method, response.status, seconds)
        else:
            self._metrics.observe_request(_route(request), _method(request), response.status, seconds)
        return response

    async def _answered(self, request: web.Request, hot: Handler | None) -> web.StreamResponse:
        try:
            for _ in range(2):  # where we have become the writer ourselves, there is nobody else to ask
                try:
                    return await (self._routed(request) if hot is None else hot(request))
                except NotWriter:
                    forwarded = await self._forward(request)
                if forwarded is not None:
                    return forwarded
            raise StoreUnavailable("down", "the region's writer changes too often")
        except Interrupted:
            return answer_problem(_store_problem(StoreUnavailable("slow")))
        except ApiError as error:
            asked = f"{_method(request)} {_route(request) if hot is None else request.path}"
            self._refusals.note(request, asked, error)
            return self._refused(error)
        except StoreUnavailable as error:
            self._metrics.store_failures.labels(error.reason).inc()
            if error.reason == "busy":
                self.limits.count("waiting_writes")
            return answer_problem(_store_problem(error))
        except web.HTTPException as error:
            return self._refused(self._without_route(request, _translated(error)))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            event("handler_failed", logging.ERROR, exc_info=True, method=request.method, route=_route(request))
            return answer_problem(ApiError("internal", "The registry failed on this request; its log says why."))

    def _without_route(self, request: web.Request, error: ApiError) -> ApiError:
        """No handler has looked at who asks for what is not there."""
        try:
            self._callers.admit(request)
        except ApiError as refusal:
            return refusal
        return error

    def _refused(self, error: ApiError) -> web.Response:
        limit = _LIMITS.get(error.code)
        if limit is not None:
            self.limits.count(limit)
        response = answer_problem(error)
        if error.code in _FINAL:
            response.force_close()
        return response

    async def _routed(self, request: web.Request) -> web.StreamResponse:
        if self._origins and request.method == "OPTIONS" and "Origin" in request.headers:
            return web.Response(status=204, headers=_CORS)
        caller_address.set(partial(self._callers.address, request))
        try:
            return await self._app._handle(request)
        finally:
            caller_address.set(None)  # a connection that idles keeps no request

    async def _on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        self._allow_origin(request, response.headers)

    def _allow_origin(self, request: web.Request, headers: Any) -> None:
        origin = request.headers.get("Origin", "")
        headers["Vary"] = "Origin"
        if "*" in self._origins or origin in self._origins:
            headers["Access-Control-Allow-Origin"] = origin or "*"


def _store_problem(error: StoreUnavailable) -> ApiError:
    words = {
        "down": "cannot be reached",
        "slow": "does not answer in time",
        "read_only": "takes no writes",
        "out_of_memory": "is out of memory",
        "busy": "has too much to do",
    }.get(error.reason, "refuses the request")
    return ApiError(
        "store_unavailable",
        f"The registry's store {words}; what was asked may not have been done, try again.",
        retry_after_s=RETRY_AFTER_S,
    )


def _translated(error: web.HTTPException) -> ApiError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allow = ", ".join(sorted(error.allowed_methods))
        return ApiError("method_not_allowed", f"This route takes {allow}.", allow=allow)
    if error.status == 404:
        return ApiError("no_such_route", "There is nothing at this path; /docs lists what there is.")
    if error.status == 413:
        return too_large()
    if error.status == 417:
        return ApiError("expectation_failed", "Only 'Expect: 100-continue' is understood.")
    return ApiError("bad_request", "The request could not be understood.", status=error.status)


def _route(request: web.BaseRequest) -> str:
    info = getattr(request, "_match_info", None)
    resource = info.route.resource if info is not None else None
    return resource.canonical if resource is not None else "unmatched"


_METHODS = frozenset({"GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"})


def _method(request: web.BaseRequest) -> str:
    return request.method if request.method in _METHODS else "other"  # bounds the metric's labels


class Visit(Protocol):
    """Who let a connection in, and wants to know what becomes of it."""

    connection: "Connection | None"

    def over(self) -> None:
        """It is closed."""


class Connection(RequestHandler):
    """aiohttp's connection, with its own error answers made problem documents, and less patience."""

    __slots__ = ("_head_bytes", "_patience", "_visit", "presented")  # `presented`: see registry.http.presented

    def __init__(self, server: web.Server, patience: Patience, visit: Visit | None, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._patience = patience
        self._visit = visit
        self._head_bytes = 0

    @property
    def of_worker(self) -> bool:
        """Whether it is another worker's of this registry: those come through no door."""
        return self._visit is None

    @property
    def is_link(self) -> bool:
        """Whether it has become a WebSocket: a registry's link."""
        return self._payload_parser is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has come, and should ask."""
        super().connection_made(transport)
        self._patience.await_head(self)
        if self._visit is not None:
            self._visit.connection = self

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed."""
        super().connection_lost(exc)
        self._patience.forget(self)
        if self._visit is not None:
            self._visit.over()

    def data_received(self, data: bytes) -> None:
        """Some bytes; a request's head that is not whole yet is waited for, not for ever."""
        super().data_received(data)
        waiter = self._waiter
        if self._messages:
            self._head_bytes = 0
            self._patience.heads.pop(self, None)
        elif waiter is not None and not waiter.done() and data:
            self._patience.await_head(self)
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._messages.append((_ErrInfo(status=431, exc=HttpProcessingError(), message=""), EMPTY_PAYLOAD))
                waiter.set_result(None)
        elif waiter is None and not self._request_in_progress:  # the rest of a body that has had its answer
            self._head_bytes += len(data)
            if self._head_bytes > MOST_LINGER_BYTES:
                self.cut()

    def pause_writing(self) -> None:
        """What we wrote is not taken."""
        super().pause_writing()
        if not self.is_link:  # which has a patience of its own
            self._patience.await_reader(self)

    def resume_writing(self) -> None:
        """It is."""
        super().resume_writing()
        self._patience.answers.pop(self, None)

    def cut(self) -> None:
        """End it now, whatever is left to be written."""
        if self.transport is not None:
            abort(self.transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to bytes that are not HTTP, or over the parser's limits; nothing is echoed."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was already under way")
        if status >= 500:
            event("connection_failed", logging.ERROR, error=repr(exc))
            error = ApiError("internal", "The registry failed on this request; its log says why.")
        else:
            error = _unparsed(status, exc)
            if error.status in (414, 431):
                self._patience.count("head_size")
        response = answer_problem(error)
        response.force_close()
        return response


def _unparsed(status: int, error: BaseException | None) -> ApiError:
    """What to say of bytes that the parser gave up on."""
    if isinstance(error, LineTooLong) and error.args[1] == MOST_LINE_BYTES:
        return ApiError("bad_request", "The request's URL is too long; POST the question as JSON instead.", status=414)
    if status == 431 or isinstance(error, LineTooLong) or "Too many headers" in str(error):
        most = f"{MOST_HEADERS} headers of {MOST_FIELD_BYTES} bytes each, {MOST_HEAD_BYTES} in all"
        return ApiError("headers_too_large", f"Send at most {most}.")
    return ApiError("bad_request", "The bytes sent are not a valid HTTP request.", status=status)


class _Server(web.Server):
    def __init__(self, handler: Any, patience: Patience, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self._patience = patience

    def __call__(self) -> RequestHandler:
        return self.connection(None)

    def connection(self, visit: Visit | None) -> Connection:
        return Connection(self, self._patience, visit, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs the app behind its gate."""

    def __init__(self, app: web.Application, gate: Gate, **kwargs: Any) -> None:
        super().__init__(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            max_headers=MOST_HEADERS,
            max_line_size=MOST_LINE_BYTES,
            max_field_size=MOST_FIELD_BYTES,
            auto_decompress=False,  # see wire.read_body
            **kwargs,
        )
        self._gate = gate
        self._patience = Patience(gate.limits.count)
        self._sweeping: asyncio.Task[None] | None = None

    async def setup(self) -> None:
        """Get ready for sites."""
        await super().setup()
        self._sweeping = asyncio.create_task(self._patience.run(), name="patience")

    async def cleanup(self) -> None:
        """Stop everything."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await super().cleanup()

    def connection(self, visit: Visit) -> Connection:
        """A connection that a door lets in."""
        assert isinstance(self.server, _Server)
        return self.server.connection(visit)

    async def drain(self, limit_s: float, passed_on: Callable[[], bool]) -> None:
        """Take no new connection, and finish what is in flight, also a body that is still arriving:
        aiohttp by itself stops reading at once. Links last, and have a goodbye of their own. `cleanup` ends what is
        left after `limit_s`. While `passed_on` says that other workers may have something in flight that only we can
        do, what they come through stays open until then, and a moment is left for what has come."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        deadline_s = until_s + (PASSED_ON_S if passed_on() else 0.0)
        while (now_s := loop.time()) < deadline_s:
            for_others = passed_on() and now_s < until_s
            for site in list(self.sites):
                if not (for_others and isinstance(site, web.UnixSite)):
                    await site.stop()
            here = self.server.connections if self.server is not None else []
            callers = [
                each
                for each in here
                if isinstance(each, Connection) and not each.is_link and not (for_others and each.of_worker)
            ]
            idle = [connection for connection in callers if not connection._request_in_progress]
            for connection in idle:
                connection.close()
            if len(idle) == len(callers) and not for_others:
                return
            await asyncio.sleep(DRAIN_POLL_S)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        kwargs = dict(made._kwargs)
        return _Server(
            self._gate.handle,
            self._patience,
            request_factory=made.request_factory,
            loop=asyncio.get_running_loop(),
            **kwargs,
        )
