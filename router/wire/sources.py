"""How many connections one source of clients may have open at a time."""

from __future__ import annotations

from router.identity.networks import Networks, packed

_V4_BYTES = 5
_V6_NET_BYTES = 9
"""The family's byte and a /64: one subscriber has all of it, so single IPv6 addresses would bound nothing."""


class TooManyConnections(Exception):
    """This source has as many as it may have."""


class Sources:
    """Open connections by source: an IPv4 address, or a /64 of IPv6.

    Args:
        most: how many one source may have.
        exempt: addresses that speak for many clients, those of trusted proxies.
    """

    __slots__ = ("_exempt", "_most", "_open")

    def __init__(self, most: int, exempt: Networks) -> None:
        self._most = most
        self._exempt = exempt
        self._open: dict[bytes, int] = {}

    def enter(self, address: str) -> bytes | None:
        """Count a connection.

        Returns:
            What `leave` wants when it ends; None where it does not count.

        Raises:
            TooManyConnections: it would be one too many, and is not counted.
        """
        found = packed(address)
        if found is None or self._exempt.holds(found):
            return None
        source = found if len(found) == _V4_BYTES else found[:_V6_NET_BYTES]
        count = self._open.get(source, 0)
        if count >= self._most:
            raise TooManyConnections
        self._open[source] = count + 1
        return source

    def leave(self, source: bytes) -> None:
        """A counted connection has ended."""
        count = self._open[source] - 1
        if count:
            self._open[source] = count
        else:
            del self._open[source]
