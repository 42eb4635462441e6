"""Server-sent events as bytes come in (WHATWG HTML, 9.2). Pure."""

from dataclasses import dataclass

MAX_EVENT_BYTES = 16 * 2**20  # a snapshot's piece is 200 KB


class EventTooLarge(ValueError):
    """What comes is no registry's stream."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `cursor` is its id, None where it has none."""

    kind: str
    data: bytes
    cursor: str | None = None


class EventParser:
    """Bytes in, events out. Comments and fields that nobody uses are passed over."""

    def __init__(self) -> None:
        self._left = b""
        self._kind, self._size = "message", 0
        self._data: list[bytes] = []
        self._cursor: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete. Raises EventTooLarge."""
        *lines, self._left = (self._left + chunk).split(b"\n")
        events = [event for line in lines if (event := self._line(line.removesuffix(b"\r"))) is not None]
        if len(self._left) + self._size > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event is over {MAX_EVENT_BYTES} bytes; that is no registry's")
        return events

    def _line(self, line: bytes) -> Event | None:
        if not line:
            event = Event(self._kind, b"\n".join(self._data), self._cursor) if self._data else None
            self._clear()
            return event
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
        elif name == b"event":
            self._kind = value.decode(errors="replace")
        elif name == b"id":
            self._cursor = value.decode(errors="replace")
        return None

    def _clear(self) -> None:
        self._kind, self._size, self._data, self._cursor = "message", 0, [], None
