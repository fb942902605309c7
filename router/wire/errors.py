"""Errors in OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`.

No message ever contains prompt text: messages are built from names of the configuration and sizes.
"""

from __future__ import annotations

import math

import msgspec

_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_ANTHROPIC_TYPES = {404: "not_found_error", 413: "request_too_large", 500: "api_error", 502: "api_error"}
"""Where Anthropic's name of what went wrong is another."""


class ApiError(Exception):
    """An answer that is an error. `code` is one of the public contract, `retry_after_s` becomes `Retry-After`, `allow` (the
    methods that a path has) `Allow`."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.allow = allow

    def body(self, path: str = "") -> bytes:
        """The JSON envelope, as the clients of this path expect it: Anthropic's has a type of its own around the same.

        What a client sent may stand in it, and JSON can name half of a character: that becomes `?`.
        """
        fields = self.fields()
        if _is_anthropic(path):
            fields["type"] = _ANTHROPIC_TYPES.get(self.status, fields["type"])
        try:
            return _envelope(fields, path)
        except UnicodeEncodeError:
            return _envelope({name: value and value.encode("utf-8", "replace").decode() for name, value in fields.items()}, path)

    def event(self, path: str = "", number: int = 0) -> bytes:
        """The envelope as a server-sent event. Anthropic's clients read it only if it is named: those of chat and completions
        must not see a name. `/v1/responses` has the fields beside its type, and numbers its events; OpenAI's own clients only
        raise for an `error`, so there it has both.

        Args:
            path: the endpoint.
            number: the event's `sequence_number`, where events have one.
        """
        if path == "/v1/responses":
            fields = self.fields()
            data = {**fields, "type": "error", "sequence_number": number, "error": fields}
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode(data)
        return (b"event: error\ndata: " if _is_anthropic(path) else b"data: ") + self.body(path) + b"\n\n"

    def fields(self) -> dict[str, str | None]:
        """What stands inside `error`."""
        kind = _TYPE_OF_STATUS.get(self.status, "server_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers this error asks for: `Retry-After` in whole seconds, at least 1, and what RFC 9110 demands of 401 and 405."""
        if self.status == 401:
            return [(b"www-authenticate", b"Bearer")]
        if self.allow:
            return [(b"allow", self.allow.encode())]
        if self.retry_after_s is None:
            return []
        return [(b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode())]


def error_headers(error: ApiError, request_id: str) -> list[tuple[bytes, bytes]]:
    """The headers of an error of ours, the ones that every response carries among them; without the length."""
    return [
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id.encode()),
        (b"x-tidegate-model", b"none"),
        (b"x-tidegate-target", b"none"),
        (b"x-tidegate-zone", b"none"),
        (b"x-tidegate-reason", f"refused: {error.code}".encode()),
        *error.headers(),
    ]


def _is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def _envelope(fields: dict[str, str | None], path: str) -> bytes:
    return msgspec.json.encode({"type": "error", "error": fields} if _is_anthropic(path) else {"error": fields})


def invalid_request(message: str, param: str | None = None, status: int = 400) -> ApiError:
    """A request that cannot be understood."""
    return ApiError(status, "invalid_request", message, param=param)
