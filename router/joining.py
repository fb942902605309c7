"""When and where a broken stream goes on: the seam between the hot path and `router.wire.continuation`.

Another attempt is a request like any other: `decide` chooses its target with the same label and without those that failed, it
has a pass of its own, and it counts against the retry budget and the deadline. Only targets with the same weights stand for
choice, because token ids are what is handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from router.decision import Choice, Facts
from router.ledger.receipts import Receipt
from router.placement.targets import Endpoint, Target
from router.wire.continuation import MAX_JOINS, answer_limit, continuation_body, is_continuable, same_weights
from router.wire.trail import Trail


class Join(msgspec.Struct, frozen=True):
    """One continuation. `again`: no text had been sent, so the client's own request goes out once more; `count`: how many
    there have been with this one."""

    facts: Facts
    again: bool
    count: int
    path: str
    parsed: dict[str, Any]
    trail: Trail

    def body(self, model: str, context_tokens: int) -> bytes:
        """The request, for a target that knows the model by this name."""
        return continuation_body(self.path, self.parsed, self.trail, model, context_tokens)


def trail_for(facts: Facts, path: str, parsed: dict[str, Any], target: Target) -> Trail | None:
    """A fresh trail where the stream of this request at this target could be carried on."""
    if not target.token_ids or not facts.key.continuation or not is_continuable(path, parsed, facts.prompt_bytes):
        return None
    return Trail()


def next_join(
    path: str,
    parsed: dict[str, Any],
    facts: Facts,
    trail: Trail,
    last: Join | None,
    failed: Choice,
    members: Sequence[Target],
) -> Join | None:
    """How the broken stream may go on, or None where it cannot exactly.

    Args:
        path: the endpoint the client asked.
        parsed: its request.
        facts: those of the attempt that broke.
        trail: what has been sent.
        last: the continuation that broke, None for the first attempt.
        failed: the choice that broke.
        members: the targets there are.
    """
    count = 1 if last is None else last.count + 1
    if count > MAX_JOINS or not trail.can_join or trail.finished:
        return None
    again = not trail.spoke
    if not again:
        left = answer_limit(path, parsed, trail, failed.target.context_tokens)
        if left is None or left <= 0:
            return None
    unfit = {member.incarnation for member in members if not same_weights(failed.target, member, failed.model)}
    facts = replace(
        facts,
        endpoint=path if again else Endpoint.COMPLETIONS,
        model=failed.model,
        excluded=facts.excluded | unfit,
        prompt_tokens=len(trail.prompt) + len(trail.answer) or facts.prompt_tokens,
    )
    return Join(facts, again, count, path, parsed, trail)


def count_usage(receipt: Receipt, trail: Trail) -> None:
    """The usage of a stream that was cancelled, cut or carried on: what the client was sent, counted token by token."""
    if trail.prompt:
        receipt.prompt_tokens, receipt.completion_tokens = len(trail.prompt), len(trail.answer)
        receipt.cached_tokens = min(receipt.cached_tokens, receipt.prompt_tokens)
