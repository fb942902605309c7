"""A chat request, freed of OpenAI's spelling: what every other provider's request is built from.

Only fields named here reach a provider. What a provider cannot do and the answer would show (several choices, log probabilities)
is refused; what only nudges the sampling (`seed`, penalties) is left out where the provider has no such thing.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import msgspec

from router.wire.errors import ApiError, invalid_request

_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_MAX_PARTS = 20_000


class Text(msgspec.Struct, frozen=True):
    """A piece of text."""

    text: str


class Media(msgspec.Struct, frozen=True):
    """A picture or a document, in base64."""

    mime: str
    data: str


class Call(msgspec.Struct, frozen=True):
    """A call of a tool, made by the model."""

    id: str
    name: str
    arguments: dict[str, Any]


class Result(msgspec.Struct, frozen=True):
    """What a tool said; `name` is that of the tool."""

    id: str
    name: str
    text: str


Part = Text | Media | Call | Result


class Turn(msgspec.Struct, frozen=True):
    """What one side said; two turns of the same side never follow each other."""

    role: str
    parts: tuple[Part, ...]


class Tool(msgspec.Struct, frozen=True):
    """A tool the model may call; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


class Chat(msgspec.Struct, frozen=True):
    """The request. `choice` is `auto`, `none`, `required`, or `=NAME` for one tool; `schema` asks for JSON of that shape."""

    model: str
    system: str
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    parallel: bool = True
    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    schema: dict[str, Any] | None = None
    json_only: bool = False
    stream: bool = False
    wants_usage: bool = False
    user: str = ""


def read_chat(body: dict[str, Any]) -> Chat:
    """The chat in a body of OpenAI's shape.

    Raises:
        ApiError: 400 for what no other provider can do, or what cannot be read. It names fields, never what they hold.
    """
    for name in ("logprobs", "top_logprobs"):
        if body.get(name):
            raise invalid_request(f"`{name}` is not offered by this target.", param=name)
    if body.get("n") not in (None, 1):
        raise invalid_request("This target gives one choice: `n` must be 1.", param="n")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid_request("`messages` must be a list with at least one message.", param="messages")
    system, turns = _read_messages(messages)
    schema, json_only = _read_format(body.get("response_format"))
    options = body.get("stream_options")
    choice, tools = _read_choice(body.get("tool_choice")), _read_tools(body.get("tools"))
    return Chat(
        model=str(body.get("model", "")),
        system=system,
        turns=turns,
        tools=tools,
        choice=choice,
        parallel=body.get("parallel_tool_calls") is not False,
        max_tokens=_count(body.get("max_completion_tokens")) or _count(body.get("max_tokens")),
        temperature=_number(body.get("temperature"), "temperature"),
        top_p=_number(body.get("top_p"), "top_p"),
        stop=_read_stop(body.get("stop")),
        seed=body["seed"] if isinstance(body.get("seed"), int) else None,
        schema=schema,
        json_only=json_only,
        stream=body.get("stream") is True,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
        user=body["user"] if isinstance(body.get("user"), str) else "",
    )


def _read_messages(messages: list[Any]) -> tuple[str, tuple[Turn, ...]]:
    system: list[str] = []
    turns: list[tuple[str, list[Part]]] = []
    names: dict[str, str] = {}
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise invalid_request(f"`{where}` must be an object.", param="messages")
        role = message.get("role")
        if role in ("system", "developer"):
            system.append(_plain(message.get("content"), where))
            continue
        if role == "tool":
            call_id = str(message.get("tool_call_id", ""))
            parts: list[Part] = [Result(call_id, names.get(call_id, ""), _plain(message.get("content"), where))]
        elif role in ("user", "assistant"):
            parts = _read_parts(message.get("content"), where)
            for call in _read_calls(message.get("tool_calls"), where):
                names[call.id] = call.name
                parts.append(call)
        else:
            raise invalid_request(f"`{where}.role` must be system, developer, user, assistant or tool.", param="messages")
        side = "assistant" if role == "assistant" else "user"
        if turns and turns[-1][0] == side:
            turns[-1][1].extend(parts)
        else:
            turns.append((side, parts))
    kept = tuple(Turn(side, tuple(parts)) for side, parts in turns if parts)
    if sum(len(turn.parts) for turn in kept) > _MAX_PARTS:
        raise invalid_request("There are too many messages.", param="messages")
    return "\n\n".join(text for text in system if text), kept


def _plain(content: Any, where: str) -> str:
    parts = _read_parts(content, where)
    if any(not isinstance(part, Text) for part in parts):
        raise invalid_request(f"`{where}.content` may hold only text here.", param="messages")
    return "\n".join(part.text for part in parts if isinstance(part, Text))


def _read_parts(content: Any, where: str) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)] if content else []
    if not isinstance(content, list):
        raise invalid_request(f"`{where}.content` must be a string or a list of parts.", param="messages")
    return [_read_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]


def _read_part(part: Any, where: str) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return Text(part["refusal"])
    if kind == "image_url":
        inner = part.get("image_url")
        return _read_data_url(inner.get("url") if isinstance(inner, dict) else inner, where)
    if kind == "file" and isinstance(part.get("file"), dict):
        return _read_data_url(part["file"].get("file_data"), where)
    raise invalid_request(f"`{where}` is of a type this target does not take.", param="messages")


def _read_data_url(url: Any, where: str) -> Media:
    """Only what is inside the request: an address in a prompt would make the provider, or us, fetch it."""
    match = _DATA_URL.match(url[:128]) if isinstance(url, str) else None
    if match is None:
        raise invalid_request(f"`{where}`: give pictures and files as base64 data URLs; nothing is fetched.", param="messages")
    data = url[match.end() :]
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_request(f"`{where}` is not base64.", param="messages") from None
    return Media(match.group(1).lower(), data)


def _read_calls(calls: Any, where: str) -> list[Call]:
    read = []
    for i, call in enumerate(calls if isinstance(calls, list) else []):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid_request(f"`{where}.tool_calls[{i}]` must be a call of a function.", param="messages")
        arguments = read_arguments(function.get("arguments"))
        if arguments is None:
            raise invalid_request(f"`{where}.tool_calls[{i}].function.arguments` is not a JSON object.", param="messages")
        read.append(Call(str(call.get("id", "")), function["name"], arguments))
    return read


def read_arguments(text: Any) -> dict[str, Any] | None:
    """The arguments of a call as an object; nothing at all is an empty one, what is no object is None."""
    if text in (None, ""):
        return {}
    try:
        value = msgspec.json.decode(text) if isinstance(text, str) else text
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


def _read_tools(tools: Any) -> tuple[Tool, ...]:
    read = []
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid_request(f"`tools[{i}]` must be a function.", param="tools")
        parameters = function.get("parameters")
        read.append(
            Tool(
                function["name"],
                str(function.get("description") or ""),
                parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}},
            )
        )
    return tuple(read)


def _read_choice(choice: Any) -> str:
    if choice is None:
        return "auto"
    if choice in ("auto", "none", "required"):
        return str(choice)
    function = choice.get("function") if isinstance(choice, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return f"={function['name']}"
    raise invalid_request("`tool_choice` is auto, none, required, or names a function.", param="tool_choice")


def _read_format(given: Any) -> tuple[dict[str, Any] | None, bool]:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "json_schema":
        inner = given.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise invalid_request("`response_format.json_schema.schema` is missing.", param="response_format")
        return schema, True
    return None, kind == "json_object"


def _read_stop(stop: Any) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    return tuple(item for item in stop if isinstance(item, str)) if isinstance(stop, list) else ()


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(400, "invalid_request", f"`{name}` must be a number.", param=name)
    return float(value)
