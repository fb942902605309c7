"""TCP's own watch for another end that vanishes without a word: a machine without power, a cut cable, a dropped NAT entry.

No byte, end or reset comes from such a peer, so a request would wait for as long as an answer may take.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from typing import Any

_QUIET_S, _PROBE_S, _PROBES = 5, 2, 3
"""After so many seconds without a byte the other end is asked, so often, so many times: gone after 11 s."""
_UNACKNOWLEDGED_MS = 12_000
"""What a target acknowledges for so long not to have had goes to nobody; it also bounds how long one may not read."""
_MOST_UNANSWERED = 6
"""Linux sends a segment again, or asks for room for it, so many times within 14 s, where the round trip is short."""
_UNANSWERED = slice(2, 4)
"""Where `tcp_info` (linux/tcp.h) counts both; they are zero again after any acknowledgement."""


def watch_target(sock: Any) -> None:
    """Have the kernel notice within 15 s that a target's machine is gone. For a unix socket there is nothing to notice.

    Args:
        sock: a connected socket, or what an event loop gives for one.
    """
    if sock.family != socket.AF_UNIX:
        probe(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def probe(sock: Any) -> None:
    """Have the other end of a silent connection probed; what a listening socket accepts inherits that.

    A client gets no bound on what it leaves unacknowledged (`has_vanished` asks for that): Linux counts one that takes its time
    to read as one that is gone.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def has_vanished(transport: asyncio.Transport) -> bool:
    """Whether a client that is being answered acknowledges nothing any more, not even that it has no room."""
    if transport.is_closing():
        return False
    own = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    with own:
        return max(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[_UNANSWERED]) >= _MOST_UNANSWERED


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Whether a client has closed a connection that is not read at the moment, because requests wait behind the one that runs."""
    if transport.is_closing():
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
