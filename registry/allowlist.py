"""The allowlist as one worker holds it: this registry's own entries, the federation's, and who waits for approval.

A heartbeat asks once whether its node is on the list; after that it is one look-up, until the list or the node's
record changes.
"""

from collections.abc import Callable, Iterable, Sequence

from registry.allow_entries import Entry, Rules, node_entry, parse_entry
from registry.allow_requests import (
    ENTRY_PREFIX,
    REQUEST_PREFIX,
    SWITCH,
    Listing,
    Request,
    Switch,
    entry_of,
    read_entry,
    read_request,
)
from registry.certificates import Certificate
from registry.directory import Directory
from registry.directory import Entry as Node
from registry.tables import Table

UNLISTED = "it is not on the allowlist: its heartbeats are refused until an operator lists it"
LISTED_AGAIN = "it is on the allowlist again: its next heartbeat brings it back"
_OFF = Switch(enforced=False)


def identities_of(certificate: Certificate | None) -> tuple[str, ...]:
    """All that entries may know a certificate by."""
    if certificate is None:
        return ()
    return tuple(dict.fromkeys([*certificate.names, *([certificate.node_id] if certificate.node_id else [])]))


class Allowlist:
    """Who may register and stay. `on_change` hears which node may be concerned; None: any."""

    def __init__(self, directory: Directory, entries: Iterable[str] = ()) -> None:
        """`entries`: this registry's own, of its settings; with any the list is on here. Before the store is read."""
        self._directory = directory
        self.static: dict[str, Entry] = {}
        self._own, self._shared = Rules(), Rules()
        for entry in map(parse_entry, entries):
            self.static[entry.text] = entry
            self._own.add(entry)
        self.entries: Table[Listing | Switch] = directory.tables.add(Table(ENTRY_PREFIX, read_entry))
        self.requests: Table[Request] = directory.tables.add(Table(REQUEST_PREFIX, read_request))
        self.on_change: Callable[[str | None], None] = lambda node_id: None
        self.entries.on_change = self._changed
        self._passed: dict[str, int] | None = {} if self.on else None

    # what stands

    @property
    def switch(self) -> Switch:
        """What operators decided for the whole federation."""
        switch = self.entries.get(SWITCH)
        return switch if isinstance(switch, Switch) else _OFF

    @property
    def on(self) -> bool:
        """Whether only nodes on the list may register and stay here."""
        return bool(self.static) or self.switch.enforced

    def listing(self, entry: Entry) -> Listing | None:
        """Who listed that, and why; None: it is not in the federation's list."""
        found = self.entries.get(entry.text)
        return found if isinstance(found, Listing) else None

    def listings(self) -> list[tuple[str, Listing]]:
        """All of the federation's, by entry."""
        return sorted((name, held) for name, held in self.entries.items() if isinstance(held, Listing))

    # questions

    def bound_to(self, node_id: str) -> str | None:
        """The claimant whom alone an approval of that node id was given to; None: it is not bound."""
        listing = self.listing(node_entry(node_id))
        return listing.claimant if listing is not None else None

    def covers(self, node_id: str, address: str, identities: Sequence[str]) -> bool:
        """Whether an entry covers such a node."""
        return any(rules.cover(node_id, address, identities) for rules in (self._own, self._shared))

    def admits(self, node: Node) -> bool:
        """Whether a registered node may stay, by where and as whom it registered."""
        passed = self._passed
        if passed is None or passed.get(node.node_id) == node.version:
            return True
        if not self.covers(node.node_id, *node.came_from()):
            return False
        passed[node.node_id] = node.version
        return True

    def admits_caller(self, node_id: str | None, certificate: Certificate | None) -> bool:
        """Whether that node may use the registry, as one that was taken off may not even read. A node whose record is
        not here, or is deleted, is known by its id and its certificate alone; None: by a key that names nobody."""
        if self._passed is None:
            return True
        if node_id is None:
            return False
        node = self._directory.get(node_id)
        if node is not None:
            return self.admits(node)
        return self.covers(node_id, "", identities_of(certificate))

    # changes

    def _changed(self, name: str, value: Listing | Switch | None) -> None:
        entry = entry_of(name)
        if entry is not None and value is None:
            self._shared.discard(entry)
        elif entry is not None:
            self._shared.add(entry)
        self._passed = {} if self.on else None
        self.on_change(entry.value if entry is not None and entry.kind == "node_id" else None)
