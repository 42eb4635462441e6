"""When minted keys were last used, and how often join keys were: in memory at each request, written now and then. Pure.

Last uses are coarse: to the minute, and written when five have passed since the one that stands. Uses of join keys are
counted by the worker that registers, which is one a region, and written with the registration. Two regions that do not
hear of each other may each admit the last one.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from registry.api_key import MAX_COUNTERS, ApiKey
from registry.errors import ApiError
from registry.keys import Principal
from registry.tables import Table

MINUTE_MS = 60_000
LAST_USE_EVERY_MS = 5 * MINUTE_MS
MAX_NOTED = 10_000  # keys whose record has not arrived; only what is used is lost


class KeyUse:
    """See the module."""

    def __init__(self, registry_id: str, keys: Table[ApiKey]) -> None:
        self._registry_id = registry_id
        self._keys = keys
        self._last: dict[str, int] = {}
        self._counted: dict[str, dict[str, int]] = {}  # by key and registry: the greatest number that was seen
        self._under_way: Counter[str] = Counter()

    def note(self, key_id: str, now_ms: int) -> None:
        """It was used."""
        if key_id in self._last or len(self._last) < MAX_NOTED:
            self._last[key_id] = max(now_ms, self._last.get(key_id, 0))

    def noted(self) -> dict[str, int]:
        """What was noted and is not yet written, by key: wall-clock milliseconds."""
        return dict(self._last)

    @contextmanager
    def admission(self, who: Principal) -> Iterator[None]:
        """One use of a join key, which counts unless the block raises. Raises 403 when none is left."""
        key_id, grant = who.key_id, who.grant
        if who.kind != "join" or grant is None or key_id is None:
            yield
            return
        used = sum(self._counted.get(key_id, {}).values()) + self._under_way[key_id]
        if grant.max_uses is not None and used >= grant.max_uses:
            raise ApiError(
                "forbidden", "This join key has been used as often as it may be; ask the operator for another."
            )
        self._under_way[key_id] += 1
        try:
            yield
            self._learn_counts(key_id, {self._registry_id: self._own(key_id) + 1})
        finally:
            self._under_way[key_id] -= 1
            if not self._under_way[key_id]:
                del self._under_way[key_id]

    def due(self) -> Iterator[ApiKey]:
        """Keys with their use as it should be written now."""
        for key_id in {*self._last, *self._counted}:
            updated = self.updated(key_id)
            if updated is not None:
                yield updated

    def updated(self, key_id: str) -> ApiKey | None:
        """A key with its use as it should be written; None where nothing has to be, or cannot be yet."""
        key = self._keys.get(key_id)
        if key is None or key.revoked_at_ms is not None or key.kind == "node":
            return None
        before, last = key.last_used_at_ms or 0, self._last.get(key_id, 0) // MINUTE_MS * MINUTE_MS
        counted = self._counted.get(key_id, {})
        if last - before < LAST_USE_EVERY_MS and counted == key.uses:
            return None
        return replace(key, last_used_at_ms=max(before, last) or None, uses=dict(counted))

    def learn(self, key_id: str, key: ApiKey | None) -> None:
        """A record arrived. What two regions counted at once stands in one of the two writes only: the greater of
        each number is what is true, and is written again."""
        if key is None:
            return
        if key.uses or key_id in self._counted:
            self._learn_counts(key_id, key.uses)
        if self._last.get(key_id, 0) - (key.last_used_at_ms or 0) < MINUTE_MS or key.revoked_at_ms is not None:
            self._last.pop(key_id, None)

    def _learn_counts(self, key_id: str, uses: Mapping[str, int]) -> None:
        counted = self._counted.setdefault(key_id, {})
        for registry_id, number in uses.items():
            # Of more registries than there are a peer makes up names; a place is left for ours.
            if registry_id in counted or registry_id == self._registry_id or len(counted) < MAX_COUNTERS - 1:
                counted[registry_id] = max(number, counted.get(registry_id, 0))

    def _own(self, key_id: str) -> int:
        return self._counted.get(key_id, {}).get(self._registry_id, 0)
