"""Nodes as a registry tells of them: typed, ranked for a model, compared. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = Any
_PASSING = frozenset(
    {"last_heartbeat", "updated_at", "metrics", "status_age_s", "latency_ms", "latency_source", "reserved_slots"}
)


class Node(dict[str, Any]):
    """One node: a plain dict with the API's names, and the most used of them as attributes.

    `as_of` is when the registry said so (ISO 8601); `stale`: no registry answers now, this is what one said then.
    """

    as_of: str | None = None
    stale: bool = False

    @property
    def node_id(self) -> str:
        """Its id."""
        return str(self["node_id"])

    @property
    def node_name(self) -> str:
        """Its name, for people."""
        return str(self.get("node_name") or self.node_id)

    @property
    def status(self) -> str:
        """`online`, `degraded`, `offline`, `maintenance` or `draining`."""
        return str(self.get("status"))

    @property
    def region(self) -> str | None:
        """Where it is."""
        value = self.get("region")
        return None if value is None else str(value)

    @property
    def latency_ms(self) -> float | None:
        """How far it is from whoever asked, where that is known."""
        return _number(self.get("latency_ms"))

    @property
    def endpoints(self) -> dict[str, str]:
        """Where its services are reached: {name: URL}."""
        return dict(_object(self.get("endpoints")))

    @property
    def models(self) -> list[str]:
        """The names of its models."""
        return [str(name) for name in _list(_object(self.get("capabilities")).get("models"))]

    @property
    def load(self) -> float | None:
        """How busy it is, 0 to 1: its GPU where it tells of one, else its CPU."""
        metrics = _object(self.get("metrics"))
        gpu, cpu = _number(metrics.get("gpu_percent")), _number(metrics.get("cpu_percent"))
        told = cpu if gpu is None else gpu
        return None if told is None else told / 100

    @property
    def free_vram_gb(self) -> float | None:
        """Free GPU memory in GB, of all its GPUs together, where it tells."""
        gpus = _list(_object(self.get("metrics")).get("gpus")) or _list(_object(self.get("capabilities")).get("gpus"))
        told = [free for gpu in gpus if (free := _number(_object(gpu).get("vram_free_gb"))) is not None]
        return sum(told) if told else None

    def has_loaded(self, model_name: str) -> bool:
        """Whether the model is in memory there, as of its last heartbeat. A missing tag means `latest`."""
        wanted = model_name.casefold()
        names = (wanted, f"{wanted}:latest")
        live = _named(_object(self.get("metrics")).get("models"))
        known = live or _named(_object(self.get("capabilities")).get("model_details"))
        return any(each.get("loaded") and str(each.get("name", "")).casefold() in names for each in known)


class Nodes(list[Node]):
    """Nodes in the registry's order, best first. `total`: how many there are beyond the limit. `as_of`: when the
    registry said so; `stale`: no registry answers now, and `why`. `more`: what else it said, such as `explain`."""

    def __init__(
        self,
        nodes: Iterable[Mapping[str, Json]] = (),
        *,
        total: int | None = None,
        as_of: str | None = None,
        stale: bool = False,
        why: str = "",
        more: Mapping[str, Json] | None = None,
    ) -> None:
        super().__init__(map(Node, nodes))
        self.more = dict(more or {})
        self.total = len(self) if total is None else total
        self.as_of, self.stale, self.why = as_of, stale, why
        for node in self:
            node.as_of, node.stale = as_of, stale


def nodes_of(answer: Json, *, stale: bool = False, why: str = "") -> Nodes | None:
    """The nodes of an answer to discover or list; None when it is not one."""
    listed = answer.get("nodes") if isinstance(answer, dict) else None
    if not isinstance(listed, list) or not all(
        isinstance(n, dict) and isinstance(n.get("node_id"), str) for n in listed
    ):
        return None
    total, as_of = answer.get("total"), answer.get("as_of")
    return Nodes(
        listed,
        total=total if isinstance(total, int) else None,
        as_of=as_of if isinstance(as_of, str) else None,
        stale=stale,
        why=why,
        more={name: value for name, value in answer.items() if name not in ("nodes", "total", "as_of")},
    )


def question(
    role: str | None, capability: str | None, status: str | None, filters: Mapping[str, Any]
) -> dict[str, str]:
    """The query of a discovery; None leaves a filter out, a list means all of them."""
    asked = {"role": role, "capability": capability, "status": status, **filters}
    return {
        name: ",".join(map(_written, value)) if isinstance(value, list | tuple) else _written(value)
        for name, value in asked.items()
        if value is not None
    }


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def best_for_model(nodes: Sequence[Node], model_name: str) -> Node | None:
    """The best of nodes that have the model: loaded before installed, then most VRAM free (whole GB: less is noise),
    then least loaded (tenths), then nearest; the registry's order decides the rest. Unknown comes last."""

    def key(node: Node) -> tuple[bool, int, float, float]:
        latency_ms = node.latency_ms
        return (
            not node.has_loaded(model_name),
            -round(node.free_vram_gb or 0.0),
            1.0 if node.load is None else round(node.load, 1),
            float("inf") if latency_ms is None else latency_ms,
        )

    return min(nodes, key=key, default=None)


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node came or changed (`upsert`), or went or no longer holds the filters (`remove`: `node` as it was last)."""

    kind: Literal["upsert", "remove"]
    node: Node


class KnownNodes:
    """What a watcher has been told, so that it is told only what is new. Numbers of heartbeats are no news."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def upsert(self, node: Node) -> list[NodeChange]:
        """The node is like this now."""
        before = self._nodes.get(node.node_id)
        self._nodes[node.node_id] = node
        return [] if before is not None and _lasting(before) == _lasting(node) else [NodeChange("upsert", node)]

    def remove(self, node_id: str) -> list[NodeChange]:
        """The node is gone."""
        before = self._nodes.pop(node_id, None)
        return [] if before is None else [NodeChange("remove", before)]

    def replace(self, nodes: Iterable[Node]) -> list[NodeChange]:
        """These are all there are now."""
        now = {node.node_id: node for node in nodes}
        changes = [change for node_id in [*self._nodes] if node_id not in now for change in self.remove(node_id)]
        return changes + [change for node in now.values() for change in self.upsert(node)]


def _lasting(node: Node) -> dict[str, Json]:
    return {name: value for name, value in node.items() if name not in _PASSING}


def _object(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _named(value: Json) -> list[Mapping[str, Json]]:
    return [each for each in _list(value) if isinstance(each, Mapping)]


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
