"""A request's prompt as the engine will see it, as text: the model's own chat template, rendered in a sandbox, tokenised nowhere.

The steps are those of vLLM 0.32 (`renderers/chat_utils.py`) and of `transformers`' `apply_chat_template`; where this page and the
engine disagree, the engine's events say so within seconds (`PrefixIndex.tend`), and the replica is DEGRADED.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec

from router.placement.chunks import namespace
from router.placement.kv_messages import TextProfile
from router.placement.targets import Endpoint

_OWN_HEADER = "x-anthropic-billing-header"
"""A line Claude Code puts before its system prompt, different each time; vLLM drops it."""
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
_RESERVED = frozenset({"chat_template", "tokenize", "messages", "tools", "return_dict"})


class PromptText(msgspec.Struct, frozen=True, gc=False):
    """A prompt: its text in UTF-8, and the namespace of its hashes (adapter and salt). Nobody keeps it: it is hashed at once."""

    text: bytes
    space: bytes


class NoText(Exception):
    """The request's prompt cannot be told as text here. Says why; it never quotes the request."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks an assistant's tokens for training; for a prompt it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        """Keep what is inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up: sandboxed, immutable, with its own `tojson`, `raise_exception` and `strftime_now`."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class PromptRenderer:
    """Renders requests for engines of one profile. Templates are compiled once, here.

    Args:
        profile: what the engine's agent told.
    """

    def __init__(self, profile: TextProfile) -> None:
        self._profile = profile
        environment = template_environment()
        self._templates: dict[str, Callable[..., str]] = {}
        for name, source in profile.templates.items():
            try:
                self._templates[name] = environment.from_string(source).render
            except jinja2.TemplateError:
                continue
        self._developer = any("'developer'" in t or '"developer"' in t for t in profile.templates.values())

    def render(self, endpoint: str, body: dict[str, Any], lora: str = "") -> PromptText:
        """The prompt of one request.

        Args:
            endpoint: one of `Endpoint`.
            body: the parsed request; it is not changed.
            lora: name of the LoRA adapter the request is for.

        Raises:
            NoText: an endpoint, a field or a content (images, audio) whose text is not known here, or a template that refuses.
        """
        if endpoint == Endpoint.CHAT:
            text = self._chat(body)
        elif endpoint == Endpoint.COMPLETIONS:
            text = self._completion(body)
        else:
            raise NoText("this endpoint renders in the engine only")
        if self._profile.compose == "NFC" and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        salt = body.get("cache_salt")
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise NoText("the text is not valid Unicode") from None
        special = body.get("add_special_tokens")
        if special is True or (special is not False and endpoint == Endpoint.COMPLETIONS):
            data = self._profile.completion_prefix + data
        return PromptText(data, namespace(lora, salt if isinstance(salt, str) else ""))

    def _completion(self, body: dict[str, Any]) -> str:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str) or body.get("prompt_embeds") is not None:
            raise NoText("the prompt is not one text")
        return prompt

    def _chat(self, body: dict[str, Any]) -> str:
        messages, tools = body.get("messages"), body.get("tools")
        if not isinstance(messages, list) or not self._templates or body.get("chat_template") is not None:
            raise NoText("there is no template for this request")
        if not tools or (body.get("tool_choice") == "none" and self._profile.hide_tools_when_none):
            tools = None
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise NoText("there is no template for this request")
        arguments = self._arguments(body)
        continued = arguments.pop("continue_final_message", False)
        conversation = self._conversation(messages)
        if continued:
            raise NoText("continued messages are rendered in the engine only")
        try:
            return template(
                **{**self._profile.special_tokens, **arguments},
                messages=conversation,
                tools=[_tool(tool) for tool in tools] if tools else None,
            )
        except Exception as error:  # a template can fail in any way, and the engine will say so itself
            raise NoText(f"the template refuses ({type(error).__name__})") from None

    def _arguments(self, body: dict[str, Any]) -> dict[str, Any]:
        given = body.get("chat_template_kwargs")
        given = given if isinstance(given, dict) else {}
        effort = body.get("reasoning_effort")
        found = {**self._profile.template_arguments, **given}
        if effort is not None:
            found["reasoning_effort"] = effort
            if "enable_thinking" not in given:
                found["enable_thinking"] = effort != "none"
        for name, default in (("add_generation_prompt", True), ("continue_final_message", False)):
            found[name] = bool(body.get(name, default))
        found["documents"] = body.get("documents")
        return {name: value for name, value in found.items() if name not in _RESERVED}

    def _conversation(self, messages: list[Any]) -> list[dict[str, Any]]:
        parts = self._profile.content_format == "openai"
        conversation = [_message(message, parts) for message in messages]
        if not self._developer and any(message["role"] == "developer" for message in conversation):
            return _developer_as_system(conversation)
        return conversation


def _message(message: Any, as_parts: bool) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str):
        raise NoText("a message has no role")
    result: dict[str, Any] = {"role": role, "content": _content(role, message.get("content"), as_parts)}
    if role == "assistant":
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            result["tool_calls"] = [_tool_call(call) for call in calls]
        reasoning = message.get("reasoning")
        if isinstance(reasoning, str):
            result["reasoning"] = result["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    elif role == "developer":
        result["tools"] = message.get("tools")
    if isinstance(message.get("name"), str):
        result["name"] = message["name"]
    return result


def _content(role: str, content: Any, as_parts: bool) -> Any:
    if isinstance(content, str) and not as_parts and not content.startswith(_OWN_HEADER):
        return content  # the usual case
    given = [] if content is None else [content] if isinstance(content, str) else content
    if not isinstance(given, list):
        raise NoText("a message's content is neither text nor parts")
    texts = [_part(part) for part in given]
    if role == "system":
        texts = [text.partition("\n")[2] if text.startswith(_OWN_HEADER) else text for text in texts]
        texts = [text for text, before in zip(texts, given, strict=True) if text or _part(before) == ""]
    if as_parts and role != "tool":
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        field = _TEXT_PARTS.get(str(part.get("type", "text")))
        text = part.get(field) if field else None
        if isinstance(text, str):
            return text
    raise NoText("a message holds more than text")


def _tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise NoText("a tool call is no function call")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except (ValueError, RecursionError):
            arguments = {}
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


def _tool(tool: Any) -> dict[str, Any]:
    """A tool as the engine's model of a request writes it out: fields in its order, absent ones as null."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        raise NoText("a tool is no function")
    told: dict[str, Any] = {name: function.get(name) for name in ("name", "description", "parameters")}
    told |= {name: function[name] for name in ("strict", "defer_loading") if function.get(name) is not None}
    deferred = tool.get("defer_loading")
    if deferred is None:
        return {"type": tool.get("type", "function"), "function": told}
    return {
        "type": tool.get("type", "function"),
        "function": {**told, "defer_loading": told.get("defer_loading", deferred)},
        "defer_loading": deferred,
    }


def _developer_as_system(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates without a developer role: as system messages, and all of those as one, first."""
    systems, others = [], []
    for message in conversation:
        if message["role"] in ("system", "developer"):
            content = message["content"]
            text = "\n".join(part["text"] for part in content) if isinstance(content, list) else content
            systems.append((message, text))
        else:
            others.append(message)
    if len(systems) == 1 and conversation[0] is systems[0][0]:
        only = {name: value for name, value in systems[0][0].items() if name != "tools"}
        return [{**only, "role": "system"}, *others]
    return [{"role": "system", "content": "\n\n".join(text for _, text in systems if text)}, *others]


@functools.lru_cache(maxsize=64)
def renderer_of(profile_json: bytes) -> PromptRenderer:
    """The renderer of a profile (as JSON); replicas of one model share it."""
    return PromptRenderer(msgspec.json.decode(profile_json, type=TextProfile))
