"""Who is up: what Serve's replicas say of themselves, asked again and again over control handles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cluster.reports import decode_report
from deployments.egress.deployment import EgressFacts
from router.config import Config
from router.placement.targets import Address, Report
from router.policy import Policy, address_of, fixed_targets

PERIOD_S = 0.5
_ANSWER_S = 3.0
_FORGET_AFTER = 10
"""Rounds without any answer from a deployment (a hung replica blocks its whole broadcast) after which its targets go."""
_log = logging.getLogger("ray.serve")


class Membership:
    """Asks every engine deployment and the egress who they are, and hands the reports on.

    Args:
        config: the validated configuration.
        policy: the same, compiled; its vocabulary reads the reports.
        engines: one handle per engine deployment.
        egress: the egress's handle, or None.
        publish: takes all reports after each round.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        engines: Sequence[DeploymentHandle],
        egress: DeploymentHandle | None,
        publish: Callable[[Sequence[Report]], None],
    ) -> None:
        self._config = config
        self._policy = policy
        self._engines = engines
        self._egress = egress
        self._publish = publish
        self._known: dict[int, list[Report]] = {}
        self._missed: dict[int, int] = {}
        self._egress_facts: EgressFacts | None = None

    async def run(self) -> None:
        """Ask every `PERIOD_S` seconds, for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(PERIOD_S)

    async def refresh(self) -> None:
        """One round: ask everybody, publish what is known then."""
        await asyncio.gather(*(self._ask_engines(i, handle) for i, handle in enumerate(self._engines)), self._ask_egress())
        found = [report for reports in self._known.values() for report in reports]
        self._publish([*self._fixed(), *sorted(found, key=lambda report: report.target.id)])

    async def _ask_engines(self, index: int, handle: DeploymentHandle) -> None:
        answers = await _broadcast(handle, "describe")
        if answers is None:
            self._missed[index] = self._missed.get(index, 0) + 1
            if self._missed[index] >= _FORGET_AFTER:
                self._known[index] = []
            return
        self._missed[index] = 0
        reports = []
        for answer in answers:
            try:
                reports.append(decode_report(answer, self._policy.vocabulary))
            except msgspec.MsgspecError:
                _log.warning("tidegate: a replica of %s describes itself in a way this router cannot read", handle)
        self._known[index] = reports

    async def _ask_egress(self) -> None:
        if self._egress is None:
            return
        answers = await _broadcast(self._egress, "describe")
        if answers is not None:
            self._egress_facts = msgspec.msgpack.decode(answers[0], type=EgressFacts) if answers else None

    def _fixed(self) -> list[Report]:
        if self._config.egress.url is not None:
            address, incarnation = address_of(self._config.egress.url, self._config.egress.tls), "egress"
        elif self._egress_facts is not None:
            facts = self._egress_facts
            address, incarnation = Address(facts.host, facts.port), facts.incarnation
        else:
            return [Report(target) for target in fixed_targets(self._config, None, "")]
        return [Report(target) for target in fixed_targets(self._config, address, incarnation)]


async def _broadcast(handle: DeploymentHandle, method: str) -> list[bytes] | None:
    """The answers of all running replicas; [] when there are none, None when nobody answered in time."""
    try:
        answers = await handle.broadcast(method).results_async(timeout_s=_ANSWER_S, return_exceptions=True)
    except DeploymentUnavailableError:
        return []
    except TimeoutError:
        return None
    return [answer for answer in answers if isinstance(answer, bytes)]
