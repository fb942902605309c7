"""Heads of messages: what we send to a target, and what of its answer reaches the client. Allow-lists, both ways."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from enum import Enum, auto

from router.decision import Choice
from router.placement.targets import Address, Kind
from router.residency.guard import PASS_HEADER

TARGET_HEADER = "x-tidegate-target"
JSON = b"application/json"
_UPWARD = frozenset({b"accept", b"traceparent", b"tracestate"})
_DOWNWARD = frozenset({b"content-type", b"content-length", b"transfer-encoding", b"cache-control", b"retry-after"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


def request_head(
    method: str,
    address: Address,
    path: str,
    client_headers: Iterable[tuple[bytes, bytes]],
    own: Iterable[tuple[str, str]],
    content_type: bytes,
    body_length: int,
) -> bytes:
    """The head of a request to a target: our own headers, then a few of the client's.

    The content type says how the body was parsed here, whatever the client called it.
    """
    text = _start(method, address, path)
    for header, content in own:
        text += f"{header}: {content}\r\n"
    lines = [text.encode("latin-1")]
    for name, value in client_headers:
        if name in _UPWARD:
            lines += (name, b": ", value, b"\r\n")
    lines.append(b"content-type: %b\r\ncontent-length: %d\r\n\r\n" % (content_type, body_length))
    return b"".join(lines)


@functools.lru_cache(maxsize=4096)
def _start(method: str, address: Address, path: str) -> str:
    """The request line and the host: the same for every request to an endpoint of a target."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    host = "localhost" if address.uds else f"{host}:{address.port}"
    return f"{method} {address.base_path}{path} HTTP/1.1\r\nhost: {host}\r\n"


def own_request_headers(
    request_id: str, choice: Choice, pass_token: str | None, credential: bytes | None
) -> list[tuple[str, str]]:
    """Our headers for a target: the request id always; the pass for guarded ones; a server's own credential."""
    headers = [("x-request-id", request_id)]
    if pass_token is not None:
        headers.append((PASS_HEADER, pass_token))
    if choice.target.kind is Kind.CLOUD:
        headers.append((TARGET_HEADER, choice.target.id))
    if credential is not None:
        headers.append(("authorization", f"Bearer {credential.decode('latin-1')}"))
    return headers


def decision_headers(request_id: str, model: str, target: str, zone: str, reason: str) -> bytes:
    """The headers every response carries, as lines."""
    if not reason.isascii():
        reason = reason.encode("ascii", "replace").decode("ascii")
    return (
        f"x-request-id: {request_id}\r\nx-tidegate-model: {model}\r\nx-tidegate-target: {target}\r\n"
        f"x-tidegate-zone: {zone}\r\nx-tidegate-reason: {reason}\r\n"
    ).encode("latin-1")


class Framing(Enum):
    """How the body reaches the client: as the target framed it, in chunks of ours, or ended by closing the connection."""

    AS_IS = auto()
    CHUNKED = auto()
    CLOSE = auto()


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response is a stream of server-sent events."""
    for name, value in headers:  # noqa: SIM110 - `any` with its generator takes three times as long
        if name == b"content-type" and value.lower().startswith(b"text/event-stream"):
            return True
    return False


def response_headers(upstream: Iterable[tuple[bytes, bytes]], framing: Framing) -> bytes:
    """The target's headers a client may see, as lines, with the framing the client gets."""
    own_framing = framing is not Framing.AS_IS
    lines: list[bytes] = []
    for name, value in upstream:
        if name in _DOWNWARD and not (own_framing and name in _FRAMING):
            lines += (name, b": ", value, b"\r\n")
    if framing is Framing.CHUNKED:
        lines.append(b"transfer-encoding: chunked\r\n")
    return b"".join(lines)
