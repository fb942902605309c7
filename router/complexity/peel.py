"""What of a request is judged: the last thing a person asked, without what an agent or a client wrapped around it.

Coding agents and chat front ends send far more than the question: reminders, file dumps, environment blocks, tool results,
templates. Scored as it stands, every such request looks alike and hard. Peeling is bounded: at most `MAX_TURNS` turns and
`MAX_CHARS` characters of a turn are looked at, whatever the size of the body, and every character a fixed number of times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

MAX_CHARS = 16_000
"""Characters of one turn that are searched for wrappers: half from its beginning, half from its end."""
MAX_TURNS = 64
MAX_SEARCHED = 4 * MAX_CHARS
"""Characters of all turns together after which no earlier turn is looked at: those so far were nothing but wrappers."""
_MAX_PARTS = 64
_LABEL_CHARS = 4000
"""A template's question stands in its last characters."""
_WRAPPERS = (
    "system-reminder",
    "system_reminder",
    "environment_details",
    "environment_context",
    "env",
    "context",
    "user_info",
    "git_status",
    "open_files",
    "open_and_recently_viewed_files",
    "attached_files",
    "attachments",
    "attached_file_contents",
    "additional_data",
    "manually_attached_skills",
    "rules",
    "user_rules",
    "cursor_rules",
    "tool_result",
    "tool_results",
    "function_results",
    "command-message",
    "command-name",
    "local-command-stdout",
    "file_contents",
    "file",
    "document",
    "documents",
    "repo_map",
    "workspace_info",
    "project_layout",
    "reminder",
    "instructions",
    "conversation_history",
    "chat_history",
    "source",
    "sources",
)
_WRAPPER_NAMES = frozenset(_WRAPPERS)
_OPEN = re.compile(r"<([A-Za-z][A-Za-z0-9_-]{1,40})(?:\s[^<>]{0,200})?>")
_ASKED = re.compile(r"<(user_query|user_request|user_message|task|query|question|request|userRequest)>")
_MOST_ASKED = 8000
"""Characters between two tags that are a question; what is longer is a document."""
_LABEL = re.compile(
    r".*\n(?:### Question:|## Question|Question:|User question:|User request:|My request:|Query:|Task:|<query>)", re.S
)
"""The last label of a text; none is the beginning of another."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """`text` is judged; the rest is counted, not read. `chars` is the length of the whole turn, `peeled` what was cut off."""

    text: str
    turns: int = 0
    chars: int = 0
    peeled: int = 0
    system: bool = False


def peel_request(body: dict[str, Any]) -> Asked:
    """The question in a parsed request of any dialect; `text` is "" where there is none.

    Args:
        body: the parsed request; values of the wrong type count nothing.
    """
    turns = body.get("messages")
    given = body.get("prompt", body.get("input", ""))
    system = _is_text(body.get("system")) or _is_text(body.get("instructions"))
    if turns is None and isinstance(given, list) and any(isinstance(turn, dict) and "role" in turn for turn in given[:MAX_TURNS]):
        turns = given  # the `input` of /v1/responses may be a conversation
    if not isinstance(turns, list):
        text = text_of(given)
        asked = peel_text(text)
        return Asked(asked, 1 if text else 0, len(text), max(0, len(text) - len(asked)), system)
    system = system or any(isinstance(turn, dict) and turn.get("role") in ("system", "developer") for turn in turns[:2])
    searched = 0
    for turn in reversed(turns[-MAX_TURNS:]):
        if searched >= MAX_SEARCHED:
            break
        if isinstance(turn, dict) and turn.get("role") == "user":
            text = text_of(turn.get("content"))
            searched += min(len(text), MAX_CHARS)
            asked = peel_text(text)
            if asked:
                return Asked(asked, len(turns), len(text), max(0, len(text) - len(asked)), system)
    return Asked("", len(turns), 0, 0, system)


def peel_text(text: str) -> str:
    """A turn without known wrappers; a turn that is nothing but wrappers gives ""."""
    if len(text) > MAX_CHARS:
        half = MAX_CHARS // 2
        text = text[:half] + "\n" + text[-half:]
    if "<" in text and "</" in text:  # a look for one character is far faster than for two
        if asked := _between_tags(text):
            return asked
        text = _drop_blocks(text)
    if len(text) > 400:
        text = _after_label(text)
    return text.strip()


def _between_tags(text: str) -> str:
    """What stands in the first pair of tags that says it is the question; "" where no pair has a text in it.

    The end of a name's tag is looked for once, not again for each of its beginnings: any text is read in linear time.
    """
    ends: dict[str, int] = {}
    for found in _ASKED.finditer(text):
        if (end := _next_end(text, found, ends)) >= 0:
            asked = text[found.end() : end].strip()
            if 0 < len(asked) <= _MOST_ASKED:
                return asked
    return ""


def _next_end(text: str, found: re.Match[str], ends: dict[str, int]) -> int:
    """Where the closing tag of the one found begins, -1 where there is none. `ends` remembers the last look by name."""
    name, at = found[1], found.end()
    known = ends.get(name, 0)
    if 0 <= known < at:
        known = ends[name] = text.find(f"</{name}>", at)
    return known


def _drop_blocks(text: str) -> str:
    """Cut `<name> ... </name>` for the names above; one that is never closed is kept, for it may be the question itself."""
    kept: list[str] = []
    ends: dict[str, int] = {}
    at = 0
    for found in _OPEN.finditer(text):
        if found.start() < at or found[1] not in _WRAPPER_NAMES:
            continue
        end = _next_end(text, found, ends)
        if end < 0:
            continue
        kept.append(text[at : found.start()])
        at = end + len(found[1]) + 3
    return text[at:] if not kept else "".join(kept) + text[at:]


def _after_label(text: str) -> str:
    """Of a retrieval template (`Context: ... Question: ...`) the question, where it stands at the end."""
    found = _LABEL.match(text, max(0, len(text) - _LABEL_CHARS))
    tail = text[found.end() :].strip() if found is not None else ""
    return tail if len(tail) >= 8 else text


def text_of(content: Any) -> str:
    """The text in a message's content: a string, or the first text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        return ""
    parts = content[:_MAX_PARTS] if len(content) <= _MAX_PARTS else [*content[: _MAX_PARTS // 2], *content[-_MAX_PARTS // 2 :]]
    texts = (part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _is_text(value: Any) -> bool:
    return isinstance(value, str | list) and bool(value)
