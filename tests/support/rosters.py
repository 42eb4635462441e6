"""Registries by name: their own keys, and what the roster says of them."""

from federation.ed25519 import PrivateKey
from federation.roster import Advert, pack_advert


def registry_key(registry_id: str) -> PrivateKey:
    """A registry's own key."""
    return PrivateKey(registry_id.encode().ljust(32, b"."))


def advert(registry_id: str, key: PrivateKey | None = None) -> bytes:
    """What the roster says of a registry; `key`: it has another than its own."""
    identity = (key or registry_key(registry_id)).public
    return pack_advert(Advert(f"http://{registry_id}.example.org:9205", "eu", identity, 1))
