"""What the engine asks of its shell. Performed in order; a Send after a Store only once that is kept."""

from dataclasses import dataclass

from federation.messages import Message


@dataclass(frozen=True, slots=True)
class Send:
    """Send the message over the link to that registry."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Store:
    """Keep the record of this key as it is now; it may be gone."""

    key: str


@dataclass(frozen=True, slots=True)
class StoreMeta:
    """Keep the replica's meta: positions never run ahead of the records that they speak of."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Somebody should know. `code` is one of alerts' names, for counting; `detail` is for people."""

    code: str
    detail: str
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """End the link to that registry: it does not keep the protocol."""

    peer: str
    reason: str


Effect = Send | Store | StoreMeta | Alert | Close
