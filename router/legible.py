"""Text that comes from somewhere else, made safe to show: a terminal obeys what stands in a name as readily as what we print."""

from __future__ import annotations

import re

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and line feed, marks that turn the direction of what follows, and halves of a character."""


def legible(text: str) -> str:
    """The text with every character that a terminal obeys, or that cannot be written, as its `\\uXXXX`: valid JSON stays that."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def shortened(text: str, most: int) -> str:
    """The text, or its first `most` characters and how many more there are."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most} more characters)"
