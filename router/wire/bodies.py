"""How much of request bodies a router holds at a time, over all connections: each is bounded, their number is not."""

from __future__ import annotations

from router.wire.errors import ApiError

_RETRY_S = 2.0


class Bodies:
    """Bytes of bodies that are read, or whose request is not answered yet.

    A body that arrived in one read does not count: sixty-four thousand of those are less than the default bound.

    Args:
        most: how many bytes there may be.
    """

    __slots__ = ("_most", "held")

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def take(self, size: int) -> bool:
        """Count so many more bytes; false, and nothing is counted, where they would be too many."""
        if self.held + size > self._most:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        """So many bytes are no longer held."""
        self.held -= size


def crowded() -> ApiError:
    """A body did not fit beside those of others."""
    text = "The router holds as many bytes of large requests as it may; send this one again when some of them are answered."
    return ApiError(503, "overloaded", text, retry_after_s=_RETRY_S)
