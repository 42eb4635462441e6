"""A node: what the federation's record says of it, how a registration changes it, how it is shown."""

import base64
import binascii
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from federation.record import Record as Versioned
from federation.signed import Forged, Proof, claimed, join, spec_of, split, unpack
from federation.writes import Token
from registry.capabilities import nested, normalise
from registry.errors import ApiError
from registry.lifecycle import LIVENESSES, Liveness
from registry.model import Capabilities, PatchRequest, RegisterRequest, check_shape
from registry.names import NODE_ID_PATTERN, canonical_region, machine_fingerprint, made_node_id

Json = Any
NODE_PREFIX = "n:"  # the federation's keys of nodes
MAX_MS = 253_402_300_799_999  # the year 9999: no later time can be shown
_NODE_ID = re.compile(NODE_ID_PATTERN)
_INTENTS = (None, "maintenance", "draining")
_TEXT, _TEXT_OR_NULL, _OBJECT = {str}, {str, type(None)}, {dict}
_FLAT_BRACKETS = 100  # with fewer nothing can be nested too deep to be shown
_NOT_CAPABILITIES = RegisterRequest.model_fields.keys() - Capabilities.model_fields.keys()


@dataclass(frozen=True, slots=True)
class Intent:
    """The operator's wishes; they stand over what the agent reports until patched away."""

    status: str | None = None
    labels_add: tuple[str, ...] = ()
    labels_remove: tuple[str, ...] = ()
    at_ms: int = 0

    def encode(self) -> bytes:
        """The payload of an intent."""
        return _encoded([self.status, self.labels_add, self.labels_remove, self.at_ms])

    @classmethod
    def decode(cls, data: bytes) -> "Intent":
        """Read what `encode` wrote. ValueError: it is no intent, and came from a peer."""
        status, add, remove, at_ms = orjson.loads(data)
        if status not in _INTENTS or not (_are(str, add) and _are(str, remove) and _is_time(at_ms)):
            raise ValueError("no intent")
        return cls(status, tuple(add), tuple(remove), at_ms)

    def labels(self, reported: list[str]) -> list[str]:
        """The labels to show, in the order given, each once."""
        wanted = dict.fromkeys([*reported, *self.labels_add])
        if not self.labels_remove:
            return list(wanted)
        return [label for label in wanted if label not in self.labels_remove]


_NO_INTENT = Intent()


@dataclass(frozen=True, slots=True)
class Word:
    """The home registry's word on a node: how it fares, and what the agent said of itself.

    `why` and `heard_at_ms` (its last heartbeat, as its home registry's wall clock had it) are told of nodes
    that have fallen silent.
    """

    liveness: Liveness = "online"
    reported: str | None = None
    why: str | None = None
    heard_at_ms: int | None = None

    def encode(self) -> bytes:
        """The payload of a judgement. Equal words are equal bytes: saying the same again writes nothing."""
        return _encoded([self.liveness, self.reported, self.why, self.heard_at_ms])

    @classmethod
    @lru_cache(maxsize=1_024)  # nearly every node is online, and nothing else is said of it
    def decode(cls, data: bytes) -> "Word":
        """Read what `encode` wrote. ValueError: it is no such word, and came from a peer."""
        liveness, reported, why, heard_at_ms = orjson.loads(data)
        if liveness not in LIVENESSES or not all(text is None or isinstance(text, str) for text in (reported, why)):
            raise ValueError("no word on a node")
        return cls(liveness, reported, why, heard_at_ms if _is_time(heard_at_ms) else None)


_ONLINE = Word()


@dataclass(slots=True)  # as Record, below
class Unread:
    """A node as the federation's record of it says, its registration unread: that is most of the work, and most often
    it is the one that is known already."""

    node_id: str
    registration: bytes
    home_registry: str
    word: Word
    intent: Intent
    token: Token
    said: tuple[int, int]
    registration_epoch: int

    @classmethod
    def of(cls, record: Versioned) -> "Unread | None":
        """None: there is no node of that name, or what a peer wrote is none."""
        spec, judgement, intent = record.spec, record.judgement, record.intent
        if not record.exists or spec is None or not record.key.startswith(NODE_PREFIX):
            return None
        try:
            word = Word.decode(judgement.payload) if judgement is not None else _ONLINE
            wanted = Intent.decode(intent.payload) if intent is not None else _NO_INTENT
        except (TypeError, ValueError):
            return None
        home, said, epoch = spec.origin, (0, 0), spec.major
        if judgement is not None:
            home, said = judgement.origin, (judgement.generation, judgement.seq)
            epoch = max(epoch, judgement.major)
        token = Token(record.life, record.incarnation, epoch)
        return cls(record.key[len(NODE_PREFIX) :], spec.payload, home, word, wanted, token, said, spec.major)

    def read(self) -> "Record | None":
        """With what it registered. None: what a peer wrote is no registration."""
        try:
            told, _ = split(self.registration)
            spec, fingerprint, observed_ip, registered_ms, last_ms, key_hash = orjson.loads(told)
            if told.count(b"{") + told.count(b"[") > _FLAT_BRACKETS:
                check_shape(spec["capabilities"])
            if not (
                _NODE_ID.fullmatch(self.node_id)
                and _is_spec(spec)
                and type(fingerprint) is type(observed_ip) is str
                and _is_time(registered_ms)
                and _is_time(last_ms)
            ):
                return None
            bytes.fromhex(key_hash or "")
        except (ApiError, TypeError, ValueError, LookupError):
            return None
        life, incarnation, epoch = self.token
        return Record(
            self.node_id, spec, fingerprint, observed_ip, self.home_registry, registered_ms, last_ms, key_hash,
            self.word, self.intent, life, incarnation, epoch, self.said, self.registration_epoch, self.registration,
        )  # fmt: skip


@dataclass(slots=True)  # not frozen, though nobody changes one: to make that takes three times as long
class Record:
    """A node as the federation's record of it says. Times are wall-clock milliseconds.

    `life`, `incarnation` and `epoch` order the states of one node across registries; `said` is the position
    of the home registry's word in its chain: (generation, seq).
    """

    node_id: str
    spec: dict[str, Json]
    fingerprint: str
    observed_ip: str
    home_registry: str
    registered_at_ms: int
    last_registration_ms: int
    key_hash: str | None = None
    word: Word = _ONLINE
    intent: Intent = _NO_INTENT
    life: int = 1
    incarnation: int = 0
    epoch: int = 0
    said: tuple[int, int] = (0, 0)
    # Of its newest registration alone.
    registration_epoch: int = field(default=0, compare=False)
    # What `encode_spec` gives, where it was read from that.
    kept: bytes | None = field(default=None, compare=False, repr=False)
    # What the node signed, and its counter; of one that was read it is in `kept`.
    proof: tuple[Proof, int] | None = field(default=None, compare=False, repr=False)

    @property
    def reported(self) -> str | None:
        """What the agent said of itself."""
        return self.word.reported

    @property
    def joined_with(self) -> str | None:
        """The id of the join key that it came in with."""
        key_id = self.spec.get("joined_with")
        return key_id if isinstance(key_id, str) else None

    @property
    def updated_at_ms(self) -> int:
        """When it last registered or was patched."""
        return max(self.last_registration_ms, self.intent.at_ms)

    def encode_spec(self) -> bytes:
        """The payload of its registration: JSON, and where the node signed it a line feed and the proof."""
        told = _encoded(
            [
                self.spec, self.fingerprint, self.observed_ip, self.registered_at_ms, self.last_registration_ms,
                self.key_hash,
            ]
        )  # fmt: skip
        return told if self.proof is None else join(told, *self.proof)

    @classmethod
    def of(cls, record: Versioned) -> "Record | None":
        """The node that a federation record tells of; None where there is none, or where what a peer wrote
        is no node."""
        unread = Unread.of(record)
        return unread.read() if unread is not None else None

    @property
    def token(self) -> Token:
        """What the node brings with its next request, so that any registry mints above it."""
        return Token(self.life, self.incarnation, self.epoch)


def _is_spec(what: Json) -> bool:
    """Whether a registration, which may be of a peer, has everything that is done with one. Raises otherwise,
    too. Looked at are the types that come together, not each value: every start does this for every node."""
    flat, endpoints = what["capabilities"], what["endpoints"]
    if type(endpoints) is not dict:
        return False
    # Lists can be added to lists alone, so what is a list in the end was made of nothing else.
    names = flat["models"] + flat["services"] + flat["features"] + what["labels"]
    blocks = flat["gpus"] + flat["model_details"]
    texts = (what["node_name"], what["role"], what["region"], *endpoints.values(), *names)
    unset_or_text = (what["node_type"], what["hostname"], what["ip_address"], what["local_ip"], flat["gpu"])
    return (
        type(names) is type(blocks) is list
        and set(map(type, texts)) == _TEXT
        and set(map(type, unset_or_text)) <= _TEXT_OR_NULL
        and set(map(type, blocks)) <= _OBJECT
    )


def _are(kind: type, values: Json) -> bool:
    return type(values) is list and set(map(type, values)) <= {kind}


def _is_time(value: Json) -> bool:
    return type(value) is int and 0 <= value <= MAX_MS


def _encoded(value: Json) -> bytes:
    """JSON to keep for long: a copy, as orjson hands out its own oversized buffer."""
    return bytes(memoryview(orjson.dumps(value)))


def node_key(node_id: str) -> str:
    """The federation's key of a node."""
    return NODE_PREFIX + node_id


def token_text(token: Token) -> str:
    """The token as nodes carry it: opaque to them."""
    return base64.urlsafe_b64encode(b"%d.%d.%d" % token).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where and when a registration arrived."""

    registry_id: str
    region: str
    observed_ip: str
    now_ms: int
    aliases: Mapping[str, str]
    identities: tuple[str, ...] = ()  # what the caller's certificate names


def parse_token(text: str | None) -> Token | None:
    """What a node brought; None for nothing, a foreign or an absurd one."""
    if not text:
        return None
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        token = Token(*(int(part) for part in decoded.split(".")))
    except (TypeError, ValueError, binascii.Error):
        return None
    return token if all(0 <= part < 2**63 for part in token) else None


def fingerprint_of(request: RegisterRequest, observed_ip: str) -> str:
    """What tells the registering machine from others."""
    return machine_fingerprint(
        request.machine_id, said_by(request, "hostname") or "", said_by(request, "local_ip") or "", observed_ip
    )


def candidate_id(request: RegisterRequest, fingerprint: str, attempt: int) -> str:
    """The id to try when the node brings none."""
    return made_node_id(said_by(request, "hostname") or request.node_name or "", fingerprint, attempt)


def registered(stored: Record | None, node_id: str, request: RegisterRequest, origin: Origin) -> Record:
    """The record after a registration. What a registration does not say is no longer so;
    the operator's intent, the key and the first registration stay."""
    now_ms = origin.now_ms
    fields: dict[str, Any] = {
        "spec": _spec(request, node_id, origin) | _certified(origin.identities),
        "fingerprint": fingerprint_of(request, origin.observed_ip),
        "observed_ip": origin.observed_ip,
        "home_registry": origin.registry_id,
        "last_registration_ms": now_ms,
        "word": Word(reported=request.status),
        "kept": None,
        "proof": (request.proof, request.document.counter) if request.proof and request.document else None,
    }
    if stored is None:
        return Record(node_id=node_id, registered_at_ms=now_ms, **fields)
    return admitted(replace(stored, **fields), stored.joined_with)


def admitted(record: Record, join_key_id: str | None) -> Record:
    """A new node's record, which remembers for good with which join key it came in."""
    return replace(record, spec={**record.spec, "joined_with": join_key_id}) if join_key_id is not None else record


def rekeyed(record: Record, key_hash: str) -> Record:
    """The record with another API key's hash; what the node signed goes along."""
    proof = record.proof
    if record.kept is not None and (signed := claimed(record.kept)) is not None:
        told, packed = split(record.kept)
        with contextlib.suppress(Forged):  # that it stays
            proof = unpack(packed, told), signed[1]
    return replace(record, key_hash=key_hash, kept=None, proof=proof)


def replaced(record: Record, instance_id: str | None, token: Token | None) -> bool:
    """Whether a heartbeat is of a run of the agent after which another one has registered.

    A token that is not below the newest registration here is of a node that has heard more than we have, as after it
    went on to a registry that lags. Without a token nobody can know.
    """
    last = record.spec.get("instance_id")
    if instance_id is None or last is None or instance_id == last or token is None:
        return False
    return token < Token(record.life, record.incarnation, record.registration_epoch)


def patched(intent: Intent, patch: PatchRequest, now_ms: int) -> Intent:
    """The intent after an operator's PATCH; the same PATCH again changes nothing more."""
    status = intent.status
    if patch.status is not None:
        status = None if patch.status == "online" else patch.status
    removed = [label for label in patch.labels_remove if label not in patch.labels_add]
    add = [label for label in intent.labels_add if label not in removed]
    remove = [label for label in intent.labels_remove if label not in patch.labels_add]
    return Intent(
        status,
        tuple(dict.fromkeys([*add, *patch.labels_add])),
        tuple(dict.fromkeys([*remove, *removed])),
        now_ms,
    )


def rendered(node_id: str, registration: bytes, intent: Intent, home_registry: str) -> bytes:
    """The node as list, get and discover show it, but for what changes with every heartbeat: JSON without its closing
    brace. `registration`: one that `Record.of` has taken."""
    spec, _, observed_ip, registered_at_ms, registration_ms, _ = orjson.loads(split(registration)[0])
    signed = claimed(registration)
    flat = spec["capabilities"]
    first = last = updated = iso(registered_at_ms)
    updated_at_ms = max(registration_ms, intent.at_ms)
    if updated_at_ms != registered_at_ms:
        last, updated = iso(registration_ms), iso(updated_at_ms)
    metadata = {"capabilities": nested(flat), "first_registration": first, "last_registration": last}
    if isinstance(spec.get("joined_with"), str):
        metadata["joined_with"] = spec["joined_with"]
    told = {
        "id": node_id,
        "node_id": node_id,
        "node_name": spec["node_name"],
        "role": spec["role"],
        "node_role": spec["role"],
        "node_type": spec["node_type"],
        "region": spec["region"],
        "labels": intent.labels(spec["labels"]),
        "hostname": spec["hostname"],
        "ip_address": spec["ip_address"] or observed_ip,
        "local_ip": spec["local_ip"],
        "observed_ip": observed_ip,
        "registered_at": first,
        "updated_at": updated,
        "home_registry": home_registry,
        "signing_key": None if signed is None else base64.b64encode(signed[0]).decode(),
        "endpoints": spec["endpoints"],
        "capabilities": flat,
        "metadata": metadata,
    }
    # A copy: orjson hands out its own oversized buffer, and this is kept for long.
    return bytes(memoryview(orjson.dumps(told))[:-1])


def iso(at_ms: int) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`."""
    seconds, milliseconds = divmod(at_ms, 1000)
    return f"{_iso_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=512)  # most times shown are of the last minutes
def _iso_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def said_by(request: RegisterRequest, name: str) -> str | None:
    """A fact of the machine (`hostname`, `ip_address`, `local_ip`) from where callers put it: beside
    the capabilities, among them, or in their `system` block."""
    capabilities = request.capabilities
    system = capabilities.system if capabilities else None
    extras = [part.model_extra or {} for part in (capabilities, system) if part is not None]
    for value in (getattr(request, name), *(extra.get(name) for extra in extras)):
        if isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable():
            return value
    return None


def _spec(request: RegisterRequest, node_id: str, origin: Origin) -> dict[str, Json]:
    if request.document is not None:
        return spec_of(request.document, canonical_region(origin.region, origin.aliases))
    raw = request.capabilities.model_dump(exclude_unset=True) if request.capabilities else {}
    beside = request.model_dump(exclude_unset=True, exclude=_NOT_CAPABILITIES)
    raw.update((key, value) for key, value in beside.items() if key not in raw)
    hostname = said_by(request, "hostname")
    return {
        "node_name": request.node_name or hostname or node_id,
        "role": request.role or "worker",
        "node_type": request.node_type,
        "labels": list(dict.fromkeys(request.labels or [])),
        "region": canonical_region(request.region or origin.region, origin.aliases),
        "hostname": hostname,
        "ip_address": said_by(request, "ip_address"),
        "local_ip": said_by(request, "local_ip"),
        "endpoints": request.endpoints or {},
        "instance_id": request.instance_id,
        "capabilities": normalise(raw),
    }


def _certified(identities: tuple[str, ...]) -> dict[str, Json]:
    return {"certified": list(identities)} if identities else {}


def certified(spec: Mapping[str, Json]) -> tuple[str, ...]:
    """What the certificate named that a node registered with; nothing where it had none, or a peer made it up."""
    names: Json = spec.get("certified")
    return tuple(names) if _are(str, names) else ()
