"""A small, strict HTTP/1.1 response decoder: the oracle of the proofs, written apart from the router's own parser.

It accepts less than most decoders do: CRLF only, one length, no 1xx before the answer, no byte after its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import h11

_STATUS = re.compile(rb"HTTP/1\.[01] ([2-5][0-9][0-9])(?: [^\r\n]*)?\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\Z")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\x09\x20-\x7e\x80-\xff]*)?\Z")


@dataclass(slots=True)
class Decoded:
    """What a run of bytes is, as far as it goes."""

    complete: bool = False
    wrong: str = ""
    """Why it can never become a valid response; empty while it is valid so far."""
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    odd_reason: bool = False
    """The reason phrase holds control characters: no decoder passes it on, h11 refuses it."""
    rest: bytes = b""
    """What follows the response."""
    until_close: bool = False

    def header(self, name: bytes) -> bytes:
        """The first value of a header, or nothing."""
        return next((value for key, value in self.headers if key == name), b"")


def decode(data: bytes, *, closed: bool = False, close_delimited: bool = False) -> Decoded:
    """Decode one response from the start of `data`.

    Args:
        data: everything that arrived.
        closed: the sender has closed; nothing more will come.
        close_delimited: accept a body that ends with the connection (what an HTTP/1.0 client gets).
    """
    out = Decoded()
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return out
    _read_head(head, out)
    if out.wrong:
        return out
    lengths = [value for name, value in out.headers if name == b"content-length"]
    codings = [value for name, value in out.headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        out.wrong = "two lengths"
    elif out.status in (204, 304):
        out.complete, out.rest = True, body
    elif codings:
        if codings[0].strip().lower() != b"chunked":
            out.wrong = "unknown coding"
        elif head.startswith(b"HTTP/1.0"):
            out.wrong = "chunked in HTTP/1.0"
        else:
            _read_chunks(body, out)
    elif lengths:
        _read_length(lengths[0], body, out)
    elif close_delimited:
        out.until_close, out.body, out.complete = True, body, closed
    else:
        out.wrong = "no length"
    return out


def _read_head(head: bytes, out: Decoded) -> None:
    lines = head.split(b"\r\n")
    match = _STATUS.match(lines[0])
    if not match:
        out.wrong = "status line"
        return
    out.status = int(match[1])
    out.odd_reason = bool(re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", lines[0]))
    for line in lines[1:]:
        header = _HEADER.match(line)
        if not header:
            out.wrong = "header line"
            return
        out.headers.append((header[1].lower(), header[2].rstrip(b" \t")))


def _read_length(text: bytes, body: bytes, out: Decoded) -> None:
    if not text.isdigit() or len(text) > 18:
        out.wrong = "content-length"
        return
    length = int(text)
    out.body, out.rest = body[:length], body[length:]
    out.complete = len(body) >= length


def _read_chunks(data: bytes, out: Decoded) -> None:
    at, parts = 0, []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            if b"\n" in data[at:]:
                out.wrong = "chunk size"
            break
        match = _SIZE.match(data[at:end])
        if not match:
            out.wrong = "chunk size"
            break
        size = int(match[1], 16)
        if size == 0:
            _read_trailers(data, end, out)
            break
        start = end + 2
        parts.append(data[start : start + size])
        after = data[start + size : start + size + 2]
        if not b"\r\n".startswith(after):
            out.wrong = "chunk end"
            break
        if len(after) < 2:
            break
        at = start + size + 2
    out.body = b"".join(parts)


def _read_trailers(data: bytes, end: int, out: Decoded) -> None:
    """`end` is where the last size line's CRLF begins; the block ends at the first empty line."""
    stop = data.find(b"\r\n\r\n", end)
    if stop < 0:
        return
    for line in data[end + 2 : stop].split(b"\r\n") if stop > end else []:
        header = _HEADER.match(line)
        if not header or header[1].lower() in (b"content-length", b"transfer-encoding"):
            out.wrong = "trailer"
            return
    out.complete, out.rest = True, data[stop + 4 :]


def second_opinion(data: bytes) -> bytes | None:
    """The body h11 sees in a complete response, or None when it sees none."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    body = bytearray()
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return None
    except h11.RemoteProtocolError:
        return None
