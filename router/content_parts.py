"""The parts of a turn that are no text, in the dialects of all endpoints."""

from __future__ import annotations

from typing import Any

IMAGES = frozenset({"image_url", "input_image", "image", "image_pil", "image_embeds"})
EMBEDDED = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds"})
"""A prompt, or a part of one, as the numbers that a model makes of it."""
MEDIA = frozenset(
    IMAGES | EMBEDDED | {"input_audio", "audio_url", "audio", "video_url", "video", "input_file", "file", "document"}
)
"""What a part says its type is, and the keys it may have its picture, sound, film or file under."""


def is_part_of(part: dict[str, Any], names: frozenset[str]) -> bool:
    """Whether a part is of one of these types; vLLM tells parts that name none by their keys.

    Args:
        part: as the client sent it; its type may be anything.
        names: `MEDIA`, or some of it.
    """
    kind = part.get("type")
    return (type(kind) is str and kind in names) or not names.isdisjoint(part)
