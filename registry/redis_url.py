"""Where the store is: Redis URLs, Sentinel's too (redis-py knows no Sentinel URLs), and clients."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

TIMEOUT_S = 1.0
_PLAIN = ("redis", "rediss", "unix")
_SENTINEL = ("redis+sentinel", "rediss+sentinel")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A checked URL. `sentinels` is empty unless Sentinel is to be asked for the master."""

    url: str
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False


def parse(url: str) -> RedisUrl:
    """Check a URL. Raises ValueError that says which forms there are."""
    split = urlsplit(url)
    if split.scheme in _PLAIN:
        if split.scheme == "unix" and not split.path:
            raise ValueError("unix:// needs the socket's path")
        if split.scheme != "unix" and not split.hostname:
            raise ValueError(f"{split.scheme}:// needs a host")
        _check_port(split)
        return RedisUrl(url)
    if split.scheme in _SENTINEL:
        return _sentinel(url)
    raise ValueError("must begin with redis://, rediss://, unix:// or redis+sentinel://host:26379,host:26379/master/0")


def _check_port(split: SplitResult) -> None:
    try:
        _ = split.port
    except ValueError:  # its text may quote a part of a password that is not percent-encoded
        raise ValueError("the port is no number; percent-encode / ? # and @ in a password") from None


def redacted(url: str) -> str:
    """The URL without its password, for people's eyes."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return f"***@{url.rpartition('@')[2]}" if "@" in url else url
    place, question, query = rest.partition("?")
    if "@" in query:  # in a password, but nobody can tell which one's
        return f"{scheme}://***"
    hidden = "***@" if "@" in place else ""
    return f"{scheme}://{hidden}{place.rpartition('@')[2]}{'?***' if question else ''}"


def password_of(url: str) -> str:
    """The password as it stands in the URL; empty where there is none."""
    authority = url.partition("://")[2].partition("?")[0].rpartition("@")[0]
    return authority.partition(":")[2]


def connect(url: str, *, timeout_s: float = TIMEOUT_S) -> Redis:
    """A client with short time-outs and no retries: the caller is told at once, and decides."""
    known = parse(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    if not known.sentinels:
        if url.startswith("unix:"):
            options.pop("socket_connect_timeout")
        client: Redis = Redis.from_url(url, **options)
        return client
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # the library has no types here
        list(known.sentinels), sentinel_kwargs=dict(options), db=known.db, username=known.username,
        password=known.password, ssl=known.tls, **options,
    )  # fmt: skip
    master: Redis = sentinel.master_for(known.master)
    return master


def _sentinel(url: str) -> RedisUrl:
    scheme, _, rest = url.partition("://")
    hosts, _, path = rest.partition("/")
    credentials, at, hosts = hosts.rpartition("@")
    user, _, password = credentials.partition(":")
    master, _, db = path.partition("/")
    pairs = []
    for item in hosts.split(","):
        host, colon, port = item.rpartition(":")
        if not colon:
            host, port = item, "26379"
        if not host or not port.isdigit():
            raise ValueError("redis+sentinel:// needs host:port pairs, as in redis+sentinel://a:26379,b:26379/master/0")
        pairs.append((host.strip("[]"), int(port)))
    if not master or (db and not db.isdigit()):
        raise ValueError("redis+sentinel:// needs the master's name, as in redis+sentinel://a:26379/master/0")
    return RedisUrl(
        url, tuple(pairs), unquote(master), int(db or 0), unquote(user) or None,
        unquote(password) if at and password else None, scheme.startswith("rediss"),
    )  # fmt: skip
