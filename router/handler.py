"""The hot path: one request from its first byte to its receipt.

authenticate -> label -> parse -> facts -> decide -> pass -> relay -> receipt; on a failure before the first byte,
`decide` again without the target that failed. Each step is a function of its own; this module only walks through them.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from typing import Any

from msgspec.structs import replace

from router.decide import decide
from router.decision import Choice, Decision, Facts, Refusal
from router.facts import gather_facts
from router.identity.keys import authenticate
from router.ledger.receipts import Attempt, Receipt, open_receipt, read_usage, used_tokens
from router.placement.fleet import Booking
from router.placement.targets import Endpoint, Kind
from router.policy import KeyGrant
from router.prefixes import FILLS_CACHE, NO_CHAINS
from router.residency.guard import PASS_LIFETIME_S, Pass, issue_pass
from router.residency.label import Label
from router.residency.resolve import read_tags, resolve_label
from router.screen import resolve_models
from router.state import RouterState
from router.wire.errors import ApiError
from router.wire.events import EventStream
from router.wire.heads import (
    JSON,
    Framing,
    decision_headers,
    is_event_stream,
    own_request_headers,
    request_head,
    response_headers,
)
from router.wire.http_server import EXTENSION, Client
from router.wire.json_body import ask_for_usage, parse_object, replace_model, wants_usage
from router.wire.multipart import Form, parse_form
from router.wire.request import (
    ClientLeft,
    Receive,
    Scope,
    Send,
    fresh_request_id,
    header,
    read_body,
    request_id_of,
    timeout_of,
)
from router.wire.upstream import DEADLINE, ConnectFailed, Ending, Exchange

_log = logging.getLogger("tidegate.router")

MAX_ATTEMPTS = 3
_HOLD_STATUS = frozenset({401, 403, 429})
"""Answers of a target that are ours to handle, not the client's to see; so is every status from 500 on."""
_USAGE_ENDPOINTS = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
"""Where `stream_options.include_usage` exists; the other streams carry their usage anyway."""


class Admitted:
    """A request that was authenticated, labelled and parsed."""

    __slots__ = (
        "asks_usage",
        "body",
        "chains",
        "deadline",
        "facts",
        "form",
        "headers",
        "keeps_usage",
        "parsed",
        "path",
        "receipt",
        "request_id",
    )

    def __init__(
        self,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        parsed: dict[str, Any],
        facts: Facts,
        receipt: Receipt,
        form: Form | None = None,
    ) -> None:
        self.request_id = facts.request_id
        self.path = path
        self.headers = headers
        self.body = body
        self.parsed = parsed
        self.facts = facts
        self.receipt = receipt
        self.form = form
        self.chains = NO_CHAINS
        # On the clock of the event loop, which is the monotonic one.
        self.deadline = time.monotonic() + facts.timeout_s if facts.timeout_s else math.inf
        countable = bool(parsed.get("stream")) and path in _USAGE_ENDPOINTS
        self.keeps_usage = not countable or wants_usage(parsed)
        self.asks_usage = countable and not self.keeps_usage


class _Relay:
    """The handler of one attempt's response: writes the head, keeps the books, hears of the first byte."""

    __slots__ = ("admitted", "attempt", "booking", "choice", "client", "state")

    def __init__(
        self, state: RouterState, client: Client, choice: Choice, attempt: Attempt, booking: Booking, admitted: Admitted
    ) -> None:
        self.state = state
        self.client = client
        self.choice = choice
        self.attempt = attempt
        self.booking = booking
        self.admitted = admitted

    def on_head(self, exchange: Exchange) -> bytes | None:
        """Forward what is the client's to see; hold back what another target may do better."""
        self.attempt.status = exchange.status
        if exchange.status >= 500 or exchange.status in _HOLD_STATUS:
            return None
        choice, chunks = self.choice, self.client.speaks_chunked
        head = decision_headers(self.admitted.request_id, choice.model, choice.target.id, choice.target.zone, choice.reason)
        if is_event_stream(exchange.headers):
            exchange.events = EventStream(self.admitted.keeps_usage)
            head += response_headers(exchange.headers, Framing.CHUNKED if chunks else Framing.CLOSE)
        else:
            unchunk = exchange.chunked and not chunks
            head += response_headers(exchange.headers, Framing.CLOSE if unchunk else Framing.AS_IS)
        return self.client.make_head(exchange.status, head, close=not chunks)

    def on_first_body(self, exchange: Exchange) -> None:
        """Book the first byte."""
        now = time.time()
        self.attempt.first_byte = now
        self.state.fleet.first_byte(self.booking, now)
        self.state.prefixes.computed(self.admitted.chains, self.choice.model, self.choice.target.incarnation, time.monotonic())


class ModelHandler:
    """Serves the model operations of the public API; one instance per router."""

    def __init__(self, state: RouterState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry of the hot paths."""
        # Taken out of the scope: the client leads back to it, and a reference cycle per request is work for the collector.
        client: Client = scope["extensions"].pop(EXTENSION)
        request_id = request_id_of(scope)
        if request_id in self._state.receipts:
            request_id = fresh_request_id()
        try:
            admitted = await self._admit(scope, receive, request_id)
            await self._serve_within_limits(admitted, client)
        except ApiError as error:
            self._state.metrics.refused(error.code)
            await send_error(send, error, request_id, scope["path"])
        except ClientLeft:
            return
        except Exception as error:
            log_unexpected(error, request_id)
            await self._answer_unexpected(client, send, request_id, scope["path"])

    async def _answer_unexpected(self, client: Client, send: Send, request_id: str, path: str) -> None:
        if client.started:
            client.abort()
        else:
            error = ApiError(500, "internal_error", f"The router failed; its log names request {request_id}.")
            await send_error(send, error, request_id, path)

    async def _admit(self, scope: Scope, receive: Receive, request_id: str) -> Admitted:
        state = self._state
        if scope["method"] != "POST":
            raise ApiError(405, "invalid_request", f"Use POST for {scope['path']}.")
        grant, label, tags = identify(state, scope)
        body = await read_body(scope, receive, state.config.max_body_bytes)
        form = parse_form(body, header(scope, b"content-type")) if scope["path"] == Endpoint.TRANSCRIPTIONS else None
        parsed = form.fields if form is not None else parse_object(body)
        facts = gather_facts(request_id, grant, scope["path"], parsed, label, state.policy, timeout_of(scope, grant.timeout_s))
        receipt = open_receipt(facts, state.policy.epoch, state.label_text(label), tags, time.time())
        return Admitted(scope["path"], scope["headers"], body, parsed, facts, receipt, form)

    async def _serve_within_limits(self, admitted: Admitted, client: Client) -> None:
        facts, limits = admitted.facts, self._state.limits
        reserved = limits.reserve(facts.key, facts.prompt_tokens, facts.max_tokens, time.time())
        try:
            await self._serve(admitted, client)
        finally:
            limits.settle(facts.key, reserved, used_tokens(admitted.receipt))

    async def _serve(self, admitted: Admitted, client: Client) -> None:
        state, facts = self._state, admitted.facts
        state.retry_budget.deposit()
        if facts.endpoint in FILLS_CACHE:
            admitted.chains = state.prefixes.chains(facts.endpoint, admitted.parsed, resolve_models(facts, state.policy))
        decision: Decision | None = None
        held: Exchange | None = None
        try:
            for attempt in range(MAX_ATTEMPTS):
                now = time.time()
                decision = decide(facts, state.policy, state.fleet.view(now), now)
                if not facts.excluded:
                    state.fleet.set_saturated(facts.label, decision.models, decision.saturated)
                if decision.chosen is None:
                    assert decision.refusal is not None
                    raise _to_error(decision.refusal, held)
                if attempt and not state.retry_budget.withdraw(time.monotonic()):
                    raise ApiError(502, "upstream_error", "A target failed, and the router's retry budget is used up.")
                exchange = await self._attempt(admitted, decision.chosen, client)
                if exchange is None:
                    return
                held = exchange
                facts = self._next_try(admitted, facts, decision.chosen)
            raise ApiError(502, "upstream_error", f"{MAX_ATTEMPTS} targets failed this request.")
        except ApiError as error:
            admitted.receipt.status, admitted.receipt.code = error.status, error.code
            raise
        finally:
            admitted.receipt.ended = time.time()
            state.receipts.add(admitted.receipt, decision)

    def _next_try(self, admitted: Admitted, facts: Facts, failed: Choice) -> Facts:
        """The facts of another try: without the target that failed, and with what is left of the deadline.

        Raises:
            ApiError: 504 when nothing is left of it.
        """
        timeout_s = 0.0
        if facts.timeout_s:
            timeout_s = admitted.deadline - time.monotonic()
            if timeout_s <= 0:
                raise ApiError(504, "upstream_error", "The request's deadline passed before the first byte.")
        self._state.metrics.retried(failed.target.id)
        return replace(facts, excluded=facts.excluded | {failed.target.incarnation}, timeout_s=timeout_s)

    async def _attempt(self, admitted: Admitted, choice: Choice, client: Client) -> Exchange | None:
        """Send the request to one target. None: it is answered (or the client has left). Else the failed exchange."""
        state, receipt = self._state, admitted.receipt
        now = time.time()
        target = choice.target
        attempt = Attempt(target.id, target.incarnation, target.zone, choice.model, choice.reason, now)
        receipt.attempts.append(attempt)
        booking = state.fleet.book(target, admitted.facts.prompt_tokens, now, choice.cost_usd)
        state.prefixes.routed(admitted.chains, choice.model, target.incarnation)
        relay = _Relay(state, client, choice, attempt, booking, admitted)
        timeouts = state.config.timeouts
        exchange = Exchange(client, relay, timeouts.first_byte_s, timeouts.idle_s, admitted.deadline)
        if target.kind is Kind.CLOUD:
            state.metrics.spilled(target.id)
        ending: Ending | None = None
        try:
            request = self._upstream_request(admitted, choice, now)
            ending = await state.pool.send(target.incarnation, target.address, request, exchange)
        except ConnectFailed as failed:
            exchange.failure = str(failed)
            ending = Ending.BROKEN_BEFORE
        finally:
            self._close_attempt(attempt, booking, exchange, ending)
            if not attempt.first_byte:
                state.prefixes.failed(admitted.chains, choice.model, target.incarnation)
        return self._conclude(admitted, choice, exchange, ending, client)

    def _upstream_request(self, admitted: Admitted, choice: Choice, now: float) -> bytes:
        state, target = self._state, choice.target
        if admitted.form is not None:
            body, content_type = admitted.form.with_model(target.models[choice.model]), admitted.form.content_type
        else:
            body, content_type = replace_model(admitted.body, admitted.parsed, target.models[choice.model]), JSON
        if admitted.asks_usage:
            body = ask_for_usage(body, admitted.parsed)
        token = None
        if target.kind is not Kind.SERVER:
            label_text = state.label_text(admitted.facts.label)
            permission = Pass(admitted.request_id, target.incarnation, state.policy.epoch, label_text, now + PASS_LIFETIME_S)
            path = target.address.base_path + admitted.path
            token = issue_pass(state.target_key(target.incarnation), permission, "POST", path)
        credential = state.credential(target.secret) if target.secret else None
        own = own_request_headers(admitted.request_id, choice, token, credential)
        return request_head("POST", target.address, admitted.path, admitted.headers, own, content_type, len(body)) + body

    def _close_attempt(self, attempt: Attempt, booking: Booking, exchange: Exchange, ending: Ending | None) -> None:
        now = time.time()
        attempt.ended = now
        attempt.ending = ending.name.lower() if ending is not None else "cancelled"
        attempt.failure = exchange.failure
        if ending is None and exchange.connection is not None:
            exchange.connection.discard()
        self._state.fleet.end(booking, now, completed=ending is Ending.COMPLETE and exchange.status < 400)
        # A client's short deadline says nothing about the target: it must not take it away from everybody else.
        broken = ending in (Ending.BROKEN_BEFORE, Ending.BROKEN_AFTER) and exchange.failure != DEADLINE
        if broken or (ending is Ending.HELD and exchange.status >= 500 and exchange.status != 503):
            self._state.fleet.failed(attempt.incarnation, now)

    def _conclude(
        self, admitted: Admitted, choice: Choice, exchange: Exchange, ending: Ending, client: Client
    ) -> Exchange | None:
        receipt = admitted.receipt
        if ending in (Ending.HELD, Ending.BROKEN_BEFORE):
            return exchange
        receipt.status = exchange.status
        if ending is Ending.COMPLETE:
            read_usage(receipt, exchange.events.usage if exchange.events is not None else exchange.tail)
            first = receipt.attempts[-1].first_byte
            self._state.metrics.answered(
                choice.model,
                choice.target.id,
                choice.target.zone,
                exchange.status,
                first - receipt.received if first else -1.0,
                time.time() - receipt.received,
            )
        elif ending is Ending.BROKEN_AFTER:
            receipt.code = "upstream_error"
            self._state.metrics.refused("upstream_error")
            _break_response(exchange, client, admitted)
        else:
            receipt.code = "client_gone"
        return None


def log_unexpected(error: BaseException, request_id: str) -> None:
    """Log where an unexpected error arose, and its type; never its text, which could quote the request."""
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)[-4:]))
    _log.error("request %s: unexpected %s at %s", request_id, type(error).__name__, where)


def identify(state: RouterState, scope: Scope) -> tuple[KeyGrant, Label, tuple[str, ...]]:
    """Whose request it is and what its label is, from the headers alone.

    Raises:
        ApiError: 401 without a known key, 400 for tags nobody knows, 403 when no zone is left.
    """
    grant = authenticate(scope["headers"], state.policy.keys)
    tags = read_tags(scope["headers"])
    return grant, resolve_label(grant, tags, state.policy), tags


def _to_error(refusal: Refusal, held: Exchange | None) -> ApiError:
    """A refusal as an answer. After failed attempts, what the last target said decides between 502 and 503."""
    if held is not None and (held.status in _HOLD_STATUS - {429} or (held.status >= 500 and held.status != 503)):
        return ApiError(502, "upstream_error", f"The target answered with status {held.status}, and no other may be used.")
    return ApiError(refusal.status, refusal.code, refusal.message, retry_after_s=refusal.retry_after_s)


def _break_response(exchange: Exchange, client: Client, admitted: Admitted) -> None:
    """End a response whose target died: an SSE error event where one fits, and never anything that looks like success."""
    if client.gone:
        return
    if exchange.events is None or exchange.events.done:
        client.abort()
        return
    error = ApiError(502, "upstream_error", f"The target failed in the middle of the answer ({admitted.request_id}).")
    exchange.outbox = [error.event(admitted.path)]
    exchange.events.finish()
    exchange.write_events(complete=True)
    client.finish()


async def send_error(send: Send, error: ApiError, request_id: str, path: str = "") -> None:
    """Answer with an error in OpenAI's envelope and the headers every response carries."""
    body = error.body(path)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
        (b"x-tidegate-model", b"none"),
        (b"x-tidegate-target", b"none"),
        (b"x-tidegate-zone", b"none"),
        (b"x-tidegate-reason", f"refused: {error.code}".encode()),
        *error.headers(),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
