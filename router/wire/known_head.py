"""A client on a kept-alive connection sends nearly the same header block again and again; only the length of the body differs.

A block that was collected, parsed and found sound is remembered, one per connection. A request that repeats it byte for byte,
up to the digits of its content length, and arrives whole, needs no parser: the same bytes mean the same thing. Anything else
goes the long way, and nothing here can refuse a request.
"""

from __future__ import annotations

import re

from router.wire.client_head import HeaderBlock
from router.wire.direct import DirectHandler

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_NAME = b"content-length"
_LENGTH_DIGITS = 9
_MOST_LESSONS = 4
"""A client whose blocks differ each time, by a trace id or the like, is not worth more."""


class KnownHead:
    """The latest header block of one connection.

    Attributes:
        handler: answers requests with this block.
        method: of the request line.
        path: decoded, without the query.
    """

    __slots__ = ("_after", "_before", "_digits", "_headers", "_lessons", "handler", "method", "path")

    def __init__(self) -> None:
        self._before = self._after = self._digits = b""
        self._headers = HeaderBlock()
        self._lessons = 0
        self.handler: DirectHandler | None = None
        self.method = ""
        self.path = ""

    def learn(self, block: bytes, headers: HeaderBlock, handler: DirectHandler, method: str, path: str) -> None:
        """Remember a block, if only one length can be in it.

        Args:
            block: the bytes as they came, from the request line on; what follows the block is not looked at.
            headers: what the parser made of them, found sound, of an HTTP/1.1 request after which the connection goes on.
            handler: answers the request.
            method: of the request line.
            path: decoded, without the query.
        """
        if self._lessons >= _MOST_LESSONS or not headers.unique:
            return
        self._lessons += 1
        end = block.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(block, 0, end)
        if found is None or found[1] != headers.first.get(_NAME) or b"transfer-encoding" in headers.first:
            self.handler = None
            return
        start, stop = found.span(1)
        self._before, self._digits, self._after = block[:start], found[1], block[stop:end]
        self._headers, self.handler, self.method, self.path = headers, handler, method, path

    def match(self, data: bytes) -> tuple[HeaderBlock, bytes] | None:
        """The headers and the body, where `data` is this block again and the whole of its body, no more and no less."""
        start = len(self._before)
        stop = data.find(b"\r", start, start + _LENGTH_DIGITS + 1)
        digits = data[start:stop] if stop > 0 else b""
        if not (digits.isdigit() and data.startswith(self._before) and data.startswith(self._after, stop)):
            return None
        body = data[stop + len(self._after) :]
        if len(body) != int(digits):
            return None
        if digits == self._digits:
            return self._headers, body
        headers = HeaderBlock([(name, digits if name == _NAME else value) for name, value in self._headers])
        headers.seal()
        return headers, body
