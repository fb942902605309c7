"""The decision as data for people: what `POST /tidegate/v1/explain` answers and `tidegate explain` draws."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from router.complexity.books import ReadOnlyBooks
from router.complexity.explain import describe_gain
from router.complexity.features import read_features
from router.complexity.peel import peel_request
from router.config import Config
from router.decide import decide
from router.decision import Decision, Facts
from router.facts import gather_facts, judge_complexity
from router.handler import classify, conversation_of, identify, must_classify, named_headers
from router.placement.breaker import hold, state_of
from router.placement.targets import Endpoint, Kind, Load, Target
from router.placement.trust import FALLBACK
from router.policy import Policy
from router.residency.media import refuse_media, refuse_remote_media
from router.residency.resolve import resolve_label
from router.screen import resolve_models
from router.state import RouterState
from router.wire.json_body import parse_object
from router.wire.request import Headers, priority_of


async def explain_request(state: RouterState, headers: Headers, body: bytes, request_id: str, peer: str | None) -> dict[str, Any]:
    """Decide a chat request without running it: the live code path up to the decision, and nothing after it.

    Args:
        state: the router.
        headers: of the request, names in lower case.
        body: the chat request.
        request_id: names it in the answer.
        peer: the address of the connection's other end.

    Raises:
        ApiError: as the request itself would.
    """
    grant, label, tags = identify(state, headers, peer)
    parsed = parse_object(body)
    found = ""
    conversation = conversation_of(state, grant, label, Endpoint.CHAT, parsed)
    inherited = state.lineage.inherited(conversation, state.policy)
    label = resolve_label(grant, tags, state.policy, (inherited.label,), time.time())
    refuse_media(parsed, label, state.policy)
    if state.classifier is not None and must_classify(state, label):
        verdict = await classify(state.classifier, label, parsed)
        label, found = verdict.label, "+".join((*verdict.kinds, *filter(None, (verdict.unknown,))))
    books, named = ReadOnlyBooks(state.complexity), named_headers(headers, state.policy)
    priority = priority_of(headers, grant.priority)
    facts = gather_facts(request_id, grant, Endpoint.CHAT, parsed, label, state.policy, 0.0, books, named, priority)
    facts = state.media.counted_in(facts, parsed)
    now = time.time()
    chains = state.chains_for(facts, parsed, resolve_models(facts, state.policy))
    decision = decide(facts, state.policy, state.view_for(facts, chains, now), now)
    if decision.chosen is not None:
        refuse_remote_media(parsed, state.policy.label_for(label, decision.chosen.model), state.policy)
    answer = describe_decision(facts, decision, state.policy, tags)
    if inherited.source:
        answer["label"]["sources"]["conversation"] = inherited.source
    if found:
        answer["label"]["sources"]["classifier"] = found
    answer["complexity"] = describe_complexity(parsed, facts, state.policy)
    return answer


def describe_complexity(body: dict[str, Any], facts: Facts, policy: Policy) -> dict[str, Any]:
    """The choice of the tier and, where a fitted gain decides, the terms that add up to it."""
    complexity = facts.complexity if facts.complexity.tier else judge_complexity(body, facts.prompt_tokens, policy, facts.key)
    found: dict[str, Any] = msgspec.structs.asdict(complexity)
    plan = policy.plan
    if plan is not None and plan.by_gain:
        found["gain"] = describe_gain(plan.model, plan.head, read_features(peel_request(body).text))
    return found


def describe_decision(facts: Facts, decision: Decision, policy: Policy, tags: tuple[str, ...]) -> dict[str, Any]:
    """`{"chosen", "refusal", "label", "complexity", "candidates", ...}` of the public contract."""
    choice = decision.chosen
    chosen = None
    if choice is not None:
        chosen = {
            "target": choice.target.id,
            "incarnation": choice.target.incarnation,
            "model": choice.model,
            "zone": choice.target.zone,
            "kind": choice.target.kind.value,
            "reason": choice.reason,
            "predicted_ttft_ms": round(choice.predicted_ttft_s * 1e3, 3),
        }
    place = policy.place_of(facts.label)
    return {
        "chosen": chosen,
        "refusal": None if decision.refusal is None else msgspec.to_builtins(decision.refusal),
        "label": {
            "process": place.process,
            "store": place.store,
            "duties": place.duties,
            "sources": {"key": facts.key.ceiling_tags, "header": tags},
        },
        "complexity": msgspec.structs.asdict(facts.complexity),
        "candidates": msgspec.to_builtins(decision.candidates),
        "models": decision.models,
        "epoch": policy.epoch,
        "request_id": facts.request_id,
    }


def gpu_health(load: Load) -> str:
    """What a target's GPUs say is wrong with them, in words; empty where that is nothing."""
    found = []
    if load.throttle > 1.0:
        found.append(f"a GPU runs {load.throttle:.1f} times slower than it could (heat or power supply)")
    if load.signals is not None and load.signals.gpu_faults:
        count = load.signals.gpu_faults
        found.append(f"{count} broken GPU{'s' if count > 1 else ''} (memory errors or a critical XID)")
    return "; ".join(found)


def describe_cluster(state: RouterState) -> dict[str, Any]:
    """Targets, zones, signals and their age: what `GET /tidegate/v1/cluster` answers."""
    now = time.time()
    view = state.fleet.view(now)
    targets = []
    for target, load in zip(view.membership.targets, view.loads, strict=True):
        signals = None if load.signals is None else msgspec.structs.asdict(load.signals)
        age = None if load.signals is None else round(max(0.0, now - load.signals.sampled_at), 3)
        verdict = state.trust_of(target, age)
        targets.append(
            {
                "target": target.id,
                "incarnation": target.incarnation,
                "kind": target.kind.value,
                "zone": target.zone,
                "process": state.policy.vocabulary.zone_names(target.evidence.process),
                "models": sorted(target.models),
                "adapters_ready": list(state.adapters.ready(target.incarnation)),
                "address": target.address.uds or f"{target.address.host}:{target.address.port}",
                "context_tokens": target.context_tokens,
                "slots": target.slots,
                "up": load.down_until <= now and hold(load.breaker, now) is None,
                "breaker": state_of(load.breaker, now).name.lower(),
                "health": gpu_health(load),
                "inflight": load.inflight,
                "foreign": load.foreign,
                "ttft_s": round(load.ttft_s, 4),
                "signals": signals,
                "signal_age_s": age,
                "trust": verdict.trust.value,
                "trust_reason": verdict.reason,
                "placed_by": FALLBACK[verdict.trust],
                "cache": state.prefixes.describe(target.incarnation),
            }
        )
    return {
        "router": state.router_id,
        "epoch": state.policy.epoch,
        "ready": state.ready,
        "spilling": [{"label": state.label_text(label), "models": models} for label, models in view.spilling],
        "waiting": state.waiting.describe(now),
        "spill_budget": state.fleet.spending.describe(now),
        "zones": {zone: {"external": spec.external} for zone, spec in state.config.zones.items()},
        "targets": targets,
        "missing": missing_engines(state.config, view.membership.targets),
        "response_cache": _describe_cache(state),
    }


def missing_engines(config: Config, targets: Iterable[Target]) -> list[dict[str, Any]]:
    """What the configuration asks for and nobody reports: engines that start, or for which no machine has room.

    Args:
        config: the configuration.
        targets: who is known.
    """
    up = Counter((model, target.zone) for target in targets if target.kind is Kind.REPLICA for model in target.models)
    wanted = Counter[tuple[str, str]]()
    for model in config.models:
        for part in model.replicas:
            wanted[model.id, part.zone] += part.count
    return [{"model": key[0], "zone": key[1], "wanted": most, "up": up[key]} for key, most in wanted.items() if up[key] < most]


def _describe_cache(state: RouterState) -> dict[str, Any] | None:
    """How full the response cache is and where it keeps things, None without one."""
    if state.cache is None or state.cache_place is None:
        return None
    entries, size = state.cache.measure()
    return {"entries": entries, "bytes": size, "zones": state.policy.vocabulary.zone_names(state.cache_place.store)}
