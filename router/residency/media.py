"""Remote media: a URL in a request makes whoever reads it dial out, and tells the other end that somebody asked.

An engine must never follow one for a request that may not leave, and the label is all the router knows: so under a label that
does not allow every zone, and everywhere where no zone is external, any media reference that is not inline (`data:`) is refused
before a target is chosen.
"""

from __future__ import annotations

from typing import Any

from router.config import LOCAL
from router.policy import Policy
from router.residency.engines_own import refuse_named_media
from router.residency.label import Label
from router.residency.plain import is_plain
from router.wire.errors import ApiError
from router.wire.json_body import is_one_of

_MEDIA = frozenset({"image_url", "audio_url", "video_url", "file_url", "input_audio", "input_image", "image", "audio", "video"})
"""Keys (and types of parts) of OpenAI's, Anthropic's and vLLM's dialects that hold media."""
_WRAPPED = frozenset({"url", "uri", "image_url", "file_url", "data"})
_NOT_MEDIA = frozenset({"tools", "functions", "response_format", "metadata", "tool_choice", "tool_calls", "function_call"})
_TOOL_INPUT = frozenset({"tool_use", "server_tool_use", "function_call", "mcp_tool_use"})
_INPUTS, _NOTHING = frozenset({"input", "arguments"}), frozenset[str]()
_INLINE = frozenset({"input_audio", "audio"})
"""Keys whose `data` is base64 and no URL."""


def remote_media(parsed: dict[str, Any]) -> str | None:
    """Where the first remote media reference of a request stands (a path of keys, no content), or None.

    Everything but a `data:` URL is remote: other schemes, relative and malformed ones too, for parsers differ about them.
    Arguments and schemas of tools are text for the model and are not looked at.
    """
    for name, value in parsed.items():
        if name not in _NOT_MEDIA and isinstance(value, list | dict):
            found = _search(value, name)
            if found is not None:
                return found
    return None


def refuse_media(parsed: dict[str, Any], label: Label, policy: Policy) -> None:
    """Refuse media that bring more than themselves: a name under which an engine keeps them for everybody, or somewhere to dial.

    Args:
        parsed: the request.
        label: the label it has so far.
        policy: the policy that the label was found under.

    Raises:
        ApiError: 400 for a name, 403 `residency_denied` for an address.
    """
    if not is_plain(parsed):
        refuse_named_media(parsed)
        refuse_remote_media(parsed, label, policy)


def refuse_remote_media(parsed: dict[str, Any], label: Label, policy: Policy) -> None:
    """Refuse a request that would make an engine dial out although its label restricts where it may go.

    Raises:
        ApiError: 403 `residency_denied`, with the place of the reference.
    """
    everywhere = policy.vocabulary.everywhere
    if label.process == everywhere and label.store == everywhere and policy.tags[LOCAL].process != everywhere:
        return
    where = remote_media(parsed)
    if where is not None:
        message = (
            "Media must be inline (`data:` URLs): a remote URL would be fetched from outside what this request's label allows."
        )
        raise ApiError(403, "residency_denied", message, param=where)


def _search(value: Any, where: str) -> str | None:
    stack: list[tuple[Any, str]] = [(value, where)]
    while stack:
        item, path = stack.pop()
        if isinstance(item, list):
            stack += [(child, path) for child in item if isinstance(child, list | dict)]
        elif isinstance(item, dict):
            # What a part calls itself does not bind vLLM: one with a `uuid` is read by its media keys, whatever its type.
            inputs = _INPUTS if is_one_of(item.get("type"), _TOOL_INPUT) else _NOTHING
            for key, child in item.items():
                if _is_remote(item, key, child):
                    return f"{path}.{key}"
                if isinstance(child, list | dict) and key not in _NOT_MEDIA and key not in inputs:
                    stack.append((child, f"{path}.{key}" if key.isidentifier() and len(key) <= 40 else path))
    return None


def _is_remote(part: dict[str, Any], key: str, child: Any) -> bool:
    """Whether `part[key]` is, or holds, a media reference that is not inline."""
    if key in _MEDIA:
        if isinstance(child, str):
            return key not in _INLINE and _dials(child)
        if isinstance(child, dict):
            names = _WRAPPED - {"data"} if key in _INLINE else _WRAPPED
            return any(isinstance(child.get(name), str) and _dials(child[name]) for name in names)
        return False
    if key == "source" and isinstance(child, dict):  # Anthropic: {"type": "url", "url": ...}
        return child.get("type") == "url" or (isinstance(child.get("url"), str) and _dials(child["url"]))
    # A part that says it is media may have its address under a plain `url`.
    return key in ("url", "uri") and is_one_of(part.get("type"), _MEDIA) and isinstance(child, str) and _dials(child)


def _dials(text: str) -> bool:
    return not text.startswith("data:")
