"""Answers of our own that are errors, and what is logged when the router itself is at fault."""

from __future__ import annotations

import logging
import traceback

from router.state import RouterState
from router.wire.direct import DirectRequest
from router.wire.errors import ApiError, error_headers

_log = logging.getLogger("tidegate.router")


def refuse(state: RouterState, request: DirectRequest, error: ApiError, request_id: str) -> None:
    """Answer with an error in OpenAI's envelope and the headers every response carries."""
    state.metrics.refused(error.code)
    lines = b"".join(b"%b: %b\r\n" % pair for pair in error_headers(error, request_id))
    request.answer(error.status, lines, error.body(request.path))


def fail(state: RouterState, request: DirectRequest, error: Exception, request_id: str) -> None:
    """Our own fault: log where, and answer 500, or break an answer that has begun."""
    log_unexpected(error, request_id)
    if request.response_started:
        request.abort()
    else:
        answer = ApiError(500, "internal_error", f"The router failed; its log names request {request_id}.")
        refuse(state, request, answer, request_id)


def log_unexpected(error: BaseException, request_id: str) -> None:
    """Log where an unexpected error arose, and its type; never its text, which could quote the request."""
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)[-4:]))
    _log.error("request %s: unexpected %s at %s", request_id, type(error).__name__, where)
