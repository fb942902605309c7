"""One request's turn at the response cache: an answer instead of an attempt, or a copy of the answer that an attempt brings.

It comes after the decision and before the first attempt, so that a request that may not be served, or not by that model, is
refused as ever. Whatever is given or kept passes `router.residency.cache_gate`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from router.decision import Choice, Decision, Facts
from router.identity.books import Reservation
from router.ledger import records
from router.ledger.receipts import CACHE_HIT, CACHE_MISS, Attempt, read_usage
from router.policy import Policy
from router.residency.cache_gate import Provenance, may_give, may_keep, owner_of
from router.residency.label import Evidence
from router.response_cache.answer import whole_answer
from router.response_cache.ask import Question, Wishes, forbids_keeping, read_question, read_wishes
from router.response_cache.book import Entry, EntryKey, ResponseCache
from router.response_cache.rule import CACHE, CacheRule
from router.wire.direct import DirectRequest
from router.wire.exchange import Ending, Exchange
from router.wire.heads import decision_headers
from router.wire.request import header

if TYPE_CHECKING:
    from router.admitted import AdmittedRequest
    from router.state import RouterState

_MISS = b"x-tidegate-cache: miss\r\n"
_AT_ONCE = 16 * 1024
"""An answer up to this size is put behind its head in one piece, and goes out in one system call."""
_LATER = frozenset({"overloaded", "residency_capacity"})
"""Refusals that say nothing against the request, only that no target can have it now."""


class CacheTurn:
    """What the cache does for one request.

    Args:
        state: the router.
        cache: its cache.
        admitted: the request.
        question: what it asks.
        wishes: what its client says about caches.
    """

    __slots__ = ("_admitted", "_cache", "_policy", "_question", "_state", "_wishes")

    def __init__(
        self, state: RouterState, cache: ResponseCache, admitted: AdmittedRequest, question: Question, wishes: Wishes
    ) -> None:
        self._state = state
        self._cache = cache
        self._admitted = admitted
        self._question = question
        self._wishes = wishes
        self._policy: Policy | None = None
        """The policy of the first decision: an answer that comes under another one is not kept."""

    def give(self, decision: Decision, facts: Facts, client: DirectRequest, reserved: Reservation) -> bool:
        """Answer from the cache if it may be, and has what is asked for.

        Args:
            decision: the first decision on the request: who would serve it, or why nobody can now.
            facts: what it was made on.
            client: the request's way back; all but its end is written.
            reserved: what it took of the limits.

        Returns:
            Whether the client has its answer now.
        """
        state, rule = self._state, facts.key.cache
        audit, self._policy = state.audit, state.policy
        if rule is None or (audit is not None and not audit.healthy and state.config.audit.when_unwritable == "refuse"):
            return False
        found = self._find(decision, facts, rule) if self._wishes.read else None
        self._admitted.receipt.cache = CACHE_MISS if found is None else CACHE_HIT
        state.metrics.looked_up(hit=found is not None)
        if found is None:
            return False
        entry, age_s = found
        reason = f"cache: answered {age_s:.0f} s ago by {entry.origin.target.id} in {entry.origin.target.zone}"
        self._record(entry, age_s, facts, reason)
        if not client.gone:
            own = decision_headers(facts.request_id, entry.origin.model, CACHE, self._zone(), reason) + reserved.headers
            _write(entry, age_s, self._admitted, client, own)
        return True

    def _find(self, decision: Decision, facts: Facts, rule: CacheRule) -> tuple[Entry, float] | None:
        models: tuple[str, ...] = ()
        if decision.chosen is not None:
            models = (decision.chosen.model,)
        elif decision.refusal is not None and decision.refusal.code in _LATER and not facts.excluded:
            models = decision.models
        state, now = self._state, time.time()
        policy, store = state.policy, state.cache_place
        if store is None:
            return None
        for model in models:
            found = self._cache.find(self._key(policy, facts, rule, model), min(rule.ttl_s, self._wishes.max_age_s))
            if found is not None:
                origin = found[0].origin
                if may_give(policy, facts.key, facts.label, origin, self._known(origin.target.incarnation), store, now):
                    return found
        return None

    def _key(self, policy: Policy, facts: Facts, rule: CacheRule, model: str) -> EntryKey:
        owner = owner_of(facts.key) if rule.own_only else ""
        return EntryKey(policy.epoch, facts.key.tenant, owner, policy.label_for(facts.label, model), model, self._question)

    def _known(self, incarnation: str) -> Evidence | None:
        """What is known of a target now."""
        fleet = self._state.fleet
        place = fleet.places.get(incarnation)
        return None if place is None else fleet.membership.targets[place].evidence

    def _zone(self) -> str:
        place = self._state.cache_place
        return "+".join(self._state.policy.vocabulary.zone_names(place.store)) if place is not None else ""

    def _record(self, entry: Entry, age_s: float, facts: Facts, reason: str) -> None:
        """The receipt of a hit, and the record of what the gate went by."""
        state, origin, now = self._state, entry.origin, time.time()
        receipt, target, policy = self._admitted.receipt, origin.target, state.policy
        zone = self._zone()
        attempt = Attempt(CACHE, f"{CACHE}@{state.router_id}", zone, origin.model, reason, now, now, now, "complete", 200)
        receipt.attempts.append(attempt)
        receipt.status = 200
        read_usage(receipt, entry.answer.counts)
        state.metrics.answered_from_cache(origin.model, zone)
        if state.audit is not None and state.cache_place is not None:
            data = {
                "epoch": policy.epoch,
                "key": facts.key.id,
                "tenant": facts.key.tenant,
                "label": state.label_text(policy.label_for(facts.label, origin.model)),
                "model": origin.model,
                "target": target.id,
                "incarnation": target.incarnation,
                "zone": target.zone,
                "evidence": policy.place_of(target.evidence).to_text(),
                "store": policy.place_of(state.cache_place).to_text(),
                "answered": entry.request_id,
                "age_s": round(age_s, 3),
            }
            state.audit.event(records.CACHE_HIT, facts.request_id, data)

    # -- the answer of an attempt

    def begin_copy(self, exchange: Exchange) -> bytes:
        """A response of the first attempts is about to be passed on: copy it if it may become an answer to keep.

        Returns:
            The header lines that tell the client.
        """
        if self._wishes.keep and exchange.status == 200 and not forbids_keeping(exchange.headers):
            exchange.copy = self._cache.copy()
        return _MISS

    def end_copy(self, exchange: Exchange, ending: Ending, choice: Choice) -> None:
        """An attempt is over: keep its answer if it is a whole one and may be kept; the copy goes in any case."""
        copy, exchange.copy = exchange.copy, None
        if copy is None:
            return
        body, ticket, policy = copy.close(), self._admitted.ticket, self._state.policy
        grant = ticket.grant
        rule, store = grant.cache, self._state.cache_place
        if ending is not Ending.COMPLETE or copy.overrun or ticket.revoked or policy is not self._policy:
            return
        if rule is None or store is None:
            return
        kind = header(exchange.headers, b"content-type") or b""
        usage = exchange.events.usage if exchange.events is not None else b""
        answer = whole_answer(self._question.endpoint, kind, body, usage, streamed=self._question.streamed)
        label, owner = policy.label_for(ticket.label, choice.model), owner_of(grant) if rule.own_only else ""
        origin = Provenance(policy.epoch, grant.tenant, owner, label, choice.model, choice.target)
        if answer is None or not may_keep(policy, grant, origin, self._known(choice.target.incarnation), store, time.time()):
            return
        key = EntryKey(policy.epoch, grant.tenant, owner, label, choice.model, self._question)
        self._cache.keep(key, answer, origin, self._admitted.request_id, rule.ttl_s)


def turn_for(state: RouterState, admitted: AdmittedRequest) -> CacheTurn | None:
    """A request's turn at the cache; None when its answer must not come from there nor go there."""
    cache, rule = state.cache, admitted.facts.key.cache
    # A redacted request's answer holds what was taken out of it, and that of a form is not known by its fields alone.
    if cache is None or rule is None or admitted.values or admitted.form is not None:
        return None
    wishes = read_wishes(admitted.headers)
    if not (wishes.read or wishes.keep):
        return None
    question = read_question(state.cache_secret, admitted.path, admitted.parsed, rule)
    return None if question is None else CacheTurn(state, cache, admitted, question, wishes)


def _write(entry: Entry, age_s: float, admitted: AdmittedRequest, client: DirectRequest, own: bytes) -> None:
    """The whole response but for its end: a small one at once; of a large one all slow clients wait for the same bytes."""
    parts = entry.answer.parts(keeps_usage=admitted.keeps_usage)
    size = sum(map(len, parts))
    head = own + b"x-tidegate-cache: hit\r\nage: %d\r\ncontent-type: %b\r\n" % (age_s, entry.answer.content_type)
    chunks = admitted.countable and client.speaks_chunked
    head += b"transfer-encoding: chunked\r\n" if chunks else b"content-length: %d\r\n" % size
    begin, rest = client.make_head(200, head), list(parts)
    if chunks:
        rest = [b"%x\r\n" % size, *parts, b"\r\n0\r\n\r\n"]
    if size <= _AT_ONCE:
        begin, rest = b"".join((begin, *rest)), []
    client.begin(begin)
    for part in rest:
        client.transport.write(part)
