"""Where a request comes from: the peer of its connection, or the client that a trusted proxy speaks for."""

from __future__ import annotations

import re

from router.identity.networks import Networks, packed
from router.wire.request import Headers

_FORWARDED = b"x-forwarded-for"
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|(\d+\.\d+\.\d+\.\d+))(?::\d{1,5})?\Z")


def client_address(peer: str | None, headers: Headers, proxies: Networks) -> bytes | None:
    """The client's address, as `Networks` knows it; None when it cannot be known.

    `X-Forwarded-For` is read from its end, where the nearest proxy wrote: the first address that is not a trusted proxy's is
    the client. What stands before it, anybody may have written.

    Args:
        peer: the connection's other end; None when it has no IP address.
        headers: request headers, names in lower case.
        proxies: addresses of trusted proxies.
    """
    found = None if peer is None else packed(peer)
    if found is None or not proxies.firsts or not proxies.holds(found):
        return found
    told: bytes | None = None
    for value in reversed([value for name, value in headers if name == _FORWARDED]):
        for entry in reversed(value.decode("latin-1").split(",")):
            told = _read(entry.strip())
            if told is None or not proxies.holds(told):
                return told
    return told


def _read(entry: str) -> bytes | None:
    found = packed(entry)
    if found is None and (match := _WITH_PORT.match(entry)) is not None:
        found = packed(match.group(1) or match.group(2))
    return found
