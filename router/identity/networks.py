"""Sets of IP addresses, compiled from CIDR blocks: asking whether one holds an address is a look-up by bisection.

An address is its bytes behind a byte for its family, so IPv4 and IPv6 lie apart in one order. An IPv4 address written as IPv6
(`::ffff:10.0.0.1`, which is how a socket for both families shows it) is that IPv4 address.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache

import msgspec

_V4, _V6 = b"\x04", b"\x06"
_MAPPED_BITS = 96
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks(msgspec.Struct, frozen=True, gc=False):
    """Addresses from `firsts[i]` to `lasts[i]`, in order and without overlap; bytes, so that the audit log can hold them."""

    firsts: tuple[bytes, ...] = ()
    lasts: tuple[bytes, ...] = ()

    def holds(self, address: bytes) -> bool:
        """Whether an address, as `packed` gives it, is among them."""
        place = bisect_right(self.firsts, address)
        return place > 0 and address <= self.lasts[place - 1]

    def within(self, other: Networks) -> Networks:
        """The addresses that are in both."""
        found = []
        for first, last in zip(self.firsts, self.lasts, strict=True):
            for start, end in zip(other.firsts, other.lasts, strict=True):
                if first <= end and start <= last:
                    found.append((max(first, start), min(last, end)))
        return Networks(tuple(first for first, _ in found), tuple(last for _, last in found))


def compile_networks(blocks: Iterable[str]) -> Networks:
    """The addresses in CIDR blocks; a block without a length is one address.

    Raises:
        ValueError: a block that is none, or has bits set behind its length, which is a typing error more often than not.
    """
    ranges = sorted(_range_of(_read_block(block)) for block in blocks)
    merged: list[tuple[bytes, bytes]] = []
    for first, last in ranges:
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return Networks(tuple(first for first, _ in merged), tuple(last for _, last in merged))


@lru_cache(maxsize=4096)
def packed(address: str) -> bytes | None:
    """An IPv4 or IPv6 address in the order of `Networks`; None for what is no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])  # the zone of a link-local address names an interface of ours
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return (_V4 if found.version == 4 else _V6) + found.packed


def _read_block(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"`{text}` is no block of addresses: write 10.20.0.0/16, 192.0.2.7 or 2001:db8::/32") from None
    raise ValueError(f"`{text}` has bits set behind its length; did you mean `{meant}`?")


def _range_of(network: _Network) -> tuple[bytes, bytes]:
    first, last = network.network_address, network.broadcast_address
    if isinstance(first, ipaddress.IPv6Address) and isinstance(last, ipaddress.IPv6Address):
        if first.ipv4_mapped is not None and last.ipv4_mapped is not None and network.prefixlen >= _MAPPED_BITS:
            return _V4 + first.ipv4_mapped.packed, _V4 + last.ipv4_mapped.packed
        return _V6 + first.packed, _V6 + last.packed
    return _V4 + first.packed, _V4 + last.packed
