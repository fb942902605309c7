"""`tidegate_*` metrics. Labels hold names of the configuration and the router's own: no key, no request id, no client address.

Routers that share a port are scraped in turn, by chance; by the label `router` what one of them counts stays one series.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from router.placement.breaker import hold, state_of
from router.placement.fleet import Fleet
from router.placement.targets import Target
from router.placement.trust import LEVEL, Verdict

TrustOf = Callable[[Target, float | None], Verdict]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class _FleetCollector(Collector):
    """Gauges read from the router's books when somebody scrapes, so that they cost nothing otherwise."""

    def __init__(self, fleet: Fleet, trust_of: TrustOf) -> None:
        self._fleet = fleet
        self._trust_of = trust_of

    def collect(self) -> Iterator[Metric]:
        """One sample per target and gauge."""
        names = ["target", "zone"]
        up = GaugeMetricFamily("tidegate_target_up", "1 when the target is offered work", labels=names)
        inflight = GaugeMetricFamily("tidegate_target_inflight", "requests this router has there", labels=names)
        foreign = GaugeMetricFamily("tidegate_target_foreign", "requests others have there", labels=names)
        kv = GaugeMetricFamily("tidegate_target_kv_usage", "KV-cache usage, 0..1", labels=names)
        age = GaugeMetricFamily("tidegate_target_signal_age_seconds", "age of the target's signals", labels=names)
        health = GaugeMetricFamily("tidegate_breaker_state", "circuit breaker: 0 closed, 1 half-open, 2 open", labels=names)
        throttle = GaugeMetricFamily("tidegate_gpu_throttle", "how many times slower heat or power makes the GPUs", labels=names)
        faults = GaugeMetricFamily("tidegate_gpu_faults", "broken GPUs: memory errors or a critical XID", labels=names)
        deferred = GaugeMetricFamily("tidegate_target_deferred", "requests that wait there for other than room", labels=names)
        evicted = GaugeMetricFamily("tidegate_target_preemptions", "requests thrown out of its KV cache so far", labels=names)
        silent = GaugeMetricFamily("tidegate_target_silent_seconds", "since its core last answered, where it hangs", labels=names)
        trust = GaugeMetricFamily("tidegate_trust_state", "2: EXACT, 1: DEGRADED, 0: BLIND", labels=names)
        now = time.time()
        view = self._fleet.view(now)
        for target, load in zip(view.membership.targets, view.loads, strict=True):
            values = [target.id, target.zone]
            up.add_metric(values, 0.0 if load.down_until > now or hold(load.breaker, now) else 1.0)
            health.add_metric(values, state_of(load.breaker, now).value)
            inflight.add_metric(values, load.inflight)
            foreign.add_metric(values, load.foreign)
            signal_age = None if load.signals is None else max(0.0, now - load.signals.sampled_at)
            trust.add_metric(values, LEVEL[self._trust_of(target, signal_age).trust])
            if load.signals is not None and signal_age is not None:
                kv.add_metric(values, load.signals.kv_usage)
                age.add_metric(values, signal_age)
                throttle.add_metric(values, load.throttle)
                faults.add_metric(values, load.signals.gpu_faults)
                deferred.add_metric(values, load.signals.deferred)
                silent.add_metric(values, load.signals.silent_s)
                evicted.add_metric(values, load.signals.preemptions)
        yield from (up, inflight, foreign, kv, age, health, trust, throttle, faults, deferred, evicted, silent)


class Durations:
    """A histogram of seconds: one bisection per observation, where the library's own takes a lock per bucket walked."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Add one."""
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        bounds = [*(str(float(bound)) for bound in _SECONDS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class _AnswerCollector(Collector):
    """Answers, counted by the hot path in plain numbers and turned into metrics when somebody scrapes."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str, str, int]] = Counter()
        self.timers: dict[str, tuple[Durations, Durations]] = {}

    def collect(self) -> Iterator[Metric]:
        """Requests by outcome, and how long they took."""
        requests = CounterMetricFamily("tidegate_requests", "answered requests", labels=["model", "target", "zone", "status"])
        for (model, target, zone, status), count in self.answers.items():
            requests.add_metric([model, target, zone, str(status)], count)
        first = HistogramMetricFamily("tidegate_first_byte_seconds", "time to the first byte", labels=["model"])
        whole = HistogramMetricFamily("tidegate_request_seconds", "time to the last byte", labels=["model"])
        for model, timers in self.timers.items():
            for family, durations in zip((first, whole), timers, strict=True):
                family.add_metric([model], durations.buckets(), durations.total)
        yield from (requests, first, whole)


class _CaptureCollector(Collector):
    """Payload captures by what became of them."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """One sample per outcome."""
        captures = CounterMetricFamily("tidegate_captures", "payload captures, by what became of them", labels=["outcome"])
        for outcome, count in dict(self._counts).items():
            captures.add_metric([outcome], count)
        yield captures


class _Labelled(Collector):
    """All that a registry has, with the router's name on every sample."""

    def __init__(self, registry: CollectorRegistry, router_id: str) -> None:
        self._registry, self._router_id = registry, router_id

    def collect(self) -> Iterator[Metric]:
        """The registry's metrics, which are made anew for every scrape."""
        for metric in self._registry.collect():
            metric.samples = [sample._replace(labels={"router": self._router_id, **sample.labels}) for sample in metric.samples]
            yield metric


class Metrics:
    """The router's counters; one instance and one registry per router, so that tests can have several.

    Args:
        fleet: the targets.
        trust_of: how far a target's signals are to be trusted.
        router_id: the router, which every sample is labelled with.
    """

    def __init__(self, fleet: Fleet, trust_of: TrustOf, router_id: str) -> None:
        self._registry = CollectorRegistry()
        self._page = _Labelled(self._registry, router_id)
        self._answered = _AnswerCollector()
        self._registry.register(self._answered)
        self._refusals = prometheus_client.Counter("tidegate_refusals", "refused requests", ["code"], registry=self._registry)
        self._spills = prometheus_client.Counter("tidegate_spills", "requests sent outside", ["target"], registry=self._registry)
        self._reloads = prometheus_client.Counter(
            "tidegate_policy_reloads", "policies offered while running", ["result"], registry=self._registry
        )
        self._revoked = prometheus_client.Counter("tidegate_policy_revoked", "exchanges a policy cut", registry=self._registry)
        self._stale = prometheus_client.Gauge(
            "tidegate_policy_stale", "1 while the latest policy could not be taken", registry=self._registry
        )
        self._retries = prometheus_client.Counter("tidegate_retries", "further attempts", ["target"], registry=self._registry)
        self._breaks = prometheus_client.Counter(
            "tidegate_stream_breaks", "streams that broke, by what became of them", ["target", "outcome"], registry=self._registry
        )
        self._prefills = prometheus_client.Counter(
            "tidegate_prefills", "prompts given to the other half of a pair", ["target", "outcome"], registry=self._registry
        )
        self._lookups = prometheus_client.Counter(
            "tidegate_cache_lookups", "requests that the response cache was asked for", ["result"], registry=self._registry
        )
        self._registry.register(_FleetCollector(fleet, trust_of))

    def add(self, collector: Collector) -> None:
        """Ask this collector as well when somebody scrapes."""
        self._registry.register(collector)

    def answered(self, model: str, target: str, zone: str, status: int, first_byte_s: float, total_s: float) -> None:
        """A response was forwarded to its end; a `first_byte_s` below 0 is not counted."""
        self._answered.answers[model, target, zone, status] += 1
        timers = self._answered.timers.get(model)
        if timers is None:
            timers = self._answered.timers[model] = (Durations(), Durations())
        if first_byte_s >= 0:
            timers[0].observe(first_byte_s)
        timers[1].observe(total_s)

    def looked_up(self, *, hit: bool) -> None:
        """The response cache was asked."""
        self._lookups.labels("hit" if hit else "miss").inc()

    def answered_from_cache(self, model: str, zone: str) -> None:
        """The response cache answered. How fast says nothing about a model, so the times are not counted."""
        self._answered.answers[model, "cache", zone, 200] += 1

    def watch_cache(self, size: Callable[[], tuple[int, int]]) -> None:
        """There is a response cache: `size` gives its entries and bytes."""
        entries = prometheus_client.Gauge("tidegate_cache_entries", "answers in the response cache", registry=self._registry)
        entries.set_function(lambda: size()[0])
        held = prometheus_client.Gauge("tidegate_cache_bytes", "memory of the response cache", registry=self._registry)
        held.set_function(lambda: size()[1])

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

    def prefilled(self, target: str, *, taken_over: bool) -> None:
        """The other half of a pair was asked for a prompt: the answering half takes it over, or has to compute it itself."""
        self._prefills.labels(target, "taken_over" if taken_over else "failed").inc()

    def stream_broke(self, target: str, outcome: str) -> None:
        """A stream of `target` broke: it is `continued` elsewhere, was `finished` but for its end, or ends in an `error`."""
        self._breaks.labels(target, outcome).inc()

    def watch_captures(self, counts: Mapping[str, int]) -> None:
        """Show these counts, which grow."""
        self._registry.register(_CaptureCollector(counts))

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._page)
