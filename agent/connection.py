"""One request to one registry, its limits, and why it got no answer in words."""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

from agent.config import ConfigurationError
from agent.session import Outcome
from agent.wire import read_answer, server_ms
from federation.tls import Certificates, Files, UnusableError, alert_sentence

SILENCE_S = 2.0  # nothing comes for so long: the next registry is asked
WHOLE_S = 10.0  # a body that drips never falls silent
KEPT_S = 70.0  # registries close idle connections after 75 s; home routers forget them a little later
MAX_ANSWER_BYTES = 16 * 2**20  # a page of 1,000 nodes of 4 KB is a quarter of it
Json = Any


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request ended. `warm`: its connection had been used before; `rtt_ms` is the network's part.
    `dropped`: a warm connection was closed before anything came."""

    outcome: Outcome
    data: Json = None
    took_ms: float = 0.0
    rtt_ms: float = 0.0
    warm: bool = False
    dropped: bool = False
    size: int = 0


async def ask(session: aiohttp.ClientSession, method: str, url: str, path: str, **send: Any) -> Reply:
    """One request. Never raises for what a network or a stranger does."""
    warm = SimpleNamespace(reused=False)
    started = time.perf_counter()
    try:
        async with session.request(method, url + path, allow_redirects=False, trace_request_ctx=warm, **send) as answer:
            raw = await read_limited(answer)
            took_ms = (time.perf_counter() - started) * 1000
            outcome, data = read_answer(url, answer.status, raw, answer.headers)
            rtt_ms = took_ms - server_ms(answer.headers)
            return Reply(outcome, data, took_ms, rtt_ms, warm.reused, size=len(raw))
    except TimeoutError:
        waited_s = time.perf_counter() - started
        limit_s = WHOLE_S if waited_s >= WHOLE_S else SILENCE_S
        return Reply(Outcome(None, f"{url} did not answer within {limit_s:g} s"))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        lost = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError)
        return Reply(Outcome(None, f"{url}: {plain(error, url)}"), dropped=lost and warm.reused)


async def open_stream(
    session: aiohttp.ClientSession, url: str, path: str, params: Mapping[str, str], headers: Mapping[str, str]
) -> tuple[Outcome, aiohttp.ClientResponse | None]:
    """Begin to read a stream of events, which has no end; the caller closes it. No stream: the outcome says why."""
    limits = aiohttp.ClientTimeout(total=None, connect=SILENCE_S, sock_connect=SILENCE_S)
    accept = {**headers, "Accept": "text/event-stream"}
    answer = None
    try:
        async with asyncio.timeout(SILENCE_S):
            answer = await session.get(
                url + path, params=params, headers=accept, allow_redirects=False, timeout=limits,
                trace_request_ctx=SimpleNamespace(),
            )  # fmt: skip
            if answer.status == 200 and answer.content_type == "text/event-stream":
                return Outcome(200), answer
            raw = await read_limited(answer)
        answer.close()
        return read_answer(url, answer.status, raw, answer.headers)[0], None
    except TimeoutError:
        outcome = Outcome(None, f"{url} did not answer within {SILENCE_S:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        outcome = Outcome(None, f"{url}: {plain(error, url)}")
    if answer is not None:
        answer.close()
    return outcome, None


def open_session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    """Connections to registries."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_reused)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, keepalive_timeout=KEPT_S),
        timeout=aiohttp.ClientTimeout(total=WHOLE_S, connect=SILENCE_S, sock_connect=SILENCE_S, sock_read=SILENCE_S),
        cookie_jar=aiohttp.DummyCookieJar(),  # a login page on the way must leave nothing behind
        trace_configs=[trace],
    )


async def _reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _what: Any) -> None:
    context.trace_request_ctx.reused = True


async def read_limited(answer: aiohttp.ClientResponse) -> bytes:
    """The body. Raises ValueError when it is over the limit."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is over {MAX_ANSWER_BYTES} bytes; that is no registry's")
    return bytes(body)


def plain(error: BaseException, url: str) -> str:
    """Why a request got no answer, in words that say what to look at."""
    if (alert := alert_sentence(error)) is not None:
        return f"{alert}; set NODE_CERT and NODE_KEY to what it takes"
    other = "; does it speak TLS (https://)?" if url.startswith("http:") else ""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({_verify_message(error)}); CA_CERT names the authority to trust"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"no TLS connection ({error.strerror or error}); is it http:// rather than https://?"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _why_not_connected(error.os_error)
    if isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return f"the connection was closed before the answer was complete{other}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"what answers there does not speak HTTP; check the port{other}"
    return str(error) or type(error).__name__


def _verify_message(error: aiohttp.ClientConnectorCertificateError) -> str:
    inner = error.certificate_error
    return str(getattr(inner, "verify_message", None) or inner)


def _why_not_connected(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused (is the registry running there?)"
    if isinstance(error, socket.gaierror):
        return f"the host's name cannot be looked up ({error.strerror})"
    return os.strerror(error.errno).casefold() if error.errno else str(error)


def tls(ca_cert: Path | None, cert: Path | None, key: Path | None) -> Certificates:
    """What to trust and to show. Raises ConfigurationError."""
    try:
        return Certificates(Files(cert, key, ca_cert))
    except UnusableError as error:
        raise ConfigurationError(f"CA_CERT, NODE_CERT or NODE_KEY cannot be used: {error}") from None
