"""Where the usage of a JSON answer stands: anywhere. vLLM puts it before what `/v1/rerank` found, before the ids and the text of
a prompt that a client asked back, and before `user` of `/v1/responses`, all of any length; and a proxy may cut it anywhere.

So each place that may be it is kept as the answer passes, and `router.ledger.receipts` chooses among them.
"""

from __future__ import annotations

import re

NAME = b'"usage"'
_LONGEST = 1024
"""Bytes of a usage object that are kept; usual ones have 100 to 300."""
_MOST = 32
_OBJECT = re.compile(rb'"usage"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}\{')


class UsageSearch:
    """Takes an answer's body in pieces, free of framing; of each piece only what may be usage is kept."""

    __slots__ = ("_found", "_rest")

    def __init__(self) -> None:
        self._found: list[bytes] = []
        self._rest = b""
        """The end of what has come: it may be the beginning of the name, or of an object that is not whole yet."""

    def take(self, piece: bytes) -> None:
        """The next piece."""
        data = self._rest + piece
        keep = max(0, len(data) - len(NAME) + 1)
        at = data.find(NAME)
        while at >= 0:
            if len(data) - at < _LONGEST:
                keep = at
                break
            if _OBJECT.match(data, at):
                self._found.append(data[at : at + _LONGEST])
                del self._found[:-_MOST]
            at = data.find(NAME, at + len(NAME))
        self._rest = data[keep:]

    @property
    def text(self) -> bytes:
        """All that may be usage, in the order of the answer."""
        return b"\n".join((*self._found, self._rest))


def usage_in(body: bytes) -> bytes:
    """What may be usage in a whole answer."""
    search = UsageSearch()
    search.take(body)
    return search.text
