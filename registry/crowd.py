"""Who holds how many connections, and who has to make room when there are as many as there may be."""

from collections.abc import Hashable
from typing import Generic, Literal, TypeVar

Held = TypeVar("Held", bound=Hashable)
Refusal = Literal["", "connections", "connections_of_address"]
ANY = ""  # the address of those that are not counted by address: trusted proxies


class Crowd(Generic[Held]):
    """The connections held, by the address that they came from, oldest first."""

    def __init__(self, most: int, most_of_address: int) -> None:
        self._most = most
        self._most_of_address = most_of_address
        self._by_address: dict[str, dict[Held, None]] = {}
        self._count = 0
        self._most_held = 0  # by one address: at most so many

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str, connection: Held) -> tuple[Refusal, Held | None]:
        """Hold one more: why not, if it cannot be; and which other one must be closed for it.

        When there are as many as there may be, the address that holds the most gives up its oldest one, so that
        nobody can keep others out by holding many; it does for those who hold fewer than it, and for nobody else.
        """
        held = self._by_address.get(address, {})
        if address != ANY and len(held) >= self._most_of_address:
            return "connections_of_address", None
        victim = None
        if self._count >= self._most:
            victim = self._greediest(len(held) + 1)
            if victim is None:
                return "connections", None
        self._by_address.setdefault(address, {})[connection] = None
        self._count += 1
        if address != ANY:
            self._most_held = max(self._most_held, len(held) + 1)
        return "", victim

    def leave(self, address: str, connection: Held) -> None:
        """It is closed; once or more often."""
        held = self._by_address.get(address)
        if held is None or connection not in held:
            return
        del held[connection]
        self._count -= 1
        if not held:
            del self._by_address[address]

    def _greediest(self, more_than: int) -> Held | None:
        """The oldest connection of the address that holds the most, if those are more than that. It leaves."""
        if self._most_held <= more_than:
            return None  # without looking at everybody: this is asked at each attempt of a flood
        counted = ((address, held) for address, held in self._by_address.items() if address != ANY)
        address, held = max(counted, key=lambda pair: len(pair[1]), default=(ANY, {}))
        self._most_held = len(held)
        if self._most_held <= more_than:
            return None
        oldest = next(iter(held))
        self.leave(address, oldest)
        return oldest
