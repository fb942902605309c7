"""A request's label from everything that has a say, and the pass that states it: what the handler and the proofs share."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from router.policy import KeyGrant, Policy
from router.residency.conversation import NO_CONVERSATION, Conversation
from router.residency.guard import PASS_LIFETIME_S, REDACTED, Pass
from router.residency.inflight import Ticket
from router.residency.label import Label
from router.residency.lineage import LineageBook
from router.residency.resolve import ignored_tags, relaxations_at, resolve_label


class Labelled(msgspec.Struct, frozen=True):
    """A request's effective label under one policy, and who contributed to it (for the receipt)."""

    label: Label
    sources: dict[str, str]


def label_request(
    grant: KeyGrant,
    tags: tuple[str, ...],
    policy: Policy,
    book: LineageBook,
    conversation: Conversation,
    classified: Mapping[str, Label],
    now: float,
) -> Labelled:
    """The effective label of a request, and remember it for the follow-ups of its conversation.

    Args:
        grant: what the key may do under `policy`.
        tags: the tags of its headers.
        policy: the compiled configuration.
        book: what is known of conversations.
        conversation: this request's hashes.
        classified: labels that classification adds, by what it found.
        now: UNIX time in seconds.

    Raises:
        ApiError: 400 for an unknown tag, 403 `residency_denied` when nothing is left.
    """
    inherited = None
    sources = {"key": "+".join(grant.ceiling_tags)}
    if conversation is not NO_CONVERSATION:
        found = book.inherited(conversation, policy)
        inherited = found.label
        if inherited is not None:
            sources["conversation"] = found.source
    label = resolve_label(grant, tags, policy, (inherited, *classified.values()), now)
    if tags:
        sources["header"] = "+".join(tags)
        ignored = ignored_tags(grant, tags, policy, now)
        if ignored:
            sources["widen_ignored"] = "+".join(ignored)
    if classified:
        sources["classification"] = "+".join(classified)
    if grant.relaxed and (relaxations := relaxations_at(grant, now)):
        sources["break_glass"] = "+".join(relaxations)
    book.record(conversation, grant.tenant, label, policy, now)
    return Labelled(label, sources)


def permission_for(
    request_id: str, ticket: Ticket, model: str, incarnation: str, epoch: str, label_text: str, now: float
) -> Pass:
    """The pass for one attempt: the label in names that holds once `model` answers (`Policy.label_for`), and what the guard
    decides again with."""
    tags = "+".join((*ticket.tags, *ticket.grant.bearer_tags))
    known_as = ticket.grant.guard_id + REDACTED if ticket.declassified else ticket.grant.guard_id
    return Pass(request_id, incarnation, epoch, label_text, now + PASS_LIFETIME_S, known_as, tags, model)
