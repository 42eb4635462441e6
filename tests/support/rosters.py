"""Registries by name: their own keys, and what the roster says of them."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.roster import Advert, pack_advert


def registry_key(registry_id: str) -> Ed25519PrivateKey:
    """A registry's own key."""
    return Ed25519PrivateKey.from_private_bytes(registry_id.encode().ljust(32, b"."))


def advert(registry_id: str, key: Ed25519PrivateKey | None = None) -> bytes:
    """What the roster says of a registry; `key`: it has another than its own."""
    identity = (key or registry_key(registry_id)).public_key().public_bytes_raw()
    return pack_advert(Advert(f"http://{registry_id}.example.org:9205", "eu", identity, 1))
