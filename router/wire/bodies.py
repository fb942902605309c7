"""How much of request bodies a router holds at a time, over all connections: each is bounded, their number is not."""

from __future__ import annotations

from router.wire.errors import ApiError

_RETRY_S = 2.0
_OWN_TO_FREE = 3
"""One key's bodies may be so many times what is left for others: alone it gets three quarters, and no number of its connections
takes the last of it."""


class Bodies:
    """Bytes of bodies that are read, or whose request is not answered yet.

    A body that arrived in one read does not count: sixty-four thousand of those are less than the default bound.

    Args:
        most: how many bytes there may be.
    """

    __slots__ = ("_most", "_of_keys", "held")

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0
        self._of_keys: dict[str, int] = {}

    def take(self, key: str, counted: int, size: int) -> bool:
        """Count more bytes of one body; false, and nothing is counted, where they would be too many.

        Args:
            key: the id of the key that sends it.
            counted: the bytes of this body that are counted already: the only one of a key needs but fit.
            size: how many more there are.
        """
        held, own = self.held + size, self._of_keys.get(key, 0) + size
        if held > self._most or own > max(counted + size, _OWN_TO_FREE * (self._most - held)):
            return False
        self.held = held
        if size:
            self._of_keys[key] = own
        return True

    def give_back(self, key: str, size: int) -> None:
        """So many bytes of a key's bodies are no longer held."""
        self.held -= size
        own = self._of_keys.pop(key, 0) - size
        if own:
            self._of_keys[key] = own


def crowded() -> ApiError:
    """A body did not fit beside those of others."""
    text = "The router holds as many bytes of large requests as it may; send this one again when some of them are answered."
    return ApiError(503, "overloaded", text, retry_after_s=_RETRY_S)
