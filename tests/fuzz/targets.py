"""Everything that reads bytes of strangers, by name. Each takes any bytes at all: it refuses them in the words that it
is documented to use, or what it makes of them holds together. Whatever else it raises is a finding."""

import contextlib
import json
from collections.abc import Callable

import orjson

from agent import wire as answers
from agent.sse import EventParser, EventTooLarge
from federation.ed25519 import PrivateKey
from federation.handshake import Acceptor, Dialler, Identity, Refused
from federation.record import Record as Versioned
from federation.record import Section
from federation.wire import WireError, encode
from federation.wire import decode as decode_frame
from registry.api_key import ApiKey
from registry.audit_chain import BrokenLine
from registry.audit_chain import read as read_line
from registry.auth import Authenticator
from registry.capabilities import normalise
from registry.directory import Directory
from registry.errors import ApiError
from registry.holds import read as read_holds
from registry.http.wire import _inflated, _read_query
from registry.http.wire import decode as decode_body
from registry.lifecycle import Windows
from registry.measurements import unpack
from registry.model import (
    Capabilities,
    DiscoverQuery,
    DiscoverQuestion,
    HeartbeatRequest,
    ListQuery,
    PatchRequest,
    RegisterRequest,
    ReservationRequest,
    WatchQuery,
    check_shape,
    parse,
)
from registry.names import parse_model
from registry.node import Origin, Record, registered
from registry.positions import Position
from registry.stored import unpack_meta, unpack_record

SECRET = b"s" * 32
NOW_MS = 1_700_000_000_000
MINE = "local"
_WINDOWS = Windows(30, 90, 300)
_ORIGIN = Origin(MINE, "eu", "192.0.2.7", NOW_MS, {"europe": "eu"})
_BODIES = (RegisterRequest, HeartbeatRequest, PatchRequest, DiscoverQuestion, ReservationRequest)
_QUERIES = (DiscoverQuery, ListQuery, WatchQuery)
_AUTH = Authenticator("key", Directory(_WINDOWS, 0.0, MINE), SECRET, [], True)
_IDENTITY = Identity(MINE, "eu", "https://eu.example.org:9205", PrivateKey(b"1" * 32), SECRET)


def frame(data: bytes) -> None:
    """A frame of a link."""
    with contextlib.suppress(WireError):
        message = decode_frame(data)
        assert decode_frame(encode(message)) == message


def handshake(data: bytes) -> None:
    """What comes before a peer has proved itself; lines, for either side."""
    for side in (Acceptor(_IDENTITY, b"n" * 32, lambda _: None), Dialler(_IDENTITY, b"n" * 32, lambda _: None)):
        with contextlib.suppress(Refused):
            for line in data.decode(errors="surrogateescape").split("\n"):
                side.receive(line)
        assert side.peer is None  # nobody here knows the secret


def authorization(data: bytes) -> None:
    """An Authorization header."""
    try:
        _AUTH.identify(data.decode("utf-8", "surrogateescape"))
    except ApiError as refusal:
        problem_of(refusal, 401)


def body(data: bytes) -> None:
    """A request's body: the first byte says of which route, the next whether it is compressed."""
    model = _BODIES[data[0] % len(_BODIES)] if data else RegisterRequest
    coding = ("identity", "gzip", "deflate")[data[1] % 3] if len(data) > 1 else "identity"
    try:
        read = decode_body(_inflated(data[2:], coding))
        check_shape(read)
        request = parse(model, read)
    except ApiError as refusal:
        problem_of(refusal, 400, 413, 415, 422)
        return
    if isinstance(request, RegisterRequest):
        shown(registered(None, request.node_id or "made", request, _ORIGIN))


def query(data: bytes) -> None:
    """A query string: the first byte says of which route."""
    model = _QUERIES[data[0] % len(_QUERIES)] if data else DiscoverQuery
    try:
        _read_query.__wrapped__(model, data[1:].decode("latin-1"))
    except ApiError as refusal:
        problem_of(refusal, 422)


def capabilities(data: bytes) -> None:
    """What a machine says that it can do, in any of its shapes."""
    with contextlib.suppress(ApiError):
        raw = decode_body(data)
        check_shape(raw)
        flat = normalise(parse(Capabilities, raw).model_dump(exclude_unset=True))
        assert normalise(flat) == flat


def model_name(data: bytes) -> None:
    """The name of a model."""
    parsed = parse_model(data.decode(errors="replace"))
    assert parse_model(parsed.full) == parsed


def position(data: bytes) -> None:
    """`min_version`, as a caller sends it back."""
    with contextlib.suppress(ValueError):
        read = Position.parse(data.decode("latin-1"))
        assert Position.parse(str(read)) == read


def record(data: bytes) -> None:
    """A record as the store has it, also of another registry's making: it can be shown, or is none."""
    with contextlib.suppress(ValueError):
        node = Record.of(unpack_record("n:mine", data))
        if node is not None:
            shown(node)


def payload(data: bytes) -> None:
    """What a peer writes of a node."""
    made = Versioned("n:mine")
    made.life = made.incarnation = 1
    made.spec = Section(1, "other", 0, data, 1, 1)
    node = Record.of(made)
    if node is not None:
        shown(node)


def thing(data: bytes) -> None:
    """What a peer writes of a hold, or of an API key."""
    for key, read in (("v:other/0", read_holds), ("k:0123456789abcdef", ApiKey.of)):
        made = Versioned(key)
        made.life = 1
        made.spec = made.intent = Section(1, "other", 0, data, 1, 1)
        read(made)


def meta(data: bytes) -> None:
    """A replica's meta, as the store has it."""
    with contextlib.suppress(ValueError, TypeError):
        unpack_meta(data)


def numbers(data: bytes) -> None:
    """What a node measured, as it crosses the federation."""
    orjson.dumps(unpack(data))


def audit(data: bytes) -> None:
    """A line of an audit log."""
    with contextlib.suppress(BrokenLine):
        read_line(data)


def answer(data: bytes) -> None:
    """What an agent is answered, by whoever answers there."""
    status, raw = (200, 404, 409, 503)[data[0] % 4] if data else 200, data[1:]
    outcome, told = answers.read_answer(
        "http://192.0.2.1:9205", status, raw, {"Retry-After": raw[:5].decode("latin-1")}
    )
    assert (outcome.detail or "").isprintable()
    answers.registration(told)
    if isinstance(told, dict):
        answers.adverts(told.get("registries"))
        answers.interval_s(told.get("config"))


def events(data: bytes) -> None:
    """A stream of events; how it is cut changes nothing."""
    with contextlib.suppress(EventTooLarge):
        whole, parser = EventParser().feed(data), EventParser()
        assert [event for at in range(len(data)) for event in parser.feed(data[at : at + 1])] == whole


def problem_of(refusal: ApiError, *statuses: int) -> None:
    """A refusal is one that the route may answer with, and a whole problem document."""
    assert refusal.status in statuses, refusal
    document = orjson.loads(orjson.dumps(refusal.problem()))
    assert document["status"] == refusal.status
    assert document["detail"]


def shown(node: Record) -> None:
    """A node that is taken can be kept, read back and shown as JSON."""
    directory = Directory(_WINDOWS, 0.0, MINE)
    entry = directory.put(node, 1, 0.0)
    assert entry is not None
    assert json.loads(entry.fragment() + b"}")["node_id"] == node.node_id
    assert directory.delete(node.node_id, 2)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        frame, handshake, authorization, body, query, capabilities, model_name, position, record, payload, thing, meta,
        numbers, audit, answer, events,
    )
}  # fmt: skip
