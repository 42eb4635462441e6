"""Answers, good and absurd: what they mean, and that nothing an answer holds can end the agent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire import (
    Advert,
    Registration,
    adverts,
    interval_s,
    kept_adverts,
    kept_urls,
    printable,
    read_answer,
    registration,
    secret,
    server_ms,
    to_keep,
)

URL = "http://192.0.2.1:9205"

# status, body, headers -> status of the outcome, words in it
ANSWERS: list[tuple[int, bytes, dict[str, str], int | None, str]] = [
    (200, b'{"node_id":"a"}', {}, 200, ""),
    (200, b"<html>Log in to the hotel</html>", {}, None, "is not a registry"),
    (200, b"", {}, None, "is not a registry"),
    (200, b"[1]", {}, None, "is not a registry"),
    (200, b"\xff\xfe", {}, None, "is not a registry"),
    (200, b"[" * 200_000, {}, None, "is not a registry"),
    (200, b'{"a":' * 100_000, {}, None, "is not a registry"),
    (302, b"", {"Location": "https://example.org/login"}, 302, "redirects to https://example.org/login"),
    (307, b"", {}, 307, "redirects to nowhere"),
    (401, b'{"detail":"The key is not known."}', {}, 401, f"{URL} answered 401: The key is not known."),
    (500, b"Internal Server Error", {}, 500, f"{URL} answered 500"),
    (500, b'{"detail":["x"]}', {}, 500, f"{URL} answered 500"),
    (500, b'"detail"', {}, 500, f"{URL} answered 500"),
]


@pytest.mark.parametrize(("status", "raw", "headers", "wanted", "words"), ANSWERS)
def test_an_answer_is_understood(
    status: int, raw: bytes, headers: dict[str, str], wanted: int | None, words: str
) -> None:
    outcome, _ = read_answer(URL, status, raw, headers)
    assert outcome.status == wanted
    assert words in outcome.detail


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5), ("0", 0), ("1.5", 1.5), ("", None), ("soon", None), ("-1", None), ("nan", None), ("inf", None),
     ("\u00b2", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("9" * 400, None)],
)  # fmt: skip
def test_retry_after(header: str, seconds: float | None) -> None:
    assert read_answer(URL, 503, b"", {"Retry-After": header})[0].retry_after_s == seconds


def test_a_strangers_text_cannot_drive_the_terminal_or_fill_the_log() -> None:
    outcome, _ = read_answer(URL, 400, json.dumps({"detail": "\x1b[2J\r\n" + "x" * 10_000}).encode(), {})
    assert outcome.detail.isprintable()
    assert len(outcome.detail) < 400


@given(st.text())
def test_printable_is_printable_and_idempotent(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown


REGISTRATIONS: list[tuple[Any, Registration | None]] = [
    ({"node_id": "a", "api_key": "sk-node-x", "token": "t"}, Registration("a", "sk-node-x", "t")),
    ({"node_id": "a", "api_key": None}, Registration("a", None, None)),
    ({"node_id": "a", "api_key": 7, "token": {"x": 1}}, Registration("a", None, None)),
    ({"node_id": "a", "api_key": "sk\r\nX-Evil: 1"}, Registration("a", None, None)),
    ({}, None),
    ({"node_id": None}, None),
    ({"node_id": ""}, None),
    ({"node_id": "../../etc"}, None),
    ({"node_id": "a" * 256}, None),
    (None, None),
]


@pytest.mark.parametrize(("data", "wanted"), REGISTRATIONS)
def test_a_registration_is_read_or_refused(data: Any, wanted: Registration | None) -> None:
    assert registration(data) == wanted


INTERVALS: list[tuple[Any, float | None]] = [
    ({"heartbeat_interval_s": 30}, 30),
    ({"heartbeat_interval_s": 0.5}, 0.5),
    ({"heartbeat_interval_s": 1e-9}, 0.1),
    ({"heartbeat_interval_s": float("inf")}, 3600),
    ({"heartbeat_interval_s": 10**400}, 3600),
    ({"heartbeat_interval_s": float("nan")}, None),
    ({"heartbeat_interval_s": 0}, None),
    ({"heartbeat_interval_s": -1}, None),
    ({"heartbeat_interval_s": True}, None),
    ({"heartbeat_interval_s": "30"}, None),
    ({}, None),
    (None, None),
    ([30], None),
]


@pytest.mark.parametrize(("config", "wanted"), INTERVALS)
def test_the_interval_is_kept_within_reason(config: Any, wanted: float | None) -> None:
    assert interval_s(config) == wanted


@given(st.text() | st.integers() | st.none() | st.lists(st.text()))
def test_a_secret_can_always_be_sent_in_a_header(value: Any) -> None:
    found = secret(value)
    assert found is None or (found.isascii() and "\n" not in found and "\r" not in found and found == value)


ADVERTS: list[tuple[Any, list[Advert]]] = [
    ([{"url": "http://eu.example.org/", "region": "eu", "registry_id": "eu-1"}],
     [Advert("http://eu.example.org", "eu", "eu-1")]),
    ([{"url": "https://eu.example.org:9205"}], [Advert("https://eu.example.org:9205")]),
    ([{"url": "http://eu.example.org", "region": "\x1b[2J", "registry_id": 7}], [Advert("http://eu.example.org")]),
    ([{"url": "ftp://eu.example.org"}, {"url": "http://"}, {"url": 7}, {}, 7, None], []),
    ([{"url": "file:///etc/passwd"}, {"url": "http://name:password@eu.example.org"}], []),
    ([{"url": "http://eu.example.org/\x1b[2J"}, {"url": "http://" + "x" * 300}, {"url": "http://[::1"}], []),
    ([{"url": f"http://r{n}.example.org"} for n in range(70)], [Advert(f"http://r{n}.example.org") for n in range(64)]),
    (7, []),
    (None, []),
    ({"url": "http://eu.example.org"}, []),
]  # fmt: skip


@pytest.mark.parametrize(("listed", "wanted"), ADVERTS)
def test_registries_that_a_registry_tells_of(listed: Any, wanted: list[Advert]) -> None:
    assert adverts(listed) == wanted


def test_the_urls_that_were_kept() -> None:
    eu, us = "http://eu.example.org", "http://us.example.org:9205"
    assert kept_urls(json.loads(json.dumps(to_keep([], [eu, us])))) == (eu, us)
    for damaged in (None, 7, [], {}, {"configured": 7}, {"configured": [7, "no URL", []]}):
        assert kept_urls(damaged) == ()


def test_what_was_learned_is_kept_for_the_network_that_it_was_learned_in() -> None:
    eu, us, other = "http://eu.example.org", "http://us.example.org", "http://other.example.org"
    kept = json.loads(json.dumps(to_keep([Advert(us, "us", "us")], [eu])))
    assert kept_adverts(kept, [eu]) == [Advert(us, "us", "us")]
    assert kept_adverts(kept, [other, eu]) == [Advert(us, "us", "us")]
    assert kept_adverts(kept, [us]) == [Advert(us, "us", "us")]
    assert kept_adverts(kept, [other]) == []
    for damaged in (None, 7, [], {}, {"configured": 7}, {"configured": [eu]}, {"configured": [[]], "learned": [[]]}):
        assert kept_adverts(damaged, [eu]) == []


@pytest.mark.parametrize(
    ("header", "wanted"),
    [("app;dur=0.42", 0.42), ("db;dur=53, app;dur=7", 7), ("app;desc=x;dur=2", 2), ("app", 0), ("", 0),
     ("app;dur=1.2.3", 0), ("myapp;dur=5", 0)],
)  # fmt: skip
def test_the_servers_own_time(header: str, wanted: float) -> None:
    assert server_ms({"Server-Timing": header}) == wanted


@pytest.mark.parametrize("status", [404, 409, 422])
def test_a_strangers_word_is_not_acted_upon(status: int) -> None:
    assert read_answer(URL, status, b"<h1>Not Found</h1>", {})[0].status is None
    assert read_answer(URL, status, b'{"detail":"No such node."}', {})[0].status == status
