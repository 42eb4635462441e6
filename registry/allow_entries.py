"""Entries of the allowlist: how they are written, and whom they cover. Pure.

gpu-7                  a node id; `node:gpu-7` is the same, and the only way for ids that read otherwise
192.0.2.7 2001:db8::7  an address
192.0.2.0/24           a network
cert:gpu-7             what a certificate names (mutual TLS): a node id, a URI, or cn: and its common name
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from registry.names import NODE_ID_PATTERN

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Kind = Literal["node_id", "address", "network", "certificate"]
MAX_ENTRY_CHARS = 290  # `cert:` and the longest URI of ours; the federation's keys end at 300
NODE, CERTIFICATE = "node:", "cert:"
PENDING = "pending"  # what the list's routes call who waits: a node of that name is spelled out
_NODE_ID = re.compile(NODE_ID_PATTERN)
_MEANT_AS_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+)+|[0-9A-Fa-f:.]*::[0-9A-Fa-f:.]*")
_MAPPED_BITS = 96  # of an IPv6 network that is all IPv4-mapped
_LARGE = {4: 8, 6: 32}  # prefixes shorter than what any one operator was ever given


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `text` is its one spelling; `value` is the id, the identity, or the network in the same spelling."""

    kind: Kind
    value: str
    network: Network | None = None

    @property
    def text(self) -> str:
        """As it is shown and kept."""
        if self.kind == "certificate":
            return CERTIFICATE + self.value
        if self.kind == "node_id" and not _reads_as_id(self.value):
            return NODE + self.value
        return self.value

    @property
    def proves_something(self) -> bool:
        """Whether it keeps anybody out who has nothing to show: any caller can claim a node id."""
        return self.kind == "certificate" or (self.network is not None and self.network.prefixlen > 0)

    @property
    def warning(self) -> str | None:
        """What an operator should hear about it; None: nothing."""
        network = self.network
        if network is None or network.prefixlen >= _LARGE[network.version]:
            return None
        if network.prefixlen == 0:
            return f"{self.text} lets every IPv{network.version} address in: that is as good as no list"
        return (
            f"{self.text} lets one in {2**network.prefixlen} of all IPv{network.version} addresses in; is that meant?"
        )


def parse_entry(text: str) -> Entry:
    """Read an entry. ValueError: what is wrong with it, and how to write it."""
    text = text.strip()
    if not text or len(text) > MAX_ENTRY_CHARS:
        raise ValueError(f"must have 1 to {MAX_ENTRY_CHARS} characters")
    if text[: len(CERTIFICATE)].casefold() == CERTIFICATE:
        return Entry("certificate", _identity(text[len(CERTIFICATE) :]))
    if text[: len(NODE)].casefold() == NODE:
        return node_entry(text[len(NODE) :])
    network = _network(text)
    if network is not None:
        return _of_network(network)
    if _MEANT_AS_ADDRESS.fullmatch(text):
        raise ValueError(f"{text!r} is no address; if it is a node's id, write node:{text}")
    if not _NODE_ID.fullmatch(text):
        raise ValueError(
            f"{text!r} is neither a node id, nor an address, nor a network such as 192.0.2.0/24, nor cert: and the "
            "identity in a certificate"
        )
    return Entry("node_id", text)


def node_entry(node_id: str) -> Entry:
    """The entry for a node id, whatever the id looks like. ValueError."""
    if not _NODE_ID.fullmatch(node_id):
        raise ValueError(f"{node_id[:255]!r} is no node id")
    return Entry("node_id", node_id)


def parse_address(text: str) -> Address | None:
    """An address as entries mean it: IPv4 within IPv6 is IPv4, a zone is left out. None: it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _reads_as_id(node_id: str) -> bool:
    if node_id == PENDING:
        return False
    try:
        return parse_entry(node_id) == Entry("node_id", node_id)
    except ValueError:
        return False


def _identity(text: str) -> str:
    """Visible ASCII: what the federation's keys may hold; commas part the entries in settings."""
    if not text or not (text.isascii() and text.isprintable()) or set(text) & {" ", ","}:
        raise ValueError(f"what follows {CERTIFICATE} must be an identity in visible ASCII, without spaces and commas")
    return text


def _network(text: str) -> Network | None:
    """The network or address; None: it is meant as neither. ValueError: it is meant as one, and is none."""
    if "%" in text:
        raise ValueError(f"{text!r}: leave out the zone, it means something on one machine only")
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    if "/" not in text:
        return None
    try:
        wide = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network; write it as 192.0.2.0/24 or 2001:db8::/32") from None
    one = text.partition("/")[0]
    raise ValueError(f"{text!r} has bits set after its prefix; write {wide} for the network, {one} for the address")


def _of_network(network: Network) -> Entry:
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    if network.prefixlen == network.max_prefixlen:
        return Entry("address", str(network.network_address), network)
    return Entry("network", str(network), network)


class Rules:
    """Entries, to be asked whether one covers a node. Networks are kept by the length of their prefix: a question
    costs one look-up for each length there is, however many networks there are."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._identities: set[str] = set()
        self._bases: set[tuple[int, int, int]] = set()  # (version, length of prefix, address without the rest)
        self._lengths: Counter[tuple[int, int]] = Counter()

    def add(self, entry: Entry) -> None:
        """From now on that covers nodes; again is once."""
        if entry.network is None:
            self._names(entry).add(entry.value)
        elif (base := _base(entry.network)) not in self._bases:
            self._bases.add(base)
            self._lengths[base[:2]] += 1

    def discard(self, entry: Entry) -> None:
        """It covers nobody any more."""
        if entry.network is None:
            self._names(entry).discard(entry.value)
        elif (base := _base(entry.network)) in self._bases:
            self._bases.remove(base)
            self._lengths[base[:2]] -= 1
            self._lengths += Counter()  # leaves out lengths that no network has any more

    def __bool__(self) -> bool:
        return bool(self._ids or self._identities or self._bases)

    def cover(self, node_id: str, address: str, identities: Sequence[str]) -> bool:
        """Whether one of them covers a node of that id, from that address, whose certificate names these."""
        if node_id in self._ids or (identities and not self._identities.isdisjoint(identities)):
            return True
        if not self._lengths:
            return False
        found = parse_address(address)
        if found is None:
            return False
        version, bits, size = found.version, int(found), found.max_prefixlen
        return any(
            (version, length, bits >> (size - length)) in self._bases for of, length in self._lengths if of == version
        )

    def _names(self, entry: Entry) -> set[str]:
        return self._ids if entry.kind == "node_id" else self._identities


def _base(network: Network) -> tuple[int, int, int]:
    bits = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
    return network.version, network.prefixlen, bits
