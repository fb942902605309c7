"""The PROXY protocol, versions 1 and 2: what a load balancer says of its client before the client's own bytes begin.

HAProxy's specification (proxy-protocol.txt). It is read only from proxies that the configuration declares, and they must send
it on every connection: guessing whether it is there would let a client write one of its own.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_LONGEST_V1 = 107
_LONGEST_V2 = 4096
_FIXED_V2 = 16
_TCP4, _TCP6 = 0x11, 0x21
_LOCAL, _PROXY = 0x20, 0x21


class BadProxyHeader(ValueError):
    """The connection does not begin with a PROXY header."""


class ProxyHeader(NamedTuple):
    """The client as the proxy tells it; None where the proxy speaks for itself, or of something that has no IP address."""

    client: tuple[str, int] | None
    length: int


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with; None while more of it has to come.

    Raises:
        BadProxyHeader: it begins with something else, or is too long.
    """
    if data[:12] == _SIGNATURE[: len(data)]:
        return _read_v2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _read_v1(data)
    raise BadProxyHeader


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _LONGEST_V1)
    if end < 0:
        if len(data) >= _LONGEST_V1:
            raise BadProxyHeader
        return None
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return ProxyHeader(None, end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6") or not words[4].isdigit():
        raise BadProxyHeader
    family = socket.AF_INET if words[1] == b"TCP4" else socket.AF_INET6
    try:
        address = socket.inet_ntop(family, socket.inet_pton(family, words[2].decode("ascii")))
    except (OSError, UnicodeDecodeError):
        raise BadProxyHeader from None
    return ProxyHeader((address, int(words[4])), end + 2)


def _read_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED_V2:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    if command not in (_LOCAL, _PROXY) or length > _LONGEST_V2:
        raise BadProxyHeader
    end = _FIXED_V2 + length
    if len(data) < end:
        return None
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return ProxyHeader(None, end)
    version, size = (socket.AF_INET, 4) if family == _TCP4 else (socket.AF_INET6, 16)
    if length < 2 * size + 4:
        raise BadProxyHeader
    address = socket.inet_ntop(version, data[_FIXED_V2 : _FIXED_V2 + size])
    (port,) = struct.unpack_from("!H", data, _FIXED_V2 + 2 * size)
    return ProxyHeader((address, port), end)
