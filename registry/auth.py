"""Who is asking, and may they: keys looked up by hash, one table of who may do what."""

import ipaddress
import os
import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from registry.certificates import Certificate
from registry.directory import Directory
from registry.errors import ApiError
from registry.keys import (
    ANYONE,
    NONCE_BYTES,
    Principal,
    belongs_to,
    is_issued,
    key_hash,
    mint_node_key,
)

Action = Literal["read", "own", "operate"]


class Authenticator:
    """Turns an Authorization header into a Principal, and says what it may do."""

    def __init__(
        self, mode: str, directory: Directory, secret: bytes, admin_hashes: Iterable[bytes], anyone_may_join: bool
    ) -> None:
        self.open = mode == "open"
        self._directory = directory
        self._secret = secret
        self._admins = frozenset(admin_hashes)
        self._anyone_may_join = anyone_may_join

    def identify(self, header: str | None) -> Principal:
        """The caller. Raises 401 for a key that is malformed or not ours, in both modes."""
        if header is None:
            return ANYONE
        scheme, _, key = header.partition(" ")
        if scheme.casefold() != "bearer" or not key:
            raise _bad_key("Send the key as 'Authorization: Bearer <key>'.")
        # Looking up a hash tells nothing about the key through its timing.
        hashed = key_hash(key)
        owner = self._directory.owner_of(hashed)
        if owner is not None:
            return Principal("node", owner, hashed, key)
        if hashed in self._admins:
            return Principal("admin", None, hashed, key)
        if is_issued(self._secret, key):
            return Principal("node", None, hashed, key)
        raise _bad_key("The key is not known to this registry; use one that it or its federation gave out.")

    def certified(self, who: Principal, certificate: Certificate) -> Principal:
        """The caller, who also presented that certificate. One that names a node makes it that node, whatever key it
        sends beside it but an admin's. Raises 403 for another node's key."""
        node_id = certificate.node_id
        if node_id is None or who.kind == "admin":
            return replace(who, certificate=certificate)
        if who.kind != "node":
            return Principal("node", node_id, certificate=certificate)
        if not self.owns(who, node_id):
            raise ApiError(
                "wrong_certificate", f"The certificate is {node_id}'s and the key another node's; send its own or none."
            )
        return replace(who, node_id=node_id, certificate=certificate)

    def require_named(self, who: Principal, node_id: str) -> None:
        """Raise 403 where the caller's certificate is another node's, in both modes."""
        certificate = who.certificate
        if certificate is None or certificate.node_id in (None, node_id) or who.kind == "admin":
            return
        raise ApiError(
            "wrong_certificate", f"The certificate is {certificate.node_id}'s; it may act for no other node."
        )

    def require(self, who: Principal, action: Action, node_id: str | None = None) -> None:
        """Raise 401 or 403 unless the caller may: `read` anything, change its `own` node, `operate`."""
        if node_id is not None:
            self.require_named(who, node_id)
        if who.kind == "admin" or (self.open and action != "operate"):
            return
        if who.kind == "none":
            raise ApiError("unauthenticated", "Send a key: 'Authorization: Bearer <key>'.")
        if action == "read":
            return
        if action == "own" and node_id is not None and self.owns(who, node_id):
            return
        needed = "an admin key" if action == "operate" else "this node's own key or an admin key"
        raise ApiError("forbidden", f"This needs {needed}.")

    def require_may_join(self, who: Principal) -> None:
        """Raise 401 unless the caller may register a node id that nobody has."""
        if who.kind == "none" and not self._anyone_may_join and not self.open:
            raise ApiError("unauthenticated", "Registering here needs a key; ask the operator for one.")

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
        return who.node_id == node_id or (who.node_id is None and belongs_to(self._secret, who.key, node_id))

    def mint(self, node_id: str) -> str:
        """A new key for a node; it is shown once."""
        return mint_node_key(self._secret, node_id, secrets.token_bytes(NONCE_BYTES))

    @staticmethod
    def hash_of(key: str) -> bytes:
        """What the record keeps of a key."""
        return key_hash(key)


def _bad_key(detail: str) -> ApiError:
    return ApiError("unauthenticated", detail)


class Allowlist:
    """Who may register: node ids, addresses, networks. Empty allows everyone."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._ids: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in entries:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._ids.add(entry)

    def require(self, node_id: str, observed_ip: str) -> None:
        """Raise 403 unless the node is listed by id or by the address it came from."""
        if (not self._ids and not self._networks) or node_id in self._ids:
            return
        try:
            address = ipaddress.ip_address(observed_ip)
        except ValueError:
            address = None
        if address is not None and any(address in network for network in self._networks):
            return
        raise ApiError(
            "not_allowlisted", f"{node_id} from {observed_ip} is not on the allowlist; ask the operator to add it."
        )


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
