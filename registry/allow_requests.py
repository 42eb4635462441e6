"""What the allowlist keeps in records: who was listed by whom, who waits for approval, whether the list is on. Pure.

Who waits is known by a *claim*: a secret that it makes itself and sends with each registration. An approval is for
that claim alone, so whoever asks under somebody else's node id has a request of its own, told apart by its code, and
never the other's approval. A certificate that names the node is as good as a claim. Callers that have neither are known
by their machine and address.
"""

import ipaddress
from base64 import b32encode
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import orjson

from federation.record import LIST_PREFIX, Record
from registry.allow_entries import Entry, parse_address, parse_entry
from registry.model import RegisterRequest
from registry.node import MAX_MS

ENTRY_PREFIX, REQUEST_PREFIX = LIST_PREFIX, "p:"  # the federation's keys
SWITCH = "*"  # no entry reads so
DAY_MS = 86_400_000
MAX_REQUESTS = 1_000  # in all: 1 MB, and more than anybody would look through
MAX_FROM_ONE_ADDRESS = 32  # a site's nodes behind one address wait in turns; who makes up ids gets no further
_OTHERS_GRACE_MS = 3_600_000  # what a registry that is gone has left is removed by the others
_CLOCKS_DIFFER_MS = 3_600_000  # who asked later than in so long asked by no clock
MAX_TEXT_CHARS = 120
CLAIMANT_BYTES = 16
Source = Literal["added", "approved"]
State = Literal["waiting", "denied"]
Bond = Literal["certificate", "claim", "address"]  # what the asker has to show again
T = TypeVar("T")
_WORDS = {"state": get_args(State), "source": get_args(Source), "bound_to": get_args(Bond)}


@dataclass(frozen=True, slots=True)
class Switch:
    """Whether the list is on, and whether who is not on it may ask for approval."""

    enforced: bool
    approvals: bool = False
    at_ms: int = 0
    by: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Why an entry is there. `claimant`: whom alone an approval was given to."""

    source: Source = "added"
    at_ms: int = 0
    by: str = ""
    note: str | None = None
    claimant: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A node that asked to be let in. What it says of itself is its own word; `observed_ip`, `certificate` and
    `presented` (which kind of key) are what the registry saw `through` which it asked."""

    node_id: str
    claimant: str
    bound_to: Bond
    at_ms: int
    through: str
    observed_ip: str
    presented: str
    state: State = "waiting"
    certificate: str | None = None
    node_name: str | None = None
    hostname: str | None = None
    role: str | None = None
    region: str | None = None
    local_ip: str | None = None

    @property
    def code(self) -> str:
        """What tells it from others that ask under its id; the node shows it, too."""
        return code_of(self.claimant)

    @property
    def name(self) -> str:
        """Its key's part after the prefix. No node id has the stroke."""
        return f"{self.node_id}/{self.code}"

    def is_over(self, now_ms: int) -> bool:
        """Whether its day is over."""
        return not now_ms - DAY_MS < self.at_ms < now_ms + _CLOCKS_DIFFER_MS

    def is_to_be_removed(self, now_ms: int, registry_id: str) -> bool:
        """Whether its record is to be removed by that registry: its own at once, another's if that one does not."""
        grace_ms = 0 if self.through == registry_id else _OTHERS_GRACE_MS
        return self.is_over(now_ms) and self.is_over(now_ms - grace_ms)


class Claimant(NamedTuple):
    """Who asks, as 32 hex digits, and what that goes by."""

    name: str
    bound_to: Bond


def claimant_of(node_id: str, certified: str | None, claim: str | None, fingerprint: str, address: str) -> Claimant:
    """Who asks under that node id. `certified`: the node that its certificate names."""
    if certified == node_id:
        bound_to: Bond = "certificate"
        secret = ""
    elif claim:
        bound_to, secret = "claim", claim
    else:
        bound_to, secret = "address", f"{fingerprint}\0{parse_address(address) or address}"
    said = f"{node_id}\0{bound_to}\0{secret}".encode()
    return Claimant(blake2b(said, digest_size=CLAIMANT_BYTES, person=b"dagi-claim").hexdigest(), bound_to)


def code_of(claimant: str) -> str:
    """What people compare: 60 bits, so that nobody finds a claim with another's code."""
    text = b32encode(bytes.fromhex(claimant)[:8])[:12].decode()
    return f"{text[:4]}-{text[4:8]}-{text[8:]}"


def parse_code(text: str) -> str:
    """A code as people type it, as `code_of` writes it; what is none stays none."""
    letters = "".join(c for c in text.upper() if c not in " -")
    return f"{letters[:4]}-{letters[4:8]}-{letters[8:]}"


def asked(
    node_id: str, request: RegisterRequest, claimant: Claimant, *, at_ms: int, through: str, observed_ip: str,
    presented: str, certificate: str | None, hostname: str | None, local_ip: str | None,
) -> Request:  # fmt: skip
    """The request that a refused registration becomes. A stranger's texts are cut: they are kept for a day."""
    return Request(
        node_id=node_id, claimant=claimant.name, bound_to=claimant.bound_to, at_ms=at_ms, through=through,
        observed_ip=observed_ip, presented=presented, certificate=_short(certificate),
        node_name=_short(request.node_name), hostname=_short(hostname), role=_short(request.role),
        region=_short(request.region), local_ip=_short(local_ip),
    )  # fmt: skip


def no_room(requests: Iterable[Request], address: str, now_ms: int) -> str | None:
    """Why one more request from that address is not kept; None: there is room."""
    here, total, from_here = _site(address), 0, 0
    for request in requests:
        if request.is_over(now_ms):
            continue
        total += 1
        from_here += _site(request.observed_ip) == here
    if from_here >= MAX_FROM_ONE_ADDRESS:
        return f"{from_here} nodes from this address have asked already"
    return f"{total} nodes have asked already" if total >= MAX_REQUESTS else None


def encode(value: Switch | Listing | Request) -> bytes:
    """The payload of a record."""
    return orjson.dumps(asdict(value))


def read_entry(record: Record) -> Listing | Switch | None:
    """What a record under ENTRY_PREFIX says; None: nothing, or what a peer wrote is no entry. A switch that cannot be
    read is on: a newer registry, or a hostile one, must not open ours."""
    if not record.exists or record.spec is None:
        return None
    name = record.key[len(ENTRY_PREFIX) :]
    if name == SWITCH:
        return _decoded(Switch, record.spec.payload) or Switch(enforced=True)
    return _decoded(Listing, record.spec.payload) if entry_of(name) is not None else None


def read_request(record: Record) -> Request | None:
    """What a record under REQUEST_PREFIX says; None: nothing, or what a peer wrote is no request."""
    if not record.exists or record.spec is None:
        return None
    request = _decoded(Request, record.spec.payload)
    return request if request is not None and REQUEST_PREFIX + request.name == record.key else None


def entry_of(name: str) -> Entry | None:
    """The entry of that key's name; None: it is none, or is spelled otherwise."""
    try:
        entry = parse_entry(name)
    except ValueError:
        return None
    return entry if entry.text == name else None


def _decoded(kind: type[T], payload: bytes) -> T | None:
    """Fields that are not known are left out: a newer registry may have more."""
    try:
        said: dict[str, Any] = orjson.loads(payload)
        if type(said) is not dict:
            return None
        value = kind(**{each.name: said[each.name] for each in fields(kind) if each.name in said})  # type: ignore[arg-type]  # a dataclass
        return value if _is_fine(value) else None
    except (TypeError, ValueError):
        return None


def _is_fine(value: Any) -> bool:
    for each in fields(value):
        held = getattr(value, each.name)
        match each.name:
            case "at_ms":
                fine = type(held) is int and 0 <= held <= MAX_MS
            case "enforced" | "approvals":
                fine = type(held) is bool
            case "claimant":
                fine = (held is None and type(value) is Listing) or (
                    type(held) is str and len(bytes.fromhex(held)) == 16
                )
            case "state" | "source" | "bound_to":
                fine = held in _WORDS[each.name]
            case _:
                fine = (held is None and each.default is None) or (type(held) is str and len(held) <= 300)
        if not fine:
            return False
    return True


def _site(address: str) -> object:
    """Addresses that count as one: of IPv6 a site's 2^64."""
    found = parse_address(address)
    return ipaddress.ip_network((found, 64), strict=False) if isinstance(found, ipaddress.IPv6Address) else found


def _short(text: str | None) -> str | None:
    if text is None:
        return None
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT_CHARS]).strip() or None
