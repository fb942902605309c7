"""One try of a request at one target, in the books from the moment it is sent to its end."""

from __future__ import annotations

import time

from router.admitted import AdmittedRequest, Suspect
from router.decision import Choice, Facts
from router.joining import Join
from router.ledger.cost import cost_usd
from router.ledger.receipts import Attempt, Receipt, read_usage
from router.placement.targets import CLOUD, NO_PREFILL, Endpoint, Target
from router.prompt_size import asks_one_answer, media_parts
from router.residency.inflight import POLICY_REVOKED
from router.state import RouterState
from router.wire.exchange import DEADLINE, ENGINE_FAILED, Ending, Exchange
from router.wire.heads import METADATA
from router.wire.trail import Trail

_INTERNAL = 500


class Try:
    """What the fleet, the prefix index and the receipt are told of one try.

    Args:
        state: the router.
        admitted: the request.
        facts: what this try was decided on.
        choice: where it goes.
        now: UNIX time in seconds.
    """

    __slots__ = ("_admitted", "_booking", "_media", "_state", "_tells", "choice", "record")

    def __init__(self, state: RouterState, admitted: AdmittedRequest, facts: Facts, choice: Choice, now: float) -> None:
        target = choice.target
        self._state, self._admitted = state, admitted
        self.choice = choice
        self.record = Attempt(target.id, target.incarnation, target.zone, choice.model, choice.reason, now)
        admitted.receipt.attempts.append(self.record)
        fleet, budget = state.fleet, facts.key.spill_limit
        self._media = media_parts(admitted.parsed)
        self._tells = not self._media and asks_one_answer(admitted.parsed)
        work, tokens, whole = choice.work, facts.prompt_tokens, self._media > 0 or admitted.streamed is False
        if facts.endpoint in NO_PREFILL:
            work, tokens, whole = None, 0, True
        self._booking = fleet.book(target, tokens, now, choice.cost_usd, work, choice.model, budget, whole)
        state.prefixes.routed(admitted.chains, choice.model, target.incarnation)
        if target.adapters and choice.model in target.adapters:
            signals = fleet.load_of(target.incarnation).signals
            state.adapters.used(target.incarnation, choice.model, 0 if signals is None else signals.adapter_slots)

    def settle_on(self, choice: Choice) -> None:
        """The same target is asked, but in another way or for another reason than was decided."""
        self.choice = choice
        self.record.reason = choice.reason

    def first_byte(self, status: int, now: float) -> None:
        """Book the first byte; how fast an error came says nothing about the target's pace."""
        self.record.first_byte = now
        if status < 400:
            state, choice = self._state, self.choice
            if self._admitted.suspects:
                self._blame_suspects(now, begun=False)
            state.fleet.first_byte(self._booking, now)
            state.prefixes.computed(self._admitted.chains, choice.model, choice.target.incarnation, time.monotonic())

    def drop(self, now: float) -> None:
        """What had been decided no longer holds, and nothing was sent."""
        self.record.ended, self.record.ending = now, "not_sent"
        self._state.fleet.end(self._booking, now, completed=False, cost_usd=0.0)

    def close(self, exchange: Exchange, ending: Ending, trail: Trail | None, join: Join | None) -> None:
        """The target has answered, or will not.

        Args:
            exchange: what was said.
            ending: how it ended.
            trail: what the client was sent, where that is recorded.
            join: set where this try carried a broken stream on: its usage is not that of the whole answer.
        """
        now = time.time()
        state, record, receipt = self._state, self.record, self._admitted.receipt
        record.ended, record.ending, record.failure = now, ending.word, exchange.failure
        if not record.first_byte or exchange.status >= 400:
            state.prefixes.failed(self._admitted.chains, self.choice.model, self.choice.target.incarnation)
        if trail is not None and trail.prompt:
            record.prompt_tokens = len(trail.prompt) + len(trail.answer) - trail.delivered
            record.completion_tokens = trail.delivered
        answered = ending.complete and exchange.status < 400
        if ending.complete:
            read_usage(receipt, _counts_of(exchange, self._admitted.path))
        if ending.target_failed or state.poison.lengths:
            state.poison.ended(self._admitted, exchange, ending, time.monotonic())
        if answered and join is None and self._media and receipt.prompt_tokens > 0:
            state.media.learn(self._admitted.facts, self._media, receipt.prompt_tokens)
        # How long images take is known of the mean one at best, and of several answers the tokens are counted together.
        tells = answered and join is None and self._tells
        output_tokens = receipt.completion_tokens if tells and receipt.completion_tokens > 0 else 0
        target = self.choice.target
        cost = _cost_outside(target, exchange, ending, receipt) if target.kind is CLOUD else None
        self._booking.delayed = exchange.delayed
        state.fleet.end(self._booking, now, completed=answered, output_tokens=output_tokens, cost_usd=cost)
        if answered and self._admitted.suspects:
            self._blame_suspects(now, begun=True)
        if not ending.target_failed or not _is_targets_fault(exchange, ending):
            return
        if _may_be_the_request(exchange, ending):
            self._admitted.suspects += (Suspect(record.incarnation, self._booking.started_at, record.first_byte > 0.0),)
            return
        reached = bool(exchange.status) or exchange.connection is not None
        state.fleet.failed(record.incarnation, now, reached, self._booking.started_at)

    def _blame_suspects(self, now: float, *, begun: bool) -> None:
        """Another target can take the request, so it was those that failed: `begun`, also those that failed in the middle."""
        suspects = self._admitted.suspects
        self._admitted.suspects = () if begun else tuple(suspect for suspect in suspects if suspect.begun)
        for suspect in suspects:
            if begun or not suspect.begun:
                self._state.fleet.failed(suspect.incarnation, now, True, suspect.since)

    def count_answer(self, receipt: Receipt) -> None:
        """Tell the metrics of an answer that is the client's."""
        target, first = self.choice.target, self.record.first_byte
        first_s = first - receipt.received if first else -1.0
        seconds = self.record.ended - receipt.received
        self._state.metrics.answered(self.choice.model, target.id, target.zone, receipt.status, first_s, seconds)


def _cost_outside(target: Target, exchange: Exchange, ending: Ending, receipt: Receipt) -> float | None:
    """What a try did cost outside: nothing where it was not sent or answered by an error; None where nobody counted."""
    if exchange.status >= 400 or (not exchange.status and exchange.connection is None):
        return 0.0
    if not ending.complete or receipt.prompt_tokens < 0:
        return None
    return cost_usd(target.price, receipt.prompt_tokens, max(0, receipt.completion_tokens))


def _counts_of(exchange: Exchange, path: str) -> bytes:
    """Where an answer counts its tokens."""
    if exchange.events is not None:
        return exchange.events.usage
    if path == Endpoint.EMBEDDINGS:
        return next((value for name, value in exchange.headers if name == METADATA), exchange.tail)
    return exchange.tail


def _may_be_the_request(exchange: Exchange, ending: Ending) -> bool:
    """Whether there are bodies that every vLLM answers so, and lives: a client must not take targets away from all with them."""
    if ending is Ending.HELD:
        return exchange.status == _INTERNAL
    return exchange.failure == ENGINE_FAILED and not (exchange.events is not None and exchange.events.died)


def _is_targets_fault(exchange: Exchange, ending: Ending) -> bool:
    """A client's short deadline says nothing about the target: it must not take it away from everybody else."""
    if ending is Ending.HELD:
        return exchange.status >= 500 and exchange.status != 503
    return exchange.failure not in (DEADLINE, POLICY_REVOKED)
