"""The effective label of a request: the key's ceiling, met with every tag the request carries. Nothing here widens."""

from __future__ import annotations

import re
from collections.abc import Iterable

from router.policy import KeyGrant, Policy
from router.residency.label import Label
from router.wire.errors import ApiError, invalid_request

HEADER = b"x-tidegate-residency"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MAX_TAGS = 16


def read_tags(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """The tags of all `x-tidegate-residency` headers, in order.

    Raises:
        ApiError: 400 when one is empty or malformed: a tag nobody can read must not be taken for no tag.
    """
    tags: list[str] = []
    for name, value in headers:
        if name == HEADER:
            tags += [_read_tag(part) for part in value.split(b",")]
    if len(tags) > _MAX_TAGS:
        raise invalid_request(f"At most {_MAX_TAGS} residency tags.", param="x-tidegate-residency")
    return tuple(tags)


def _read_tag(part: bytes) -> str:
    text = part.strip().decode("latin-1")
    if not _TAG.match(text):
        raise invalid_request("The residency header cannot be read: give tags as `TAG[,TAG]`.", param="x-tidegate-residency")
    return text


def resolve_label(grant: KeyGrant, tags: Iterable[str], policy: Policy) -> Label:
    """The meet of the key's ceiling and every tag.

    Raises:
        ApiError: 400 for a tag the configuration does not know; 403 `residency_denied` when nothing is left.
    """
    label = grant.ceiling
    for tag in tags:
        known = policy.tags.get(tag)
        if known is None:
            raise invalid_request(f"Unknown residency tag `{tag}`.", param="x-tidegate-residency")
        label = label.meet(known)
    if label.process == 0 or label.store == 0:
        raise ApiError(403, "residency_denied", "No zone satisfies both this key's ceiling and the request's tags.")
    return label
