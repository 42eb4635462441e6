"""Prometheus metrics of one worker; several workers' are summed through files they share."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from federation.tls import Certificates, Event
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
        self.watchers = Counter(
            "dagi_registry_watchers",
            "Watches opened, closed, cut off because they did not read, and refused.",
            ["event"],
            registry=self._own,
        )
        self._refused = Counter(
            "dagi_registry_refused",
            "Requests and connections refused or cut off, by the limit that they were over.",
            ["limit"],
            registry=self._own,
        )
        self.audit_behind = Gauge(
            "dagi_registry_audit_entries_unfiled",
            "Entries of the audit log that its files lack: more than 0 for long, and they cannot be written.",
            registry=self._own,
            multiprocess_mode="livemax",
        )
        self.ready = Gauge(
            "dagi_registry_ready",
            "1 when ready to serve writes.",
            registry=self._own,
            multiprocess_mode="livemin",
        )
        self._reloads = Counter(
            "dagi_registry_certificate_reloads", "Certificates that were replaced, by outcome.", ["outcome"],
            registry=self._own,
        )  # fmt: skip
        self._certificates: Certificates | None = None
        self._refusals: dict[str, Callable[[], None]] = {}
        self._children: dict[tuple[str, str, int], Callable[[float], None]] = {}

    def watch_certificates(self, watched: Certificates, told: Callable[[Event, str], None] | None) -> None:
        """Count what happens to them, and pass it on; show when they expire."""
        self._certificates = watched

        def heard(what: Event, detail: str) -> None:
            if what != "expiring":
                self._reloads.labels(what).inc()
            if told is not None:
                told(what, detail)

        watched.told = heard

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

    def observe_refusal(self, limit: str) -> None:
        """Count what was refused or cut off."""
        count = self._refusals.get(limit)
        if count is None:
            count = self._refusals[limit] = self._refused.labels(limit).inc
        count()

    def observe_commit(self, size: int, seconds: float) -> None:
        """Count one group commit."""
        self.commit_batch.observe(size)
        self.store_latency.observe(seconds)

    def exposition(self, counts: Counts, federation: Mapping[str, Any]) -> bytes:
        """The text format; nodes and the federation are the region's, so they are not summed over workers.
        `federation`: what GET /api/v1/federation answers."""
        registry = self._own
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):  # several workers: the library sums their files
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library has no types here
        expiries_s = self._certificates.expiries_s if self._certificates is not None else {}
        return generate_latest(registry) + generate_latest(
            _of(_NodeCollector(counts), _FederationCollector(federation), _CertificateCollector(expiries_s))
        )


class _NodeCollector(Collector):
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("dagi_registry_nodes", "Nodes of the region by status.", labels=["status"])
        for status in ("online", "degraded", "offline", "maintenance", "draining"):
            family.add_metric([status], self._counts.by_status.get(status, 0))
        yield family
        signed = GaugeMetricFamily(
            "dagi_registry_node_signatures",
            "Nodes by how their signatures stand; invalid: forged.",
            labels=["signature"],
        )
        for signature in ("verified", "unverified", "invalid", None):
            signed.add_metric([signature or "none"], self._counts.by_signature.get(signature, 0))
        yield signed
        left_out = CounterMetricFamily("dagi_registry_rtts_left_out", "Round trips reported that no network has.")
        left_out.add_metric([], self._counts.rtts_left_out)
        yield left_out


class _CertificateCollector(Collector):
    def __init__(self, expiries_s: Mapping[str, float]) -> None:
        self._expiries_s = expiries_s

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "dagi_registry_certificate_expires_in_seconds", "Until a certificate expires.", labels=["file"]
        )
        for name, until_s in self._expiries_s.items():
            family.add_metric([name], until_s - time.time())
        yield family


class _FederationCollector(Collector):
    def __init__(self, view: Mapping[str, Any]) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        yield from self._gauges()
        yield from self._counters()

    def _gauges(self) -> Iterable[Metric]:
        peers = [peer for peer in self._view["peers"] if peer["registry_id"] is not None]
        for name, help_text, value in (
            ("replication_lag_seconds", "Everything that the peer wrote until so long ago is here.", _lag_s),
            ("peer_reachable", "1 while the peer's word on its nodes is current.", lambda p: float(p["reachable"])),
            ("peer_link_up", "1 while there is a link to the peer.", lambda p: float(p["state"] == "up")),
            ("peer_rtt_seconds", "Round trip time of the link to the peer.", _rtt_s),
        ):
            family = GaugeMetricFamily(f"dagi_registry_{name}", help_text, labels=["peer"])
            for peer in peers:
                found = value(peer)
                if found is not None:
                    family.add_metric([peer["registry_id"]], found)
            yield family
        records = GaugeMetricFamily("dagi_registry_records", "Records of the federation held, tombstones among them.")
        records.add_metric([], self._view["self"]["records"])
        yield records
        hold = GaugeMetricFamily("dagi_registry_expiry_hold_seconds", "How much longer nobody is called offline.")
        hold.add_metric([], self._view["expiry_hold_s"] or 0.0)
        yield hold

    def _counters(self) -> Iterable[Metric]:
        for unit in ("frames", "bytes"):
            family = CounterMetricFamily(f"dagi_registry_link_{unit}", f"{unit} over links.", labels=["peer", "way"])
            for peer in self._view["peers"]:
                if peer["registry_id"] is not None:
                    for way in ("in", "out"):
                        family.add_metric([peer["registry_id"], way], peer[f"{unit}_{way}"])
            yield family
        alerts = CounterMetricFamily("dagi_registry_federation_alerts", "What somebody should know.", labels=["code"])
        for code, alert in self._view["alerts"].items():
            alerts.add_metric([code], alert["count"])
        yield alerts
        conflicts = CounterMetricFamily(
            "dagi_registry_conflicts", "Our writes that were replaced by a registry that had not seen them."
        )
        conflicts.add_metric([], self._view["conflicts"])
        yield conflicts


def _lag_s(peer: Mapping[str, Any]) -> float | None:
    lag_s: float | None = peer["lag_s"]
    return lag_s


def _rtt_s(peer: Mapping[str, Any]) -> float | None:
    return None if peer["rtt_ms"] is None else peer["rtt_ms"] / 1000


def _of(*collectors: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry
