"""The replication core's numbers: items merged, applied and logged a second; memory a record; bytes on
a link when all is quiet, when every node's metrics change, after a partition, and for a newcomer.

Links are virtual (tests/support/fabric.py), but every byte on them is really encoded.
"""

import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks.harness import Report, Target
from federation.clock import hlc_of
from federation.engine import Engine
from federation.messages import Drain
from federation.record import Item, Section, SectionKind
from federation.replica import Replica
from federation.wire import MAX_METRICS_SIZE, decode, encode
from registry.round_trips import packed
from tests.support.fabric import START_MS, Fabric

NODES = 100_000
ROUNDS = 5
BEAT_S = 30
ROUND_TRIPS, ROUND_TRIPS_SHARE = 8, 0.05
_GPUS = ("NVIDIA L4", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "NVIDIA H100 PCIe", "Apple M4 Max")
_MODELS = ("qwen3:8b", "mistral:7b", "llama3.3:70b", "deepseek-r1:70b", "gemma3:27b", "phi4:14b")


def payload(index: int, rng: random.Random) -> bytes:
    """About 1 KB of JSON as a registration is stored, unlike its neighbours where real ones are."""
    models = rng.sample(_MODELS, rng.randint(1, 4))
    gpus = [
        {
            "name": rng.choice(_GPUS), "vendor": "nvidia", "uuid": f"GPU-{rng.getrandbits(128):032x}", "vram_gb": 24.0,
            "vram_free_gb": round(rng.uniform(0, 24), 2), "utilization_percent": rng.randint(0, 100), "unified": False,
        }
        for _ in range(rng.randint(1, 2))
    ]  # fmt: skip
    node = {
        "node_name": f"host-{index}", "role": "worker", "node_type": None, "region": "eu",
        "labels": rng.sample(["gpu", "home", "lab"], 2),
        "hostname": f"host-{index}", "ip_address": f"192.0.2.{index % 256}",
        "local_ip": f"10.{rng.getrandbits(8)}.{rng.getrandbits(8)}.{rng.getrandbits(8)}", "endpoints": {},
        "machine_id": f"{rng.getrandbits(128):032x}",
        "capabilities": {
            "cpu_cores": rng.choice([8, 16, 32]), "ram_gb": rng.choice([31.2, 62.7, 125.5]), "disk_gb": 931.5,
            "os": "Linux", "gpus": gpus, "models": models,
            "model_details": [{"name": m, "loaded": False, "digest": f"{rng.getrandbits(256):064x}"} for m in models],
            "services": ["ollama"], "features": [],
        },
    }  # fmt: skip
    return json.dumps(node, separators=(",", ":")).encode()


def items(count: int) -> list[Item]:
    """Registrations and judgements as another registry's log holds them."""
    rng = random.Random(7)  # the same load every time
    stamp, generation = hlc_of(START_MS), START_MS << 8
    found: list[Item] = []
    for index in range(count):
        key, incarnation, seq = f"n:node-host-{index}-{index:08x}", rng.getrandbits(62), 2 * index + 1
        spec = Section(stamp + seq, "eu", 0, payload(index, rng), generation, seq)
        found.append(Item(key, 1, incarnation, SectionKind.SPEC, spec))
        word = Section(stamp + seq + 1, "eu", 0, b"online", generation, seq + 1)
        found.append(Item(key, 1, incarnation, SectionKind.JUDGEMENT, word))
    return found


def speed(load: list[Item]) -> tuple[float, float]:
    """Items a second: into an empty replica, and over what stands there already."""
    newer = [item._replace(section=item.section._replace(major=item.section.major + 2**20)) for item in load]
    fresh, over = [], []
    for _ in range(ROUNDS):
        replica = Replica("us")
        replica.begin_generation(1, 0)
        fresh.append(len(load) / _timed(replica, load))
        moved = [item._replace(section=item.section._replace(origin="as")) for item in newer]
        over.append(len(load) / _timed(replica, moved))
    return statistics.median(fresh), statistics.median(over)


def _timed(replica: Replica, load: list[Item]) -> float:
    gc.collect()
    started = time.perf_counter()
    for item in load:
        replica.apply(item)
    return time.perf_counter() - started


def memory(load: list[Item]) -> float:
    """Bytes a record in this process beyond key and payload, sections decoded as from a link."""
    frames = [encode(Drain(1, 1, 0, tuple(load[i : i + 400]))) for i in range(0, len(load), 400)]
    size = sum(len(item.section.payload) for item in load if item.kind == SectionKind.SPEC)
    size += sum(len(item.key) for item in load) // 2
    replica = Replica("us")
    replica.begin_generation(1, 0)
    gc.collect()
    before = psutil.Process().memory_info().rss
    for frame in frames:
        message = decode(frame)
        assert isinstance(message, Drain)
        for item in message.items:
            replica.apply(item)
    replica.digest.settle()
    del message
    gc.collect()
    return float(psutil.Process().memory_info().rss - before - size) / (len(load) / 2)


def federation(count: int, names: tuple[str, ...]) -> tuple[Fabric, list[str]]:
    """Registries in a mesh, equal, with `count` nodes at the first."""
    fabric, rng = Fabric(), random.Random(3)  # the same load every time
    for name in names:
        fabric.add(name)
    keys = [f"n:node-host-{index}-{index:08x}" for index in range(count)]
    fabric.perform(names[0], registered(fabric, fabric.engines[names[0]], keys, rng))
    fabric.mesh()
    assert fabric.run(600, until=fabric.equal), "the registries never became equal"
    return fabric, keys


def registered(fabric: Fabric, engine: Engine, keys: list[str], rng: random.Random) -> Iterator[Any]:
    """Effects of registering these nodes."""
    for index, key in enumerate(keys):
        _, effects = engine.register(
            key, payload(index, rng), fabric.now(), incarnation=rng.getrandbits(62), judgement=b"online"
        )
        yield from effects


def moved(fabric: Fabric, act: Callable[[], object]) -> int:
    """Bytes on the busiest link, both directions, while `act` runs."""
    before = dict(fabric.sent)
    act()
    links = {(min(pair), max(pair)) for pair in fabric.sent}
    return max(sum(fabric.sent[pair] - before.get(pair, 0) for pair in (link, link[::-1])) for link in links)


def quiet(fabric: Fabric, keys: list[str], seconds: int) -> float:
    """Bytes a second on a link while every node beats at home and nothing changes."""
    _beat(fabric, keys, BEAT_S + 1, lambda _: b"same")
    return moved(fabric, lambda: _beat(fabric, keys, seconds, lambda _: b"same")) / seconds


def metrics(fabric: Fabric, keys: list[str], seconds: int) -> float:
    """Bytes a node and heartbeat on a link while every heartbeat brings six new measurements, and one of twenty round
    trips to eight registries: as if the ways changed every ten minutes."""
    rng = random.Random(5)  # the same load every time
    registries = [f"region-{number}" for number in range(ROUND_TRIPS)]

    def measured(_key: str) -> bytes:
        vector = {name: rng.lognormvariate(4, 1) for name in registries} if rng.random() < ROUND_TRIPS_SHARE else {}
        return rng.randbytes(6) + packed(vector, MAX_METRICS_SIZE - 6)

    beats = len(keys) * seconds / BEAT_S
    return moved(fabric, lambda: _beat(fabric, keys, seconds, measured)) / beats


def _beat(fabric: Fabric, keys: list[str], seconds: int, measured: Callable[[str], bytes]) -> None:
    engine = fabric.engines["eu"]
    for second in range(seconds):
        for key in keys[second % BEAT_S :: BEAT_S]:
            _, effects = engine.heartbeat(key, fabric.now(), judgement=b"online", metrics=measured(key))
            fabric.perform("eu", effects)
        fabric.run(1.0)


def partition(fabric: Fabric, keys: list[str], changed: int) -> int:
    """Bytes moved on the link after an hour apart, with so many records changed on each side."""
    rng = random.Random(11)  # the same load every time
    fabric.unlink("eu", "us")
    fabric.run(3_600)
    for side, part in (("eu", keys[:changed]), ("us", keys[changed : 2 * changed])):
        fabric.perform(side, registered(fabric, fabric.engines[side], part, rng))

    def heal() -> None:
        fabric.link("eu", "us")
        assert fabric.run(60, until=fabric.equal), "the two never became equal"

    return moved(fabric, heal)


def newcomer(fabric: Fabric) -> tuple[int, float]:
    """Bytes moved, and virtual seconds, until an empty registry holds everything."""
    fabric.add("as")
    started_s = fabric.now_s

    def join() -> None:
        fabric.link("as", "eu")
        fabric.link("as", "us")
        assert fabric.run(600, until=fabric.equal), "the newcomer never caught up"

    before = sum(fabric.sent.values())
    join()
    return sum(fabric.sent.values()) - before, fabric.now_s - started_s


def main() -> int:
    """Measure, print, judge."""
    load = items(NODES)
    grown = memory(load)
    fresh, over = speed(load)
    fabric, keys = federation(NODES, ("eu", "us"))
    report = Report("merge")
    report.targets += [
        Target("merge, apply, log: new records", fresh, 100_000, "items/s"),
        Target("merge, apply, log: over held ones", over, 100_000, "items/s"),
        Target("memory beyond key and payload", grown, 1_024, "B/record", at_most=True),
        Target("quiet link, 100,000 nodes beating", quiet(fabric, keys, 120), 1_024, "B/s", at_most=True),
        Target("metrics on a link, all changing", metrics(fabric, keys, 60), 15, "B/beat", at_most=True),
        Target("an hour apart, 1,000 changed each", partition(fabric, keys, 1_000) / 1e6, 2, "MB", at_most=True),
    ]
    size, seconds = newcomer(fabric)
    report.targets.append(Target("an empty registry joins", size / 1e6, 40, "MB", at_most=True))
    report.facts["newcomer_virtual_s"] = seconds
    report.facts["bytes_by_kind"] = dict(fabric.bytes_by_kind)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
