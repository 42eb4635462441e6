"""Who is asking, and may they: keys checked in memory at every request, one table of who may do what."""

import os
import secrets
from collections.abc import Callable, Iterable
from hmac import compare_digest
from pathlib import Path
from typing import Literal

from federation.record import KEY_PREFIX
from registry.api_key import ApiKey
from registry.certificates import Certificate
from registry.clock import SystemClock
from registry.directory import Directory
from registry.errors import ApiError
from registry.key_use import KeyUse
from registry.keys import (
    ANYONE,
    NONCE_BYTES,
    Grant,
    Principal,
    belongs_to,
    is_issued,
    key_hash,
    key_id_of,
    keyed_hash,
    mint,
    mint_node_key,
    read_grant,
)
from registry.node import iso
from registry.scopes import EVERYTHING, parse_scopes
from registry.settings import Settings
from registry.tables import Table

# read: nodes. observe: the registry and the federation as a whole. own: change a node. rekey: a node's new key.
Action = Literal["read", "observe", "own", "rekey", "operate"]
_NEEDED = {
    "read": "a read key, a node's key or an admin key",
    "observe": "a read key without scopes, a node's key or an admin key",
    "own": "this node's own key or an admin key",
    "rekey": "this node's own key or an admin key",
    "operate": "an admin key",
}
_WITHOUT_KEY_WHEN_OPEN = frozenset({"read", "observe", "own"})


class Authenticator:
    """Turns an Authorization header into a Principal, and says what it may do."""

    def __init__(
        self,
        mode: str,
        directory: Directory,
        secret: bytes,
        admin_hashes: Iterable[bytes],
        anyone_may_join: bool,
        *,
        older_secret: bytes | None = None,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        """`older_secret`: under which keys were minted before this registry joined a federation."""
        self.open = mode == "open"
        self.keys: Table[ApiKey] = directory.tables.add(Table(KEY_PREFIX, ApiKey.of))
        self.use = KeyUse(directory.registry_id, self.keys)
        self.on_key_change: Callable[[str], None] = lambda key_id: None
        self.is_listed: Callable[[str | None, Certificate | None], bool] = lambda node_id, certificate: True
        self.keys.on_change = self._key_changed
        self._directory = directory
        self._secrets = tuple(dict.fromkeys(each for each in (secret, older_secret) if each is not None))
        self._admins = frozenset(admin_hashes)
        self._anyone_may_join = anyone_may_join
        self._now_ms = now_ms or SystemClock().wall_ms

    def identify(self, header: str | None) -> Principal:
        """The caller. Raises 401 for a key that is malformed, not ours, expired or revoked, in both modes."""
        if header is None:
            return ANYONE
        scheme, _, key = header.partition(" ")
        if scheme.casefold() != "bearer" or not key or not key.isascii():
            raise _bad_key("Send the key as 'Authorization: Bearer <key>'.")
        # Looking up a hash tells nothing about the key through its timing.
        hashed = key_hash(key)
        known = self.keys.get(key_id_of(hashed))
        if known is not None:
            self._check(known.revoked_at_ms is not None, known.expires_at_ms)
        owner = self._directory.owner_of(hashed)
        if owner is not None:
            return Principal("node", owner, hashed, key)
        if hashed in self._admins:
            return Principal("admin", None, hashed, key)
        if any(is_issued(secret, key) for secret in self._secrets):
            return Principal("node", None, hashed, key)
        return self._minted(key, hashed, known)

    def _minted(self, key: str, hashed: bytes, known: ApiKey | None) -> Principal:
        """A read, join or admin key. It says itself what it is: its record may not have arrived yet."""
        for secret in self._secrets:
            grant = read_grant(secret, key)
            if grant is None:
                continue
            if known is not None and not compare_digest(
                (known.hash or "").encode(), keyed_hash(secret, hashed).hex().encode()
            ):
                break  # the record is of another key, which somebody made up
            self._check(False, grant.expires_at_ms)
            self.use.note(key_id_of(hashed), self._now_ms())
            scope = parse_scopes(grant.scopes) if grant.scopes else EVERYTHING
            return Principal(grant.kind, None, hashed, key, grant, scope)
        raise _bad_key("The key is not known to this registry; use one that it or its federation gave out.")

    def certified(self, who: Principal, certificate: Certificate) -> Principal:
        """The caller, who also presented that certificate. One that names a node makes it that node, whatever key it
        sends beside it but an admin's. Raises 403 for another node's key."""
        node_id = certificate.node_id
        if node_id is None or who.kind == "admin":
            return who._replace(certificate=certificate)
        if who.kind != "node":
            return Principal("node", node_id, certificate=certificate)
        if not self.owns(who, node_id):
            raise ApiError(
                "wrong_certificate", f"The certificate is {node_id}'s and the key another node's; send its own or none."
            )
        return Principal("node", node_id, who.key_hash, who.key, certificate=certificate)

    def require_named(self, who: Principal, node_id: str) -> None:
        """Raise 403 where the caller's certificate is another node's, in both modes."""
        certificate = who.certificate
        if certificate is None or certificate.node_id in (None, node_id) or who.kind == "admin":
            return
        raise ApiError(
            "wrong_certificate", f"The certificate is {certificate.node_id}'s; it may act for no other node."
        )

    def _key_changed(self, key_id: str, key: ApiKey | None) -> None:
        self.use.learn(key_id, key)
        self.on_key_change(key_id)

    def _check(self, revoked: bool, expires_at_ms: int | None) -> None:
        if revoked:
            raise ApiError("key_revoked", "This key has been revoked; ask the operator for another.")
        if expires_at_ms is not None and expires_at_ms <= self._now_ms():
            raise ApiError("key_expired", f"This key ended at {iso(expires_at_ms)}; ask the operator for another.")

    def check_still(self, who: Principal) -> None:
        """Raise 401 once a key that was good has been revoked, or has ended, or the certificate: for what outlasts a
        request."""
        known = self.keys.get(who.key_id) if who.key_id is not None else None
        if known is not None:
            self._check(known.revoked_at_ms is not None, known.expires_at_ms)
        if who.grant is not None:
            self._check(False, who.grant.expires_at_ms)
        if who.certificate is not None and who.certificate.expires_s * 1000 <= self._now_ms():
            raise ApiError("unauthenticated", "The certificate has ended; come with a new one.")
        if not self.open:
            self._require_listed(who)

    def _require_listed(self, who: Principal) -> None:
        """A node that was taken off the allowlist asks nothing more, with none of its keys, nor once it is deleted."""
        if who.kind != "node":
            return
        known = self.keys.get(who.key_id) if who.node_id is None and who.key_id is not None else None
        node_id = who.node_id if known is None else known.node_id
        if not self.is_listed(node_id, who.certificate):
            known_here = "on the allowlist (any more); ask the operator to add it"
            detail = f"This node is not {known_here if node_id is not None else 'registered here; register it first'}."
            raise ApiError("not_allowlisted", detail)

    def require(self, who: Principal, action: Action, node_id: str | None = None) -> None:
        """Raise 401 or 403 unless the caller may do that, to that node where there is one."""
        if node_id is not None:
            self.require_named(who, node_id)
        if who.kind == "admin" or (self.open and action in _WITHOUT_KEY_WHEN_OPEN):
            return
        if who.kind == "none":
            raise ApiError("unauthenticated", "Send a key: 'Authorization: Bearer <key>'.")
        if action in ("read", "observe") and who.kind in ("node", "read"):
            self._require_listed(who)
            if action == "read" or not who.scope.nodes_only:
                return
        elif action in ("own", "rekey") and node_id is not None and self.owns(who, node_id):
            return
        raise ApiError("forbidden", f"This needs {_NEEDED[action]}.")

    def require_may_join(self, who: Principal) -> None:
        """Raise 401 or 403 unless the caller may register a node id that nobody has."""
        if self.open or who.kind in ("admin", "node", "join") or (who.kind == "none" and self._anyone_may_join):
            return
        if who.kind == "none":
            raise ApiError("unauthenticated", "Registering here needs a key; ask the operator for a join key.")
        raise ApiError("forbidden", "A read key registers no nodes; ask the operator for a join key.")

    def require_may_replace(self, who: Principal, node_id: str) -> None:
        """Raise 409 unless the caller may register a node id that exists."""
        if not (self.open or who.kind == "admin" or self.owns(who, node_id)):
            raise ApiError(
                "node_id_taken",
                f"{node_id} is registered with another key; send that node's key, or register without a node_id.",
            )

    def owns(self, who: Principal, node_id: str) -> bool:
        """Whether the key is that node's own."""
        if who.kind != "node":
            return False
        if who.node_id == node_id:
            return True
        # Also where a record of another node claims the key's hash: it does not take the key from whom it was made for.
        return any(belongs_to(secret, who.key, node_id) for secret in self._secrets)

    def mint(self, node_id: str) -> str:
        """A new key for a node; it is shown once."""
        return mint_node_key(self._secrets[0], node_id, secrets.token_bytes(NONCE_BYTES))

    def mint_grant(self, grant: Grant) -> tuple[str, str, str]:
        """A new read, join or admin key, which is shown once; its id, and the keyed hash that is kept of it."""
        key = mint(self._secrets[0], grant, secrets.token_bytes(NONCE_BYTES))
        hashed = key_hash(key)
        return key, key_id_of(hashed), keyed_hash(self._secrets[0], hashed).hex()

    @staticmethod
    def hash_of(key: str) -> bytes:
        """What the record keeps of a key."""
        return key_hash(key)


def _bad_key(detail: str) -> ApiError:
    return ApiError("unauthenticated", detail)


def key_secrets(settings: Settings) -> tuple[bytes, bytes | None]:
    """Under which secret keys are minted here; and under which they were before the registry joined a federation."""
    local = local_secret(settings.data_path)
    if settings.federation_secret is None:
        return local, None
    return settings.federation_secret.get_secret_value().encode(), local


def local_secret(data_dir: Path) -> bytes:
    """The secret of a registry without a federation: made once, kept in the data folder (0600)."""
    path = data_dir / "secret"
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with open(path, "x", encoding="ascii", opener=_private) as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return bytes.fromhex(path.read_text(encoding="ascii"))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
