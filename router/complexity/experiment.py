"""A/B and shadow: a share of the traffic through another setting, assigned by a hash, so that it needs no memory.

A request of one conversation (or, without one, of one request id) is always on the same side. A shadow request is a request like
any other: it carries the same label and key and is screened anew; this module only says that there is one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from router.complexity.choose import Plan
from router.complexity.pin import conversation_key

_SCALE = float(1 << 64)


class Trial(msgspec.Struct, frozen=True):
    """An experiment: `share` of the traffic, answered (`shadow=False`) or only looked at (`shadow=True`)."""

    name: str
    share: float
    shadow: bool = False


def fraction_of(name: str, unit: str) -> float:
    """A number in [0, 1) that depends on the experiment and the unit only; different experiments are independent."""
    digest = hashlib.blake2b(f"{name}\0{unit}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _SCALE


def is_in(trial: Trial, unit: str) -> bool:
    """Whether a unit is on the experiment's side. Raising the share keeps those who are in."""
    return fraction_of(trial.name, unit) < trial.share


def unit_of(body: dict[str, Any], key_id: str, request_id: str) -> str:
    """What stays together: a conversation of a key, else the request. The hash goes nowhere but into `fraction_of`."""
    return conversation_key(body, key_id, b"experiments") or request_id


class Branch(msgspec.Struct, frozen=True):
    """A trial with the plan it decides by; None: the same as everybody's."""

    trial: Trial
    plan: Plan | None


def assign(branches: tuple[Branch, ...], unit: str) -> tuple[Branch | None, tuple[Branch, ...]]:
    """The one A/B trial that answers a unit (the first it is in), and the shadow trials that look at it."""
    answering = next((branch for branch in branches if not branch.trial.shadow and is_in(branch.trial, unit)), None)
    return answering, tuple(branch for branch in branches if branch.trial.shadow and is_in(branch.trial, unit))
