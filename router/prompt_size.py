"""How much text a request brings, for every endpoint: the one measure that load prediction and limits start from."""

from __future__ import annotations

from typing import Any

from router.content_parts import MEDIA, is_part_of
from router.placement.targets import Endpoint

BYTES_PER_TOKEN = 4
"""A usual ratio for English text; only an estimate, the engine counts."""
_RECORDING_BYTES_PER_TOKEN = 160
"""Sound of 128 kbit/s, at the 100 tokens a second that vLLM counts of Whisper's."""
_ANTHROPIC = frozenset({Endpoint.MESSAGES, Endpoint.COUNT_TOKENS})
_PAIRS = ("query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2")
"""Where rerank and score requests have their texts; each is a string, an object with text, or a list of these."""


def prompt_bytes(endpoint: str, body: dict[str, Any]) -> int:
    """UTF-8 bytes of a request's prompt; a token id counts as `BYTES_PER_TOKEN`. Images and audio count nothing.

    Args:
        endpoint: one of `Endpoint`.
        body: the parsed request; values of the wrong type count nothing, the engine refuses them.
    """
    messages = body.get("messages")
    if isinstance(messages, list):
        # `system` stands beside the messages in Anthropic's dialect only.
        system = body.get("system") if endpoint in _ANTHROPIC else None
        return _turns(messages) + (0 if system is None else _text(system))
    if endpoint == Endpoint.RESPONSES:
        given = body.get("input")
        return _text(body.get("instructions")) + (_turns(given) if isinstance(given, list) else _text(given))
    if endpoint in (Endpoint.RERANK, Endpoint.SCORE):
        return sum(_pair_side(body.get(name)) for name in _PAIRS)
    return _prompt(body.get("prompt", body.get("input", body.get("tokens"))))


def media_parts(body: dict[str, Any]) -> int:
    """How many images, recordings, films or files the turns of a request have; `prompt_bytes` counts nothing of them."""
    turns = body.get("messages", body.get("input"))
    found = 0
    for turn in turns if type(turns) is list else ():
        if type(turn) is dict:
            content = turn.get("content", turn.get("output"))
            if type(content) is list:
                # In Anthropic's dialect a tool's result is a part that has parts.
                found += sum(is_part_of(part, MEDIA) or _media_in(part.get("content")) for part in content if type(part) is dict)
    return found


def _media_in(parts: Any) -> int:
    return sum(type(part) is dict and is_part_of(part, MEDIA) for part in parts) if type(parts) is list else 0


def asks_one_answer(body: dict[str, Any]) -> bool:
    """Whether one answer to one prompt is wanted, so that its tokens came one after the other."""
    prompt = body.get("prompt")
    many = type(prompt) is list and len(prompt) > 1 and type(prompt[0]) is not int
    return not many and body.get("n", 1) in (1, None) and body.get("best_of", 1) in (1, None)


def recording_tokens(size: int) -> int:
    """What a recording of so many bytes may count, where nobody says how long it is; a codec or a plain one is four times off."""
    return size // _RECORDING_BYTES_PER_TOKEN


def _turns(turns: list[Any]) -> int:
    """A conversation; a tool's result in the dialect of `/v1/responses` stands in `output`."""
    size = 0
    for turn in turns:
        if isinstance(turn, dict):
            size += _text(turn["content"] if "content" in turn else turn.get("output"))
    return size


def _text(content: Any) -> int:
    text = content if type(content) is str else _content_text(content)
    # `isascii` is a flag of the string, so the usual prompt is not encoded. A lone surrogate is legal JSON.
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _content_text(content: Any) -> str:
    """The text in a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in content)
    return "\n".join(text for text in texts if isinstance(text, str))


def _prompt(prompt: Any) -> int:
    """A string, strings, token ids, or lists of token ids."""
    if not isinstance(prompt, list) or not prompt:
        return _text(prompt)
    if isinstance(prompt[0], int):
        return len(prompt) * BYTES_PER_TOKEN
    if isinstance(prompt[0], list):
        return sum(len(ids) for ids in prompt if isinstance(ids, list)) * BYTES_PER_TOKEN
    return _text(prompt)


def _pair_side(side: Any) -> int:
    if isinstance(side, dict):
        return _text(side.get("text", side.get("content")))
    if isinstance(side, list):
        return sum(_pair_side(item) if isinstance(item, dict) else _text(item) for item in side)
    return _text(side)
