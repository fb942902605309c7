"""What a token says of its own scopes: they can only take away from those of the key that it bears."""

from __future__ import annotations

from typing import Literal

import msgspec


class Narrowing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The scopes in a token's claim, by the names that keys have for them; None has no say."""

    models: tuple[str, ...] | None = None
    residency: tuple[str, ...] = ()
    spill: bool | None = None
    cidr: tuple[str, ...] | None = None
    priority: Literal["high", "normal", "low"] | None = None


def read_narrowing(claim: object) -> Narrowing:
    """The scopes in a claim; none where the token lacks it.

    Raises:
        ValueError: it is no object of scopes, or has one that is not known here: a limit that nobody enforces is none.
    """
    return Narrowing() if claim is None else msgspec.convert(claim, Narrowing)
