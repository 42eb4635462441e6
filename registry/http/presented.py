"""The certificate that a caller presented: looked at once a connection, or told by another worker of ours."""

import time
from typing import Any, Final

from aiohttp import web

from registry.certificates import Certificate, certificate_of, packed, unpacked

HEADER: Final = "X-Dagi-Certificate"  # between workers only; whoever else sends it is not listened to
_BY_WORKER: Final = object()
_UNSEEN: Final = object()


def presented(request: web.Request) -> Certificate | None:
    """The caller's certificate, if it has one that our authority vouches for. A connection that has outlived its
    certificate ends after this request: the next handshake decides."""
    protocol: Any = request.protocol
    seen: object = getattr(protocol, "presented", _UNSEEN)
    if seen is _UNSEEN:
        seen = protocol.presented = _look(request)
    if seen is None:
        return None
    if seen is _BY_WORKER:
        told = request.headers.get(HEADER)
        return unpacked(told) if told else None
    assert isinstance(seen, Certificate)
    if seen.expires_s <= time.time():
        protocol.close()
    return seen


def passed_on(request: web.Request) -> dict[str, str]:
    """The header that tells the worker that writes of it."""
    certificate = presented(request)
    return {HEADER: packed(certificate)} if certificate is not None else {}


def from_worker(request: web.Request) -> bool:
    """Whether another worker of this registry passes the request on: over a socket file, which only it has."""
    transport = request.transport
    return transport is not None and isinstance(transport.get_extra_info("sockname"), str)


def _look(request: web.Request) -> object | None:
    if from_worker(request):
        return _BY_WORKER
    peercert = request.transport.get_extra_info("peercert") if request.transport is not None else None
    return certificate_of(peercert) if peercert else None
