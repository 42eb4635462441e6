"""Answers, good and absurd: what they mean, and that nothing an answer holds can end the agent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire import Registration, interval_s, printable, read_answer, registration, secret

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
