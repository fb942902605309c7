"""What one router remembers for the choice of tiers: share trackers by tenant, and where conversations stand. No text."""

from __future__ import annotations

import os
from typing import Any

from msgspec.structs import replace

from router.complexity.calibrate import Track
from router.complexity.choose import Asker, Judged, Plan, judge_request, start_track
from router.complexity.feedback import context_of
from router.complexity.learning import Learning
from router.complexity.pin import Pinned, conversation_key, forget_oldest, keep_or_raise

MAX_TENANTS = 4096
MAX_CONVERSATIONS = 50_000


class ComplexityBooks:
    """Held by the router's state; every method is synchronous and cheap.

    Args:
        pin: whether conversations keep their tier.
        margin: see `router.complexity.pin.keep_or_raise`.
    """

    def __init__(self, pin: bool = True, margin: float = 0.02) -> None:
        self._pin = pin
        self._margin = margin
        self._secret = os.urandom(32)
        self._tracks: dict[tuple[str, int], Track] = {}
        self._pins: dict[str, Pinned] = {}
        self.learning: Learning | None = None
        """Set while the operator lets the router learn from feedback."""

    def adopt(self, pin: bool, margin: float, *, tiers_changed: bool) -> None:
        """Go by another configuration's settings; where it has other tiers, no conversation keeps the place of one."""
        self._pin, self._margin = pin, margin
        if not pin or tiers_changed:
            self._pins.clear()

    def __repr__(self) -> str:
        return f"ComplexityBooks(tenants={len(self._tracks)}, conversations={len(self._pins)})"

    def judge(self, body: dict[str, Any], tokens: int, plan: Plan, asker: Asker) -> Judged:
        """Judge a request and remember what follows from it."""
        judged = self.follow(body, tokens, plan, asker)
        if judged.rule or not plan.by_gain:
            return judged
        key = conversation_key(body, asker.key, self._secret) if self._pin else None
        before = None if key is None else self._pins.pop(key, None)
        if self.learning is not None and before is None:
            judged = _drawn(judged, plan, self.learning, asker.tenant)
        if key is None:
            return judged
        turns = body.get("messages", body.get("input"))
        wanted = plan.tiers.index(judged.tier)
        kept, why = keep_or_raise(
            before,
            wanted,
            judged.gain,
            judged.thresholds,
            judged.model,
            len(turns or ()),
            asker.now,
            self._margin,
        )
        self._pins[key] = kept
        forget_oldest(self._pins, MAX_CONVERSATIONS)
        return with_pin(judged, plan, kept, why)

    def follow(self, body: dict[str, Any], tokens: int, plan: Plan, asker: Asker) -> Judged:
        """Judge a request on its own, and remember only that the plan's share has seen it."""
        judged = self.look(body, tokens, plan, asker)
        slot = (asker.tenant, id(plan))
        if slot not in self._tracks and len(self._tracks) >= MAX_TENANTS:
            self._tracks.clear()
        self._tracks[slot] = judged.track
        return judged

    def look(self, body: dict[str, Any], tokens: int, plan: Plan, asker: Asker) -> Judged:
        """Judge a request without remembering anything: what `explain` does."""
        track = self._tracks.get((asker.tenant, id(plan)))
        return judge_request(body, tokens, plan, start_track(plan) if track is None else track, asker)


class ReadOnlyBooks(ComplexityBooks):
    """Looks at a router's books without writing in them: for questions that must change nothing."""

    def __init__(self, books: ComplexityBooks) -> None:
        self._books = books
        self.learning = None

    def __repr__(self) -> str:
        return f"ReadOnlyBooks({self._books!r})"

    def judge(self, body: dict[str, Any], tokens: int, plan: Plan, asker: Asker) -> Judged:
        """As `look`."""
        return self._books.look(body, tokens, plan, asker)


def with_pin(judged: Judged, plan: Plan, kept: Pinned, why: str) -> Judged:
    """The outcome after the conversation had its say."""
    tier = plan.tiers[min(kept.tier, len(plan.tiers) - 1)]
    return replace(judged, tier=tier, model=kept.model, reasons=(*judged.reasons, why))


def _drawn(judged: Judged, plan: Plan, learning: Learning, tenant: str) -> Judged:
    """The outcome after feedback, and chance, had their say."""
    context = context_of(judged.domain, judged.gain)
    drawn = learning.draw(tenant, context, plan.tiers.index(judged.tier), len(plan.tiers))
    why = "drawn by chance, to learn" if drawn.explored else "feedback so far" if plan.tiers[drawn.tier] != judged.tier else ""
    reasons = (*judged.reasons, why) if why else judged.reasons
    return replace(judged, tier=plan.tiers[drawn.tier], reasons=reasons, context=context, propensity=drawn.propensity)
