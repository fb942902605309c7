"""The texts of a request: everything a person or a tool wrote into it, whatever the endpoint calls the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from router.content_parts import EMBEDDED, MEDIA, is_part_of
from router.wire.json_body import is_one_of

_STRUCTURE = frozenset(
    {
        "model",
        "role",
        "type",
        "stream",
        "stream_options",
        "encoding_format",
        "tool_choice",
        "reasoning_effort",
        "service_tier",
        "truncation",
        "detail",
        "format",
    }
)
"""Fields whose strings the API defines, not the client. A value of theirs that is no short word is read all the same."""
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_TURNS = ("messages", "input", "prompt", "documents", "queries", "texts")
_KEY_WORTH_READING = 6


class Text:
    """One text to scan. `opaque` says that there was more in it than text: a picture, sound, token ids."""

    __slots__ = ("opaque", "text")

    def __init__(self, text: str, opaque: bool = False) -> None:
        self.text = text
        self.opaque = opaque


def texts_of(body: dict[str, Any]) -> Iterator[Text]:
    """The texts of a parsed request: one for each turn, so that a conversation's old turns can be answered from a cache; one for
    all the rest (system prompt, tools, schemas, metadata, user)."""
    rest: list[str] = []
    opaque = False
    for name, value in body.items():
        if name in _TURNS and isinstance(value, list):
            if _are_numbers(value):
                opaque = True
                continue
            for turn in value:
                yield _rendered(turn)
        else:
            opaque = _render(name, value, rest) or (name in EMBEDDED and bool(value)) or opaque
    if rest or opaque:
        yield Text("\n".join(rest), opaque)


def _rendered(value: Any) -> Text:
    lines: list[str] = []
    opaque = _render("", value, lines)
    return Text("\n".join(lines), opaque)


def _render(name: str, value: Any, lines: list[str]) -> bool:
    """Write `value` as lines of `name: text`, so that a field's name is a cue for what stands in it; true if some of it is no text."""
    if isinstance(value, str):
        if name in _STRUCTURE and len(value) <= 40 and value.replace("_", "").replace("-", "").replace(".", "").isalpha():
            return False
        if value.startswith("data:") and ";base64," in value[:100]:
            return True
        lines.append(value if name in ("content", "text", "") else f"{name}: {value}")
        return False
    if isinstance(value, dict):
        return _render_mapping(value, lines)
    if isinstance(value, list):
        if _are_numbers(value):
            return True
        return _render_list(name, value, lines)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) >= 100_000:
        lines.append(f"{name}: {value}")
    return False


def _render_list(name: str, value: list[Any], lines: list[str]) -> bool:
    """Neighbouring parts of one content are one text for the model, so they are one here: a number may be split over them."""
    opaque = False
    together: list[str] = []
    for item in value:
        if isinstance(item, dict) and isinstance(item.get("text"), str) and is_one_of(item.get("type"), _TEXT_PARTS):
            together.append(item["text"])
            item = {key: inner for key, inner in item.items() if key != "text"}
        opaque = _render(name, item, lines) or opaque
    if together:
        lines.append(" ".join(together))
    return opaque


def _render_mapping(value: dict[str, Any], lines: list[str]) -> bool:
    opaque = is_part_of(value, MEDIA)
    for key, item in value.items():
        if len(key) > _KEY_WORTH_READING and any(not (c.isalpha() or c in "_-.") for c in key):
            lines.append(key)
        opaque = _render(key, item, lines) or opaque
    return opaque


def _are_numbers(value: list[Any]) -> bool:
    """Token ids, or numbers that may be anybody's. An engine reads `72.0` and `true` as ids, too."""
    return bool(value) and all(isinstance(item, int | float) for item in value)
