"""What would have become of recorded requests under another policy: the same `decide`, another configuration.

Each decision is made again on the loads of its moment. What it would have changed in turn (another load on another replica)
is not simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce

import msgspec
from msgspec.structs import replace

from router.config import Config
from router.decide import decide
from router.fixed_targets import fixed_targets
from router.ledger.policies import grants_by_id
from router.ledger.replay import Situation
from router.placement.spending import Spending
from router.placement.targets import Address, Kind, Load, Membership, Target, View
from router.policy import KeyGrant, Policy
from router.residency.label import Evidence, Label

LEAVES, STAYS, REFUSED, SERVED = "leaves", "stays", "refused", "served"
MODEL, TARGET, REASON = "model", "target", "reason"
KINDS = (LEAVES, STAYS, REFUSED, SERVED, MODEL, TARGET, REASON)
"""What may change: the request leaves the cluster now or stays now, is refused now or served now, gets another model, another
target, or another reason of a refusal."""


class Change(msgspec.Struct, frozen=True):
    """One request that would have gone another way; `kinds` says how, costs are in US dollars."""

    id: str
    time: float
    key: str
    kinds: tuple[str, ...]
    before: str
    after: str
    cost_before: float
    cost_after: float


class WhatIf:
    """Another policy, ready to judge what was recorded.

    Args:
        config: the other configuration.
        policy: the same, compiled.
    """

    def __init__(self, config: Config, policy: Policy) -> None:
        self._config = config
        self._policy = policy
        self._grants = grants_by_id(policy)
        self._fixed = {target.id: target for target in fixed_targets(config, None, "egress")}
        self._memberships: dict[int, tuple[Membership, Membership, tuple[int, ...]]] = {}
        self._spending = Spending(policy.daily_budget_usd)

    def judge(self, situation: Situation) -> Change | None:
        """How a recorded decision would have come out; None when the same."""
        data = situation.data
        grant = self._grants.get(situation.facts.key.id, None if self._is_configured(situation) else situation.facts.key)
        after_target, after_model, after_kind, code, cost = "", "", "", "invalid_api_key", 0.0
        if grant is not None:
            label = self._label(situation, grant)
            facts = replace(situation.facts, key=grant, label=label)
            code = "residency_denied"
            if label.process and label.store:
                decision = decide(facts, self._policy, self._view(situation, label), data.now)
                choice, refusal = decision.chosen, decision.refusal
                code = refusal.code if refusal is not None else ""
                if choice is not None:
                    after_target, after_model, after_kind = choice.target.id, choice.model, choice.target.kind.value
                    cost = choice.cost_usd
                    self._spending.set_aside(data.now, cost)
        kinds = _kinds((data.target, data.model, data.kind, data.code), (after_target, after_model, after_kind, code))
        if not kinds:
            return None
        before, after = _describe(data.target, data.model, data.code), _describe(after_target, after_model, code)
        key = situation.facts.key.id
        return Change(situation.record.id, situation.record.t, key, kinds, before, after, data.cost_usd, cost)

    def _is_configured(self, situation: Situation) -> bool:
        """Whether the key stood in the old configuration; one from the key store or a token is taken as it was."""
        return any(key.id == situation.facts.key.id for key in situation.config.keys)

    def _label(self, situation: Situation, grant: KeyGrant) -> Label:
        """The label under the other policy: the key's ceiling, and every tag that the request's other sources gave.

        A source whose tags are not known there keeps what it meant before, as far as its zones and duties still exist.
        """
        # Only a redacted request goes further than its key's ceiling.
        was_redacted = not situation.facts.label.is_within(situation.facts.key.ceiling)
        labels = [grant.redacted if was_redacted and grant.redacted is not None else grant.ceiling]
        for source, text in situation.data.sources.items():
            if source == "key":
                continue
            for tag in filter(None, text.split("+")):
                known = self._policy.tags.get(tag)
                labels.append(known if known is not None else self._translate_label(situation.facts.label, situation.policy))
        return reduce(Label.meet, labels)

    def _translate_label(self, label: Label, policy: Policy) -> Label:
        old, new = policy.vocabulary, self._policy.vocabulary
        process = new.zone_mask(name for name in old.zone_names(label.process) if name in new.zones)
        store = new.zone_mask(name for name in old.zone_names(label.store) if name in new.zones)
        duties = old.duty_names(label.duties)
        if any(duty not in new.duties for duty in duties):
            return Label(0, 0)  # a duty that nobody can carry any more: no place satisfies it
        return Label(process, store, new.duty_mask(duties))

    def _view(self, situation: Situation, label: Label) -> View:
        old = situation.view
        _, membership, places = self._membership(situation)
        loads = tuple(old.loads[place] if place >= 0 else Load() for place in places)
        spilling = old.spilling
        if any(was == situation.facts.label for was, _ in old.spilling):
            spilling = frozenset((label, models) for was, models in old.spilling if was == situation.facts.label)
        same = self._policy.daily_budget_usd == situation.policy.daily_budget_usd
        # What a router had left of the old budget, a lease, says nothing of another one: that is spent by what is judged here.
        left = old.spend_left_usd if same else self._spending.left(situation.data.now)
        cached = {index: old.cached[place] for index, place in enumerate(places) if place in old.cached}
        return replace(old, membership=membership, loads=loads, spilling=spilling, spend_left_usd=left, cached=cached)

    def _membership(self, situation: Situation) -> tuple[Membership, Membership, tuple[int, ...]]:
        """The targets as they would be: engines that ran, under their new evidence, and what the other configuration fixes."""
        old = situation.view.membership
        found = self._memberships.get(id(old))
        if found is None:
            targets: list[Target] = []
            places: list[int] = []
            for place, target in enumerate(old.targets):
                moved = self._moved(target)
                if moved is not None:
                    targets.append(moved)
                    places.append(place)
            for target in self._new_targets({target.id for target in targets}, old):
                targets.append(target)
                places.append(-1)
            found = self._memberships[id(old)] = (old, Membership(0, tuple(targets)), tuple(places))
        return found

    def _moved(self, target: Target) -> Target | None:
        """A target that ran, under the other configuration; None when that does not have it."""
        if target.kind is not Kind.REPLICA:
            fixed = self._all_fixed(target).get(target.id)
            return None if fixed is None else replace(fixed, incarnation=target.incarnation, address=target.address)
        words = self._policy.vocabulary
        for model in self._config.models:
            for part in model.replicas:
                if model.id in target.models and part.zone == target.zone:
                    zone = words.zone_mask([part.zone])
                    evidence = Evidence(zone, zone, words.duty_mask(part.duties), target.evidence.expires)
                    return replace(
                        target,
                        evidence=evidence,
                        models={name: target.models[name] for name in model.names if name in target.models},
                    )
        return None

    def _all_fixed(self, like: Target) -> Mapping[str, Target]:
        """The fixed targets, cloud ones behind the same egress as `like`."""
        if like.kind is not Kind.CLOUD:
            return self._fixed
        return {target.id: target for target in fixed_targets(self._config, like.address, "egress")}

    def _new_targets(self, there: set[str], old: Membership) -> Iterable[Target]:
        """Fixed targets that only the other configuration has. A new cloud target counts as up: nothing speaks against it."""
        address = next((target.address for target in old.targets if target.kind is Kind.CLOUD), None)
        for target in fixed_targets(self._config, address or Address(), "egress"):
            if target.id not in there:
                yield target


def _kinds(before: tuple[str, str, str, str], after: tuple[str, str, str, str]) -> tuple[str, ...]:
    """In what two outcomes differ; each is (target, model, kind, code)."""
    if before == after:
        return ()
    kinds = []
    cloud_before, cloud_after = before[2] == Kind.CLOUD.value, after[2] == Kind.CLOUD.value
    if cloud_after and not cloud_before:
        kinds.append(LEAVES)
    if cloud_before and after[0] and not cloud_after:
        kinds.append(STAYS)
    if before[0] and not after[0]:
        kinds.append(REFUSED)
    if after[0] and not before[0]:
        kinds.append(SERVED)
    if before[0] and after[0] and before[1] != after[1]:
        kinds.append(MODEL)
    if before[0] and after[0] and before[0] != after[0]:
        kinds.append(TARGET)
    if not before[0] and not after[0]:
        kinds.append(REASON)
    return tuple(kinds)


def _describe(target: str, model: str, code: str) -> str:
    return f"{target} ({model})" if target else f"refused: {code}"
