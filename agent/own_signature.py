"""The node's own signature: its Ed25519 key, made at the first start and kept beside its id, and what it signs."""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from agent.identity import Home, SigningKey
from federation.ed25519 import KEY_SIZE, PrivateKey
from federation.signed import FIELDS, sign

ALONE_BYTES = 65_536  # a document of more is not sent a second time beside itself: a request has an end
Json = Any


class OwnSignature:
    """Signs registrations. The key is read, or made, at first use; one that cannot be kept lasts as long as the
    agent. `trouble` hears why it cannot be kept."""

    def __init__(self, home: Home, trouble: Callable[[OSError], None]) -> None:
        self._home, self._trouble = home, trouble
        self._key: SigningKey | None = None

    def signed(self, report: Mapping[str, Json], now_ms: int) -> dict[str, Json]:
        """A registration's body with the signature in it, over all of it that is the node's to say."""
        own = self._next(now_ms)
        fields = {name: report[name] for name in FIELDS if name in report}
        proof = sign(PrivateKey(own.seed), report["node_id"], fields, own.counter, now_ms)
        large = len(proof.document) > ALONE_BYTES
        beside = {name: value for name, value in report.items() if not (large and name == "capabilities")}
        return {**beside, "signed": proof.to_json()}

    def renew(self) -> None:
        """This machine is another node now, with a key of its own."""
        self._key = SigningKey(secrets.token_bytes(KEY_SIZE), 0)

    def _next(self, now_ms: int) -> SigningKey:
        """The key, with the counter of the next document. It grows with time, so that one kept too long ago, or by
        another program of this home, does no harm."""
        kept = self._kept()
        own = self._key or kept or SigningKey(secrets.token_bytes(KEY_SIZE), 0)
        used = max(own.counter, kept.counter if kept is not None and kept.seed == own.seed else 0)
        self._key = own = SigningKey(own.seed, max(used + 1, now_ms))
        try:
            self._home.keep_signing_key(own)
        except OSError as error:
            self._trouble(error)
        return own

    def _kept(self) -> SigningKey | None:
        try:
            return self._home.signing_key()
        except OSError as error:
            self._trouble(error)
            return None
