"""Ed25519 signatures (RFC 8032), all of the project's, by libsodium: of messages of a few KB it checks one in half the
time that OpenSSL takes, and registries check one for each write that gives power or takes it.

It is stricter than the RFC asks, too: it refuses public keys of small order, under which one signature is good for
many messages.
"""

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

KEY_SIZE, SIGNATURE_SIZE = 32, 64


class PrivateKey:
    """A private key, made of its seed: 32 bytes of randomness. `public`: what goes with it. ValueError."""

    __slots__ = ("_key", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_SIZE:
            raise ValueError(f"the seed of a private key is {KEY_SIZE} bytes, not {len(seed)}")
        self.seed = seed
        self.public, self._key = crypto_sign_seed_keypair(seed)

    def sign(self, message: bytes) -> bytes:
        """The signature. The same message gives the same one."""
        return crypto_sign(message, self._key)[:SIGNATURE_SIZE]


def is_signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of that key signed the message. Bytes that are no key or no signature prove nothing."""
    if len(public) != KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True
