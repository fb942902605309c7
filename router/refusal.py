"""Answers of our own that are errors, and what is logged when the router itself is at fault."""

from __future__ import annotations

import logging
import traceback

from router.decision import Refusal
from router.residency.inflight import POLICY_REVOKED
from router.state import RouterState
from router.wire.direct import DirectRequest
from router.wire.errors import ApiError, error_headers
from router.wire.events import EventStream
from router.wire.exchange import DEADLINE, Exchange

_log = logging.getLogger("tidegate.router")
HOLD_STATUS = frozenset({301, 302, 303, 307, 308, 401, 403, 429})
"""Answers of a target that are ours to handle, not the client's to see; so is every status from 500 on."""


def refuse(state: RouterState, request: DirectRequest, error: ApiError, request_id: str) -> None:
    """Answer with an error in OpenAI's envelope and the headers every response carries."""
    state.metrics.refused(error.code)
    lines = b"".join(b"%b: %b\r\n" % pair for pair in error_headers(error, request_id))
    request.answer(error.status, lines, error.body(request.path))


def as_error(refusal: Refusal, held: Exchange | None) -> ApiError:
    """A refusal as an answer. After failed attempts, what the last target said decides between 502 and 503."""
    if held is not None and (held.status in HOLD_STATUS - {429} or (held.status >= 500 and held.status != 503)):
        return ApiError(502, "upstream_error", f"The target answered with status {held.status}, and no other may be used.")
    return ApiError(refusal.status, refusal.code, refusal.message, retry_after_s=refusal.retry_after_s)


def fail(state: RouterState, request: DirectRequest, error: Exception, request_id: str) -> None:
    """Our own fault: log where, and answer 500, or break an answer that has begun."""
    log_unexpected(error, request_id)
    if request.response_started:
        request.abort()
    else:
        answer = ApiError(500, "internal_error", f"The router failed; its log names request {request_id}.")
        refuse(state, request, answer, request_id)


def broken_error(failure: str, request_id: str) -> ApiError:
    """What a client is told of an answer that broke, by the exchange's `failure`."""
    if failure == POLICY_REVOKED:
        return ApiError(403, POLICY_REVOKED, f"The policy changed in the middle of the answer ({request_id}).")
    if failure == DEADLINE:
        return ApiError(504, "deadline_exceeded", f"The request's deadline passed in the middle of the answer ({request_id}).")
    return ApiError(502, "upstream_error", f"The target failed in the middle of the answer ({request_id}).")


def break_response(exchange: Exchange, client: DirectRequest, request_id: str, *, joined: bool) -> None:
    """End a response whose target died: an SSE error event where one fits, and never anything that looks like success."""
    if client.gone:
        return
    if exchange.events is None and joined:
        exchange.events = EventStream(True)
    if exchange.events is None or exchange.events.done:
        client.abort()
        return
    error = broken_error(exchange.failure, request_id)
    exchange.outbox = [error.event(client.path, exchange.events.next_number)]
    exchange.events.finish()
    exchange.write_events(complete=True)
    client.finish()


def log_unexpected(error: BaseException, request_id: str) -> None:
    """Log where an unexpected error arose, and its type; never its text, which could quote the request."""
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)[-4:]))
    _log.error("request %s: unexpected %s at %s", request_id, type(error).__name__, where)
