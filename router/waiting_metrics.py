"""Metrics of the waiting room, read from its books when somebody scrapes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from router.waiting import WaitingRoom


class WaitingCollector(Collector):
    """Depth by class, what became of those who waited, and how long those waited that were sent."""

    def __init__(self, room: WaitingRoom) -> None:
        self._room = room

    def collect(self) -> Iterator[Metric]:
        """One sample per class."""
        told = self._room.describe(time.time())
        depth = GaugeMetricFamily("tidegate_waiting", "requests that wait in this router", labels=["class"])
        for name, count in told["by_class"].items():
            depth.add_metric([name], count)
        ended = CounterMetricFamily("tidegate_waits", "requests that waited, by what became of them", labels=["class", "outcome"])
        for (name, outcome), count in self._room.outcomes.items():
            ended.add_metric([name, outcome], count)
        waited = HistogramMetricFamily("tidegate_waited_seconds", "wait of those that were sent", labels=["class"])
        for name, durations in self._room.waits.items():
            waited.add_metric([name], durations.buckets(), durations.total)
        yield from (depth, ended, waited)
