"""Answers as bytes on the wire: what is written at once says the same as what aiohttp writes."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.http.wire import MOST_JOINED_BYTES
from tests.support.live import ADMIN_KEY, running

LIST = "/api/v1/nodes"
HEARTBEAT = "/api/v1/nodes/heartbeat"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("answers")
    with running(folder / "data") as process:
        yield int(process.url.rpartition(":")[2])


def exchange(port: int, sent: str) -> str:
    """Everything that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent.encode())
        found = b""
        while chunk := connection.recv(65_536):
            found += chunk
    return found.decode()


def ask(method: str, path: str, *fields: str, version: str = "1.1", body: str = "") -> str:
    lines = [
        f"{method} {path} HTTP/{version}",
        "Host: registry.example.org",
        f"Authorization: Bearer {ADMIN_KEY}",
        *fields,
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", body])


def parts(answer: str) -> tuple[str, dict[str, str], str]:
    head, _, body = answer.partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    return status, {name.casefold(): value for name, _, value in (f.partition(": ") for f in fields)}, body


def test_a_connection_that_is_to_be_closed_is_told_so_and_closed(port: int) -> None:
    status, fields, body = parts(exchange(port, ask("GET", LIST, "Connection: close")))
    assert status == "HTTP/1.1 200 OK"
    assert fields["connection"] == "close"
    assert fields["content-type"] == "application/json"
    assert int(fields["content-length"]) == len(body)
    assert fields["date"].endswith(" GMT")
    assert fields["server-timing"].startswith("app;dur=")


def test_requests_on_one_connection_are_answered_in_order(port: int) -> None:
    beat = '{"node_id": "nobody"}'
    sent = ask("GET", "/healthz") + ask("POST", HEARTBEAT, body=beat) + ask("GET", LIST, "Connection: close")
    found = exchange(port, sent)
    assert [found[at : at + 12] for at in range(len(found)) if found.startswith("HTTP/1.1 ", at)] == [
        "HTTP/1.1 200",
        "HTTP/1.1 404",
        "HTTP/1.1 200",
    ]
    assert found.endswith('"next_cursor":null}')


def test_long_answers_come_whole_and_in_order(port: int) -> None:
    node = json.dumps({"node_id": "long", "labels": [f"{number:060}" for number in range(200)]})
    short = ask("GET", "/healthz")
    sent = ask("POST", f"{LIST}/register", body=node) + (ask("GET", f"{LIST}/long") + short) * 20
    _, *answers, last = exchange(port, sent + ask("GET", LIST, "Connection: close")).split("HTTP/1.1 200 OK")[1:]
    longest = [parts(answer) for answer in answers[0::2]]
    assert {int(fields["content-length"]) == len(body) for _, fields, body in longest} == {True}
    assert {json.loads(body)["node_id"] for _, _, body in longest} == {"long"}
    assert min(len(body) for _, _, body in longest) > MOST_JOINED_BYTES
    assert json.loads(parts(last)[2])["total"] == 1


def test_head_has_the_length_and_no_body(port: int) -> None:
    _, fields, body = parts(exchange(port, ask("HEAD", LIST, "Connection: close")))
    assert body == ""
    assert int(fields["content-length"]) > 0


def test_an_old_client_is_answered_in_its_own_version_and_hung_up_on(port: int) -> None:
    status, fields, body = parts(exchange(port, ask("GET", LIST, version="1.0")))
    assert status == "HTTP/1.0 200 OK"
    assert int(fields["content-length"]) == len(body)


def test_expect_is_honoured_on_the_busiest_route_too(port: int) -> None:
    beat = '{"node_id": "nobody"}'
    found = exchange(port, ask("POST", HEARTBEAT, "Expect: 100-continue", "Connection: close", body=beat))
    assert found.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", f"{HEARTBEAT}?x=1"), ("PUT", HEARTBEAT), ("POST", f"{LIST}/discover?x=1")]
)
def test_the_short_way_takes_nothing_that_the_router_would_refuse(port: int, method: str, path: str) -> None:
    status, fields, _ = parts(exchange(port, ask(method, path, "Connection: close", body='{"node_id": "n"}')))
    assert status.split()[1] in ("405", "422")
    assert fields["content-type"] == "application/problem+json"
