"""How long a client may take to send its request and to read its answer.

Each connection keeps a few numbers, and the server judges all of them once a second: no timer per connection or request.
"""

from __future__ import annotations

from enum import Enum, auto

HEAD_S = 10.0
"""From the connection, or from a request's first byte, to the end of its header block."""
BODY_S = 10.0
BODY_BYTES_PER_S = 1024
"""A body may take `BODY_S`, and a second more for each of these bytes that came."""
KEEP_ALIVE_S = 75.0
"""A connection on which nothing is asked for so long is closed. More than the 60 s after which common balancers (nginx, AWS) let
go of theirs: if we were first, they would now and then send a request into a connection that is just being closed."""
UNREAD_S = 60.0
"""An answer of which the client has read nothing for so long is given up."""


class Verdict(Enum):
    """What becomes of a connection."""

    KEEP = auto()
    TOO_SLOW = auto()
    """The request does not come."""
    IDLE = auto()
    """Nothing has been asked for a long time."""
    UNREAD = auto()
    """The answer is not read."""


class Patience:
    """What one client owes, and since when."""

    __slots__ = ("_asked", "_body_bytes", "_busy_at", "_owing_since", "_unread", "_unread_since")

    def __init__(self, now: float) -> None:
        self._owing_since: float | None = now
        self._body_bytes = -1  # in the header block
        self._unread = 0
        self._unread_since = now
        self._busy_at = now
        self._asked = False
        """A request came since `judge` last looked, however soon it was answered."""

    def expect_head(self, now: float) -> None:
        """A request has begun to come; without effect when it had."""
        if self._owing_since is None:
            self._owing_since = now
            self._body_bytes = -1

    def expect_body(self, now: float) -> None:
        """The header block is whole."""
        self._owing_since = now
        self._body_bytes = 0

    def got_body(self, size: int) -> None:
        """`size` bytes of the body came."""
        self._body_bytes += size

    def settle(self) -> None:
        """The request is whole: the client owes nothing."""
        self._owing_since = None
        self._asked = True

    def judge(self, now: float, unsent: int, *, held_back: bool, answering: bool) -> Verdict:
        """Called about once a second.

        Args:
            now: the loop's time, in seconds.
            unsent: bytes of the answer in the write buffer.
            held_back: we are the ones who do not read.
            answering: an earlier request of this connection is under way, so the next one may wait.
        """
        if unsent == 0 or unsent < self._unread:
            self._unread_since = now
        self._unread = unsent
        if unsent and now - self._unread_since > UNREAD_S:
            return Verdict.UNREAD
        if answering or self._asked or self._owing_since is not None:
            self._busy_at, self._asked = now, False
        if self._owing_since is None:
            return Verdict.IDLE if now - self._busy_at > KEEP_ALIVE_S else Verdict.KEEP
        in_head = self._body_bytes < 0
        if held_back or (in_head and answering):
            self._owing_since = now
            return Verdict.KEEP
        allowed = HEAD_S if in_head else BODY_S + self._body_bytes / BODY_BYTES_PER_S
        return Verdict.TOO_SLOW if now - self._owing_since > allowed else Verdict.KEEP
