"""What operators do with the allowlist: look at it, list, remove, turn it on and off, approve and deny.

The list is on by a switch of its own, not because it has entries: who removes the last one must not open the registry,
and who adds the first one must not throw out every node that runs.
"""

import asyncio
from dataclasses import replace
from typing import Any

from registry.admission import keep
from registry.allow_entries import Entry, node_entry, parse_entry
from registry.allow_requests import (
    DAY_MS,
    ENTRY_PREFIX,
    REQUEST_PREFIX,
    SWITCH,
    Listing,
    Request,
    Switch,
    code_of,
    parse_code,
)
from registry.allowlist import Allowlist
from registry.audit import Audit
from registry.clock import Clock
from registry.directory import Directory
from registry.errors import ApiError, invalid
from registry.keys import Principal
from registry.model import AllowlistQuery, AllowRequest, SwitchRequest
from registry.node import iso
from registry.writer import Writer

AT_ONCE = 500  # nodes looked at between two turns of the event loop: some milliseconds
SHOWN_UNLISTED = 100

Json = dict[str, Any]


class AllowCommands:
    """See the module. Who calls has made sure that the caller is an operator and the writer may write."""

    def __init__(
        self, allowlist: Allowlist, directory: Directory, audit: Audit, clock: Clock, registry_id: str
    ) -> None:
        self._allowlist = allowlist
        self._note = audit.note
        self._directory = directory
        self._clock = clock
        self._registry_id = registry_id

    # looking

    async def overview(self, query: AllowlistQuery) -> Json:
        """The list: this registry's own entries with the first page, the federation's by page."""
        listed = [each for each in self._allowlist.listings() if each[0] > (query.cursor or "")]
        page = listed[: query.limit]
        own = [] if query.cursor else [self._own_row(entry) for entry in self._allowlist.static.values()]
        found = {
            **self._state(),
            "entries": own + [self._row(name, listing) for name, listing in page],
            "total": len(self._allowlist.static) + len(self._allowlist.listings()),
            "next_cursor": page[-1][0] if len(listed) > len(page) else None,
        }
        if query.unlisted:
            found["unlisted"] = await self._unlisted()
        return found

    def pending(self) -> Json:
        """Who asked, those that wait first, the newest first."""
        now_ms = self._clock.wall_ms()
        found = [held for _, held in self._allowlist.requests.items() if not held.is_over(now_ms)]
        found.sort(key=lambda held: (held.state != "waiting", -held.at_ms, held.name))
        return {**self._state(), "pending": [_shown(held) for held in found]}

    # changing

    async def add(self, who: Principal, asked: AllowRequest, writer: Writer) -> Json:
        """List an entry. What an approval has bound stays bound to its asker."""
        entry = _entry(asked.entry)
        held = self._allowlist.listing(entry)
        if held is None or (asked.note is not None and asked.note != held.note):
            made = Listing("added", self._clock.wall_ms(), self._by(who), asked.note)
            if held is not None:
                made = Listing(held.source, held.at_ms, held.by, asked.note, held.claimant)
            self._note("allowlist.added", who, entry.text)
            await keep(writer, ENTRY_PREFIX + entry.text, made)
            held = made
        warnings = [] if entry.warning is None else [entry.warning]
        if held.claimant is not None:
            code = code_of(held.claimant)
            warnings.append(f"{entry.text} was approved for the machine with the code {code} alone, and stays so")
        return {**self._row(entry.text, held), "warnings": warnings + self._warnings()}

    async def remove(self, who: Principal, text: str, writer: Writer) -> Json:
        """Take an entry off the list; nodes that no other covers are refused from now on."""
        entry = _entry(text)
        is_own = entry.text in self._allowlist.static
        removed = self._allowlist.listing(entry) is not None
        if removed:
            self._note("allowlist.removed", who, entry.text)
            await writer.remove(ENTRY_PREFIX + entry.text, "removed by an operator")
        if not removed and is_own:
            raise ApiError(
                "entry_in_settings", f"{entry.text} comes from the settings of {self._registry_id}; take it out there."
            )
        if not removed:
            raise ApiError("no_such_entry", f"{entry.text} is not on the list.")
        warnings = [f"the settings of {self._registry_id} list {entry.text}, too"] if is_own else []
        node = self._directory.get(entry.value) if entry.kind == "node_id" else None
        if node is not None and self._allowlist.on and self._allowlist.admits(node) and not is_own:
            warnings.append(f"{node.node_id} may stay: another entry covers it")
        return {"success": True, "entry": entry.text, "message": "removed", "warnings": warnings + self._warnings()}

    async def turn(self, who: Principal, asked: SwitchRequest, writer: Writer) -> Json:
        """Turn the list, or approvals, on or off, at every registry of the federation."""
        before = self._allowlist.switch
        enforced = before.enforced if asked.enforced is None else asked.enforced
        approvals = before.approvals if asked.approvals is None else asked.approvals
        if (enforced, approvals) != (before.enforced, before.approvals):
            made = Switch(enforced, approvals, self._clock.wall_ms(), self._by(who))
            self._note("allowlist.switched", who, enforced=enforced, approvals=approvals)
            await keep(writer, ENTRY_PREFIX + SWITCH, made)
        return {**self._state(), "warnings": self._warnings()}

    async def approve(self, who: Principal, node_id: str, code: str | None, writer: Writer) -> Json:
        """List the node for who asked under its id, and for nobody else."""
        request = self._asked(node_id, code, ("waiting", "denied") if code else ("waiting",))
        entry = node_entry(node_id)
        made = Listing("approved", self._clock.wall_ms(), self._by(who), None, request.claimant)
        self._note("node.approved", who, node_id, code=request.code)
        await keep(writer, ENTRY_PREFIX + entry.text, made)
        await writer.remove(REQUEST_PREFIX + request.name, "approved")
        return {"success": True, **self._row(entry.text, made), "warnings": self._warnings()}

    async def deny(self, who: Principal, node_id: str, code: str | None, writer: Writer) -> Json:
        """Refuse who asked, for a day."""
        request = self._asked(node_id, code, ("waiting",))
        denied = replace(request, state="denied", at_ms=self._clock.wall_ms())
        self._note("node.denied", who, node_id, code=request.code)
        await keep(writer, REQUEST_PREFIX + request.name, denied)
        return {"success": True, **_shown(denied)}

    # parts

    def _asked(self, node_id: str, code: str | None, states: tuple[str, ...]) -> Request:
        now_ms = self._clock.wall_ms()
        found = [
            held
            for _, held in self._allowlist.requests.items()
            if held.node_id == node_id and held.state in states and not held.is_over(now_ms)
        ]
        if code is not None:
            found = [held for held in found if held.code == parse_code(code)]
        if not found:
            which = f"{node_id[:255]} with that code" if code else node_id[:255]
            raise ApiError("no_such_request", f"Nobody asks as {which}; `dagi-registry allow pending` shows who does.")
        if len(found) > 1:
            codes = ", ".join(f"{held.code} from {held.observed_ip}" for held in found[:5])
            raise ApiError("ambiguous", f"{len(found)} ask as {node_id}; say which by its code: {codes}.")
        return found[0]

    async def _unlisted(self) -> Json:
        """Registered nodes that no entry covers, whether or not the list is on."""
        found: list[str] = []
        for index, node in enumerate(list(self._directory.entries())):
            if not self._allowlist.covers(node.node_id, *node.came_from()):
                found.append(node.node_id)
            if index % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        return {"total": len(found), "node_ids": found[:SHOWN_UNLISTED]}

    def _state(self) -> Json:
        allowlist, switch = self._allowlist, self._allowlist.switch
        by = ["operator"] * switch.enforced + ["settings"] * bool(allowlist.static)
        return {"enforced": allowlist.on, "enforced_by": by, "approvals": switch.approvals}

    def _warnings(self) -> list[str]:
        """What is odd about the list as it stands."""
        allowlist, switch = self._allowlist, self._allowlist.switch
        if not allowlist.on:
            return ["the list is off: nobody is refused"]
        if not switch.enforced:
            return [f"the list is on at {self._registry_id} alone, by its settings; other registries refuse nobody"]
        if not allowlist.listings() and not allowlist.static:
            return ["the list is on and empty: no node may register or stay"]
        return []

    def _by(self, who: Principal) -> str:
        return f"{who.kind} key {who.key_id} at {self._registry_id}"

    def _own_row(self, entry: Entry) -> Json:
        row = self._row(entry.text, Listing())
        return {**row, "source": "settings", "added_at": None, "added_by": f"settings of {self._registry_id}"}

    @staticmethod
    def _row(text: str, listing: Listing) -> Json:
        return {
            "entry": text,
            "kind": parse_entry(text).kind,
            "source": listing.source,
            "added_at": iso(listing.at_ms),
            "added_by": listing.by,
            "note": listing.note,
            "code": code_of(listing.claimant) if listing.claimant else None,
        }


def _entry(text: str) -> Entry:
    try:
        return parse_entry(text)
    except ValueError as fault:
        raise invalid("entry", str(fault)) from None


def _shown(request: Request) -> Json:
    return {
        "node_id": request.node_id,
        "code": request.code,
        "state": request.state,
        "bound_to": request.bound_to,
        "asked_at" if request.state == "waiting" else "denied_at": iso(request.at_ms),
        "expires_at": iso(request.at_ms + DAY_MS),
        "through": request.through,
        "observed_ip": request.observed_ip,
        "key": request.presented,
        "certificate": request.certificate,
        "node_name": request.node_name,
        "hostname": request.hostname,
        "role": request.role,
        "region": request.region,
        "local_ip": request.local_ip,
    }
