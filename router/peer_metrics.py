"""Metrics of what routers tell each other, read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.peer_link import PeerLink


class PeerCollector(Collector):
    """How many routers are heard directly, whether any has to be told in rounds, and how many datagrams proved nothing."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link

    def collect(self) -> Iterator[Metric]:
        """Three figures."""
        link = self._link
        yield GaugeMetricFamily("tidegate_peers_heard", "routers whose datagrams come through", value=link.heard)
        rounds = int(link.later is not None)
        yield GaugeMetricFamily(
            "tidegate_peers_told_in_rounds", "1 while some router hears no datagrams of this one", value=rounds
        )
        yield CounterMetricFamily("tidegate_peer_datagrams_refused", "datagrams that proved nothing", value=link.refused)
