"""Structured logs: one line an event, key=value or JSON. Secrets do not get here: events carry named fields only, and
no field holds a key, a header or a body. What an exception of somebody else's code quotes is taken out again."""

import logging
import re
import sys
import time
from types import TracebackType

import orjson

_logger = logging.getLogger("registry")
_KEY = re.compile(r"\b(sk-(?:node|read|join|admin)-)[A-Za-z0-9_-]{8,}")
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.]*://)[^\s/'\"@]*@")
_secrets: list[str] = []


class _KeyValue(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        return scrubbed(fields)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(orjson.dumps(_fields(record), default=str).decode())


def _fields(record: logging.LogRecord) -> dict[str, object]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields: dict[str, object] = {
        "time": f"{stamp}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "event": record.getMessage(),
    }
    fields.update(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = repr(record.exc_info[1])
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _quoted(value: object) -> str:
    text = str(value)
    plain = text.isascii() and text.isprintable() and text and not set(' "=') & set(text)
    return text if plain else orjson.dumps(text).decode()


def scrubbed(text: str) -> str:
    """The text without keys, without what stands before the @ of a URL, and without what `conceal` was told."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return _IN_URL.sub(r"\1***@", _KEY.sub(r"\1***", text))


def conceal(*secrets: str | None) -> None:
    """Never write these to a log."""
    _secrets.extend(secret for secret in secrets if secret and len(secret) >= 8)


def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python says of an exception that nobody caught, as an event: `sys.excepthook`."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _logger.critical("crashed", exc_info=(kind, error, trace), extra={"fields": {}})


def configure(log_format: str, level: str) -> None:
    """Send the registry's events to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _KeyValue())
    sys.excepthook = crashed
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _logger.setLevel(level.upper())


def event(name: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: object) -> None:
    """Log one event with its fields."""
    if _logger.isEnabledFor(level):
        _logger.log(level, name, extra={"fields": fields}, exc_info=exc_info)
