"""How many tokens an engine makes of a picture or another part that is no text: learned from its answers' counts, for nobody
can tell from the request. A page that was scanned is a thousand and more, and its prefill a hundred times its text's."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from router.decision import Facts
from router.prompt_size import BYTES_PER_TOKEN, media_parts

_LEAST_WEIGHT = 0.05
"""Of a new observation; the first ones count as much as those before them."""
_MOST, _MOST_SCOPES = 100_000, 4096


class MediaTokens:
    """The mean of late, per part, by tenant and the model asked for; before the first answer a part counts nothing.

    By tenant, because texts of odd characters have four times the tokens they seem to have: beside a picture they would seem its
    own, and one tenant could have the pictures of all others expected to take minutes.
    """

    __slots__ = ("_means",)

    def __init__(self) -> None:
        self._means: dict[tuple[str, str], tuple[float, int]] = {}

    def counted_in(self, facts: Facts, body: dict[str, Any]) -> Facts:
        """The facts with the tokens that the media of a request should have; theirs are of its text.

        Args:
            facts: the request's; its model is a name of the configuration.
            body: the parsed request.
        """
        if not self._means:
            return facts
        parts = media_parts(body)
        mean, _ = self._means.get((facts.key.tenant, facts.model), (0.0, 0))
        return replace(facts, prompt_tokens=facts.prompt_tokens + round(parts * mean)) if parts and mean else facts

    def learn(self, facts: Facts, parts: int, prompt_tokens: int) -> None:
        """An answer came whose prompt with so many media parts had so many tokens by its engine's count."""
        scope = facts.key.tenant, facts.model
        mean, seen = self._means.get(scope, (0.0, 0))
        per_part = min(_MOST, max(0.0, (prompt_tokens - facts.prompt_bytes / BYTES_PER_TOKEN) / parts))
        seen += 1
        if len(self._means) >= _MOST_SCOPES:
            self._means.clear()
        self._means[scope] = mean + max(_LEAST_WEIGHT, 1 / seen) * (per_part - mean), seen
