"""In which zone a node stands, from its Ray labels. What cannot be told for sure is unknown, and unknown is nowhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from router.residency.guard import Place

UNKNOWN_ZONE = "?"
"""No configuration can declare a zone of this name: a `Vocabulary` turns it into `UNKNOWN`, which no label admits."""


def zone_of(labels: Mapping[str, str] | None, zone_label: str, declared: Collection[str]) -> str:
    """The zone of a node.

    Args:
        labels: the node's Ray labels.
        zone_label: the key that names the zone (`residency.zone_label`).
        declared: the zones of the configuration.

    Returns:
        A declared zone, or `UNKNOWN_ZONE` when the label is missing, empty or names a zone nobody declared.
    """
    value = (labels or {}).get(zone_label)
    return value if isinstance(value, str) and value in declared else UNKNOWN_ZONE


def why_unknown(labels: Mapping[str, str] | None, zone_label: str, declared: Collection[str]) -> str | None:
    """What to do about a node whose zone is unknown, in words; None when the zone is known."""
    if zone_of(labels, zone_label, declared) != UNKNOWN_ZONE:
        return None
    value = (labels or {}).get(zone_label)
    known = ", ".join(sorted(declared))
    if not value:
        return (
            f"this node has no label `{zone_label}`: no request may be processed here. "
            f"Start it with `ray start --labels={zone_label}=ZONE`, where ZONE is one of: {known}"
        )
    return f"this node's label `{zone_label}={value}` is not one of the zones {known}: no request may be processed here"


def place_of(zone: str, wanted_zone: str, duties: Collection[str]) -> Place:
    """Where an engine stands, in names.

    Args:
        zone: the zone the node really is in (`zone_of`).
        wanted_zone: the zone the configuration meant this engine for.
        duties: the duties the configuration states for engines of that zone; elsewhere nobody has stated them.
    """
    return Place((zone,), (zone,), tuple(sorted(duties)) if zone == wanted_zone else ())
