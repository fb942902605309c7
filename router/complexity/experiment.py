"""A/B and shadow: a share of the traffic through another setting, assigned by a hash, so that it needs no memory.

A request of one conversation (or, without one, of one request id) is always on the same side. A shadow request is a request like
any other: it carries the same label and key and is screened anew; this module only says that there is one.
"""

from __future__ import annotations

import hashlib

import msgspec

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


def assign(trials: tuple[Trial, ...], unit: str) -> tuple[Trial | None, tuple[Trial, ...]]:
    """The one A/B trial that answers a unit (the first it is in), and the shadow trials that look at it."""
    answering = next((trial for trial in trials if not trial.shadow and is_in(trial, unit)), None)
    return answering, tuple(trial for trial in trials if trial.shadow and is_in(trial, unit))
