"""A conversation keeps its model: it goes up when it becomes harder, and never flips back and forth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from router.complexity.peel import text_of

_READ_CHARS = 2000


class Pinned(msgspec.Struct, frozen=True, gc=False):
    """Where a conversation stands: the place of its tier, the model it keeps, and the turn it was last seen at."""

    tier: int
    model: str = ""
    turns: int = 0
    seen: float = 0.0


def conversation_key(body: dict[str, Any], key_id: str, secret: bytes) -> str | None:
    """Names a conversation without keeping any of it: a keyed hash of its first two turns and the client's key.

    None for a body that is no conversation, or only its first message (there is nothing yet to keep).
    """
    turns = body.get("messages", body.get("input"))
    if not isinstance(turns, list) or not turns:
        return None
    digest = _keyed(secret).copy()
    digest.update(key_id.encode("utf-8", "surrogatepass") + b"\0")
    found = 0
    for turn in turns[:8]:
        if isinstance(turn, dict) and turn.get("role") in ("system", "developer", "user"):
            text = text_of(turn.get("content"))[:_READ_CHARS]
            digest.update(str(turn["role"]).encode() + b"\0" + text.encode("utf-8", "surrogatepass") + b"\0")
            if turn["role"] == "user":
                found += 1
                break
    return digest.hexdigest() if found else None


@lru_cache(maxsize=4)
def _keyed(secret: bytes) -> hashlib.blake2b:
    """A hash that has read nothing but its key: a router has two of them, and only copies them."""
    return hashlib.blake2b(key=hashlib.sha256(secret).digest(), digest_size=16)


def keep_or_raise(
    before: Pinned | None,
    wanted: int,
    gain: float,
    thresholds: tuple[float, ...],
    model: str,
    turns: int,
    now: float,
    margin: float = 0.02,
    idle_s: float = 3600.0,
) -> tuple[Pinned, str]:
    """The conversation's place after this request, and why.

    Args:
        before: what is remembered, None for a new conversation.
        wanted: the tier this request alone asks for.
        gain: its expected gain.
        thresholds: of the boundaries between tiers.
        model: the model a rule or domain asks for, "" for none.
        turns: messages so far; fewer than before means that the conversation was started anew.
        now: UNIX time in seconds.
        margin: by how much the gain must pass a threshold to raise a conversation: noise does not move it.
        idle_s: a conversation that slept longer is judged anew.
    """
    if before is None or turns < before.turns or now - before.seen > idle_s:
        return Pinned(wanted, model, turns, now), "new conversation"
    if wanted <= before.tier:
        why = "conversation keeps its model"
        return Pinned(before.tier, before.model, turns, now), why
    clear = not thresholds or gain >= thresholds[min(wanted, len(thresholds)) - 1] + margin
    if not clear:
        return Pinned(before.tier, before.model, turns, now), "conversation keeps its model: not clearly harder"
    return Pinned(wanted, model, turns, now), "conversation became harder"


def forget_oldest(pins: dict[str, Pinned], limit: int, drop: Callable[[str], object] | None = None) -> None:
    """Keep at most `limit` conversations; dictionaries are in the order of first sight, so callers re-insert what they touch."""
    while len(pins) > limit:
        oldest = next(iter(pins))
        del pins[oldest]
        if drop is not None:
            drop(oldest)
