"""Who is let in: registrations and heartbeats held against the allowlist, and requests for approval.

A registration that the list does not cover is refused, or kept as a request where approvals are on. An approval lists
the node's id for that asker alone, which is as good as a key to join with.
"""

import hmac
import math
from collections.abc import Iterator
from dataclasses import dataclass

from registry.allow_requests import (
    DAY_MS,
    REQUEST_PREFIX,
    Claimant,
    Listing,
    Request,
    Switch,
    asked,
    claimant_of,
    encode,
    no_room,
)
from registry.allowlist import UNLISTED, Allowlist, identities_of
from registry.auth import Authenticator
from registry.clock import Clock
from registry.directory import Due
from registry.directory import Entry as Node
from registry.errors import ApiError
from registry.keys import Principal
from registry.model import RegisterRequest
from registry.node import Word, fingerprint_of, iso, said_by
from registry.writer import Writer

ASK_AGAIN_S = 30  # who waits hears of the approval within this; sooner where heartbeats are more often


@dataclass(frozen=True, slots=True)
class Asker:
    """A registration, as far as it matters whether it is let in. `known`: the node is registered, and this caller
    may register it again."""

    who: Principal
    node_id: str
    request: RegisterRequest
    observed_ip: str
    known: bool

    @property
    def claimant(self) -> Claimant:
        """Who it is to the allowlist."""
        certificate = self.who.certificate
        certified = certificate.node_id if certificate is not None else None
        fingerprint = fingerprint_of(self.request, self.observed_ip)
        return claimant_of(self.node_id, certified, self.request.claim, fingerprint, self.observed_ip)


class Admission:
    """See the module. Who calls has made sure that the writer may write."""

    def __init__(
        self,
        allowlist: Allowlist,
        auth: Authenticator,
        clock: Clock,
        registry_id: str,
        heartbeat_interval_s: float = ASK_AGAIN_S,
    ) -> None:
        self.allowlist = allowlist
        self._auth = auth
        self._clock = clock
        self._registry_id = registry_id
        self._ask_again_s = min(ASK_AGAIN_S, math.ceil(heartbeat_interval_s))
        self._being_kept: dict[str, Request] = {}  # not in the table yet: many may ask at once

    async def admit(self, asker: Asker, writer: Writer) -> bool:
        """Raise 403 unless the registration is let in. True: an operator approved just this asker."""
        allowlist = self.allowlist
        if not allowlist.on:
            return False
        bound_to = allowlist.bound_to(asker.node_id)
        if bound_to is not None:
            if hmac.compare_digest(bound_to, asker.claimant.name):
                return True
            if asker.who.kind == "admin" or self._auth.owns(asker.who, asker.node_id):
                return False
        elif allowlist.covers(asker.node_id, asker.observed_ip, identities_of(asker.who.certificate)):
            return False
        if not allowlist.switch.approvals:
            raise _refusal(asker, is_anothers=bound_to is not None)
        raise await self._file(asker, writer)

    async def turn_away(self, node: Node, writer: Writer) -> None:
        """A node that is not on the list beats here: if its home's word on it is ours, or cannot be heard of, it is
        offline from now on."""
        due = unlisted(node)
        if node.owner.is_us:
            await writer.judge([due])
        elif not node.owner.reachable:
            await writer.heard(node.node_id, due.word, b"", None)

    async def _file(self, asker: Asker, writer: Writer) -> ApiError:
        """Keep the request of who is not on the list; what to answer."""
        now_ms = self._clock.wall_ms()
        request = self._request(asker, now_ms)
        held = self._being_kept.get(request.name) or self.allowlist.requests.get(request.name)
        if held is not None and not held.is_over(now_ms):
            is_same = hmac.compare_digest(held.claimant, request.claimant)
            if not is_same:
                return _refusal(asker, is_anothers=True)
            return self._pending(held) if held.state == "waiting" else _denial(held)
        if asker.who.kind != "none" and not asker.known:
            self._auth.require_may_join(asker.who)  # asking is for those without a key, and for keys that may register
        why = no_room(self._requests(), asker.observed_ip, now_ms)
        if why is not None:
            return ApiError(
                "not_allowlisted",
                f"{asker.node_id} is not on the allowlist, and cannot wait for approval now: {why}. Try again later, "
                "or ask the operator to add it.",
            )
        self._being_kept[request.name] = request
        try:
            await keep(writer, REQUEST_PREFIX + request.name, request)
        finally:
            del self._being_kept[request.name]
        return self._pending(request)

    def _pending(self, request: Request) -> ApiError:
        """The code comes before what strangers chose: it must not be cut off with it."""
        code = request.code
        return ApiError(
            "pending",
            f"An operator has to approve this node first; give them this code: {code} "
            f"(dagi-registry allow approve {request.node_id} --code {code}).",
            retry_after_s=self._ask_again_s,
        )

    def _request(self, asker: Asker, now_ms: int) -> Request:
        names = identities_of(asker.who.certificate)
        return asked(
            asker.node_id,
            asker.request,
            asker.claimant,
            at_ms=now_ms,
            through=self._registry_id,
            observed_ip=asker.observed_ip,
            presented=asker.who.kind if asker.who.key else "none",
            certificate=names[0] if names else None,
            hostname=said_by(asker.request, "hostname"),
            local_ip=said_by(asker.request, "local_ip"),
        )

    def _requests(self) -> Iterator[Request]:
        yield from (held for name, held in self.allowlist.requests.items() if name not in self._being_kept)
        yield from self._being_kept.values()


async def keep(writer: Writer, key: str, value: Listing | Switch | Request) -> None:
    """Write one of the allowlist's records."""
    try:
        await writer.put(key, encode(value))
    except ValueError:
        name = key.partition(":")[2]
        raise ApiError("invalid", f"{name} has been listed and removed too often, or a peer says so.") from None


def unlisted(node: Node) -> Due:
    """The word that is due on a node that is not on the list."""
    return Due(node.node_id, Word("offline", node.reported, UNLISTED, node.beat_at_ms), node.word)


def beat_refused(node_id: str) -> ApiError:
    """A 403 to a heartbeat. Agents answer it by registering again, which asks for approval where that is possible."""
    return ApiError("not_allowlisted", f"{node_id} is not on the allowlist (any more); ask the operator to add it.")


def _refusal(asker: Asker, *, is_anothers: bool) -> ApiError:
    if is_anothers:
        detail = f"{asker.node_id} was approved for another machine; choose another node_id, or ask the operator"
        return ApiError("not_allowlisted", f"{detail} to remove that entry.")
    return ApiError(
        "not_allowlisted",
        f"{asker.node_id} from {asker.observed_ip} is not on the allowlist; ask the operator to add it.",
    )


def _denial(request: Request) -> ApiError:
    again = iso(request.at_ms + DAY_MS)
    return ApiError("not_allowlisted", f"An operator refused {request.node_id}; it may ask again after {again}.")
