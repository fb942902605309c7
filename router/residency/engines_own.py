"""What a client must not say to an engine: it would reach another tenant's data, or its place in the queue, or end the engine.

A body goes to the engine as it came, fields that only vLLM knows included. These are the ones that reach what the engine shares
between tenants.
"""

from __future__ import annotations

import json
from typing import Any

from router.wire.errors import invalid_request

_TRANSFERS = frozenset({"kv_transfer_params", "ec_transfer_params"})
_EXTRA, _PRIORITY = "vllm_xargs", "priority"
_TURNS = frozenset({"messages", "input", "query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2"})
"""Where vLLM looks for parts of content, which may be media."""
_MEDIA = frozenset(
    {"image_url", "image_pil", "image_embeds", "audio_url", "input_audio", "audio_embeds", "video_url", "video_embeds"}
)
MOST_ITEMS = 100_000
"""Of `minItems` and `maxItems` of all schemas of one field: llguidance 1.x, which vLLM falls back to, keeps 100 bytes for each,
and with `minItems: 1000000000` the server is killed for its memory."""
_SCHEMAS = ("response_format", "structured_outputs", "text", "output_config", "tools", "functions")
_COUNTS = ("minItems", "maxItems")
_LOOKED_AT = frozenset({*_TRANSFERS, _EXTRA, _PRIORITY, *_SCHEMAS})


def refuse_engines_own(body: dict[str, Any]) -> None:
    """Refuse a request that says what is not a client's to say.

    Args:
        body: the parsed request, or the fields of a form.

    Raises:
        ApiError: 400, with the field.
    """
    if _LOOKED_AT.isdisjoint(body):  # as nearly always
        return
    if not _TRANSFERS.isdisjoint(body) or _EXTRA in body:
        _refuse_transfer(body)
    if body.get(_PRIORITY, 0) not in (0, None):
        raise invalid_request(
            "`priority` is the key's, before the engines and in them: ask for less with `x-tidegate-priority`.", param=_PRIORITY
        )
    for name in _SCHEMAS:
        if name in body and _items_asked(body[name]) > MOST_ITEMS:
            raise invalid_request(f"The schemas in `{name}` ask for more than {MOST_ITEMS} items in all.", param=name)


def refuse_named_media(body: dict[str, Any]) -> None:
    """Refuse media under a name of the client's.

    Args:
        body: the parsed request.

    Raises:
        ApiError: 400.
    """
    if _names_media(body):
        raise invalid_request(
            "Media can have no `uuid`: an engine would give them to whoever names it. Leave it out.", param="uuid"
        )


def _refuse_transfer(body: dict[str, Any]) -> None:
    """Whoever says where keys and values come from reads another request's cache, or has the engine call where they like.

    vLLM reads these fields out of `vllm_xargs` as well, which is JSON text in a form.
    """
    for name in _TRANSFERS:
        if body.get(name) is not None:
            raise invalid_request(f"`{name}` is between engines: a client cannot set it.", param=name)
    extra = body.get(_EXTRA)
    inside = "_transfer_params" in extra or "\\u" in extra if isinstance(extra, str) else False
    if inside or (isinstance(extra, dict) and not _TRANSFERS.isdisjoint(extra)):
        raise invalid_request(f"What is between engines cannot be set in `{_EXTRA}` either.", param=_EXTRA)


def _names_media(body: dict[str, Any]) -> bool:
    """Whether a part of the content is media under a name of the client's (`uuid`). vLLM takes the name for their hash: what one
    tenant sent under it is what everybody gets who names it, with or without media of their own."""
    stack = [value for name, value in body.items() if name in _TURNS and type(value) is not str]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            if item.get("uuid") is not None and not _MEDIA.isdisjoint(item):
                return True
            content = item.get("content")
            if type(content) is not str:
                stack.append(content)
        elif type(item) is list and item and not isinstance(item[0], int | float):  # a million token ids are none
            stack += [child for child in item if type(child) is dict or type(child) is list]
    return False


def _items_asked(value: Any) -> float:
    """How many items the schemas in a field ask for, nested ones and those written as text included."""
    asked = 0.0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for name in _COUNTS:
                count = item.get(name)
                if isinstance(count, int | float):
                    asked += min(abs(count), 1e18)
            stack += item.values()
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, str) and ("Items" in item or "\\u" in item) and item.lstrip()[:1] in ("{", "["):
            try:
                stack.append(json.loads(item))
            except (ValueError, RecursionError):
                continue  # no schema for the engine either
    return asked
