"""Heads of messages: what we send to a target, and what of its answer reaches the client. Allow-lists, both ways."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from enum import Enum

from router.decision import Choice
from router.placement.targets import CLOUD, Address
from router.residency.guard import PASS_HEADER

TARGET_HEADER = "x-tidegate-target"
JSON = b"application/json"
_UPWARD = frozenset({b"accept", b"traceparent", b"tracestate"})
METADATA = b"metadata"
"""Of vectors in binary, vLLM says here which bytes are whose, of which type and shape, and the usage."""
_DOWNWARD = frozenset({b"content-type", b"cache-control", b"retry-after", METADATA})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


def request_head(
    method: str,
    address: Address,
    path: str,
    client_headers: Iterable[tuple[bytes, bytes]],
    own: str,
    content_type: bytes,
    body_length: int,
) -> bytes:
    """The head of a request to a target: our own headers, then a few of the client's.

    The content type says how the body was parsed here, whatever the client called it.
    """
    lines = [(_start(method, address, path) + own).encode("latin-1")]
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


def own_request_headers(request_id: str, choice: Choice, pass_token: str | None, credential: bytes | None) -> str:
    """Our headers for a target, as lines: the request id always; the pass for guarded ones; a server's own credential."""
    lines = f"x-request-id: {request_id}\r\n"
    if pass_token is not None:
        lines += f"{PASS_HEADER}: {pass_token}\r\n"
    if choice.target.kind is CLOUD:
        lines += f"{TARGET_HEADER}: {choice.target.id}\r\n"
    if credential is not None:
        lines += f"authorization: Bearer {credential.decode('latin-1')}\r\n"
    return lines


def decision_headers(request_id: str, model: str, target: str, zone: str, reason: str) -> bytes:
    """The headers every response carries, as lines."""
    if not reason.isascii():
        reason = reason.encode("ascii", "replace").decode("ascii")
    return (
        f"x-request-id: {request_id}\r\nx-tidegate-model: {model}\r\nx-tidegate-target: {target}\r\n"
        f"x-tidegate-zone: {zone}\r\nx-tidegate-reason: {reason}\r\n"
    ).encode("latin-1")


class Framing(Enum):
    """How the body reaches the client: as the target framed it, in chunks of ours, or ended by closing the connection.

    `names` are the target's headers that go with it, `line` the one of ours.
    """

    def __init__(self, names: frozenset[bytes], line: bytes) -> None:
        self.names = names
        self.line = line

    AS_IS = (_DOWNWARD | _FRAMING, b"")
    CHUNKED = (_DOWNWARD, b"transfer-encoding: chunked\r\n")
    CLOSE = (_DOWNWARD, b"")


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response is a stream of server-sent events."""
    for name, value in headers:  # noqa: SIM110 - `any` with its generator takes three times as long
        if name == b"content-type" and value.lower().startswith(b"text/event-stream"):
            return True
    return False


def response_headers(upstream: Iterable[tuple[bytes, bytes]], framing: Framing) -> bytes:
    """The target's headers a client may see, as lines, with the framing the client gets."""
    names = framing.names
    return b"".join([b"%b: %b\r\n" % line for line in upstream if line[0] in names]) + framing.line
