"""Redis URLs: what is taken, what is refused in which words, and that no password shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.redis_url import RedisUrl, connect, parse, redacted

SENTINELS = (("a.example.org", 26379), ("b.example.org", 26380))


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("redis://127.0.0.1:6379/0", RedisUrl("redis://127.0.0.1:6379/0")),
        ("rediss://redis.example.org", RedisUrl("rediss://redis.example.org")),
        ("unix:///run/redis.sock?db=1", RedisUrl("unix:///run/redis.sock?db=1")),
        (
            "redis+sentinel://a.example.org:26379,b.example.org:26380/main/2",
            RedisUrl("", SENTINELS, "main", 2),
        ),
        ("redis+sentinel://a.example.org/main", RedisUrl("", (("a.example.org", 26379),), "main", 0)),
        ("redis+sentinel://[::1]:26379/main/0", RedisUrl("", (("::1", 26379),), "main", 0)),
        (
            "rediss+sentinel://us%40er:p%2Fw@a.example.org:26379/ma%20in/0",
            RedisUrl("", (("a.example.org", 26379),), "ma in", 0, "us@er", "p/w", True),
        ),
        ("redis+sentinel://:pw@a.example.org/main", RedisUrl("", (("a.example.org", 26379),), "main", 0, None, "pw")),
    ],
)
def test_urls_that_are_understood(url: str, known: RedisUrl) -> None:
    made = parse(url)
    assert made.url == url
    for field in ("sentinels", "master", "db", "username", "password", "tls"):
        assert getattr(made, field) == getattr(known, field), field


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must begin with"),
        ("http://127.0.0.1", "must begin with"),
        ("127.0.0.1:6379", "must begin with"),
        ("redis://", "needs a host"),
        ("redis://:6379", "needs a host"),
        ("redis://127.0.0.1:port", "port"),
        ("redis://127.0.0.1:99999", "port"),
        ("unix://", "path"),
        ("redis+sentinel://a:26379", "master's name"),
        ("redis+sentinel://a:26379/", "master's name"),
        ("redis+sentinel://a:26379/main/zero", "master's name"),
        ("redis+sentinel://a:b:c/main", "host:port"),
        ("redis+sentinel://,/main", "host:port"),
        ("redis+sentinel:///main", "host:port"),
    ],
)
def test_urls_that_are_refused_say_what_is_expected(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(url)


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@redis.example.org/0",
        f"redis://user:{SECRET}@redis.example.org",
        f"redis://user:{SECRET}/x@redis.example.org",
        f"redis://user:{SECRET}?x@redis.example.org",
        f"redis://user:x@{SECRET}@redis.example.org",
        f"redis://redis.example.org/0?password={SECRET}",
        f"redis://redis.example.org/0?password=x@{SECRET}",
        f"redis+sentinel://user:{SECRET}@a.example.org,b.example.org/main",
        f"unix://user:{SECRET}@/run/redis.sock",
    ],
)
def test_no_password_shows(url: str) -> None:
    assert SECRET not in redacted(url)
    try:
        parse(url)
    except ValueError as error:
        text = str(error)
    else:
        text = ""
    assert SECRET not in text


def test_what_is_no_secret_stays() -> None:
    assert redacted("redis://redis.example.org:6379/0") == "redis://redis.example.org:6379/0"
    assert redacted("redis://u:p@redis.example.org:6379/0") == "redis://***@redis.example.org:6379/0"


@given(st.text())
def test_any_text_is_taken_or_refused_in_words(text: str) -> None:
    for url in (text, f"redis://{text}", f"redis+sentinel://{text}/main"):
        message = "taken"
        try:
            parse(url)
        except ValueError as error:
            message = str(error)
        assert message


async def test_clients_ask_once_and_wait_a_second() -> None:
    for url in ("redis://192.0.2.1", "unix:///nowhere", "redis+sentinel://192.0.2.1/main"):
        client = connect(url)
        options = client.connection_pool.connection_kwargs
        assert options["socket_timeout"] == 1.0
        assert options["retry"]._retries == 0
        await client.aclose()
