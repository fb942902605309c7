"""Labels and evidence: where bytes may be, and where a target says it is.

A label is three sets, each a bit mask over a `Vocabulary`: the zones that may *process* the bytes, the zones that may
*store* them, and the duties a target must carry. Labels form a lattice: every source of a label (key, header, ...) may
only take the `meet`, which never widens. Evidence is the same shape seen from the target's side: every zone where it
may process, every zone where it may store, and the duties it carries.

Unknown is not "anywhere": bit 0 of every zone mask is reserved for *unknown*, and no label ever contains it, so a target
whose zone is unknown is admitted by no label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

UNKNOWN = 1
"""The zone bit of a place nobody has vouched for. No label contains it."""


class Label(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What may be done with the bytes of a request; masks over one `Vocabulary`."""

    process: int
    store: int
    duties: int = 0

    def meet(self, other: Label) -> Label:
        """The widest label that is at least as strict as both."""
        return Label(self.process & other.process, self.store & other.store, self.duties | other.duties)

    def join(self, other: Label) -> Label:
        """The strictest label that is at least as wide as both; only a signed relaxation may ask for it."""
        return Label(self.process | other.process, self.store | other.store, self.duties & other.duties)

    def is_within(self, other: Label) -> bool:
        """True when this label is as strict as `other`, or stricter."""
        return self.process & ~other.process == 0 and self.store & ~other.store == 0 and other.duties & ~self.duties == 0


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """What is known of a target; `expires` is a UNIX time in seconds after which it counts for nothing."""

    process: int
    store: int
    duties: int = 0
    expires: float = math.inf


def admits(label: Label, evidence: Evidence, now: float) -> bool:
    """True when `label` lets bytes go to a target with this `evidence` at UNIX time `now`.

    Subset, never overlap: *every* zone the target may use must be allowed, and an empty evidence admits nothing.
    """
    return (
        evidence.process != 0
        and evidence.process & ~label.process == 0
        and evidence.store & ~label.store == 0
        and label.duties & ~evidence.duties == 0
        and now < evidence.expires
    )


class Vocabulary(msgspec.Struct, frozen=True):
    """The names a configuration uses for zones and duties, and their bits (zones start at bit 1, duties at bit 0)."""

    zones: tuple[str, ...]
    duties: tuple[str, ...] = ()

    @property
    def everywhere(self) -> int:
        """All zones: zones take the bits from 1 on."""
        return (2 << len(self.zones)) - 2

    def zone_mask(self, names: Iterable[str]) -> int:
        """Bit mask of zone names; a name outside the vocabulary becomes `UNKNOWN`."""
        mask = 0
        for name in names:
            mask |= 1 << (self.zones.index(name) + 1) if name in self.zones else UNKNOWN
        return mask

    def duty_mask(self, names: Iterable[str]) -> int:
        """Bit mask of duty names.

        Raises:
            ValueError: a name is not in the vocabulary (a duty nobody knows cannot be carried).
        """
        mask = 0
        for name in names:
            mask |= 1 << self.duties.index(name)
        return mask

    def zone_names(self, mask: int) -> tuple[str, ...]:
        """Names behind a zone mask; the unknown bit reads `?`."""
        names = tuple([zone for bit, zone in enumerate(self.zones, start=1) if mask >> bit & 1])
        return (*names, "?") if mask & UNKNOWN else names

    def duty_names(self, mask: int) -> tuple[str, ...]:
        """Names behind a duty mask."""
        return tuple([duty for bit, duty in enumerate(self.duties) if mask >> bit & 1])


def translate_label(label: Label, old: Vocabulary, new: Vocabulary) -> Label:
    """The same label in another vocabulary, or a stricter one: it travels by name, because the same bit may mean another zone.

    A zone the new vocabulary lacks is lost. A duty it lacks can be carried by nobody, so nothing may process the bytes.
    """
    duties = old.duty_names(label.duties)
    if not set(duties) <= set(new.duties):
        return Label(0, 0, 0)
    process = new.zone_mask(zone for zone in old.zone_names(label.process) if zone in new.zones)
    store = new.zone_mask(zone for zone in old.zone_names(label.store) if zone in new.zones)
    return Label(process, store, new.duty_mask(duties))


def translate_evidence(evidence: Evidence, old: Vocabulary, new: Vocabulary) -> Evidence:
    """The same evidence in another vocabulary: a zone it lacks becomes unknown, a duty it lacks is not carried."""
    duties = [duty for duty in old.duty_names(evidence.duties) if duty in new.duties]
    process, store = old.zone_names(evidence.process), old.zone_names(evidence.store)
    return Evidence(new.zone_mask(process), new.zone_mask(store), new.duty_mask(duties), evidence.expires)
