"""What a key's holder must keep to besides limits: from where, until when, and how urgent; and who may speak for a client."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from ipaddress import ip_address
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from router.config.strict import Strict
from router.identity.networks import compile_networks

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,62}(\.|\Z))([A-Za-z0-9_-]{1,63}(\.|\Z))*\Z")


class Access(Strict):
    """Scopes of a key that no residency label knows."""

    cidr: list[str] | None = Field(default=None, min_length=1)
    """Blocks of addresses, IPv4 or IPv6, that the key may be used from. Default: from anywhere."""
    expires: str | None = None
    """An ISO date or time, in UTC unless it says otherwise, from which on the key is worth nothing."""
    priority: Literal["high", "normal", "low"] = "normal"
    """Who goes first where requests wait. `x-tidegate-priority` on a request may only lower it."""

    max_body_bytes: int | None = Field(default=None, ge=1024)
    """How large a request's body may be. Default, and at most: the top-level `max_body_bytes`."""
    capture: bool = False
    """Keeps its requests and answers, encrypted, where there is a `capture:` block."""

    @field_validator("cidr")
    @classmethod
    def _blocks(cls, value: list[str] | None) -> list[str] | None:
        compile_networks(value or ())
        return value

    @field_validator("expires", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        # YAML reads a date that is not in quotes as one. (Not every tool that hands a configuration on can carry those.)
        return value.isoformat() if isinstance(value, date) else value

    @field_validator("expires")
    @classmethod
    def _moment(cls, value: str | None) -> str | None:
        if value is not None:
            moment_of(value)
        return value


class Credential(Strict):
    """Where a provider's key is read from when it is needed; it is never written down again."""

    env: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Credential:
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of `env` and `file`")
        return self


def check_host(value: str) -> str:
    """The value, if it can be an address or a host's name.

    An empty one is neither: the system would take it for every interface, where the default is this machine alone.

    Raises:
        ValueError: it cannot.
    """
    if ":" in value:
        try:
            ip_address(value)
        except ValueError:
            raise ValueError(f"`{value[:64]}` is no IPv6 address: give ::1, without brackets, and the port as `port`") from None
    elif len(value) > 253 or not _HOST.match(value):
        raise ValueError("an address or the name of a host, such as 127.0.0.1, 0.0.0.0, :: or router-1.example")
    return value


class Listen(Strict):
    """An address the router opens; by default nobody but this machine reaches it."""

    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=1, le=65535)

    @field_validator("host")
    @classmethod
    def _one_host(cls, value: str) -> str:
        return check_host(value)


class PublicListen(Listen):
    """The address that clients call, and the proxies in front of it whose word for a client's address counts."""

    host: str = "0.0.0.0"  # noqa: S104 - the public port is public; the admin port's default is not
    port: int = Field(default=8000, ge=1, le=65535)
    trusted_proxies: list[str] = []
    """Blocks of addresses of proxies of ours. Only from these is `X-Forwarded-For` believed, and only as far as it was written
    by one of them; a client whose address such a proxy does not tell has none."""
    proxy_protocol: bool = False
    """Connections of trusted proxies begin with a PROXY header, version 1 or 2, that tells the client's address."""
    connections_per_source: int = Field(default=0, ge=0)
    """How many connections one IPv4 address, or one IPv6 /64, may have open at each router; one more gets 429. 0: no limit,
    because a whole company may stand behind one address. A PROXY header's client is the source; trusted proxies are not."""
    requests_per_connection: int = Field(default=100_000, ge=1)
    """After so many a connection is closed; the last answer says so. With fewer, clients find routers that joined sooner."""

    @field_validator("trusted_proxies")
    @classmethod
    def _blocks(cls, value: list[str]) -> list[str]:
        compile_networks(value)
        return value

    @model_validator(mode="after")
    def _of_somebody(self) -> PublicListen:
        if self.proxy_protocol and not self.trusted_proxies:
            raise ValueError("`proxy_protocol` needs `trusted_proxies`: whose header is to be believed?")
        return self


def place_of(text: str) -> tuple[str, int]:
    """An address in numbers with its port: `10.0.0.1:7001`, `[fd00::1]:7001`.

    Raises:
        ValueError: it is none.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
        if bracketed == (address.version == 6) and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return str(address), int(port)
    except ValueError:
        pass
    raise ValueError(f"`{text}` is no address with a port: give 10.0.0.1:7001 or [fd00::1]:7001, numbers and no name")


def moment_of(text: str) -> float:
    """An ISO date or time as UNIX seconds; UTC where it names no zone.

    Raises:
        ValueError: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"`{text}` is no date: give 2027-05-01 or 2027-05-01T12:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
