"""Five real registries in a full mesh by way of proxies: how long until all of them know.

What is measured, each against its target:
  a. a write in one region until it is visible to a read in each of the others (visibility.py);
  b. a partition that outlasts the logs, with changes on both sides: from the links' return until both are equal;
  c. an empty registry that joins: from its process's start until it is ready and has every record;
  d. a node whose registry was killed: from its first heartbeat at another until it is online everywhere.

Nodes are in the stores before the registries start (seeding.py): registering 100,000 would take minutes. Their
windows are long, so that nobody is busy with nodes that never beat. A partition lets nothing through and ends
no connection, as a broken path does; the registries find out by themselves, and dial again by themselves when it
is over: the clock of b starts with the path's return, not with the link's. Where `nats-server` or `serf` is on
the PATH, the same is asked of them in the same run (elsewhere.py).
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from benchmarks import elsewhere, fleet, seeding
from benchmarks.cluster import Cluster, Failed, Member, at, cluster, request, run
from benchmarks.harness import RESULTS, Report, Target, scratch
from benchmarks.visibility import COLUMNS, Seen, measured, plot
from federation.log import KEPT_POSITIONS

NAMES = ("eu", "us", "asia", "africa", "oceania")
FLAGS = ("--degraded-after-s", "3600", "--offline-after-s", "7200")
IDLE_MS, LOADED_MS, HEAL_S, JOIN_S, MOVE_S = 15.0, 50.0, 3.0, 15.0, 1.0
RATE_SHARE = 0.95  # of the rate that was asked for: else it was another measurement
WRITERS = 8  # connections that change records during the partition
EQUAL_WITHIN_S = 120.0
_MOVING = 30_000_000  # numbers of nodes that nobody else registers
_VOLATILE = ("last_heartbeat", "metrics", "status", "status_reason", "status_age_s")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. `changed`: records on each side of the partition."""

    nodes: int
    changed: int
    seconds: float
    rate_per_s: float
    moving: int


FULL = Size(100_000, 1_000, 40.0, 1_000.0, 50)
SMALL = Size(5_000, 100, 6.0, 200.0, 20)


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--small", action="store_true", help="5,000 nodes and short runs, to see that it works")
    parser.add_argument("--nodes", type=int, help="instead of 100,000, small 5,000")
    parser.add_argument("--rate", type=float, help="writes/s in all beside a; 1,000, small 200")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where JSON and plot go")
    parser.add_argument("--only", default="abcd", help="which of a, b, c, d; default all")
    given = parser.parse_args()
    size, name = (SMALL, "convergence-small") if given.small else (FULL, "convergence")
    size = replace(size, nodes=given.nodes or size.nodes)
    rate = size.rate_per_s if given.rate is None else given.rate
    with scratch() as folder:
        return run(_run(Report(name), size, rate, given.only, folder, given.out))


async def _run(report: Report, size: Size, rate: float, only: str, folder: Path, out: Path) -> int:
    report.facts["size"] = {name: getattr(size, name) for name in Size.__slots__} | {"rate_per_s": rate}
    began_s = time.monotonic()
    seed = seeding.make(NAMES, size.nodes)
    async with cluster(folder, NAMES, FLAGS) as registries:
        for member in registries.members:
            await seeding.write(seed, member.name, member.folder)
        homes = dict(seed.homes)
        del seed
        gc.collect()
        _say(f"{size.nodes:,} nodes are in every store after {time.monotonic() - began_s:.0f} s")
        await registries.start()
        _say(f"{len(NAMES)} registries are linked to each other after {time.monotonic() - began_s:.0f} s")
        seen: list[Seen] = []
        parts = {
            "a": lambda: _visibility(registries, size, rate, report, seen),
            "d": lambda: _move(registries, size, report),
            "b": lambda: _partition(registries, size, homes, report),
            "c": lambda: _join(registries, report),
        }
        for name, measure in parts.items():
            if name in only and not await _done(name, measure, report):
                break
    if seen:
        seen += await elsewhere.compared(folder, size.seconds, _say)
        _tell_visibility(seen, report)
        plot(seen, out / f"{report.name}.png")
    return report.finish(out)


async def _done(name: str, measure: Callable[[], Coroutine[Any, Any, None]], report: Report) -> bool:
    """Whether it could be measured. What could not is a target that was missed; what was measured before it
    is told all the same."""
    try:
        await measure()
    except Failed as failure:
        _say(f"FAILED: {failure}")
        report.facts[f"failure of {name}"] = str(failure)
        report.targets.append(Target(f"{name}. could be measured", 0, 1))
        return False
    return True


# a. visibility


async def _visibility(registries: Cluster, size: Size, rate: float, report: Report, found: list[Seen]) -> None:
    found.append(await measured(registries, 0, 0, size.seconds / 2, poll=True))
    for delay_ms, rate_per_s in ((0, 0), (40, 0), (0, rate), (40, rate)):
        seen = await measured(registries, delay_ms, rate_per_s, size.seconds)
        found.append(seen)
        _say(f"visible, {seen.label}: p99 {at(seen.visible_ms, 0.99):.1f} ms")
        allowed_ms = delay_ms + (LOADED_MS if rate_per_s else IDLE_MS)
        report.targets.append(
            Target(
                f"a. visible elsewhere, {seen.label}: p99", at(seen.visible_ms, 0.99), allowed_ms, "ms", at_most=True
            )
        )
        if rate_per_s:
            report.targets.append(
                Target(f"a. rate beside it, {delay_ms} ms", seen.achieved_per_s, RATE_SHARE * rate_per_s, "/s")
            )
    registries.delay(0)
    refused = await _refused(registries.members)
    report.targets.append(Target("a. writes that were refused or held", refused, 0, at_most=True))


async def _refused(members: Sequence[Member]) -> int:
    """How many writes of each other registries have not taken. All are honest here: what is refused was measured as
    if it cost nothing."""
    alerts = [(await member.get("/api/v1/federation"))["alerts"] for member in members]
    codes = ("forged", "quarantined", "malformed")
    return sum(each[code]["count"] for each in alerts for code in codes if code in each)


def _tell_visibility(seen: Sequence[Seen], report: Report) -> None:
    report.table("a. from sending a write until a read elsewhere shows it", COLUMNS, [each.row for each in seen])
    report.facts["visibility"] = [each.facts() for each in seen]


# b. partition


async def _partition(registries: Cluster, size: Size, homes: dict[str, Sequence[str]], report: Report) -> None:
    """The first registry on one side, all others on the other; each side changes nodes of its own."""
    alone, *others = registries.members
    rounds = KEPT_POSITIONS // size.changed + 2  # all but the last are replaced
    ways = registries.network.between([alone.name], [member.name for member in others])
    for way in ways:
        way.hold()
    began_s = time.monotonic()
    sides = ((alone, "left"), (others[0], "right"))
    versions = await asyncio.gather(
        *(_change(member, list(homes[member.name][: size.changed]), rounds, label) for member, label in sides)
    )
    parted_s = time.monotonic() - began_s
    healed_s = time.monotonic()
    for way in ways:
        way.release()
    wanted = [(alone, versions[1])] + [(member, versions[0]) for member in others]
    moments = await asyncio.gather(*(_has(member, version, EQUAL_WITHIN_S) for member, version in wanted))
    took_s = max(moments) - healed_s
    _say(f"equal {took_s:.2f} s after {parted_s:.0f} s of partition")
    await registries.settled()
    same = await _same(registries.members)
    labelled = await _labelled(registries.members)
    report.table(
        "b. partition",
        ["", "lasted", "writes a side", "equal after", "the one alone", "the others", "same listing", "changes there"],
        [
            [
                f"{size.changed:,} of {size.nodes:,} nodes a side", f"{parted_s:.0f} s", f"{rounds * size.changed:,}",
                f"{took_s:.2f} s", f"{moments[0] - healed_s:.2f} s", f"{max(moments[1:]) - healed_s:.2f} s",
                "yes" if same == len(registries.members) else "NO",
                "yes" if labelled == {2 * size.changed} else f"NO: {labelled}",
            ]
        ],
    )  # fmt: skip
    report.facts["partition"] = {
        "lasted_s": parted_s,
        "writes_a_side": rounds * size.changed,
        "equal_after_s": took_s,
        "equal_at_each_after_s": {
            member.name: moment - healed_s for (member, _), moment in zip(wanted, moments, strict=True)
        },
    }
    report.targets += [
        Target("b. equal after a partition", took_s, HEAL_S, "s", at_most=True),
        Target("b. registries that list the same", same, len(registries.members)),
        Target("b. changed nodes at whoever has fewest", min(labelled), 2 * size.changed),
    ]


async def _change(member: Member, node_ids: Sequence[str], rounds: int, label: str) -> str:
    """Change each node so many times; the version of the last write."""
    connections = [await member.connect() for _ in range(WRITERS)]
    newest = ""

    async def work(connection: Any, mine: Sequence[str]) -> None:
        nonlocal newest
        for number in range(rounds):
            change: dict[str, Any] = {"status": "maintenance" if number % 2 else "online"}
            if number == rounds - 1:
                change = {"status": "online", "labels_add": [f"partition-{label}"]}
            for node_id in mine:
                status, body = await connection.ask(request("PATCH", f"/api/v1/nodes/{node_id}", change))
                if status != 200:
                    raise Failed(f"{member.name} answered a PATCH with {status}: {body[:300]!r}")
                newest = max(newest, orjson.loads(body)["version"], key=_position)

    try:
        async with asyncio.TaskGroup() as group:
            for index, connection in enumerate(connections):
                group.create_task(work(connection, node_ids[index::WRITERS]))
    except* Failed as failures:
        raise failures.exceptions[0] from None
    finally:
        for connection in connections:
            connection.close()
    return newest


def _position(version: str) -> tuple[int, int]:
    if not version:
        return 0, 0
    _, generation, seq = version.rsplit(":", 2)
    return int(generation), int(seq)


async def _has(member: Member, version: str, within_s: float) -> float:
    """The moment at which everything up to that version is visible there: the read waits for it."""
    connection = await member.connect()
    deadline_s = time.monotonic() + within_s
    try:
        while True:
            status, body = await connection.ask(request("GET", f"/api/v1/nodes?limit=1&min_version={version}"))
            moment_s = time.monotonic()
            if status == 200:
                return moment_s
            if moment_s > deadline_s:
                raise Failed(f"{member.name} had not got {version} after {within_s:g} s: {status} {body[:300]!r}")
    finally:
        connection.close()


async def _pages(member: Member, cursor: str = "", limit: int = 1_000_000) -> list[dict[str, Any]]:
    """All nodes as listed there, or some after the cursor."""
    connection = await member.connect()
    nodes: list[dict[str, Any]] = []
    try:
        while True:
            path = f"/api/v1/nodes?limit={min(limit, 1000)}" + (f"&cursor={cursor}" if cursor else "")
            status, body = await connection.ask(request("GET", path))
            if status != 200:
                raise Failed(f"{member.name} answered a listing with {status}: {body[:300]!r}")
            page = orjson.loads(body)
            nodes += page["nodes"]
            cursor = page["next_cursor"]
            if cursor is None or len(nodes) >= limit:
                return nodes
    finally:
        connection.close()


async def _listing(member: Member) -> dict[str, bytes]:
    """All nodes as listed there, without what every registry sees with its own eyes."""
    found = {}
    for node in await _pages(member):
        lasting = {name: value for name, value in node.items() if name not in _VOLATILE}
        encoded = orjson.dumps(lasting, option=orjson.OPT_SORT_KEYS)
        found[node["node_id"]] = blake2b(encoded, digest_size=16).digest()
    return found


async def _same(members: Sequence[Member]) -> int:
    """How many list the same as the first; what differs is told, by an example."""
    first = await _listing(members[0])
    same = 1
    for member in members[1:]:
        listing = await _listing(member)
        differing = sorted(node_id for node_id in {*first, *listing} if first.get(node_id) != listing.get(node_id))
        same += not differing
        if differing:
            _say(f"{len(differing)} nodes are not listed alike by {members[0].name} and {member.name}, such as:")
            for each in (members[0], member):
                shown = await _pages(each, cursor=_before(differing[0]), limit=1)
                _say(f"  {each.name}: {orjson.dumps(shown).decode()}")
    return same


def _before(node_id: str) -> str:
    """A cursor that the node follows on."""
    return node_id[:-1] + chr(ord(node_id[-1]) - 1) + "~"


async def _labelled(members: Iterable[Member]) -> set[int]:
    """How many nodes carry one of the labels, as each registry says."""
    found = set()
    for member in members:
        counts = [await member.get(f"/api/v1/nodes?limit=1&label=partition-{side}") for side in ("left", "right")]
        found.add(sum(each["total"] for each in counts))
    return found


# c. a newcomer


async def _join(registries: Cluster, report: Report) -> None:
    """A sixth registry with nothing; it is told of the others, they are not told of it."""
    total = (await registries.members[0].get("/api/v1/nodes?limit=1"))["total"]
    newcomer = await registries.add("newcomer")
    newcomer.start()
    ready_s = await newcomer.ready() - newcomer.started_s
    at_first = (await newcomer.get("/api/v1/nodes?limit=1"))["total"]
    versions = [(await member.get("/api/v1/federation"))["self"]["version"] for member in registries.members[:-1]]
    whole_s = max([await _has(newcomer, version, EQUAL_WITHIN_S) for version in versions]) - newcomer.started_s
    _say(f"a newcomer was ready after {ready_s:.2f} s and had all after {whole_s:.2f} s")
    same = await _same([registries.members[0], newcomer]) == 2
    report.table(
        "c. an empty registry joins",
        ["", "ready after", "nodes then", "everything after", "same listing"],
        [[f"{total:,} nodes", f"{ready_s:.2f} s", f"{at_first:,}", f"{whole_s:.2f} s", "yes" if same else "NO"]],
    )
    report.facts["join"] = {"nodes": total, "ready_s": ready_s, "nodes_when_ready": at_first, "whole_s": whole_s}
    report.targets += [
        Target("c. a newcomer is ready and has all", max(ready_s, whole_s), JOIN_S, "s", at_most=True),
        Target("c. nodes when it says that it is ready", at_first, total),
        Target("c. the newcomer lists the same", float(same), 1),
    ]


# d. a node moves


async def _move(registries: Cluster, size: Size, report: Report) -> None:
    """Nodes of the last registry, which is killed; each then beats at one of the others."""
    *others, lost = registries.members
    nodes = []
    for index in range(size.moving):
        body = fleet.registration(_MOVING + index)
        node = await lost.call("POST", "/api/v1/nodes/register", body)
        beat = {"node_id": node["node_id"], "status": "online"}
        told = await lost.call("POST", "/api/v1/nodes/heartbeat", beat, node["api_key"])
        nodes.append((node["node_id"], node["api_key"], told["token"]))
    await registries.settled()
    lost.kill()
    took_ms = []
    readers = {member.name: await member.connect() for member in others}
    try:
        for index, node in enumerate(nodes):
            took_ms.append(await _moved(node, others[index % len(others)], others, readers))
    finally:
        for reader in readers.values():
            reader.close()
    took_ms.sort()
    _say(f"nodes that moved were online everywhere after {took_ms[-1]:.1f} ms at most")
    await asyncio.to_thread(lost.start)
    await lost.ready()
    await registries.settled()
    shares = {f"p{share * 100:g}": at(took_ms, share) for share in (0.5, 0.9, 0.99)} | {"max": took_ms[-1]}
    report.table(
        "d. from a node's first heartbeat at another registry until it is online everywhere",
        ["", *shares],
        [[f"{len(took_ms)} nodes", *(f"{value:.1f} ms" for value in shares.values())]],
    )
    report.facts["move_ms"] = shares
    report.targets.append(
        Target("d. moved and online everywhere, slowest", took_ms[-1] / 1000, MOVE_S, "s", at_most=True)
    )


async def _moved(node: tuple[str, str, str], home: Member, members: Sequence[Member], readers: dict[str, Any]) -> float:
    """Milliseconds from the first heartbeat until all show the node online, at home there."""
    node_id, key, token = node
    beat = {"node_id": node_id, "status": "online", "token": token}
    started_s = time.monotonic()
    deadline_s = started_s + EQUAL_WITHIN_S / 4
    connection = await home.connect()
    try:
        status, body = await connection.ask(request("POST", "/api/v1/nodes/heartbeat", beat, key))
    finally:
        connection.close()
    if status != 200:
        raise Failed(f"{home.name} answered a heartbeat of a node that came to it with {status}: {body[:300]!r}")

    async def shows(reader: Any) -> float:
        while True:
            found, shown = await reader.ask(request("GET", f"/api/v1/nodes/{node_id}"))
            moment_s = time.monotonic()
            read = orjson.loads(shown)
            if found == 200 and read["status"] == "online" and read["home_registry"] == home.name:
                return moment_s
            if moment_s > deadline_s:
                raise Failed(f"{node_id} did not move to {home.name} everywhere: {found} {shown[:600]!r}")
            await asyncio.sleep(0.002)

    return (max(await asyncio.gather(*(shows(readers[member.name]) for member in members))) - started_s) * 1000


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
