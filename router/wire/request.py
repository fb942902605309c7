"""The client's side of a request: its id, its headers, its body, within limits."""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from router.identity.priority import CLASSES
from router.wire.bodies import Bodies, crowded
from router.wire.client_head import HeaderBlock
from router.wire.errors import ApiError, invalid_request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Headers = Iterable[tuple[bytes, bytes]]

_random = random.Random()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}\Z")


class ClientLeft(Exception):
    """The client disconnected before its request was whole."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    if type(headers) is HeaderBlock:
        return headers.first.get(name)
    for key, value in headers:
        if key == name:
            return value
    return None


def request_id_of(headers: Headers) -> str:
    """The client's own `x-request-id` where it is a plain token of 8 to 128 characters, else a fresh one."""
    given = header(headers, b"x-request-id")
    if given is not None and _REQUEST_ID.match(given):
        return given.decode("ascii")
    return fresh_request_id()


def timeout_of(headers: Headers, default_s: float) -> float:
    """Seconds the whole request may take: `x-request-timeout-ms`, else `default_s`; 0 means without limit.

    Raises:
        ApiError: 400 for a header that is no number of milliseconds from 1 to 86,400,000.
    """
    value = header(headers, b"x-request-timeout-ms")
    if value is None:
        return default_s
    if not value.isdigit() or len(value) > 8 or not 1 <= int(value) <= 86_400_000:
        message = "`x-request-timeout-ms` is a whole number of milliseconds, from 1 to 86400000 (a day)."
        raise invalid_request(message, param="x-request-timeout-ms")
    return int(value) / 1e3


def priority_of(headers: Headers, own: int) -> int:
    """The class of a request: its key's (`own`), or the lower one that `x-tidegate-priority` asks for.

    Raises:
        ApiError: 400 for a header that names no class.
    """
    value = header(headers, b"x-tidegate-priority")
    if value is None:
        return own
    name = value.strip().decode("latin-1")
    if name not in CLASSES:
        raise invalid_request(f"`x-tidegate-priority` is one of {', '.join(CLASSES)}.", param="x-tidegate-priority")
    return max(own, CLASSES.index(name))


def fresh_request_id() -> str:
    """A random request id. It names, it does not authorise: whoever asks for a receipt needs the key it belongs to."""
    return "req-" + _random.randbytes(12).hex()


def check_announced(headers: Headers, limit: int) -> None:
    """Refuse on its headers a body that would be refused anyway.

    Raises:
        ApiError: 413 when it is announced to be larger than `limit` bytes, 415 for a compressed body. The server reads the
            rest and throws it away, because closing on unread bytes would reset the connection before the client reads the
            answer.
    """
    if header(headers, b"content-encoding") is not None:
        codings = [value for name, value in headers if name == b"content-encoding"]
        if any(value.strip().lower() not in (b"", b"identity") for value in codings):
            raise invalid_request("Compressed request bodies are not accepted.", status=415)
    length = header(headers, b"content-length")  # there is one at most: `framing_problem`
    if length is not None and int(length) > limit:
        raise too_large(limit)


async def read_body(scope: Scope, receive: Receive, limit: int, bodies: Bodies, key: str) -> bytes:
    """The whole request body, on a path that goes through ASGI; it counts among those of the key with this id.

    Raises:
        ApiError: as `check_announced`; 413 also when it turns out to be larger than `limit` bytes, 503 when there is no room
            for it beside the bodies of others.
        ClientLeft: the client went away.
    """
    check_announced(scope["headers"], limit)
    parts: list[bytes] = []
    size, more = 0, True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            more = message.get("more_body", False)
            part = message.get("body", b"")
            if size + len(part) > limit:
                raise too_large(limit)
            if not bodies.take(key, size, len(part)):
                raise crowded()
            parts.append(part)
            size += len(part)
    finally:
        bodies.give_back(key, size)
    return b"".join(parts)


def too_large(limit: int) -> ApiError:
    """The body is over the limit."""
    return invalid_request(f"The body is larger than {limit} bytes.", status=413)
