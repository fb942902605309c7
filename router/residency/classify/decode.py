"""One layer of wrapping taken off: base64, percent and `\\u` escapes, character references. What is inside is scanned as text."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterator
from urllib.parse import unquote

import re2

_BASE64 = re2.compile(r"[A-Za-z0-9+/_\-]{16,}={0,2}")
_ESCAPED = re2.compile(
    r"(?:[^\s%\"']{0,64}%[0-9A-Fa-f]{2}){2,}[^\s%\"']{0,64}|(?:[^\s\\\"']{0,16}\\u[0-9A-Fa-f]{4}){2,}[^\s\\\"']{0,64}|(?:[^\s&;\"']{0,16}&(?:#x?[0-9A-Fa-f]{2,8}|nbsp);){2,}[^\s&;\"']{0,64}"
)
_UNICODE = re.compile(r"\\u([0-9A-Fa-f]{4})")
_SAMPLE = 64
_MAX_DECODED = 8192


def decoded_parts(text: str) -> Iterator[tuple[int, int, str]]:
    """Parts of `text` that are another text in disguise: where each stands, and what it says."""
    if "%" in text or "\\u" in text or "&#" in text or "&nbsp;" in text:
        for match in _ESCAPED.finditer(text):
            plain = _UNICODE.sub(lambda m: chr(int(m.group(1), 16)), html.unescape(unquote(match.group(), errors="replace")))
            if plain != match.group():
                yield match.start(), match.end(), plain
    for match in _BASE64.finditer(text):
        inside = _from_base64(match.group())
        if inside:
            yield match.start(), match.end(), inside


def _from_base64(value: str) -> str:
    """The text in `value`, or nothing: hashes, keys and pictures decode too, but not to text."""
    body = value.rstrip("=").replace("-", "+").replace("_", "/")
    if _text(body[:_SAMPLE], partial=True) == "":
        return ""
    return _text(body[:_MAX_DECODED], partial=len(body) > _MAX_DECODED)


def _text(body: str, partial: bool) -> str:
    body = body[: len(body) // 4 * 4] if partial else body + "=" * (-len(body) % 4)
    try:
        raw = base64.b64decode(body, validate=True)
        text = raw.decode("utf-8", "ignore" if partial else "strict")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    printable = sum(character.isprintable() or character in "\n\r\t" for character in text)
    return text if len(text) >= len(raw) * 0.3 and printable >= len(text) * 0.97 and len(text) > 5 else ""
