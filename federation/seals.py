"""What registries sign of what they write, so that whoever passes it on can neither make it up nor change it.

Sealed is what gives power or takes it, and stands for long: API keys, the allowlist, the roster, what operators want
of nodes, deletions. A seal is the origin's Ed25519 signature (RFC 8032) of the whole write, by the identity that the
roster pins to it. Checking one takes 60 us, so what there is much of goes without: registrations, which nodes sign
themselves (signed.py), owners' words on nodes, which they say again where these do not stand, and what is soon over.
"""

from collections.abc import Mapping
from enum import Enum

import orjson

from federation.ed25519 import PrivateKey, is_signed_by
from federation.record import KEY_PREFIX, LIST_PREFIX, REGISTRY_PREFIX, Item, Record, SectionKind
from federation.roster import unpack_advert

_CONTEXT = b"dagi-seal-1\n"  # no signature of ours for anything else can pass for a seal
_SEALED_KINDS = (SectionKind.INTENT, SectionKind.END)
_SEALED_PREFIXES = (KEY_PREFIX, LIST_PREFIX, REGISTRY_PREFIX)


class Seal(Enum):
    """UNKNOWN: its origin has no entry in the roster that can be read, yet or any more. FORMER: it is not of the
    identity that its origin has, but from before that had it."""

    HOLDS = "holds"
    BROKEN = "broken"
    FORMER = "former"
    UNKNOWN = "unknown"


def is_sealed(item: Item) -> bool:
    """Whether its origin signs a write of that kind."""
    return item.kind in _SEALED_KINDS or item.key.startswith(_SEALED_PREFIXES)


def sealed(item: Item, key: PrivateKey) -> Item:
    """The write with its origin's seal, if it is to have one."""
    if not is_sealed(item):
        return item
    return item._replace(section=item.section._replace(seal=key.sign(_content(item))))


def is_sealed_by(item: Item, identity: bytes) -> bool:
    """Whether the holder of that identity has sealed the write."""
    return is_signed_by(identity, item.section.seal, _content(item))


def seal_of(item: Item, roster: Mapping[str, Record]) -> Seal:
    """How a write of a sealed kind stands, as far as `roster` can tell. An entry of a later life than the one that
    stands brings its own identity: the one before was taken out, as any member may."""
    own_entry = REGISTRY_PREFIX + item.section.origin
    if item.key.startswith(REGISTRY_PREFIX) and item.key != own_entry and item.kind != SectionKind.END:
        return Seal.BROKEN  # a registry speaks for itself; others can only take it out
    entry = roster.get(own_entry)
    pinned = entry.spec if entry is not None else None
    advert = unpack_advert(pinned.payload) if pinned is not None else None
    if item.key == own_entry and item.kind == SectionKind.SPEC:
        if entry is None or advert is None or item.life > entry.life:
            pinned, advert = item.section, unpack_advert(item.section.payload)
    elif advert is None:
        return Seal.UNKNOWN
    if advert is not None and is_sealed_by(item, advert.identity):
        return Seal.HOLDS
    is_former = pinned is not None and item.section.generation < pinned.generation
    return Seal.FORMER if is_former else Seal.BROKEN


def _content(item: Item) -> bytes:
    """Everything that a write says, in one way only."""
    major, origin, minor, payload, generation, seq, birth, _ = item.section
    head = [item.key, item.life, item.incarnation, int(item.kind), major, origin, minor, generation, seq]
    return b"".join((_CONTEXT, orjson.dumps([*head, *birth]), b"\n", payload))
