"""Carrying a broken stream on at another replica of the same model, exactly: what was sent is known token by token.

An engine that can is asked for the ids of its tokens (`return_token_ids`, vLLM); they are taken out again before a client sees
the events. When the stream breaks, the tokens of the prompt and of the answer so far become the prompt of a `/v1/completions`
request to another replica. Text would not do: a chat template trims it, and it can be cut into other tokens than the model had
chosen. Where exactness cannot be had, there is no continuation, and the stream ends in an error event as before:

- a request with a field that is not in the lists below, or with a value of it that ties tokens to more than their past
  (tools, guided decoding, several choices, logprobs, stop strings, penalties on the answer, a seed with sampling);
- a stream with anything but plain content in it (reasoning, tool calls, several choices), or without token ids.

Two cases need no ids: nothing but the role was sent (the request itself is sent again), and everything but the end was sent
(the end is written here). Tokens that brought no text at the cut, such as half a character, are generated anew.
Everything here is pure: bytes and parsed requests in, bytes out.
"""

from __future__ import annotations

from typing import Any

from router.placement.targets import Endpoint, Target
from router.wire.json_body import encode_object
from router.wire.trail import Trail

MAX_PROMPT_BYTES = 128 * 1024
"""No ids are asked for a longer prompt: its event would not fit `MAX_EVENT_BYTES` in the worst case of a token per byte."""
MAX_JOINS = 8
"""How often one stream may be carried on."""
_COPIED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "allowed_token_ids",
    "logit_bias",
    "priority",
    "user",
    "session_id",
    "cache_salt",
    "seed",
)
"""Fields that mean the same for the rest of an answer as for all of it. `repetition_penalty` counts the prompt's tokens too."""
_SHAPES_ONLY_THE_PROMPT = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "chat_template_kwargs",
        "reasoning_effort",
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
        "documents",
        "metadata",
        "store",
        "service_tier",
        "parallel_tool_calls",
        "safety_identifier",
        "prompt_cache_key",
    }
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "stop": ([], ""),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "use_beam_search": (False,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "suffix": ("",),
}
"""Fields that are harmless with these values (or null): as if they were not there."""


def is_continuable(path: str, parsed: dict[str, Any], prompt_bytes: int) -> bool:
    """Whether a stream for this request could be carried on exactly, so that it is worth asking for token ids."""
    if path not in (Endpoint.CHAT, Endpoint.COMPLETIONS) or parsed.get("stream") is not True or prompt_bytes > MAX_PROMPT_BYTES:
        return False
    for name, value in parsed.items():
        if name in _SHAPES_ONLY_THE_PROMPT or name in _COPIED or value is None:
            continue
        if not any(value is neutral or (type(value) is type(neutral) and value == neutral) for neutral in _neutral(name)):
            return False
    if parsed.get("seed") is not None and parsed.get("temperature") != 0:
        return False
    options = parsed.get("stream_options")
    if isinstance(options, dict) and options.get("continuous_usage_stats"):
        return False
    if path == Endpoint.COMPLETIONS:
        return _is_one_prompt(parsed.get("prompt"))
    return _is_text_only(parsed.get("messages"))


def _neutral(name: str) -> tuple[Any, ...]:
    values = _NEUTRAL.get(name, ())
    return (*values, 0.0) if values == (0,) else values


def _is_one_prompt(prompt: Any) -> bool:
    return isinstance(prompt, str) or (isinstance(prompt, list) and bool(prompt) and all(type(item) is int for item in prompt))


def _is_text_only(messages: Any) -> bool:
    """An image's place in the prompt is tokens that stand for nothing without it."""
    if not isinstance(messages, list):
        return False
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else 0
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                return False
        elif not isinstance(content, str | None):
            return False
    return True


def ask_for_token_ids(body: bytes) -> bytes:
    """`body`, a JSON object that has no `return_token_ids`, with it."""
    start = body.index(b"{") + 1
    return body[:start] + b'"return_token_ids":true,' + body[start:]


def same_weights(one: Target, other: Target, model: str) -> bool:
    """Whether a token id means the same at both: the same model of the configuration, or the same name at two servers."""
    return other.token_ids and one.kind is other.kind and model in other.models and one.models.get(model) == other.models[model]


def continuation_body(path: str, parsed: dict[str, Any], trail: Trail, model: str, context_tokens: int) -> bytes:
    """The `/v1/completions` request whose answer is the rest of the broken one.

    Args:
        path: the endpoint the client asked.
        parsed: its request.
        trail: what it has of the answer; `answer_limit` must have found room for more.
        model: the name the next target knows the model by.
        context_tokens: the context length there, 0 when unknown.
    """
    body: dict[str, Any] = {name: parsed[name] for name in _COPIED if parsed.get(name) is not None}
    minimum = parsed.get("min_tokens")
    if isinstance(minimum, int) and minimum > len(trail.answer):
        body["min_tokens"] = minimum - len(trail.answer)
    body |= {
        "model": model,
        "prompt": [*trail.prompt, *trail.answer],
        "max_tokens": answer_limit(path, parsed, trail, context_tokens),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    return encode_object(body)


def answer_limit(path: str, parsed: dict[str, Any], trail: Trail, context_tokens: int) -> int | None:
    """How many tokens the rest of the answer may have, as vLLM bounds the whole; None when that cannot be known here.

    A completion without a bound has 16, a chat answer what the context leaves, wherefore `context_tokens` must not be 0.
    """
    given = parsed.get("max_completion_tokens") if path == Endpoint.CHAT else None
    given = parsed.get("max_tokens") if given is None else given
    if given is None and path == Endpoint.COMPLETIONS and "max_tokens" not in parsed:
        given = 16
    room = context_tokens - len(trail.prompt) if context_tokens else None
    if given is None:
        whole = room
    elif type(given) is not int:
        whole = None
    else:
        whole = given if room is None else min(given, room)
    return None if whole is None else whole - len(trail.answer)
