"""How the federation looks from here: what GET /api/v1/federation answers, and the same as metrics."""

from collections import Counter
from typing import Any

from federation.clock import Chain
from federation.links import PeerState
from federation.liveness import OwnerWord
from federation.roster import Advert
from registry.clock import Clock
from registry.directory import Directory
from registry.node import iso
from registry.region import Region
from registry.service import Place
from registry.writer import Writer


def federation_view(region: Region, directory: Directory, place: Place, url: str, clock: Clock) -> dict[str, Any]:
    """The whole of it, of the worker that writes. `peers` are the roster's registries and whatever was given
    with --peer and has not been reached yet."""
    writer = region.writer
    assert writer is not None, "asked of the writer only"
    now, engine = writer.now, writer.engine
    roster = writer.roster()
    links = region.links.peers() if region.links is not None else []
    states = {state.registry_id: state for state in links}
    words = {word.owner: word for word in engine.words(now)}
    homes: Counter[str] = Counter()
    for (registry_id, _), count in directory.columns.counted("home").items():
        homes[registry_id] += count
    known = sorted({*roster, *(known for known in states if known), *words} - {place.registry_id})
    peers = [_peer(each, roster.get(each), states.get(each), words.get(each), homes[each], clock) for each in known]
    peers += [_peer(None, None, state, None, 0, clock) for state in links if state.registry_id is None]
    own = roster.get(place.registry_id)
    hold_s = directory.hold_left_s(now.mono_s)
    return {
        "self": {
            "registry_id": place.registry_id,
            "region": place.region,
            "url": url,
            "generation": engine.replica.generation,
            "identity": own.identity.hex() if own is not None else None,
            "federated": region.links is not None,
            "ready": not region.reasons,
            "reasons": region.reasons,
            "records": len(engine.replica),
            "nodes": homes[place.registry_id],
            "version": str(writer.position),
        },
        "peers": peers,
        "vector": _vector(engine.replica.vector),
        "conflicts": engine.conflicts,
        "expiry_hold_s": round(hold_s, 1) if hold_s is not None else None,
        "alerts": _alerts(writer),
        "as_of": iso(now.wall_ms),
    }


def _peer(
    registry_id: str | None,
    advert: Advert | None,
    state: PeerState | None,
    word: OwnerWord | None,
    nodes: int,
    clock: Clock,
) -> dict[str, Any]:
    told = advert or state
    return {
        "registry_id": registry_id,
        "region": told.region if told is not None else None,
        "url": told.url if told is not None else None,
        "identity": advert.identity.hex() if advert is not None else None,
        **_link(state, clock),
        "reachable": word is not None and word.reachable,
        "lag_s": round(word.age_s, 3) if word is not None else None,
        "nodes": nodes,
    }


def _alerts(writer: Writer) -> dict[str, Any]:
    return {
        code: {
            "count": writer.alerts[code],
            "last_at": iso(last["at_ms"]),
            "detail": last["detail"],
            "peer": last["peer"],
        }
        for code, last in sorted(writer.last_alerts.items())
    }


def _link(state: PeerState | None, clock: Clock) -> dict[str, Any]:
    if state is None:
        return {
            "state": "down", "link": None, "since": None, "rtt_ms": None, "error": None, "frames_in": 0,
            "frames_out": 0, "bytes_in": 0, "bytes_out": 0,
        }  # fmt: skip
    since_ms = clock.wall_ms() - int(state.since_s * 1000)
    return {
        "state": state.state,
        "link": None if state.dialled is None else "dialled" if state.dialled else "accepted",
        "since": iso(since_ms),
        "rtt_ms": round(state.rtt_ms, 3) if state.rtt_ms is not None else None,
        "error": state.last_error,
        "frames_in": state.frames_in,
        "frames_out": state.frames_out,
        "bytes_in": state.bytes_in,
        "bytes_out": state.bytes_out,
    }


def _vector(vector: dict[Chain, int]) -> dict[str, dict[str, int]]:
    shown: dict[str, dict[str, int]] = {}
    for (origin, generation), seq in sorted(vector.items()):
        shown.setdefault(origin, {})[str(generation)] = seq
    return shown
