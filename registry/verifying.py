"""Checks other registries' signed registrations beside everything else, so many a second and no more."""

import asyncio
import logging

from registry.directory import Directory
from registry.logs import event

BUSY_S = 0.01  # 100 a second, of half a millisecond at most: 3 to 5 % of a core, while there are any
IDLE_S = 0.2


async def verify_for_ever(directory: Directory) -> None:
    """Check what waits, for ever."""
    while True:
        busy = True
        try:
            busy = directory.check_next()
        except Exception:  # a fault of ours that somebody's record brings out; it stays unverified
            event("signature_check_failed", logging.ERROR, exc_info=True)
        await asyncio.sleep(BUSY_S if busy else IDLE_S)
