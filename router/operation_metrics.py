"""Metrics of what an operator must know of and clients do not see at once: the audit log, the store, engines that are missing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.explain import missing_engines
from router.identity.stored import Shared
from router.state import RouterState


class OperationCollector(Collector):
    """Read from the router's state when somebody scrapes.

    Args:
        state: the router.
        shared: its store; None where it could not be opened.
    """

    def __init__(self, state: RouterState, shared: Shared | None) -> None:
        self._state, self._shared = state, shared

    def collect(self) -> Iterator[Metric]:
        """The figures of now; none of an audit log that is switched off."""
        audit = self._state.audit
        if audit is not None:
            said = "1 while the audit log cannot be written: nothing leaves the cluster"
            yield GaugeMetricFamily("tidegate_audit_unwritable", said, value=int(not audit.healthy))
            yield CounterMetricFamily("tidegate_audit_losses", "times that records were lost", value=audit.losses)
        away = self._shared is None or self._shared.failing
        said = "1 while the store of keys and limits does not answer: revocations are not seen"
        yield GaugeMetricFamily("tidegate_store_unreachable", said, value=int(away))
        membership = self._state.fleet.view(time.time()).membership
        missing = GaugeMetricFamily(
            "tidegate_engines_missing", "configured engines that nobody reports", labels=["model", "zone"]
        )
        for entry in missing_engines(self._state.config, membership.targets):
            missing.add_metric([entry["model"], entry["zone"]], entry["wanted"] - entry["up"])
        ends = GaugeMetricFamily(
            "tidegate_evidence_expires_timestamp_seconds", "when a target's evidence ends (`expires`)", labels=["target", "zone"]
        )
        for target in membership.targets:
            if target.evidence.expires != math.inf:
                ends.add_metric([target.id, target.zone], target.evidence.expires)
        yield from (missing, ends)
