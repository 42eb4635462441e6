"""Commands on API keys: make, list, revoke, replace. What they write the federation carries to every registry."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from federation.record import KEY_PREFIX
from registry.api_key import ApiKey
from registry.audit import Audit
from registry.auth import Authenticator
from registry.clock import Clock
from registry.directory import Directory
from registry.errors import ApiError, invalid, no_such_node
from registry.key_model import JOIN_EXPIRES_S, KeyRequest, KeysQuery
from registry.keys import MINTABLE, Grant, Principal, key_hash, key_id_of
from registry.node import iso, node_key, rekeyed
from registry.scopes import canonical_scopes
from registry.service import Registry

Json = Any


class ApiKeys:
    """Raises ApiError, NotWriter, or StoreUnavailable."""

    def __init__(self, registry: Registry, clock: Clock, audit: Audit) -> None:
        self._registry = registry
        self._auth: Authenticator = registry.auth
        self._directory: Directory = registry.directory
        self._clock = clock
        self._audit = audit

    # reads

    def listed(self, query: KeysQuery) -> dict[str, Json]:
        """Those that were asked for, the newest first."""
        now_ms = self._clock.wall_ms()
        known = {key_id: key for key_id, key in self._auth.keys.items() if self._matches(key, query, now_ms)}
        if query.node_id is not None:
            present = self._present_key(query.node_id)
            if present is not None and present.key_id not in known and self._matches(present, query, now_ms):
                known[present.key_id] = present
        found = sorted(known.values(), key=lambda key: (-key.created_at_ms, key.key_id))
        page = found[query.offset : query.offset + query.limit]
        return {
            "keys": [key.shown(now_ms) for key in page],
            "total": len(found),
            "limit": query.limit,
            "offset": query.offset,
        }

    def shown(self, key_id: str) -> dict[str, Json]:
        """One key, or a 404."""
        return self._require(key_id).shown(self._clock.wall_ms())

    # commands

    async def create(self, who: Principal, asked: KeyRequest) -> dict[str, Json]:
        """A new key, which the answer alone holds."""
        writer, now_ms = self._registry.ready_writer(), self._clock.wall_ms()
        try:
            scopes = canonical_scopes(asked.scopes, self._registry.place.aliases)
        except ValueError as fault:
            raise invalid("scopes", str(fault)) from None
        expires_in_s = asked.expires_in_s or (JOIN_EXPIRES_S if asked.kind == "join" else None)
        expires_at_ms = (now_ms // 1000 + expires_in_s) * 1000 if expires_in_s is not None else None
        grant = Grant(asked.kind, expires_at_ms, asked.max_uses, scopes)
        text, made = self._made(who, grant, asked.name, now_ms)
        self._audit.note("key.created", who, made.key_id, kind=made.kind, name=made.name, scopes=scopes)
        position = await writer.put_all(_puts(made))
        return {**made.shown(now_ms), "key": text, "version": str(position)}

    async def revoke(self, who: Principal, key_id: str) -> dict[str, Json]:
        """A key is good no more, for ever, also one of which nothing is known here."""
        if key_id == who.key_id:
            raise ApiError("key_in_use", "The request came with this very key; revoke it with another admin key.")
        writer = self._registry.ready_writer()
        self._audit.note("key.revoked", who, key_id)
        position = await writer.put_all({}, [KEY_PREFIX + key_id], who.key_id or "")
        return {"success": True, "key_id": key_id, "message": "revoked", "version": str(position)}

    async def rotate(self, who: Principal, key_id: str, overlap_s: int) -> dict[str, Json]:
        """A successor with the same rights; the old one ends after the overlap."""
        writer, now_ms = self._registry.ready_writer(), self._clock.wall_ms()
        old = self._require(key_id)
        if old.kind == "node":
            raise ApiError("key_not_active", f"This is a node's key: POST /api/v1/nodes/{old.node_id}/key replaces it.")
        if old.replaced_by is not None:
            raise ApiError("key_not_active", f"This key has been replaced by {old.replaced_by}; rotate that one.")
        if old.status(now_ms) != "active" or old.kind not in MINTABLE:
            raise ApiError("key_not_active", f"This key is {old.status(now_ms).replace('_', ' ')}; make a new one.")
        lasts_ms = old.expires_at_ms - old.created_at_ms if old.expires_at_ms is not None else None
        expires_at_ms = (now_ms + lasts_ms) // 1000 * 1000 if lasts_ms is not None else None
        left = old.max_uses - old.used if old.max_uses is not None else None
        text, made = self._made(who, Grant(old.kind, expires_at_ms, left, old.scopes), old.name, now_ms)
        ended = replace(old.expiring(now_ms + overlap_s * 1000), replaced_by=made.key_id)
        self._audit.note("key.rotated", who, key_id, successor=made.key_id, overlap_s=overlap_s)
        position = await writer.put_all(_puts(made, ended), _at_once([ended], overlap_s), who.key_id or "")
        return {**made.shown(now_ms), "key": text, "replaces": key_id, "version": str(position)}

    async def rotate_node(self, who: Principal, node_id: str, overlap_s: int) -> dict[str, Json]:
        """A new key for a node, by the node itself or an admin; what it had before ends after the overlap."""
        self._auth.require(who, "rekey", node_id)
        writer, now_ms = self._registry.ready_writer(), self._clock.wall_ms()
        node = writer.node(node_id)
        if node is None:
            raise no_such_node(node_id[:255])
        text = self._auth.mint(node_id)
        hashed = key_hash(text)
        new_id, until_ms = key_id_of(hashed), now_ms + overlap_s * 1000
        old_ids = {key_id_of(bytes.fromhex(node.key_hash))} if node.key_hash else set()
        if who.kind == "node" and who.key_id is not None:
            old_ids.add(who.key_id)
        ended = [self._of_node(key_id, node_id, new_id).expiring(until_ms) for key_id in sorted(old_ids)]
        puts = {node_key(node_id): rekeyed(node, hashed.hex()).encode_spec(), **_puts(*ended)}
        self._audit.note("key.rotated", who, node_id, successor=new_id, overlap_s=overlap_s)
        position = await writer.put_all(puts, _at_once(ended, overlap_s), who.key_id or "")
        return {
            "node_id": node_id,
            "api_key": text,
            "key_id": new_id,
            "replaces": [old.key_id for old in ended],
            "replaced_until": iso(until_ms),
            "version": str(position),
        }

    # parts

    def _require(self, key_id: str) -> ApiKey:
        key = self._auth.keys.get(key_id)
        if key is None:
            raise ApiError("no_such_key", "No key of this id is known here; one made elsewhere may be soon.")
        return key

    def _made(self, who: Principal, grant: Grant, name: str, now_ms: int) -> tuple[str, ApiKey]:
        text, key_id, kept = self._auth.mint_grant(grant)
        made = ApiKey(
            key_id, grant.kind, name, grant.scopes, now_ms, who.key_id, grant.expires_at_ms, grant.max_uses, kept
        )  # fmt: skip
        return text, made

    def _of_node(self, key_id: str, node_id: str, successor: str) -> ApiKey:
        """A node's key that is replaced; most have no record until then."""
        known = self._auth.keys.get(key_id)
        if known is None or known.kind is None:
            known = ApiKey(key_id, "node", node_id=node_id)
        return replace(known, replaced_by=successor)

    def _present_key(self, node_id: str) -> ApiKey | None:
        entry = self._directory.get(node_id)
        if entry is None or entry.key_hash is None:
            return None
        key_id = key_id_of(entry.key_hash)
        known = self._auth.keys.get(key_id)
        if known is None:
            return ApiKey(key_id, "node", node_id=node_id)
        return replace(known, kind="node", node_id=node_id)

    @staticmethod
    def _matches(key: ApiKey, query: KeysQuery, now_ms: int) -> bool:
        return (
            ("any" in query.status or not query.status or key.status(now_ms) in query.status)
            and (not query.kind or key.kind in query.kind)
            and (query.node_id is None or key.node_id == query.node_id)
        )


def _puts(*keys: ApiKey) -> dict[str, bytes]:
    """Their records."""
    return {KEY_PREFIX + key.key_id: key.encode() for key in keys}


def _at_once(ended: Iterable[ApiKey], overlap_s: int) -> list[str]:
    """Those to be revoked: without an overlap a key ends so that nothing others write can take it back."""
    return [KEY_PREFIX + key.key_id for key in ended] if overlap_s == 0 else []
