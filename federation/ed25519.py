"""Ed25519 signatures (RFC 8032), all of the project's, by libsodium: it checks one in half the time that OpenSSL
takes, and registries check one for each write that gives power or takes it.

libsodium is stricter than the RFC asks, too: it refuses public keys of small order, under which one signature is
good for many messages.
"""

from functools import lru_cache

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey


class PrivateKey:
    """A private key. `public`: what goes with it. ValueError for a seed that is not 32 bytes."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public = bytes(self._key.verify_key)

    @classmethod
    def generate(cls) -> "PrivateKey":
        """A new one, of the system's randomness."""
        return cls(bytes(SigningKey.generate()))

    @property
    def seed(self) -> bytes:
        """What it is made of: to be kept, and to be kept secret."""
        return bytes(self._key)

    def sign(self, message: bytes) -> bytes:
        """The signature. The same message gives the same one."""
        return self._key.sign(message).signature


def is_signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of that key signed the message. What is no key or no signature proves nothing."""
    try:
        _verifier(public).verify(message, signature)
    except (CryptoError, ValueError):
        return False
    return True


@lru_cache(maxsize=1_024)
def _verifier(public: bytes) -> VerifyKey:
    return VerifyKey(public)
