"""Requests of ours that follow a client's: a shadow, a label. Same label, own id and receipt, never outside the cluster."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from msgspec.structs import replace

from router.admitted import AdmittedRequest
from router.config import LOCAL
from router.decision import Complexity, Facts
from router.identity.priority import CLASSES
from router.ledger.receipts import Receipt
from router.placement.targets import Endpoint
from router.prompt_size import BYTES_PER_TOKEN, prompt_bytes
from router.residency.conversation import NO_CONVERSATION
from router.state import RouterState
from router.wire.json_body import encode_object
from router.wire.request import fresh_request_id

_LOWEST = len(CLASSES) - 1


class Ask(NamedTuple):
    """Another request than the client's: a chat body, and the models whose answers it carries, which have a say in its label."""

    body: dict[str, Any]
    models: tuple[str, ...]


def follow_up(
    state: RouterState, before: AdmittedRequest, complexity: Complexity, ask: Ask | None = None, timeout_s: float = 0.0
) -> AdmittedRequest | None:
    """A request that follows one that was answered; None where a new policy has come in the meantime.

    Its label is the other's as classification and conversation left it, met with the zones inside: no policy that comes later
    can let it out, for a label never widens. It takes nothing from the client's limits and nobody waits for it.

    Args:
        state: the router.
        before: the client's request; its label is in the vocabulary of the policy that it was admitted under.
        complexity: what chose the model.
        ask: what is asked; None: the same.
        timeout_s: how long it may take; 0: no limit.
    """
    policy, held = state.policy, before.ticket
    if held.revoked or before.receipt.epoch != policy.epoch:
        return None
    grant = replace(before.facts.key, spill=False, limits=(), cache=None)
    label = held.label.meet(policy.tags[LOCAL])
    for model in ask.models if ask is not None else ():
        label = policy.label_for(label, model)
    ticket = state.inflight.enter(grant, held.tags, label)
    ticket.declassified, ticket.unread = held.declassified, held.unread
    facts = replace(
        before.facts,
        request_id=fresh_request_id(),
        key=grant,
        label=ticket.label,
        complexity=complexity,
        timeout_s=timeout_s,
        waited_s=0.0,
        excluded=frozenset(),
        priority=_LOWEST,
    )
    receipt = _fresh_receipt(before.receipt, facts, state)
    if ask is None:
        path, body, parsed, said = before.path, before.body, before.parsed, before.conversation
    else:
        path, body, parsed, said = Endpoint.CHAT, encode_object(ask.body), ask.body, NO_CONVERSATION
        size = prompt_bytes(path, parsed)
        facts = replace(facts, endpoint=path, prompt_bytes=size, prompt_tokens=size // BYTES_PER_TOKEN + 1)
    return AdmittedRequest(path, before.headers, body, parsed, facts, receipt, ticket, said)


def _fresh_receipt(receipt: Receipt, facts: Facts, state: RouterState) -> Receipt:
    """Its receipt before it began."""
    return replace(
        receipt,
        request_id=facts.request_id,
        received=time.time(),
        label=state.label_text(facts.label),
        label_sources=dict(receipt.label_sources),
        complexity_tier=facts.complexity.tier,
        complexity_score=facts.complexity.score,
        trial=facts.complexity.trial,
        priority=CLASSES[facts.priority],
        attempts=[],
        steps=[],
        candidates=[],
        capture="",
        context="",
        mode="",
        cache="",
        waited_ms=0,
        held="",
        status=0,
        code="",
        ended=0.0,
        prompt_tokens=-1,
        completion_tokens=-1,
        cached_tokens=-1,
        reasoning_tokens=-1,
    )
