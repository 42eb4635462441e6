"""What a read key may see: all there is, or only nodes, only some regions, only some roles. Pure.

    nodes            only nodes: neither /metrics nor the federation's view
    region:<name>    only nodes of that region; several: any of them
    role:<name>      only nodes of that role; several: any of them

A region or a role implies `nodes`, as counts over all nodes would tell of the others.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from registry.errors import ApiError
from registry.model import NodeFilter
from registry.names import canonical_region

MAX_SCOPES = 16  # they travel in the key; a header holds them all
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Query = TypeVar("Query", bound=NodeFilter)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a key is limited to; nothing: it sees everything."""

    nodes_only: bool = False
    regions: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()

    @property
    def is_narrow(self) -> bool:
        """Whether some nodes are hidden from it."""
        return bool(self.regions or self.roles)

    def admits(self, region: str, role: str) -> bool:
        """Whether it may see a node of that region and role."""
        return (not self.regions or region in self.regions) and (not self.roles or role in self.roles)


EVERYTHING = Scope()


def parse_scopes(texts: Iterable[str]) -> Scope:
    """The scope that these words mean. ValueError says which one is none."""
    nodes_only, regions, roles = False, set[str](), set[str]()
    for text in texts:
        name, colon, value = text.partition(":")
        if text == "nodes":
            nodes_only = True
        elif colon and name in ("region", "role") and _NAME.fullmatch(value):
            (regions if name == "region" else roles).add(value)
        else:
            raise ValueError("is no scope; scopes are nodes, region:<name>, role:<name>")
    return Scope(nodes_only or bool(regions or roles), frozenset(regions), frozenset(roles))


def canonical_scopes(texts: Iterable[str], aliases: Mapping[str, str]) -> tuple[str, ...]:
    """The same words, each once, with regions by the names that nodes have. ValueError as `parse_scopes`."""
    words = list(texts)
    parse_scopes(words)
    found = {
        f"region:{canonical_region(word.partition(':')[2], aliases)}" if word.startswith("region:") else word
        for word in words
    }
    parse_scopes(found)  # an alias may lead to a name that is none
    return tuple(sorted(found))


def narrowed(query: Query, scope: Scope, aliases: Mapping[str, str]) -> Query:
    """The question as far as a key of that scope may ask it. Raises 403 where it asks for what the key may not see."""
    regions = [canonical_region(name, aliases) for name in query.region]
    within: dict[str, list[str]] = {}
    for field, asked, allowed in (("region", regions, scope.regions), ("role", query.role, scope.roles)):
        if allowed:
            if not allowed.issuperset(asked):
                seen = ", ".join(sorted(allowed))
                raise ApiError(
                    "forbidden", f"This key sees nodes of {field} {seen} only; ask for those, or with another key."
                )
            within[field] = asked or sorted(allowed)
    return query.model_copy(update=within) if within else query
