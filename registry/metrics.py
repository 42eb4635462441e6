"""Prometheus metrics of one worker; several workers' are summed through files they share."""

import os
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from registry.directory import Counts

_LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Everything this worker counts. Children are kept, as looking them up costs more than counting."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        self._requests = Counter(
            "dagi_registry_http_requests", "Requests answered.", ["route", "method", "status"], registry=self._own
        )
        self._latency = Histogram(
            "dagi_registry_http_request_duration_seconds",
            "Time from request to answer.",
            ["route"],
            buckets=_LATENCY_S,
            registry=self._own,
        )
        self.store_latency = Histogram(
            "dagi_registry_store_commit_duration_seconds",
            "Time of one group commit in the store.",
            buckets=_LATENCY_S,
            registry=self._own,
        )
        self.commit_batch = Histogram(
            "dagi_registry_store_commit_batch_size",
            "Operations that shared one group commit.",
            buckets=_BATCH,
            registry=self._own,
        )
        self.store_failures = Counter(
            "dagi_registry_store_failures", "Store operations refused, by reason.", ["reason"], registry=self._own
        )
        self.transitions = Counter(
            "dagi_registry_node_transitions", "Liveness transitions seen.", ["to"], registry=self._own
        )
        self.ready = Gauge(
            "dagi_registry_ready",
            "1 when ready to serve writes.",
            registry=self._own,
            multiprocess_mode="livemin",
        )
        self._children: dict[tuple[str, str, int], Callable[[float], None]] = {}

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        child = self._children.get((route, method, status))
        if child is None:
            count = self._requests.labels(route, method, str(status)).inc
            time = self._latency.labels(route).observe

            def child(value: float) -> None:
                count()
                time(value)

            self._children[route, method, status] = child
        child(seconds)

    def observe_commit(self, size: int, seconds: float) -> None:
        """Count one group commit."""
        self.commit_batch.observe(size)
        self.store_latency.observe(seconds)

    def exposition(self, counts: Counts) -> bytes:
        """The text format; nodes are the region's, so they are not summed over workers."""
        registry = self._own
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):  # several workers: the library sums their files
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library has no types here
        return generate_latest(registry) + generate_latest(_nodes(counts))


class _NodeCollector(Collector):
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("dagi_registry_nodes", "Nodes of the region by status.", labels=["status"])
        for status in ("online", "degraded", "offline", "maintenance", "draining"):
            family.add_metric([status], self._counts.by_status.get(status, 0))
        yield family


def _nodes(counts: Counts) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_NodeCollector(counts))
    return registry
