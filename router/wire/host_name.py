"""By which name a request asked for us: a listener that only this machine can reach is asked by address, or as `localhost`.

A web page can have its own name mean 127.0.0.1 (DNS rebinding); then the browser lets it read what a listener there answers.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a listener at `host`, an address or a name, can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_own_name(header: str) -> bool:
    """Whether a `Host` header names an address or `localhost`; one that is empty or missing comes from no browser."""
    host = header.strip()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not host or name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
