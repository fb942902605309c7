"""The one way a label relaxes: the payload changes. A key may allow its requests to go further once their values are taken out.

The redacted request has a label of its own: the key's ceiling for redacted requests, met with every tag of the request and with
what its conversation carried. The request as it came keeps its label, and never leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any

import msgspec

from router.placement.targets import Endpoint
from router.policy import KeyGrant
from router.residency.classify.rule import Verdict
from router.residency.classify.scan import Scanner
from router.residency.label import Label
from router.residency.redact import NotRedactable, Redaction, redact_gently

ENDPOINTS = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
"""Where answers can be restored."""


class Declassified(msgspec.Struct, frozen=True):
    """A redacted request: what is sent, under which label, and how its answer is restored. Its values are never printed."""

    body: dict[str, Any]
    label: Label
    redaction: Redaction

    def __repr__(self) -> str:
        return f"Declassified({self.redaction!r})"


def redacted_label(ceiling: Label, others: Iterable[Label]) -> Label:
    """The label of a redacted request.

    Args:
        ceiling: the key's ceiling for redacted requests.
        others: the labels of the request's tags and of its conversation.
    """
    return reduce(Label.meet, others, ceiling)


async def declassify(
    body: dict[str, Any], endpoint: str, grant: KeyGrant, verdict: Verdict, others: Iterable[Label], scanner: Scanner
) -> Declassified | None:
    """The redacted request; None where the key does not allow it, where something could not be judged, or would be left.

    Args:
        body: the parsed request.
        endpoint: one of `Endpoint`.
        grant: what the key may do.
        verdict: what classification found.
        others: the labels of the request's tags and of its conversation, which hold for the redacted request too.
        scanner: finds what is to be taken out.
    """
    if grant.redacted is None or not verdict.kinds or verdict.unknown or endpoint not in ENDPOINTS:
        return None
    label = redacted_label(grant.redacted, others)
    if label.process == 0 or label.store == 0 or label.is_within(verdict.label):
        return None
    try:
        cleaned, redaction = await redact_gently(body, scanner)
    except NotRedactable:
        return None
    return Declassified(cleaned, label, redaction)
