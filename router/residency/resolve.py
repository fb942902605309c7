"""The effective label of a request: the meet of everything that has a say. Nothing here widens.

    label = ceiling(key, tenant) . every tag . conversation . classification        (. is the meet)
    per model: label . tag of the model

The one exception is signed: a break-glass relaxation (`router.residency.break_glass`) replaces the *ceiling* while it lasts;
the tags, the conversation, the classification and the model still take the meet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from router.policy import KeyGrant, Policy
from router.residency.label import Label
from router.wire.errors import ApiError, invalid_request

HEADER = b"x-tidegate-residency"
_OURS = b"x-tidegate-"
_OTHERS = frozenset({b"x-tidegate-mode", b"x-tidegate-priority", b"x-tidegate-subject"})
"""What clients may say besides; who sends another name of ours means something, a zone perhaps, that would not be heeded."""
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MAX_TAGS = 16


def read_tags(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """The tags of all `x-tidegate-residency` headers, in order.

    Raises:
        ApiError: 400 when one is empty or malformed, or where a header begins with `x-tidegate-` that there is not: a tag nobody
            can read must not be taken for no tag.
    """
    tags: list[str] = []
    for name, value in headers:
        if name.startswith(_OURS):
            if name == HEADER:
                tags += [_read_tag(part.strip()) for part in value.split(b",")]
            elif name not in _OTHERS:
                raise _unknown_header(name)
    if len(tags) > _MAX_TAGS:
        raise invalid_request(f"At most {_MAX_TAGS} residency tags.", param="x-tidegate-residency")
    return tuple(tags)


def _unknown_header(name: bytes) -> ApiError:
    known = ", ".join(f"`{one.decode()}`" for one in sorted({HEADER, *_OTHERS}))
    sent = name[:64].decode("latin-1")
    return invalid_request(f"There is no header `{sent}`. A request may have {known}.", param=sent)


@functools.lru_cache(maxsize=1024)
def _read_tag(part: bytes) -> str:
    text = part.decode("latin-1")
    if not _TAG.match(text):
        raise invalid_request("The residency header cannot be read: give tags as `TAG[,TAG]`.", param="x-tidegate-residency")
    return text


def ceiling_at(grant: KeyGrant, now: float) -> Label:
    """The key's ceiling at UNIX time `now`: its own, or what an unexpired signed relaxation makes of it."""
    ceiling = grant.ceiling
    for relaxed in grant.relaxed:
        if relaxed.begins <= now < relaxed.ends:
            ceiling = ceiling.join(relaxed.label)
    return ceiling


def relaxations_at(grant: KeyGrant, now: float) -> tuple[str, ...]:
    """The ids of the relaxations that hold at `now`: every receipt they touch names them."""
    return tuple(relaxed.id for relaxed in grant.relaxed if relaxed.begins <= now < relaxed.ends)


def resolve_label(
    grant: KeyGrant, tags: Iterable[str], policy: Policy, more: Iterable[Label | None] = (), now: float = 0.0
) -> Label:
    """The meet of the key's ceiling, every tag, and what the conversation and the classification add.

    Args:
        grant: the key's grant under `policy`.
        tags: what the request's headers say.
        policy: the compiled configuration.
        more: further labels in this policy's vocabulary; None has no say.
        now: UNIX time in seconds, for signed relaxations (0: none holds).

    Raises:
        ApiError: 400 for a tag the configuration does not know; 403 `residency_denied` when nothing is left.
    """
    label = ceiling_at(grant, now) if grant.relaxed else grant.ceiling
    for tag in tags:
        known = policy.tags.get(tag)
        if known is None:
            raise invalid_request(f"Unknown residency tag `{tag}`.", param="x-tidegate-residency")
        label = label.meet(known)
    for other in more:
        if other is not None:
            label = label.meet(other)
    if label.process == 0:
        raise ApiError(403, "residency_denied", "No zone satisfies both this key's ceiling and the request's tags.")
    return label


def ignored_tags(grant: KeyGrant, tags: Iterable[str], policy: Policy, now: float = 0.0) -> tuple[str, ...]:
    """The tags that are no stricter than the key's ceiling: taken, without effect, and worth a note in the receipt."""
    ceiling = ceiling_at(grant, now)
    return tuple(tag for tag in tags if tag in policy.tags and ceiling.is_within(policy.tags[tag]))
