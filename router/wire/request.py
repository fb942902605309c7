"""The client's side of a request: its id, its headers, its body, within limits."""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from router.wire.errors import ApiError, invalid_request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_random = random.Random()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}\Z")


class ClientLeft(Exception):
    """The client disconnected before its request was whole."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def request_id_of(scope: Scope) -> str:
    """The client's own `x-request-id` where it is a plain token of 8 to 128 characters, else a fresh one."""
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.match(given):
        return given.decode("ascii")
    return fresh_request_id()


def timeout_of(scope: Scope, default_s: float) -> float:
    """Seconds the whole request may take: `x-request-timeout-ms`, else `default_s`; 0 means without limit.

    Raises:
        ApiError: 400 for a header that is no number of milliseconds from 1 to 86,400,000.
    """
    value = header(scope, b"x-request-timeout-ms")
    if value is None:
        return default_s
    if not value.isdigit() or len(value) > 8 or not 1 <= int(value) <= 86_400_000:
        raise invalid_request("`x-request-timeout-ms` is a whole number of milliseconds.", param="x-request-timeout-ms")
    return int(value) / 1e3


def fresh_request_id() -> str:
    """A random request id. It names, it does not authorise: whoever asks for a receipt needs the key it belongs to."""
    return f"req-{_random.getrandbits(96):024x}"


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body.

    Raises:
        ApiError: 413 when it is larger than `limit` bytes, 415 for a compressed body. The server reads the rest and throws
            it away, because closing on unread bytes would reset the connection before the client reads the answer.
        ClientLeft: the client went away.
    """
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise invalid_request("Compressed request bodies are not accepted.", status=415)
    announced = header(scope, b"content-length")
    if announced is not None and int(announced) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return invalid_request(f"The body is larger than {limit} bytes.", status=413)
