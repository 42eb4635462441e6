"""The internal feed of liveness transitions: alerts, messages and pages subscribe to it."""

from collections.abc import Callable

from registry.lifecycle import Transition


class Feed:
    """Hands every transition to every subscriber, in order, in the caller's turn."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Transition], None]] = []

    def subscribe(self, subscriber: Callable[[Transition], None]) -> None:
        """Call `subscriber` with each transition from now on; it must not block."""
        self._subscribers.append(subscriber)

    def publish(self, transition: Transition | None) -> None:
        """Tell everyone, if there was a transition."""
        if transition is not None:
            for subscriber in self._subscribers:
                subscriber(transition)
