"""The hot path, second half: an admitted request on its way to an answer.

decide -> pass -> relay -> receipt; on a failure before the first byte, `decide` again without the target that failed. There is
no task: each step is one call, made by the bytes that arrive. `Serving` is the `ExchangeHandler` of all its attempts. A stream
that breaks is carried on where `router.joining` says so, by another attempt whose events are written into the same response.
"""

from __future__ import annotations

import functools
import time

from msgspec.structs import replace

from router.admitted import AdmittedRequest
from router.answer_readers import framing_of, joining_reader, reader_of
from router.captured import end_capture
from router.decide import decide
from router.decision import Choice, Decision, Facts
from router.identity.books import Reservation
from router.joining import Join, count_usage, next_join, trail_for
from router.ledger.receipts import note_wait
from router.ledger.writer import AuditUnavailable
from router.placement.targets import CLOUD, Endpoint, View
from router.poison import MOST_LOSSES
from router.prefilling import Prefilling, wants_prefill
from router.prefixes import FILLS_CACHE
from router.refusal import HOLD_STATUS, as_error, break_response, broken_error, fail, refuse
from router.residency.inflight import POLICY_REVOKED
from router.response_cache.turn import CacheTurn, turn_for
from router.screen import shortlist
from router.state import RouterState
from router.tries import Try
from router.upstream_request import upstream_request
from router.wire.direct import DirectRequest
from router.wire.errors import ApiError
from router.wire.events import EventStream
from router.wire.exchange import BROKE, CLOSED, DEADLINE, Ending, Exchange
from router.wire.heads import decision_headers, is_event_stream, response_headers
from router.wire.joined_events import ending_of
from router.wire.trail import Trail

MAX_ATTEMPTS = 3


class Serving:
    """One admitted request from its first decision to its receipt.

    Args:
        state: the router.
        admitted: the request.
        client: its way back.
        reserved: what it took of the limits.
    """

    __slots__ = (
        "_admitted",
        "_cache_turn",
        "_client",
        "_closed",
        "_decision",
        "_facts",
        "_held",
        "_join",
        "_policy",
        "_reserved",
        "_state",
        "_trail",
        "_tries",
        "_try",
        "_unsent",
    )

    def __init__(self, state: RouterState, admitted: AdmittedRequest, client: DirectRequest, reserved: Reservation) -> None:
        self._state = state
        self._admitted = admitted
        self._client = client
        self._reserved = reserved
        self._facts = admitted.facts
        self._policy = state.policy
        self._decision: Decision | None = None
        self._held: Exchange | None = None
        self._tries = 0
        self._unsent = 0
        """Tries that a change of policy took back before anything was sent: they count for nothing."""
        self._closed = False
        self._trail: Trail | None = None
        """What a stream that could be carried on has brought so far."""
        self._join: Join | None = None
        """Set while an attempt carries a broken stream on."""
        self._cache_turn: CacheTurn | None = None
        """Set where the response cache may answer, or take the answer."""
        self._try: Try

    def start(self) -> None:
        """Decide and send; everything else follows from what the target does."""
        state, admitted = self._state, self._admitted
        state.retry_budget.deposit()
        try:
            if state.poison.lengths:
                state.poison.check(admitted, time.monotonic())
            if self._facts.key.cache is not None:
                self._cache_turn = turn_for(state, admitted)
            if admitted.path in FILLS_CACHE:
                models = shortlist(self._facts, state.policy, state.fleet.membership, time.time()).models
                admitted.chains = state.chains_for(self._facts, admitted.parsed, models)
            self._try_next()
        except ApiError as error:
            self._refuse(error)
        except Exception as error:
            self._fail(error)

    # -- what the exchange says

    def on_head(self, exchange: Exchange) -> bytes | None:
        """Forward what is the client's to see; hold back what another target may do better."""
        self._try.record.status = exchange.status
        if self._join is not None:
            if exchange.status != 200 or not is_event_stream(exchange.headers):
                return None
            exchange.events = joining_reader(self._admitted, self._join, self._try.choice.target)
            return b""
        if exchange.status >= 500 or exchange.status in HOLD_STATUS:
            return None
        choice, chunks = self._try.choice, self._client.speaks_chunked
        head = decision_headers(self._facts.request_id, choice.model, choice.target.id, choice.target.zone, choice.reason)
        head += self._reserved.headers
        if self._cache_turn is not None:
            head += self._cache_turn.begin_copy(exchange)
        exchange.events = reader_of(exchange, self._admitted, self._trail)
        head += response_headers(exchange.headers, framing_of(exchange, chunks))
        return self._client.make_head(exchange.status, head, close=not chunks)

    def on_first_body(self, exchange: Exchange) -> None:
        """The answer begins; whoever waits for a place may find one now."""
        now = time.time()
        self._try.first_byte(exchange.status, now)
        if exchange.status < 400 and self._state.waiting.depth:
            self._state.waiting.walk(now)

    def finishes(self) -> bool:
        """Whether the answer is read to its end although the client has gone."""
        return self._facts.key.finishes

    def on_end(self, exchange: Exchange, ending: Ending) -> None:
        """The attempt is over: answered, or try again."""
        try:
            self._admitted.ticket.end()
            self._try.close(exchange, ending, self._trail, self._join)
            if self._cache_turn is not None:
                self._cache_turn.end_copy(exchange, ending, self._try.choice)
            broken = ending.target_failed
            if broken and exchange.client is not self._client:
                self._conclude(exchange, Ending.CLIENT_GONE)
            elif broken and (self._join is not None or ending is Ending.BROKEN_AFTER):
                self._carry_on(exchange)
            elif broken:
                self._held = exchange
                self._prepare_retry()
                self._try_next()
            else:
                self._conclude(exchange, ending)
        except ApiError as error:
            self._refuse(error)
        except Exception as error:
            self._fail(error)
        if self._state.waiting.depth:
            self._state.waiting.walk(time.time())

    # -- trying

    def _try_next(self) -> None:
        state = self._state
        if self._tries - self._unsent >= MAX_ATTEMPTS:
            raise ApiError(502, "upstream_error", f"{MAX_ATTEMPTS} targets failed this request.")
        if self._admitted.losses >= MOST_LOSSES:
            raise ApiError(502, "upstream_error", "Engines broke under this request; no other is risked for it.")
        now = time.time()
        if self._tries or self._join is not None:
            self._admitted.hold()
        facts = self.facts()
        view = state.view_for(facts, self._admitted.chains, now)
        decision = self._decision = decide(facts, state.policy, view, now)
        self._record(facts, view, decision, now)
        if self._join is None:
            if not self._tries:
                state.fleet.set_saturated(facts.label, decision.models, decision.saturated)
                if self._cache_turn is not None and self._answer_from_cache(decision):
                    return
            answered = self._held is not None and self._held.status  # a target has had its say: that is what the client is told
            if decision.late or (decision.chosen is None and not answered) or state.waiting.depth:
                self._admitted.hold()  # should it wait, it is decided again
                if state.waiting.takes(self, self.facts(), view, decision, now):
                    return
        self._follow(decision, now)

    def _follow(self, decision: Decision, now: float) -> None:
        """Do what was decided."""
        state = self._state
        audit = state.audit
        if decision.chosen is None:
            assert decision.refusal is not None
            raise as_error(decision.refusal, self._held)
        if audit is not None and not audit.healthy and state.config.audit.when_unwritable == "refuse":
            raise ApiError(503, "overloaded", "Nothing is served while the audit log cannot be written.", retry_after_s=5)
        if (self._tries > self._unsent or self._join is not None) and not state.retry_budget.withdraw(time.monotonic()):
            raise ApiError(502, "upstream_error", "A target failed, and the router's retry budget is used up.")
        self._tries += 1
        self._send(decision.chosen, now)

    def _answer_from_cache(self, decision: Decision) -> bool:
        """Let the response cache answer in place of a target; false when it has nothing that this request may have."""
        client = self._client
        if self._cache_turn is None or not self._cache_turn.give(decision, self._facts, client, self._reserved):
            return False
        self._close()
        if not client.gone:
            client.finish()
        return True

    def _record(self, facts: Facts, view: View, decision: Decision, now: float) -> None:
        state = self._state
        if state.audit is not None:
            state.audit.decided(facts, state.policy.epoch, view, decision, now, self._admitted.receipt.label_sources)

    # -- waiting: what the room asks of it (`router.waiting.Waiter`)

    @property
    def client(self) -> DirectRequest:
        """Its way back."""
        return self._client

    @property
    def admitted(self) -> AdmittedRequest:
        """The request."""
        return self._admitted

    def facts(self) -> Facts:
        """What is known of it under the policy and label of now.

        Raises:
            ApiError: 403 when the policy no longer lets it go anywhere.
        """
        state = self._state
        self._policy, self._facts = state.policy, state.inflight.current(self._admitted.ticket, self._facts)
        return self._facts

    def wait(self, decision: Decision) -> None:
        """It waits from now on: the number that decided so is kept."""
        choice, refusal = decision.chosen, decision.refusal
        if choice is not None:
            self._admitted.receipt.held = choice.reason
        elif refusal is not None:
            self._admitted.receipt.held = refusal.message

    def resume(self, facts: Facts, view: View, decision: Decision, now: float, waited_s: float) -> None:
        """A place was found, by a decision made `now`, after so many seconds."""
        try:
            self._record(facts, view, decision, now)
            self._decision = note_wait(self._admitted.receipt, decision, waited_s)
            self._follow(self._decision, now)
        except ApiError as error:
            self._refuse(error)
        except Exception as error:
            self._fail(error)

    def end_wait(self, error: Exception | None, waited_s: float) -> None:
        """It waits no longer, and is not sent: refused with an error, or its client has left (None)."""
        receipt = self._admitted.receipt
        receipt.waited_ms += round(waited_s * 1e3)
        if error is None:
            receipt.code = "client_gone"
            self._close()
        elif isinstance(error, ApiError):
            self._refuse(error)
        else:
            self._fail(error)

    def _prepare_retry(self) -> None:
        """The facts of another try: without the target that failed, and with what is left of the deadline.

        Raises:
            ApiError: 504 when nothing is left of it.
        """
        facts, timeout_s = self._facts, 0.0
        if facts.timeout_s:
            timeout_s = self._admitted.deadline - time.monotonic()
            if timeout_s <= 0:
                raise ApiError(504, "deadline_exceeded", "The request's deadline passed before the first byte.")
        failed = self._try.choice.target
        self._state.metrics.retried(failed.id)
        self._facts = replace(facts, excluded=facts.excluded | {failed.incarnation}, timeout_s=timeout_s)

    def _carry_on(self, exchange: Exchange) -> None:
        """A stream broke after the client had some of it: let another target go on with it, or end it with an error."""
        trail, failed = self._trail, self._try.choice.target
        join = None
        if trail is not None and not self._client.gone and exchange.failure != DEADLINE:
            trail.rewind()
            done = exchange.events is not None and exchange.events.done
            if trail.can_end(self._admitted.keeps_usage) and (not done or exchange.failure in (CLOSED, BROKE)):
                self._state.metrics.stream_broke(failed.id, "finished")
                self._write_end(exchange, trail)
                return
            members = self._state.fleet.membership.targets
            path, parsed = self._admitted.path, self._admitted.parsed
            join = next_join(path, parsed, self._facts, trail, self._join, self._try.choice, members)
        if join is None:
            self._give_up(exchange)
            return
        if self._try.record.completion_tokens > 0:
            self._tries = self._unsent = 0
        try:
            self._join, self._facts = join, join.facts
            self._prepare_retry()
            self._try_next()
        except ApiError:
            self._give_up(exchange)
        else:
            self._state.metrics.stream_broke(failed.id, "continued")

    def _write_end(self, exchange: Exchange, trail: Trail) -> None:
        """All of the answer was sent; what may be missing is its usage and `[DONE]`."""
        events, admitted = exchange.events, self._admitted
        if events is None or not events.done:
            said_usage = self._join is None and events is not None and bool(events.usage)
            keeps_usage = admitted.keeps_usage and not said_usage
            exchange.outbox = [ending_of(trail, admitted.path == Endpoint.CHAT, keeps_usage)]
        exchange.events = EventStream(True)
        exchange.write_events(complete=True)
        self._state.poison.answered(admitted)
        self._conclude(exchange, Ending.COMPLETE)

    def _give_up(self, exchange: Exchange) -> None:
        if exchange.events is not None or self._join is not None:
            self._state.metrics.stream_broke(self._try.choice.target.id, "error")
        self._conclude(exchange, Ending.BROKEN_AFTER)

    def _send(self, choice: Choice, now: float) -> None:
        state, target, admitted = self._state, choice.target, self._admitted
        admitted.check_media(state.policy.label_for(admitted.ticket.label, choice.model), state.policy)
        if self._join is None:
            self._trail = None if admitted.values else trail_for(self._facts, admitted.path, admitted.parsed, target)
        request = upstream_request(state, admitted, choice, self._trail, self._join, now)
        self._try = Try(state, admitted, self._facts, choice, now)
        half = target.prefill
        if half is not None and self._join is None and wants_prefill(state, half, admitted, choice):
            Prefilling(state, admitted, choice, request, self._when_prefilled).start(half, self._client)
        elif target.kind is not CLOUD:
            self._dispatch(request)
        elif state.audit is None:
            self._when_announced(request, AuditUnavailable("the audit log is switched off"))
        else:
            evidence = state.policy.place_of(target.evidence).to_text()
            done = functools.partial(self._when_announced, request)
            state.audit.announce(self._facts, choice, state.policy.epoch, len(request), evidence, done)

    def _when_announced(self, request: bytes, error: BaseException | None) -> None:
        """The intent to send something outside is on the medium, or it is not, and then nothing is sent."""
        state = self._state
        try:
            if self._still_stands(error, cut=False):
                state.metrics.spilled(self._try.choice.target.id)
                self._dispatch(request)
        except ApiError as refused:
            self._refuse(refused)
        except Exception as unexpected:
            self._fail(unexpected)

    def _when_prefilled(self, turn: Prefilling, exchange: Exchange, ending: Ending) -> None:
        """The half of a pair that computes prompts has done its part, or has not: the other half is next."""
        try:
            late = TimeoutError(DEADLINE) if exchange.failure == DEADLINE else None
            if self._still_stands(late, cut=exchange.failure == POLICY_REVOKED):
                choice, request = turn.outcome(exchange, ending)
                self._try.settle_on(choice)
                self._dispatch(request)
        except ApiError as refused:
            self._refuse(refused)
        except Exception as unexpected:
            self._fail(unexpected)

    def _still_stands(self, error: BaseException | None, *, cut: bool) -> bool:
        """Whether what was decided still holds after something was waited for; where it does not, what follows is done."""
        state = self._state
        changed = cut or self._policy is not state.policy or not self._admitted.ticket.is_as_in(self._facts)
        if not (self._client.gone or error is not None or changed):
            return True
        now = time.time()
        self._try.drop(now)
        if self._client.gone:
            self._admitted.receipt.code = "client_gone"
            self._close()
        elif error is not None:
            self._try.record.failure = str(error)
            self._prepare_retry()
            self._try_next()
        else:
            self._unsent += 1
            self._try_next()
        return False

    def _dispatch(self, request: bytes) -> None:
        state, admitted, target = self._state, self._admitted, self._try.choice.target
        timeouts, pool = state.config.timeouts, state.pool
        now, first_byte_s, idle_s = pool.now(), timeouts.first_byte_s, timeouts.idle_s
        exchange = Exchange(self._client, self, request, now, first_byte_s, idle_s, admitted.deadline, admitted.streamed)
        admitted.ticket.begin(target, self._try.choice.model, exchange)
        pool.send(target.incarnation, target.address, exchange)

    # -- ending

    def _conclude(self, exchange: Exchange, ending: Ending) -> None:
        """The client has its answer, or as much of one as it will get."""
        receipt = self._admitted.receipt
        receipt.status = exchange.status if self._join is None else 200
        if self._trail is not None and (not ending.complete or self._join is not None or receipt.prompt_tokens < 0):
            count_usage(receipt, self._trail)
        gone = exchange.client is not self._client
        if gone:
            receipt.code = "client_gone"
        elif ending.complete:
            self._try.count_answer(receipt)
        else:
            broken = broken_error(exchange.failure, self._admitted.request_id)
            receipt.code = broken.code if ending is Ending.BROKEN_AFTER else "client_gone"
        self._close()
        if ending.complete and not gone:
            self._client.finish()
        elif ending is Ending.BROKEN_AFTER:
            self._state.metrics.refused(receipt.code)
            break_response(exchange, self._client, self._admitted.request_id, joined=self._join is not None)

    def _refuse(self, error: ApiError) -> None:
        self._admitted.receipt.status, self._admitted.receipt.code = error.status, error.code
        self._close()
        refuse(self._state, self._client, error, self._admitted.request_id)

    def _fail(self, error: Exception) -> None:
        self._admitted.receipt.status, self._admitted.receipt.code = 500, "internal_error"
        self._close()
        fail(self._state, self._client, error, self._admitted.request_id)

    def _close(self) -> None:
        """Settle the limits and keep the receipt, once."""
        if self._closed:
            return
        self._closed = True
        self._state.inflight.leave(self._admitted.ticket)
        receipt = self._admitted.receipt
        receipt.ended = time.time()
        if self._admitted.recording is not None:
            end_capture(self._state, self._admitted)
        self._state.settle(self._reserved, receipt)
        if self._admitted.on_closed is not None:
            self._admitted.on_closed(receipt, self._decision)
            return
        self._state.receipts.add(receipt, self._decision)
        if self._state.audit is not None:
            self._state.audit.ended(receipt)
