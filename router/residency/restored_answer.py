"""The answer to a redacted request on its way back: the streams an `Exchange` passes on, with the values put back in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import msgspec

from router.residency.redact import StreamRestorer, restore
from router.wire.events import EventStream, EventTooLarge
from router.wire.stream_ends import StreamEnd
from router.wire.usage_search import usage_in

MAX_BODY = 32 * 1024 * 1024
"""A whole answer is held until it is complete; a larger one counts as broken."""


class RestoredEvents(EventStream):
    """A stream of chunks with its values back.

    Args:
        keep_usage: whether the client asked for the usage event.
        values: placeholder -> value.
        end: what a whole stream of this kind ends in; None: it may end anyhow.
    """

    __slots__ = ("_restorer",)

    def __init__(self, keep_usage: bool, values: Mapping[str, str], end: StreamEnd | None = None) -> None:
        super().__init__(keep_usage, end)
        self._restorer = StreamRestorer(values)

    @property
    def empty(self) -> bool:
        """Never: nothing of this stream may pass unseen."""
        return False

    def feed(self, piece: bytes) -> bytes:
        """See `EventStream`; what may be half a placeholder waits too."""
        return self._restorer.feed(super().feed(piece))

    def finish(self) -> bytes:
        """See `EventStream`."""
        return self._restorer.feed(super().finish()) + self._restorer.finish()


class RestoredBody(EventStream):
    """A whole answer with its values back; nothing is passed on before it is complete.

    Args:
        values: placeholder -> value.
    """

    __slots__ = ("_body", "_values")

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(True)
        self._values = values
        self._body = bytearray()
        # An answer that breaks off here can only be cut: an event would be no part of a JSON body.
        self.done = True

    @property
    def empty(self) -> bool:
        """Never: nothing of this answer may pass unseen."""
        return False

    def feed(self, piece: bytes) -> bytes:
        """Hold the piece.

        Raises:
            EventTooLarge: the answer is larger than `MAX_BODY`.
        """
        self._body += piece
        if len(self._body) > MAX_BODY:
            raise EventTooLarge
        return b""

    def finish(self) -> bytes:
        """The whole answer. What is no JSON passes as it is: placeholders in it stay placeholders."""
        body, self._body = bytes(self._body), bytearray()
        with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
            body = msgspec.json.encode(restore(msgspec.json.decode(body), self._values))
        self.usage = usage_in(body)
        return body
