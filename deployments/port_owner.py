"""Whose socket listens at an engine's port.

The port is known before the engine listens there (`ps` shows it to everybody), so another user of the machine may be first. Its
answers would look like the engine's until that has found out, and prompts would be sent there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from pathlib import Path

from deployments.engine_errors import EngineStartError

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = "0A"
_WORD = 8


def check_listener(model_id: str, host: str, port: int) -> None:
    """Refuse a listener of another user; where the machine does not tell, none is known.

    Args:
        model_id: the engine's model, for the error.
        host: the IP address that it is to listen on.
        port: its port.

    Raises:
        EngineStartError: another user listens there.
    """
    if others := listening_users(host, port) - {os.geteuid()}:
        users = ", ".join(map(str, sorted(others)))
        raise EngineStartError(
            f"the engine of `{model_id}`: the user with the id {users} took the port {port} and answers in its place. "
            f"Serve tries again with another one; `ss -ltnp` as root tells which program it is."
        )


def listening_users(host: str, port: int) -> set[int]:
    """The ids of the users whose sockets listen at a TCP address of this machine, or at that port of all addresses."""
    found = set()
    for table in _TABLES:
        with contextlib.suppress(OSError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, _, _, _, user, *_ = line.split()
                address, _, number = local.partition(":")
                if state == _LISTENS and int(number, 16) == port:
                    there = _read_address(address)
                    if there.is_unspecified or str(there) == host:
                        found.add(int(user))
    return found


def _read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel prints it: words of 32 bits, each in the machine's own order."""
    words = (bytes.fromhex(text[place : place + _WORD]) for place in range(0, len(text), _WORD))
    read = ipaddress.ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
    return getattr(read, "ipv4_mapped", None) or read
