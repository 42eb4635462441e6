"""Bytes to checked requests, and answers to bytes."""

import asyncio
import json
import zlib
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from time import time
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import orjson
from aiohttp import ClientConnectionResetError, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE, StreamWriter
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from multidict import CIMultiDict, MultiMapping
from pydantic import AliasChoices, BaseModel

from registry.errors import PROBLEM_JSON, ApiError, FieldError, invalid
from registry.http.limits import BODY_S
from registry.model import MAX_DEPTH, check_shape, parse

MAX_BODY_BYTES = 262_144  # 100 times a real report, and 10,000 models' names fit
MOST_JOINED_BYTES = 8_192  # of a body: to copy more than that costs more than to write it as a piece of its own
MAX_QUERY_CHARS = 4_096  # well under the parser's own line limit, so that ours is the message

M = TypeVar("M", bound=BaseModel)
_JSON = {"Content-Type": "application/json"}


class Answer(web.Response):
    """An answer of JSON whose bytes are all known: its head and body are written at once, past the layers that aiohttp
    has for streams, compression and cookies (a tenth of a heartbeat's cost): it can have none of these."""

    _pieces: tuple[bytes, bytes] | None = None

    def __init__(self, body: bytes, status: int = 200) -> None:
        web.StreamResponse.__init__(self, status=status, _real_headers=CIMultiDict(_JSON))
        self.body = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Lay out the answer; aiohttp does it for what is rare."""
        body = self._body
        if request.method == "HEAD" or request.version != HttpVersion11 or self.prepared or not isinstance(body, bytes):
            return await super().prepare(request)
        self._payload_writer = request.writer
        self._keep_alive = request.keep_alive and self._keep_alive is not False
        fields = "".join([f"{name}: {value}\r\n" for name, value in self._headers.items()])
        if not self._keep_alive:
            fields += "Connection: close\r\n"
        common = _common_fields(int(time()))
        head = f"HTTP/1.1 {self._status} {self._reason}\r\n{fields}Content-Length: {len(body)}\r\n{common}\r\n"
        self._pieces = head.encode("latin-1"), body
        return self._payload_writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Send it."""
        if self._pieces is None:
            await super().write_eof(data)
        elif len(self._pieces[1]) <= MOST_JOINED_BYTES:
            await web.StreamResponse.write_eof(self, b"".join(self._pieces))
        else:
            await _write(self._payload_writer, self._pieces)
            await web.StreamResponse.write_eof(self)


async def _write(writer: AbstractStreamWriter | None, pieces: tuple[bytes, bytes]) -> None:
    """As StreamWriter writes one piece. It would join these two: on Pythons whose own event loop does not pause in
    `writelines` (CVE-2024-12254) it trusts none with it. uvloop, on which we run, pauses."""
    assert isinstance(writer, StreamWriter)
    transport = writer.transport
    if transport is None or transport.is_closing():
        raise ClientConnectionResetError("The caller has gone.")
    writer.output_size += len(pieces[0]) + len(pieces[1])
    transport.writelines(pieces)
    await writer.drain()


@lru_cache(maxsize=1)
def _common_fields(at_s: int) -> str:
    return f"Date: {formatdate(at_s, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n"


def answer(body: bytes, status: int = 200) -> web.Response:
    """A JSON answer of encoded bytes."""
    return Answer(body, status)


def answer_json(value: Any, status: int = 200) -> web.Response:
    """A JSON answer of a value."""
    return answer(orjson.dumps(value), status)


def answer_problem(error: ApiError) -> web.Response:
    """A problem document."""
    headers = {**error.headers(), "Content-Type": PROBLEM_JSON}
    return web.Response(body=orjson.dumps(error.problem()), status=error.status, headers=headers)


async def read_json(request: web.Request) -> dict[str, Any]:
    """The body's JSON object. Raises 400, 413, 415 or 422."""
    kind = request.content_type
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError("not_json_type", "Send the body as JSON with 'Content-Type: application/json'.")
    body = await read_body(request)
    coding = request.headers.get("Content-Encoding")
    body = body if coding is None else _inflated(body, coding)
    data = decode(body)
    if not isinstance(data, dict):
        raise invalid("body", "must be a JSON object")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:  # with fewer, nothing is nested deeper
        check_shape(data)
    return data


async def read_body(request: web.Request) -> bytes:
    """The body as it was sent. Raises 400, 408 or 413."""
    try:
        if request.content.is_eof():  # nearly always; a timer would cost more than the rest of this
            return await request.read()
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except HTTPRequestEntityTooLarge:
        raise too_large() from None
    except TimeoutError:
        raise ApiError("request_timeout", f"Send the whole body within {BODY_S:g} s.") from None
    except (web.RequestPayloadError, ValueError, EOFError, OSError) as error:
        if isinstance(error, ConnectionError):
            raise
        raise ApiError("bad_request", "The body could not be read; check how it is framed.") from None


_WINDOWS = {"gzip": 31, "deflate": 15}  # zlib's numbers


def _inflated(body: bytes, coding: str) -> bytes:
    """What a compressed body holds; no more of it is made than may be. Raises 400, 413 or 415."""
    coding = coding.strip().casefold()
    if coding in ("identity", ""):
        return body
    if coding not in _WINDOWS:
        raise ApiError("bad_request", "Of Content-Encoding only gzip and deflate are understood.", status=415)
    inflater = zlib.decompressobj(_WINDOWS[coding])
    try:
        found = inflater.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise ApiError("bad_request", "The body could not be read; check its Content-Encoding.") from None
    if len(found) > MAX_BODY_BYTES:
        raise too_large()
    if not inflater.eof:
        raise ApiError("bad_request", "The compressed body is not whole.")
    return found


def decode(body: bytes) -> Any:
    """JSON of a body; a number that JSON has no form for (NaN, Infinity, 1e999) is a 422."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        check_shape(json.loads(body))
    except (ValueError, RecursionError):
        raise ApiError("not_json", "The body is not JSON; check its syntax and its UTF-8.") from None
    raise ApiError("not_json", "The body is not JSON that this registry can read.")


def too_large() -> ApiError:
    """A 413."""
    return ApiError("body_too_large", f"Send at most {MAX_BODY_BYTES} bytes.")


def no_query(request: web.Request) -> None:
    """A route without parameters: any is a 422."""
    if request.query_string:
        raise _unknown(next(iter(request.query), ""), ())


@lru_cache(maxsize=2_048)
def _read_query(model: type[BaseModel], query_string: str) -> BaseModel:
    """A checked query string; kept, because programs ask the same question again and again."""
    from yarl import URL

    return parse(model, _typed(model, URL.build(query_string=query_string, encoded=True).query), "query")


def query_of(request: web.Request, model: type[M]) -> M:
    """The request's query, checked."""
    text = request.rel_url.raw_query_string
    if len(text) > MAX_QUERY_CHARS:
        raise invalid("query", f"is over {MAX_QUERY_CHARS} characters; POST the question as JSON instead")
    query = _read_query(model, text)
    assert isinstance(query, model)
    return query


def _typed(model: type[BaseModel], query: MultiMapping[str]) -> dict[str, Any]:
    """Query strings carry text: make it what the model's strict fields want."""
    fields = _fields(model)
    typed: dict[str, Any] = {}
    for name in dict.fromkeys(query):
        kind = fields.get(name)
        if kind is None:
            raise _unknown(name, fields)
        values = query.getall(name)
        if kind is list:
            typed.setdefault(name, []).extend(values)
        elif len(values) > 1:
            raise invalid(f"query.{name}", "may be given once")
        else:
            typed[name] = _number(name, values[0], kind)
    return typed


def _number(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.casefold() in ("1", "true"):
            return True
        if text.casefold() in ("0", "false"):
            return False
        raise invalid(f"query.{name}", "must be 1 or 0")
    if kind in (int, float):
        plain = text.isascii() and "_" not in text and text == text.strip()
        try:
            return kind(text) if plain else kind("")
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise invalid(f"query.{name}", f"must be {wanted}") from None
    return text


def _unknown(name: str, fields: Mapping[str, type] | tuple[()]) -> ApiError:
    known = f"; known are {', '.join(fields)}" if fields else ""
    shown = name[:64] if name.isprintable() else "?"
    return ApiError(
        "invalid",
        f"There is no parameter {shown!r} here{known}.",
        errors=[FieldError(f"query.{shown}", "unknown parameter")],
    )


@lru_cache(maxsize=16)
def _fields(model: type[BaseModel]) -> dict[str, type]:
    """Each parameter's name, aliases too, and the plain type its text becomes."""
    found: dict[str, type] = {}
    for name, field in model.model_fields.items():
        kind = _plain(field.annotation)
        alias = field.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else [name]
        found.update((str(each), kind) for each in names)
    return found


def _plain(annotation: Any) -> type:
    if hasattr(annotation, "__metadata__"):
        return _plain(annotation.__origin__)
    origin = get_origin(annotation)
    if origin is list:
        return list
    if origin is UnionType or str(origin) == "typing.Union":
        kinds = [_plain(arg) for arg in get_args(annotation) if arg is not type(None)]
        return float if float in kinds else kinds[0]
    return annotation if annotation in (int, float, bool) else str
