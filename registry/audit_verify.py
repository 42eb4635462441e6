"""`dagi-registry audit verify`: is this log the one that was written? Pure: lines in, words out.

The chain shows what was changed within it. Where all of it was made anew, the heads that were signed and that other
registries have in their logs do not lie on it any more.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry import audit_chain
from registry.audit_chain import START, BrokenLine, Head, Line
from registry.audit_checkpoint import Checkpoint, checkpoint_of

REMEMBERED = 20_000  # newest hashes kept at hand: a checkpoint is about an entry shortly before it
TOO_MANY = 20  # faults of one kind are told that often


@dataclass(frozen=True, slots=True)
class Sighting:
    """What another registry (`by`) has in its log of one of ours: "I saw that head then"."""

    by: str
    seen_at: str
    checkpoint: Checkpoint
    identity: str


@dataclass(slots=True)
class Verdict:
    """What was found. It is the log that was written where there are no `problems`."""

    registry_id: str = ""
    first: Head = START
    head: Head = START
    first_at: str = ""
    last_at: str = ""
    entries: int = 0
    checkpoints: int = 0
    witnesses: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ok": not self.problems,
            "registry_id": self.registry_id,
            "entries": self.entries,
            "first": self.first.seq,
            "last": self.head.seq,
            "hash": self.head.hash,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "checkpoints": self.checkpoints,
            "witnesses": self.witnesses,
            "problems": self.problems,
            "notes": self.notes,
        }


class Verifier:
    """Takes a log line by line. `identity`: the registry's public key, where it is known; else the log's own word
    has to do. `sightings`: what other registries saw of this log."""

    def __init__(self, identity: bytes | None, sightings: Sequence[Sighting] = ()) -> None:
        self._identity = identity
        self._seen: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._wanted: dict[int, list[Sighting]] = {}
        self._agreed: Sighting | None = None
        self._verdict = Verdict()
        for sighting in sightings:
            self._add(sighting)

    def _add(self, sighting: Sighting) -> None:
        checkpoint = sighting.checkpoint
        key = self._identity if self._identity is not None else _bytes(sighting.identity)
        if not checkpoint.is_by(key):
            self._verdict.notes.append(
                f"{sighting.by} has entry {checkpoint.head.seq} as seen at {sighting.seen_at}, but not signed "
                "by this registry's identity: it proves nothing, unless the identity was replaced"
            )
            return
        self._wanted.setdefault(checkpoint.head.seq, []).append(sighting)
        self._verdict.witnesses += 1

    def check(self, lines: Iterable[bytes]) -> Verdict:
        """Look at every line; stop at the first place where the chain is broken."""
        verdict = self._verdict
        for raw in lines:
            if not raw.endswith(b"\n"):
                verdict.notes.append(
                    f"the last line, after entry {verdict.head.seq}, is torn: a kill or a full disk does that; the "
                    "registry writes it again when it starts"
                )
                break
            fault, line = self._fault(raw[:-1])
            if fault is not None or line is None:
                verdict.problems.append(self._where(line, fault or ""))
                break
            self._take(line)
        self._conclude()
        return verdict

    def _fault(self, raw: bytes) -> tuple[str | None, Line | None]:
        try:
            line = audit_chain.read(raw)
        except BrokenLine as broken:
            return str(broken), None
        if self._verdict.entries == 0 and line.head.seq > 1:
            return None, line  # what came before was trimmed
        return audit_chain.follows(line, self._verdict.head), line

    def _where(self, line: Line | None, fault: str) -> str:
        head, after = self._verdict.head, self._verdict.last_at
        seq = line.head.seq if line is not None else head.seq + 1
        when = f"of {line.at}" if line is not None else f"the one after {after}" if after else "the first one"
        return f"the chain is broken at entry {seq} ({when}): {fault}"

    def _take(self, line: Line) -> None:
        verdict = self._verdict
        if verdict.entries == 0:
            verdict.first, verdict.first_at = line.head, line.at
        verdict.entries += 1
        verdict.head, verdict.last_at = line.head, line.at
        self._seen[line.head.seq] = line.head.hash, line.at
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self._compare(line)
        if line.entry.get("action") == "checkpoint.signed":
            self._own(line)
        elif line.entry.get("action") == "audit.lost":
            self._tell(
                verdict.notes, f"entry {line.head.seq} ({line.at}) says that entries were lost before they were kept"
            )

    def _compare(self, line: Line) -> None:
        """With what others saw of this entry."""
        for sighting in self._wanted.pop(line.head.seq, ()):
            if sighting.checkpoint.head.hash == line.head.hash:
                self._agreed = sighting
                continue
            since = f"after entry {self._agreed.checkpoint.head.seq}" if self._agreed is not None else "from the start"
            self._tell(
                self._verdict.problems,
                f"history was rewritten somewhere {since} and up to entry {line.head.seq} ({line.at}): "
                f"{sighting.by} saw another entry {line.head.seq} at {sighting.seen_at}, signed by this registry",
            )

    def _own(self, line: Line) -> None:
        """A checkpoint that the log says we signed."""
        verdict, entry = self._verdict, line.entry
        made = _checkpoint(entry)
        identity = str(_detail(entry).get("identity", ""))
        verdict.registry_id = str(entry.get("target", ""))
        key = self._identity if self._identity is not None else _bytes(identity)
        where = f"entry {line.head.seq} ({line.at})"
        if made is None or not made.is_by(key):
            other = self._identity is not None and identity != self._identity.hex()
            why = "it names another identity than this registry's" if other else "its signature is not this registry's"
            self._tell(
                verdict.notes if other and made and made.is_by(_bytes(identity)) else verdict.problems,
                f"{where} is a checkpoint that does not hold: {why}",
            )
            return
        verdict.checkpoints += 1
        held = self._seen.get(made.head.seq)
        if held is not None and held[0] != made.head.hash:
            self._tell(verdict.problems, f"{where} signs another entry {made.head.seq} than the one that stands here")

    def _conclude(self) -> None:
        verdict = self._verdict
        if verdict.first.seq > 1:
            verdict.notes.insert(
                0,
                f"the log begins at entry {verdict.first.seq} ({verdict.first_at}): what came before is gone",
            )
        if verdict.problems:
            return
        for seq in sorted(self._wanted):
            sighting = self._wanted[seq][0]
            if seq > verdict.head.seq:
                verdict.problems.append(
                    f"the log ends at entry {verdict.head.seq} ({verdict.last_at}), but {sighting.by} saw entry {seq} "
                    f"at {sighting.seen_at}, signed by this registry: the end was cut off"
                )
                return

    @staticmethod
    def _tell(told: list[str], text: str) -> None:
        if len(told) < TOO_MANY:
            told.append(text)


def sightings_in(lines: Iterable[bytes], about: str, by: str) -> tuple[list[Sighting], list[str]]:
    """What another registry's log says of that registry, and what is wrong with that log."""
    found: list[Sighting] = []
    verifier = Verifier(None)

    def listened() -> Iterable[bytes]:
        for raw in lines:
            if b'"action":"checkpoint.' in raw:
                sighting = _sighting(raw, about, by)
                if sighting is not None:
                    found.append(sighting)
            yield raw

    verdict = verifier.check(listened())
    return found, [f"in the log of {verdict.registry_id or by}: {problem}" for problem in verdict.problems]


def _sighting(raw: bytes, about: str, by: str) -> Sighting | None:
    try:
        line = audit_chain.read(raw.rstrip(b"\n"))
    except BrokenLine:
        return None
    entry = line.entry
    checkpoint = _checkpoint(entry)
    witnessed = entry.get("action") in ("checkpoint.witnessed", "checkpoint.contradicts")
    if checkpoint is None or not witnessed or checkpoint.registry_id != about:
        return None
    return Sighting(by, line.at, checkpoint, str(_detail(entry).get("identity", "")))


def _checkpoint(entry: Mapping[str, Any]) -> Checkpoint | None:
    detail = _detail(entry)
    fields = [detail.get(name) for name in ("seq", "hash", "signed_at", "signature")]
    return checkpoint_of(str(entry.get("target", "")), fields)


def _detail(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    detail = entry.get("detail")
    return detail if isinstance(detail, dict) else {}


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
