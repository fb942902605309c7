"""A client's header block: collected until it is whole, and refused unless it is sound.

The parser behind it only ever sees whole blocks. So it cannot be led to read one half in another way than the checks did,
and a client may send its header lines one by one.
"""

from __future__ import annotations

import re

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_TARGET_BYTES = 4 * 1024
_END = b"\r\n\r\n"
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\])(?::[0-9]{0,5})?\Z"
)
"""RFC 3986, section 3.2.2, and a port. It may be empty: the target then has no authority."""
_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)


class HeaderBlock(list[tuple[bytes, bytes]]):
    """The headers of one request as they came, names in lower case, with an index: the hot path asks for seven by name.

    Attributes:
        first: the first value of each name, once the block is whole.
        unique: whether no name comes twice.
    """

    __slots__ = ("first", "unique")

    first: dict[bytes, bytes]
    unique: bool

    def seal(self) -> None:
        """The block is whole."""
        self.first = dict(reversed(self))
        self.unique = len(self.first) == len(self)


class BadHead(Exception):
    """The header block is refused; the text is for the client."""


class HeadCollector:
    """Collects the pieces of header blocks, one block after the other."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = bytearray()

    @property
    def waiting(self) -> bool:
        """True while a block has begun and is not whole."""
        return bool(self._kept)

    def collect(self, data: bytes) -> bytes | None:
        """The whole block with whatever followed it; None while more of it is to come.

        An offer to upgrade the protocol is renamed, which declines it (RFC 9110, section 7.8): to the parser it would mean
        that no body follows, and then the body would be read as a second request.

        Raises:
            BadHead: it is too large, no HTTP, or has a bare CR or LF.
        """
        kept = self._kept
        if not kept and data[:1].isalpha():
            end = data.find(_END)
            if 0 <= end <= MAX_HEADER_BYTES and _only_pairs(data, 0, end) and b"upgrade" not in data[:end].lower():
                return data  # what a client usually sends: nothing to keep, nothing to change
        searched = max(0, len(kept) - len(_END) + 1)
        kept += data
        if kept.startswith((b"\r", b"\n")):  # RFC 9112, section 2.2: empty lines before a request are ignored
            kept[:] = kept.lstrip(b"\r\n")
            searched = 0
        if not kept:
            return None
        end = kept.find(_END, searched)
        if not kept[:1].isalpha():
            raise BadHead("This is not HTTP.")
        if (end if end >= 0 else len(kept)) > MAX_HEADER_BYTES + MAX_TARGET_BYTES:
            raise BadHead("The header block is too large.")
        stop = end if end >= 0 else len(kept) - kept.endswith(b"\r")
        if not _only_pairs(kept, max(0, searched - 1), stop):
            raise BadHead("The header block has a bare CR or LF.")
        if end < 0:
            return None
        whole = bytes(kept)
        kept.clear()
        if b"upgrade" in whole[:end].lower():
            whole = _UPGRADE.sub(b"\r\nx-declined-upgrade", whole[:end]) + whole[end:]
        return whole


def _only_pairs(block: bytes | bytearray, start: int, stop: int) -> bool:
    """Whether each CR and LF of this part stands in a CRLF. What is before `start` has been found sound."""
    if block.startswith(b"\n", start):
        start += 1  # its CR is before the part
    pairs = block.count(b"\r\n", start, stop)
    return block.count(b"\n", start, stop) == pairs == block.count(b"\r", start, stop)


def framing_problem(version: str, headers: HeaderBlock, target: bytes) -> str | None:
    """Why a header block is ambiguous (RFC 9112, sections 3.2, 6.1 and 6.3) or over a limit; None when it is fine."""
    if version not in ("1.1", "1.0"):
        return "Only HTTP/1.1 and HTTP/1.0 are understood here."
    if len(headers) > MAX_HEADERS or len(target) > MAX_TARGET_BYTES:
        return "Too many headers, or the request target is too long."
    host = headers.first.get(b"host")
    if host is None:
        if version == "1.1":
            return "An HTTP/1.1 request names its host."
    elif _HOST.match(host) is None:
        return "The Host header is no host with a port."
    if headers.unique and b"transfer-encoding" not in headers.first:
        return None
    lengths = hosts = 0
    for name, value in headers:
        if name == b"content-length":
            lengths += 1
        elif name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            lengths += 1
            if value.strip().lower() != b"chunked" or version == "1.0":
                return "Only chunked is understood as a transfer encoding."
    if lengths > 1:
        return "The length of the body is ambiguous."
    return "More than one Host header." if hosts > 1 else None
