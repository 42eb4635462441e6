"""Stores that hold many nodes before their registries start.

Registering 100,000 nodes over HTTP takes minutes; here the federation's own engine registers them in this
process, one engine for each registry, each with its share. The union of what they hold is what five registries
that are equal would have: their records, packed as the registry packs them, and their positions. It is written
through the registry's own store into each registry's embedded Valkey.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import fleet
from federation.clock import Now, Vector
from federation.config import Config
from federation.engine import Engine
from federation.replica import Meta, Replica
from registry.embedded import EmbeddedValkey
from registry.model import RegisterRequest, parse
from registry.node import Origin, Word, node_key, registered
from registry.ports import Put
from registry.store import RedisStore
from registry.stored import pack_meta, pack_record

COMMIT_PUTS = 500
LEASE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Seed:
    """The same records for every registry, and the generation that each had. `homes`: node ids by registry."""

    puts: Sequence[Put]
    vector: Vector
    generations: Mapping[str, int]
    homes: Mapping[str, Sequence[str]]


def make(names: Sequence[str], count: int) -> Seed:
    """So many nodes, evenly at these registries."""
    puts: list[Put] = []
    vector: Vector = {}
    generations: dict[str, int] = {}
    homes: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        engine = _engine(name)
        homes[name] = [_register(engine, index) for index in range(number, count, len(names))]
        replica = engine.replica
        puts += [Put(record.key, pack_record(record)) for record in replica.records()]
        vector[replica.chain] = replica.vector[replica.chain]
        generations[name] = replica.generation
    return Seed(puts, vector, generations, homes)


async def write(seed: Seed, name: str, data_dir: Path) -> None:
    """Into the store that the registry of that name will start with."""
    embedded = EmbeddedValkey(data_dir)
    try:
        store = RedisStore(embedded.start(), region=name, worker_id="seeding", beat_window_ms=1_000)
        try:
            await store.start()
            await _fill(store, seed.puts, pack_meta(Meta(seed.generations[name], dict(seed.vector), {}, 0)))
        finally:
            await store.aclose()
    finally:
        embedded.stop()


async def _fill(store: RedisStore, puts: Sequence[Put], meta: bytes) -> None:
    await store.lease("seeding", "", LEASE_MS)
    version = await store.version()
    for chunk in _chunks(puts):
        following = version + 1 if version else time.time_ns() // 1_000_000
        await store.commit("seeding", {version}, following, chunk, meta)
        version = following
    await store.release("seeding")


def _chunks(puts: Sequence[Put]) -> Iterable[Sequence[Put]]:
    return (puts[start : start + COMMIT_PUTS] for start in range(0, len(puts), COMMIT_PUTS))


def _engine(name: str) -> Engine:
    now = _now()
    return Engine(Config(registry_id=name), Replica(name), random.Random(name), now)


def _register(engine: Engine, index: int) -> str:
    now, name = _now(), engine.config.registry_id
    request = parse(RegisterRequest, fleet.registration(index))
    assert request.node_id is not None
    record = registered(None, request.node_id, request, Origin(name, name, "127.0.0.1", now.wall_ms, {}))
    engine.register(node_key(record.node_id), record.encode_spec(), now, incarnation=index, judgement=Word().encode())
    return record.node_id


def _now() -> Now:
    return Now(time.monotonic(), time.time_ns() // 1_000_000)
