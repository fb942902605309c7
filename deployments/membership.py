"""Who is up: what Serve's replicas say of themselves, asked again and again over control handles."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
from ray.exceptions import RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cluster.reports import ReplicaFacts, build_report, read_facts
from deployments.asking import ask_all
from deployments.egress.deployment import EgressFacts
from router.config import Config
from router.fixed_targets import address_of, fixed_targets
from router.placement.targets import Address, Report
from router.policy import Policy
from router.policy_source import Loaded
from router.residency.guard import PASS_LIFETIME_S, StoredCeilings
from router.residency.guard_copy import copy_for_guards

PERIOD_S = 0.5
_ANSWER_S = 3.0
_FORGET_AFTER = 10
"""Rounds without an answer from a replica that Serve still counts as running, after which it goes."""
_log = logging.getLogger("ray.serve")


class Membership:
    """Asks every engine deployment and the egress who they are, and hands the reports on.

    Args:
        config: the validated configuration.
        policy: the same, compiled; its vocabulary reads the reports.
        engines: one handle per engine deployment.
        egress: the egress's handle, or None.
        publish: takes all reports after each round.
        guards: hands a policy on to every guard that reports another epoch; see `GuardPolicies`.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        engines: Sequence[DeploymentHandle],
        egress: DeploymentHandle | None,
        publish: Callable[[Sequence[Report]], None],
        guards: GuardPolicies,
    ) -> None:
        self._config = config
        self._policy = policy
        self._engines = engines
        self._egress = egress
        self._publish = publish
        self._guards = guards
        # As the replicas gave them: masks are made at each round, under the policy of that moment.
        self._known: dict[int, list[ReplicaFacts]] = {}
        self._missed: dict[str, int] = {}  # by incarnation
        self._apart: set[str] = set()
        """Incarnations whose clock, when last heard, was so far from this one that their guards refuse what is passed here."""
        self._refusals: dict[int, list[str]] = {}
        self._egress_facts: EgressFacts | None = None

    def adopt(self, config: Config, policy: Policy) -> None:
        """Read every answer under a new policy from now on."""
        self._config, self._policy = config, policy

    def engines(self) -> Iterator[tuple[DeploymentHandle, Sequence[ReplicaFacts]]]:
        """Every engine deployment with what its replicas said last; those that did not answer yet are missing."""
        return ((handle, self._known[i]) for i, handle in enumerate(self._engines) if self._known.get(i))

    async def hand_on(self) -> None:
        """Give the current policy to all guards at once, without waiting for the next round."""
        await asyncio.gather(
            *(self._guards.to_engines(handle) for handle in self._engines),
            *([self._guards.to_egress(self._egress)] if self._egress is not None else []),
        )

    async def run(self) -> None:
        """Ask every `PERIOD_S` seconds, for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(PERIOD_S)

    async def refresh(self) -> None:
        """One round: ask everybody, publish what is known then."""
        await asyncio.gather(*(self._ask_engines(i, handle) for i, handle in enumerate(self._engines)), self._ask_egress())
        words = self._policy.vocabulary
        found = [build_report(facts, words) for known in self._known.values() for facts in known if facts.policy]
        self._publish([*self._fixed(), *sorted(found, key=lambda report: report.target.id)])

    async def _ask_engines(self, index: int, handle: DeploymentHandle) -> None:
        answers, complete = await _broadcast(handle, "describe")
        known = []
        for answer in answers:
            try:
                known.append(read_facts(answer))
            except msgspec.MsgspecError:
                _log.warning("tidegate: a replica of %s describes itself in a way this router cannot read", handle)
        here = {facts.incarnation for facts in known}
        gone = [facts for facts in self._known.get(index, []) if facts.incarnation not in here]
        # Who is silent has no name, so while anybody is, those who said nothing this time are kept for a while.
        silent = [] if complete else [facts for facts in gone if self._miss(facts.incarnation) < _FORGET_AFTER]
        for incarnation in here.union(facts.incarnation for facts in gone).difference(facts.incarnation for facts in silent):
            self._missed.pop(incarnation, None)
        now = time.time()
        self._known[index] = [facts for facts in known if self._in_time(facts, now)] + silent
        # A replica without a policy lets nobody in, so it is not offered before it reports one.
        behind = [facts.id for facts in known if facts.policy != self._guards.stamp]
        self._tell_of_refusals(index, behind, await self._guards.to_engines(handle) if behind else [])

    def _tell_of_refusals(self, index: int, behind: Sequence[str], problems: Sequence[str]) -> None:
        """Say once why engines of a deployment do not take the policy, and again when the reason is another."""
        said, self._refusals[index] = self._refusals.get(index), list(problems)
        if problems and problems != said:
            _log.warning(
                "tidegate: of %s, guards do not take the policy (%s): one that has none lets nobody in and is sent nothing, "
                "others go on with the one before",
                ", ".join(behind),
                "; ".join(problems),
            )

    def _in_time(self, facts: ReplicaFacts, now: float) -> bool:
        """Whether its guard lets anybody in: it refuses every pass where the clocks are further apart than a pass lives."""
        ahead_s = facts.said_at - now if facts.said_at else 0.0
        if abs(ahead_s) <= PASS_LIFETIME_S:
            self._apart.discard(facts.incarnation)
            return True
        if facts.incarnation not in self._apart:
            self._apart.add(facts.incarnation)
            _log.warning(
                "tidegate: the clock of %s (%s) differs by %+.0f s from this router's, so its guard would refuse every request "
                "and it is sent none. Next step: set the clocks of both machines (NTP)",
                facts.id,
                facts.host,
                ahead_s,
            )
        return False

    def _miss(self, incarnation: str) -> int:
        self._missed[incarnation] = self._missed.get(incarnation, 0) + 1
        return self._missed[incarnation]

    async def _ask_egress(self) -> None:
        if self._egress is None:
            return
        answers, complete = await _broadcast(self._egress, "describe")
        if answers or complete:
            self._egress_facts = msgspec.msgpack.decode(answers[0], type=EgressFacts) if answers else None
            if self._egress_facts is not None and self._egress_facts.policy != self._guards.stamp:
                await self._guards.to_egress(self._egress)

    def _fixed(self) -> list[Report]:
        if self._config.egress.url is not None:
            address, incarnation = address_of(self._config.egress.url, self._config.egress.tls), "egress"
        elif self._egress_facts is not None:
            facts = self._egress_facts
            address, incarnation = Address(facts.host, facts.port), facts.incarnation
        else:
            return [Report(target) for target in fixed_targets(self._config, None, "")]
        return [Report(target) for target in fixed_targets(self._config, address, incarnation)]


class GuardPolicies:
    """The current policy in the two shapes guards take: a `GuardPolicy` for engines, the configuration for the egress."""

    def __init__(self, loaded: Loaded, issued: float, stored: StoredCeilings) -> None:
        self.adopt(loaded, issued, stored)

    def adopt(self, loaded: Loaded, issued: float, stored: StoredCeilings) -> None:
        """Take a new policy, or news of stored keys.

        Args:
            loaded: the policy.
            issued: UNIX time in seconds, by which guards order copies.
            stored: the ceilings of the keys of the store.
        """
        copy = copy_for_guards(loaded.policy, issued, stored)
        self.stamp = copy.stamp
        self._copy = msgspec.json.encode(copy)
        self._loaded, self._digest = loaded, stored.digest
        self._config = loaded.config.model_dump_json()
        self._glass = loaded.glass
        self._stored = msgspec.msgpack.encode(stored)
        self._issued = issued

    def renew(self, stored: StoredCeilings, issued: float) -> bool:
        """Take news of stored keys under the same policy; True when there are any."""
        if stored.digest == self._digest:
            return False
        self.adopt(self._loaded, issued, stored)
        return True

    async def to_engines(self, handle: DeploymentHandle) -> list[str]:
        """Give it to every replica of an engine deployment; why those that could not take it could not, each reason once."""
        try:
            answers = await ask_all(handle, "take_policy", self._copy, timeout_s=_ANSWER_S)
        except (DeploymentUnavailableError, TimeoutError):
            return []
        causes = [answer.cause for answer in answers if isinstance(answer, RayTaskError)]
        return sorted({f"{type(cause).__name__}: {cause}" for cause in causes})

    async def to_egress(self, handle: DeploymentHandle) -> None:
        """Give it to the egress."""
        await _broadcast(handle, "take_policy", self._config, self._glass, self._issued, self._stored)


async def _broadcast(handle: DeploymentHandle, method: str, *arguments: object) -> tuple[list[bytes], bool]:
    """The answers of the running replicas, and whether all of them answered in time (as none does where none runs)."""
    try:
        answers = await ask_all(handle, method, *arguments, timeout_s=_ANSWER_S)
    except DeploymentUnavailableError:
        return [], True
    except TimeoutError:
        return [], False
    complete = not any(isinstance(answer, TimeoutError) for answer in answers)
    return [answer for answer in answers if isinstance(answer, bytes)], complete
