"""`tidegate_*` metrics. Labels hold names of the configuration only: no key, no request id, no client address."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.placement.fleet import Fleet

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class _FleetCollector(Collector):
    """Gauges read from the router's books when somebody scrapes, so that they cost nothing otherwise."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """One sample per target and gauge."""
        names = ["target", "zone"]
        up = GaugeMetricFamily("tidegate_target_up", "1 when the target is offered work", labels=names)
        inflight = GaugeMetricFamily("tidegate_target_inflight", "requests this router has there", labels=names)
        foreign = GaugeMetricFamily("tidegate_target_foreign", "requests others have there", labels=names)
        kv = GaugeMetricFamily("tidegate_target_kv_usage", "KV-cache usage, 0..1", labels=names)
        age = GaugeMetricFamily("tidegate_target_signal_age_seconds", "age of the target's signals", labels=names)
        now = time.time()
        view = self._fleet.view(now)
        for target, load in zip(view.membership.targets, view.loads, strict=True):
            values = [target.id, target.zone]
            up.add_metric(values, 0.0 if load.down_until > now else 1.0)
            inflight.add_metric(values, load.inflight)
            foreign.add_metric(values, load.foreign)
            if load.signals is not None:
                kv.add_metric(values, load.signals.kv_usage)
                age.add_metric(values, max(0.0, now - load.signals.sampled_at))
        yield from (up, inflight, foreign, kv, age)


class Metrics:
    """The router's counters; one instance and one registry per router, so that tests can have several."""

    def __init__(self, fleet: Fleet) -> None:
        self._registry = CollectorRegistry()
        names = ["model", "target", "zone", "status"]
        self._requests = Counter("tidegate_requests", "answered requests", names, registry=self._registry)
        self._refusals = Counter("tidegate_refusals", "refused requests", ["code"], registry=self._registry)
        self._spills = Counter("tidegate_spills", "requests sent outside", ["target"], registry=self._registry)
        self._reloads = Counter("tidegate_policy_reloads", "policies offered while running", ["result"], registry=self._registry)
        self._revoked = Counter("tidegate_policy_revoked", "exchanges a policy cut", registry=self._registry)
        self._stale = Gauge("tidegate_policy_stale", "1 while the latest policy could not be taken", registry=self._registry)
        self._retries = Counter("tidegate_retries", "further attempts", ["target"], registry=self._registry)
        self._ttft = Histogram(
            "tidegate_first_byte_seconds",
            "time to the first byte",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._total = Histogram(
            "tidegate_request_seconds", "time to the last byte", ["model"], buckets=_SECONDS, registry=self._registry
        )
        self._children: dict[tuple[str, str, str, int], Counter] = {}
        self._timers: dict[str, tuple[Histogram, Histogram]] = {}
        self._registry.register(_FleetCollector(fleet))

    def answered(self, model: str, target: str, zone: str, status: int, first_byte_s: float, total_s: float) -> None:
        """A response was forwarded to its end; a `first_byte_s` below 0 is not counted."""
        key = (model, target, zone, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(model, target, zone, str(status))
        child.inc()
        timers = self._timers.get(model)
        if timers is None:
            timers = self._timers[model] = (self._ttft.labels(model), self._total.labels(model))
        if first_byte_s >= 0:
            timers[0].observe(first_byte_s)
        timers[1].observe(total_s)

    def refused(self, code: str) -> None:
        """A request got an error of ours."""
        self._refusals.labels(code).inc()

    def spilled(self, target: str) -> None:
        """A request was sent to a cloud target."""
        self._spills.labels(target).inc()

    def policy_offered(self, *, taken: bool) -> None:
        """A policy was offered while the router runs; while the latest one was not taken, `tidegate_policy_stale` is 1."""
        self._reloads.labels("taken" if taken else "refused").inc()
        self._stale.set(0 if taken else 1)

    def revoked(self, exchanges: int) -> None:
        """A policy, or time, cut exchanges that were running."""
        self._revoked.inc(exchanges)

    def retried(self, target: str) -> None:
        """A request is tried again after `target` failed it."""
        self._retries.labels(target).inc()

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)
