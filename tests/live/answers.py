"""When two answers to one request are the same: ids and clock times aside, how an engine cuts a stream into events, and the
last digits of what it computes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_NAMED = re.compile(r'"(id|item_id|response_id|call_id|request_id|tool_call_id|tool_use_id)":\s?"([^"]+)"')
_TIMES = re.compile(r'"(created|created_at|completed_at)":\s?\d+(\.\d+)?')
_FINGERPRINT = re.compile(r',"system_fingerprint":"[^"]*"')
_FRACTION = re.compile(r"-?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)")
_GROWING = frozenset({"content", "text", "arguments", "delta", "reasoning", "partial_json"})


def normalise(text: str) -> str:
    """An answer with every generated id as a number in order of appearance and without clock times; nothing else changes.

    One known difference goes too: vLLM names its `system_fingerprint` in the last event of a stream. The router has usage
    counted in every stream, so that is the usage event, which a client that did not ask for usage does not get.
    """
    seen: dict[str, int] = {}
    text = _NAMED.sub(lambda m: f'"{m[1]}":"#{seen.setdefault(m[2], len(seen))}"', text)
    text = _TIMES.sub(r'"\1":0', text)
    return _FINGERPRINT.sub("", text) if text.startswith("data: ") else text


def nearly(one: str, other: str) -> bool:
    """Whether two texts are equal but for the last digits of fractions.

    The items of one request are computed in one batch or in two, as the engine's scheduler happens to find them, and on some
    processors that sums in another order: asked twice, such an engine differs from itself.
    """
    if _FRACTION.sub("~", one) != _FRACTION.sub("~", other):
        return False
    pairs = zip(_FRACTION.findall(one), _FRACTION.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=1e-4, abs_tol=1e-6) for a, b in pairs)


def folded(text: str) -> list[Any]:
    """What a stream says, however it was cut: `normalise`d text, with the events of one choice or part folded into one.

    An engine whose front end is late puts several tokens into one event, and the choices of one stream come in whatever order
    its tasks were woken; neither is the same twice.
    """
    parts: list[Any] = []
    place: dict[int, int] = {}
    last_type = None
    for block in text.split("\n\n"):
        data = "\n".join(line[6:] for line in block.split("\n") if line.startswith("data: "))
        if not data:
            continue
        event = json.loads(data) if data.startswith("{") else data
        kind = event.pop("type", None) if isinstance(event, dict) else None
        if isinstance(event, dict):
            event.pop("sequence_number", None)
        choice = event["choices"][0]["index"] if isinstance(event, dict) and event.get("choices") else None
        if choice is not None and choice in place:
            parts[place[choice]] = _fold(parts[place[choice]], [kind, event])
        elif kind is not None and kind == last_type and kind.endswith("delta"):
            parts[-1] = _fold(parts[-1], [kind, event])
        else:
            if choice is not None:
                place[choice] = len(parts)
            parts.append([kind, event])
        last_type = kind
    return parts if len(place) < 2 else sorted(parts, key=repr)


def _fold(a: Any, b: Any, key: str = "") -> Any:
    if isinstance(a, dict) and isinstance(b, dict):
        return {name: _fold(a.get(name), b.get(name), name) for name in {**a, **b}}
    if isinstance(a, list) and isinstance(b, list):
        if (len(a) == len(b) == 1 and key in ("choices", "tool_calls")) or key == "":
            return [_fold(x, y, "event") for x, y in zip(a, b, strict=True)]
        return a + b
    if isinstance(a, str) and isinstance(b, str) and key in _GROWING:
        return a + b
    return a if b is None else b
